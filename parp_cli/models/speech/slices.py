"""The convolutional front end over sound of any length, a slice at a time, as if it had the whole at once.

What a frame owes to the whole utterance follows from moments of the waveform, which a first reading counts. So each
frame is computed once, and equals that of the undivided pass to rounding.

S samples, T frames, C channels.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from parp_cli.models.speech.config import Architecture, frames
from parp_cli.models.speech.convolutions import FrontEnd
from parp_cli.models.speech.moments import Moments, field_samples, frame_samples

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import SpeechNetwork


def feature_slices(
    model: "SpeechNetwork", architecture: Architecture, blocks: Iterable[Tensor], moments: Moments, *, seconds: float
) -> Iterator[Tensor]:
    """Front-end features (T, C) in consecutive slices, on the model's device.

    Args:
        blocks: the waveform (S,) at 16 kHz, in pieces of any length.
        moments: of the same waveform.
        seconds: of one slice: what decides on the memory.
    """
    step = frame_samples(architecture)
    count = max(1, round(seconds * 16_000 / step))
    needed = (count - 1) * step + field_samples(architecture)
    device = next(model.parameters()).device
    compute = FrontEnd(model, architecture, moments)
    pending = torch.zeros(0)
    for block in blocks:
        pending = torch.cat([pending, block])
        while len(pending) >= needed:
            yield compute(pending[:needed].to(device))
            pending = pending[count * step :]
    if frames(architecture, len(pending)):
        yield compute(pending.to(device))
