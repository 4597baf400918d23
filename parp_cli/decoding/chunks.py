"""Logits of recordings of any length, in overlapping chunks: of each only the middle is kept, with context around it.

Each chunk is computed like an utterance of its own, so a recording that fits into one chunk is computed as
`logits.logits_of` does. Memory holds some batches' features, whatever the length.

S samples, T frames, C feature channels, V tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from parp_cli.data.audio import SAMPLE_RATE
from parp_cli.data.batching import sorted_batches
from parp_cli.decoding.logits import check_finite
from parp_cli.errors import DataError
from parp_cli.models.speech.config import Architecture
from parp_cli.models.speech.forward import encode, front_end, pad
from parp_cli.models.speech.moments import field_samples, frame_samples

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import SpeechNetwork

_MAX_SECONDS = 1e9  # of a chunk: longer than any recording

_BATCHES_AHEAD = 4
"""Batches of chunks that are gathered before the first is computed, so that those of similar length go together."""


@dataclass(frozen=True)
class Chunking:
    """How recordings are cut: seconds of a chunk (infinite: not at all), and of context at each end, which is not kept.

    Raises `ValueError`: nothing of a chunk would be kept.
    """

    seconds: float = 45.0
    context: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= 2 * self.context < self.seconds:
            raise ValueError(f"chunks of {self.seconds} s with {self.context} s of context at both ends keep nothing")


@dataclass(frozen=True)
class Piece:
    """Logits (T, V), on the CPU, of consecutive frames of the recording with this number; its pieces come in order.

    Where there is an error, the recording cannot be read (any further), and there are no logits.
    """

    recording: int
    logits: Tensor
    last: bool
    error: DataError | None = None


@dataclass(frozen=True)
class _Chunk:
    """Features (T, C), and which of their frames are kept."""

    recording: int
    features: Tensor
    keep: slice
    last: bool


def logits_in_chunks(
    model: "SpeechNetwork",
    architecture: Architecture,
    recordings: Iterable[Iterable[Tensor]],
    *,
    chunking: Chunking,
    batch_seconds: float,
    encoder: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[Piece]:
    """Logits of recordings in their order, piece by piece, chunks of several recordings batched together.

    Args:
        model: in evaluation mode, with a CTC head.
        recordings: waveforms at 16 kHz in blocks (S,), read as they are needed; a `DataError` ends one of them.
        batch_seconds: padded audio in one forward pass of the Transformer. Does not change transcripts.
        encoder: as in `logits.logits_of`.

    Raises `CheckpointError`: the model produced non-finite logits.
    """
    encoder = encoder or partial(encode, model)
    frame = frame_samples(architecture)
    batch_frames = batch_seconds * SAMPLE_RATE / frame
    step = max(1, round(min(chunking.seconds - 2 * chunking.context, _MAX_SECONDS) * SAMPLE_RATE / frame))
    context = round(chunking.context * SAMPLE_RATE / frame)

    def chunks(number: int, blocks: Iterable[Tensor]) -> Iterator[_Chunk | Piece]:
        try:
            for waveform, keep, last in overlapping(blocks, frame, field_samples(architecture), step, context):
                with torch.inference_mode():
                    features = front_end(model, architecture, waveform)
                yield _Chunk(number, features, keep, last)
        except DataError as error:
            yield Piece(number, torch.zeros(0, 0), True, error)

    pool: list[_Chunk | Piece] = []
    for number, blocks in enumerate(recordings):
        for item in chunks(number, blocks):
            pool.append(item)
            if sum(len(each.features) for each in pool if isinstance(each, _Chunk)) >= _BATCHES_AHEAD * batch_frames:
                yield from _encoded(encoder, pool, batch_frames)
                pool = []
    yield from _encoded(encoder, pool, batch_frames)


def overlapping(
    blocks: Iterable[Tensor], frame: int, field: int, step: int, context: int
) -> Iterator[tuple[Tensor, slice, bool]]:
    """Cut a waveform in blocks (S,) into chunks of `step` kept frames with `context` frames around them.

    At both ends of the recording, where there is no context, more is kept, so that no chunk is longer than
    `step + 2 × context`. The kept frames together are those of the recording.

    Args:
        frame, field: samples from one frame to the next, and samples under one frame.

    Yields samples, which of their frames are kept, and whether they are the last.
    Raises `DataError`: the waveform is too short for a frame.
    """
    size = (step + 2 * context - 1) * frame + field
    pending, begin = [torch.zeros(0)], 0
    for block in blocks:
        pending.append(block)
        while sum(map(len, pending)) >= size + frame:
            waveform = torch.cat(pending)
            yield waveform[:size], slice(begin, step + context), False
            pending, begin = [waveform[step * frame :]], context
    waveform = torch.cat(pending)
    if len(waveform) < field:
        length = f"{1000 * len(waveform) / SAMPLE_RATE:.0f} ms of audio are too short for the model"
        raise DataError("too short", details=[length], hint="leave it out")
    yield waveform, slice(begin, None), True


@torch.inference_mode()
def _encoded(
    encoder: Callable[[Tensor, Tensor], Tensor], pool: Sequence[_Chunk | Piece], batch_frames: float
) -> list[Piece]:
    """Of each chunk the kept logits, in the order of the pool."""
    pieces = {place: item for place, item in enumerate(pool) if isinstance(item, Piece)}
    chunks = [(place, item) for place, item in enumerate(pool) if isinstance(item, _Chunk)]
    for batch in sorted_batches([len(chunk.features) for _, chunk in chunks], batch_frames):
        features, lengths = pad([chunks[index][1].features for index in batch])
        logits = encoder(features, lengths).float().cpu()
        check_finite(logits, [""] * len(batch))
        for row, length, index in zip(logits, lengths.tolist(), batch, strict=True):
            place, chunk = chunks[index]
            pieces[place] = Piece(chunk.recording, row[:length][chunk.keep].clone(), chunk.last)
    return [pieces[place] for place in range(len(pool))]
