"""What the convolutional front end needs to know of a whole waveform to compute any part of it.

A frame depends on the 25 ms of sound under it, and on the whole utterance by two things alone: the mean and variance
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
        samples: S.
        mean, variance: of the samples.
        window_mean: (K,) of what the first convolution sees.
        window_covariance: (K, K).
    """

    samples: int
    mean: float
    variance: float
    window_mean: Tensor
    window_covariance: Tensor


class MomentCounter:
    """Counts the moments of a waveform that comes in blocks (S,)."""

    def __init__(self, architecture: Architecture) -> None:
        _, self._kernel, self._stride = architecture.conv_layers[0]
        self._samples, self._windows = 0, 0
        self._sum, self._squares = 0.0, 0.0
        self._window_sum = torch.zeros(self._kernel, dtype=torch.float64)
        self._products = torch.zeros(self._kernel, self._kernel, dtype=torch.float64)
        self._pending = torch.zeros(0, dtype=torch.float64)

    def add(self, block: Tensor) -> None:
        """Take in the next samples."""
        values = block.double()
        self._samples += len(values)
        self._sum += float(values.sum())
        self._squares += float(values.square().sum())
        self._pending = torch.cat([self._pending, values])
        if len(self._pending) < self._kernel:
            return
        windows = self._pending.unfold(0, self._kernel, self._stride)
        self._windows += len(windows)
        self._window_sum += windows.sum(0)
        self._products += windows.T @ windows
        self._pending = self._pending[len(windows) * self._stride :].clone()

    @property
    def moments(self) -> Moments:
        """Of all that was taken in."""
        count, windows = max(1, self._samples), max(1, self._windows)
        mean, window_mean = self._sum / count, self._window_sum / windows
        return Moments(
            samples=self._samples,
            mean=mean,
            variance=max(0.0, self._squares / count - mean * mean),
            window_mean=window_mean,
            window_covariance=self._products / windows - torch.outer(window_mean, window_mean),
        )


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
