"""The convolutional front end over sound of any length, a slice at a time, as if it had the whole at once.

A frame depends on the 25 ms of sound under it, and on the whole utterance by two things alone: the mean and variance
that the waveform is normalised by, and the statistics of the group norm after the first convolution, where there are
any. Both follow from moments of the waveform, which a first reading counts. So each frame is computed once, and equals
that of the undivided pass to rounding.

S samples, T frames, C channels, K samples under the first convolution's kernel.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, gelu

from parp_cli.models.architectures import Architecture, frames
from parp_cli.models.waveform import EPSILON

if TYPE_CHECKING:
    from torchaudio.models import Wav2Vec2Model


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


def feature_slices(
    model: "Wav2Vec2Model", architecture: Architecture, blocks: Iterable[Tensor], moments: Moments, *, seconds: float
) -> Iterator[Tensor]:
    """Front-end features (T, C) in consecutive slices, on the model's device.

    Args:
        blocks: the waveform (S,) at 16 kHz, in pieces of any length.
        moments: of the same waveform.
        seconds: of one slice: what decides on the memory.
    """
    step = frame_samples(architecture)
    count = max(1, round(seconds * 16_000 / step))
    needed = (count - 1) * step + _field_samples(architecture)
    device = next(model.parameters()).device
    compute = _FrontEnd(model, architecture, moments)
    pending = torch.zeros(0)
    for block in blocks:
        pending = torch.cat([pending, block])
        while len(pending) >= needed:
            yield compute(pending[:needed].to(device))
            pending = pending[count * step :]
    if frames(architecture, len(pending)):
        yield compute(pending.to(device))


def _field_samples(architecture: Architecture) -> int:
    """Samples under one frame."""
    field, step = 1, 1
    for _, kernel, stride in architecture.conv_layers:
        field += (kernel - 1) * step
        step *= stride
    return field


class _FrontEnd:
    """Features (T, C) of a part (S,) of a waveform whose moments are known."""

    def __init__(self, model: "Wav2Vec2Model", architecture: Architecture, moments: Moments) -> None:
        self._layers = model.feature_extractor.conv_layers
        self._shift, self._scale = 0.0, 1.0
        if architecture.normalize_waveform:
            self._shift, self._scale = moments.mean, 1 / math.sqrt(moments.variance + EPSILON)
        first = self._layers[0]
        self._first: tuple[Tensor, Tensor] | None = None
        if isinstance(first.layer_norm, nn.GroupNorm):
            self._first = self._with_norm(first.conv, first.layer_norm, moments)

    def _with_norm(self, conv: nn.Conv1d, norm: nn.GroupNorm, moments: Moments) -> tuple[Tensor, Tensor]:
        """Weight and bias of the first convolution that has its group norm, one group a channel, built in."""
        weight = conv.weight.detach().double().cpu()[:, 0]  # (C, K)
        mean = weight @ ((moments.window_mean - self._shift) * self._scale)
        covariance = moments.window_covariance * self._scale**2
        variance = torch.einsum("ck,kl,cl->c", weight, covariance, weight).clamp(min=0)
        gain = norm.weight.detach().double().cpu() / (variance + norm.eps).sqrt()
        # The convolution's own bias is in its mean too, so that it has no effect.
        bias = norm.bias.detach().double().cpu() - mean * gain
        folded = (weight * gain[:, None])[:, None]
        return folded.to(conv.weight), bias.to(conv.weight)

    @torch.inference_mode()
    def __call__(self, waveform: Tensor) -> Tensor:
        first, *rest = self._layers
        values = ((waveform - self._shift) * self._scale)[None, None]
        if self._first is None:
            values, _ = first(values, None)
        else:
            values = gelu(conv1d(values, *self._first, stride=first.stride))
        for layer in rest:
            values, _ = layer(values, None)
        return values[0].T.contiguous()
