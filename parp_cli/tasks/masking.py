"""SpecAugment on latent features: spans of frames are replaced, spans of channels zeroed (wav2vec 2.0, section 4.3).

B utterances, T frames, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parp_cli.runtime.device import on_device

_MIN_TIME_SPANS = 2


@dataclass(frozen=True, kw_only=True)
class LatentMasking:
    """How much is masked: the expected share of masked frames or channels if no spans overlapped, and their number per
    span."""

    time_probability: float
    time_length: int
    channel_probability: float
    channel_length: int

    def masked(self, features: Tensor, lengths: Sequence[int], embedding: Tensor) -> Tensor:
        """Projected features (B, T, D) with new masks, which torch's global generator of the CPU draws.

        `lengths` are the valid frames of each utterance, and `embedding` (D,) replaces masked frames.
        """
        batch, frames, channels = features.shape
        if self.time_probability > 0:
            hidden = span_mask(lengths, frames, self.time_probability, self.time_length, _MIN_TIME_SPANS)
            hidden = on_device(hidden, features.device)
            features = torch.where(hidden[..., None], embedding.to(features.dtype), features)
        if self.channel_probability > 0:
            hidden = span_mask([channels] * batch, channels, self.channel_probability, self.channel_length, 0)
            features = features.masked_fill(on_device(hidden, features.device)[:, None, :], 0.0)
        return features


def span_mask(sizes: Sequence[int], width: int, probability: float, length: int, minimum: int) -> Tensor:
    """Random spans, which may overlap.

    The number of spans in a row is probability · size / length, rounded up or down at random so that its expectation
    is exact, and at least `minimum` where they fit. Draws from torch's global generator.

    Args:
        sizes: valid entries of each row.
        probability: expected share of entries covered if no spans overlapped.
        length: entries per span.

    Returns:
        (len(sizes), width) boolean, True in a span, False beyond a row's size.
    """
    mask = torch.zeros(len(sizes), width, dtype=torch.bool)
    for row, size in enumerate(sizes):
        span = min(length, size)
        places = size - span + 1
        wanted = max(minimum, int(probability * size / length + torch.rand(()).item()))
        starts = torch.randperm(places)[: min(wanted, places)]
        mask[row, (starts[:, None] + torch.arange(span)).flatten()] = True
        if mask[row, :size].all():  # never hide all of a row
            mask[row, : (size + 1) // 2] = False
    return mask
