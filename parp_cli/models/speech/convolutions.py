"""The convolutional front end of one utterance on a CPU, in blocks, as matrix products.

With frames in rows, what is under the kernel at each of its steps is a row of a matrix, and a convolution is this
matrix times the kernels. The group norm after the first one is built into its kernels, because its statistics follow
from moments of the waveform; so that GELU comes at once, inside the product. A block stays in the cache on its way
through all layers, where the first one's output for 20 s is 131 MB.

S samples, T frames, C channels, K length of a kernel.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from parp_cli.models.speech.config import Architecture, frames
from parp_cli.models.speech.linear import linear
from parp_cli.models.speech.moments import Moments, field_samples, frame_samples, moments_of
from parp_cli.models.speech.waveform import EPSILON

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import CountingNorm, SpeechNetwork

_BLOCK_FRAMES = 100
"""Computed together: 2 s, for which the widest layer puts out 13 MB."""


def features_by_blocks(model: "SpeechNetwork", architecture: Architecture, waveform: Tensor) -> Tensor:
    """Front-end features (T, C) of one utterance's waveform (S,) at 16 kHz, without gradients."""
    compute = FrontEnd(model, architecture, moments_of(architecture, waveform))
    step, total = frame_samples(architecture), frames(architecture, len(waveform))
    beyond = field_samples(architecture) - step
    starts = range(0, total, _BLOCK_FRAMES)
    return torch.cat([compute(waveform[first * step : (first + _BLOCK_FRAMES) * step + beyond]) for first in starts])


@dataclass(frozen=True)
class _Layer:
    """A convolution and what comes after it, before GELU.

    Attributes:
        weight: (C, K · channels before), those of one time step together.
        norm: None where there is none, or it is built into the weight.
    """

    weight: Tensor
    bias: Tensor | None
    kernel: int
    stride: int
    norm: "CountingNorm | None"

    def __call__(self, values: Tensor) -> Tensor:
        """(T, C) of (frames before, channels before)."""
        windows = values.unfold(0, self.kernel, self.stride).transpose(1, 2)  # (T, K, channels before)
        rows = windows.reshape(len(windows), -1)
        if self.norm is None:
            return linear(rows, self.weight, self.bias, then_gelu=True)
        return gelu(self.norm.normalized(linear(rows, self.weight, self.bias)))


class FrontEnd:
    """The front end of any part of a waveform whose moments are known, without gradients.

    Args:
        model: its weights are taken as they are now.
        architecture: of the model.
        moments: of the whole waveform.
    """

    @torch.no_grad()
    def __init__(self, model: "SpeechNetwork", architecture: Architecture, moments: Moments) -> None:
        blocks = model.feature_extractor.conv_layers
        self._shift, self._scale = 0.0, 1.0
        if architecture.normalize_waveform:
            self._shift, self._scale = moments.mean, 1 / math.sqrt(moments.variance + EPSILON)
        elif isinstance(blocks[0].layer_norm, nn.GroupNorm):
            self._shift = moments.mean  # which the norm would take away, but not the digits that it costs
        self._layers = [self._prepared(block, moments) for block in blocks]

    @torch.no_grad()
    def __call__(self, part: Tensor) -> Tensor:
        """(T, C) of samples (S,)."""
        values = ((part - self._shift) * self._scale)[:, None]
        for layer in self._layers:
            values = layer(values)
        return values

    def _prepared(self, block: Any, moments: Moments) -> _Layer:
        conv, norm = block.conv, block.layer_norm
        weight, bias = conv.weight, conv.bias
        if isinstance(norm, nn.GroupNorm):
            (weight, bias), norm = self._with_norm(weight, norm, moments), None
        return _Layer(torch.stack(weight.unbind(2), 1).flatten(1), bias, conv.kernel_size[0], conv.stride[0], norm)

    def _with_norm(self, kernels: Tensor, norm: nn.GroupNorm, moments: Moments) -> tuple[Tensor, Tensor]:
        """Kernels (C, 1, K) and bias (C,) that have the group norm of their output, one group per channel, built in."""
        weight = kernels.double().cpu()[:, 0]
        mean = weight @ ((moments.window_mean - self._shift) * self._scale)
        covariance = moments.window_covariance * self._scale**2
        variance = ((weight @ covariance) * weight).sum(1).clamp(min=0.0)
        gain = norm.weight.double().cpu() / (variance + norm.eps).sqrt()
        # The convolution's own bias is in its mean too, so that it has no effect.
        bias = norm.bias.double().cpu() - mean * gain
        return (weight * gain[:, None])[:, None].to(kernels), bias.to(kernels)
