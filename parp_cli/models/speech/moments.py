"""What the convolutional front end needs to know of a whole waveform to compute any part of it.

A frame depends on the 25 ms of audio under it, and on the whole utterance by two things alone: the mean and variance
that the waveform is normalised by, and the statistics of the group norm after the first convolution, where there are
any. Both follow from moments of the waveform.

S samples, K samples under the first convolution's kernel.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from parp_cli.models.speech.config import Architecture


@dataclass(frozen=True)
class Moments:
    """Of a whole waveform, in float64.

    Attributes:
        mean, variance: of the samples.
        window_mean: (K,) of what the first convolution sees.
        window_covariance: (K, K).
    """

    mean: float
    variance: float
    window_mean: Tensor
    window_covariance: Tensor


def moments_of(architecture: Architecture, waveform: Tensor) -> Moments:
    """The moments of a waveform (S,) with a frame or more."""
    _, kernel, stride = architecture.conv_layers[0]
    values = waveform.double()
    windows = values.unfold(0, kernel, stride)
    mean = windows.mean(0)
    covariance = windows.T @ windows / len(windows) - torch.outer(mean, mean)
    return Moments(float(values.mean()), float(values.var(correction=0)), mean, covariance)


def frame_samples(architecture: Architecture) -> int:
    """Samples from one frame to the next."""
    return math.prod(stride for _, _, stride in architecture.conv_layers)


def field_samples(architecture: Architecture) -> int:
    """Samples under one frame."""
    field, step = 1, 1
    for _, kernel, stride in architecture.conv_layers:
        field += (kernel - 1) * step
        step *= stride
    return field
