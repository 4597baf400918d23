"""Logits of recordings of any length, in chunks that overlap and are joined where both neighbours know the context.

The feature encoder computes each frame once, as if it had the whole recording (`models.speech.slices`). The Transformer
sees chunks of its frames, of which only the middle is kept: so every kept frame has context on both sides. A recording
that fits into one chunk is computed as `logits.logits_of` does. Memory holds some batches' features, whatever the
length.

T frames, C feature channels, V tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from parp_cli.data.audio import SAMPLE_RATE, AudioInfo, waveform_blocks
from parp_cli.data.batching import sorted_batches
from parp_cli.errors import CheckpointError, DataError
from parp_cli.models.speech.config import Architecture
from parp_cli.models.speech.forward import encode, pad
from parp_cli.models.speech.moments import MomentCounter, Moments, frame_samples
from parp_cli.models.speech.slices import feature_slices

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import SpeechNetwork

_SLICE_SECONDS = 5.0
"""Of the feature encoder's input: the first layer of base takes 6.5 MB per second."""

_MAX_SECONDS = 1e9
"""Of a chunk: longer than any recording."""

_BATCHES_AHEAD = 4
"""Batches of chunks that are gathered before the first is computed, so that those of similar length go together."""


@dataclass(frozen=True)
class Chunking:
    """How recordings are cut.

    Attributes:
        seconds: of a chunk; infinite for recordings as a whole.
        context: seconds at each end of a chunk whose logits are not kept.

    Raises:
        ValueError: nothing of a chunk would be kept.
    """

    seconds: float = 45.0
    context: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= 2 * self.context < self.seconds:
            raise ValueError(f"chunks of {self.seconds} s with {self.context} s of context at both ends keep nothing")


@dataclass(frozen=True)
class Recording:
    """An audio file that was read once.

    Attributes:
        path: of the file.
        moments: of its waveform.
        info: what was found in it.
    """

    path: Path
    moments: Moments
    info: AudioInfo


@dataclass(frozen=True)
class Piece:
    """Logits of consecutive frames of a recording; the pieces of one come in order.

    Attributes:
        recording: its number.
        logits: (T, V), on the CPU.
        last: whether the recording ends with them.
        error: why there are none, and no more to come: the file can no longer be read.
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


def measure(path: Path, architecture: Architecture) -> Recording:
    """Read an audio file to its end.

    Raises:
        DataError: it cannot be read.
    """
    info, counter = AudioInfo(), MomentCounter(architecture)
    for block in waveform_blocks(path, info):
        counter.add(block)
    return Recording(path, counter.moments, info)


def logits_in_chunks(
    model: "SpeechNetwork",
    architecture: Architecture,
    recordings: Iterable[Recording],
    *,
    chunking: Chunking,
    batch_seconds: float,
    encoder: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Iterator[Piece]:
    """Logits of recordings, piece by piece, chunks of several recordings batched together.

    Args:
        model: in evaluation mode, with a CTC head.
        recordings: are asked for as they are needed.
        batch_seconds: padded audio in one forward pass of the Transformer. Does not change transcripts.
        encoder: as in `logits.logits_of`.

    Raises:
        CheckpointError: the model's output is not finite.
    """
    encoder = encoder or partial(encode, model)
    frame_seconds = frame_samples(architecture) / SAMPLE_RATE
    step = max(1, round(min(chunking.seconds - 2 * chunking.context, _MAX_SECONDS) / frame_seconds))
    context = round(chunking.context / frame_seconds)
    pool: list[_Chunk | Piece] = []
    waiting = 0.0
    for number, recording in enumerate(recordings):
        for item in _chunks(model, architecture, number, recording, step, context):
            pool.append(item)
            waiting += len(item.features) * frame_seconds if isinstance(item, _Chunk) else 0.0
            if waiting >= _BATCHES_AHEAD * batch_seconds:
                yield from _encoded(encoder, pool, batch_seconds / frame_seconds)
                pool, waiting = [], 0.0
    yield from _encoded(encoder, pool, batch_seconds / frame_seconds)


def _chunks(
    model: "SpeechNetwork", architecture: Architecture, number: int, recording: Recording, step: int, context: int
) -> Iterator[_Chunk | Piece]:
    blocks = waveform_blocks(recording.path)
    slices = feature_slices(model, architecture, blocks, recording.moments, seconds=_SLICE_SECONDS)
    try:
        for features, keep, last in overlapping(slices, step, context):
            yield _Chunk(number, features, keep, last)
    except DataError as error:
        yield Piece(number, torch.zeros(0, 0), True, error)


def overlapping(slices: Iterable[Tensor], step: int, context: int) -> Iterator[tuple[Tensor, slice, bool]]:
    """Cut consecutive slices (T_i, C) into chunks of `step` kept frames with `context` frames around them.

    At both ends of the recording, where there is no context, more is kept, so that no chunk is longer than
    `step + 2 × context`.

    Yields:
        Frames, which of them are kept, and whether they are the last. The kept ones together are the recording.
    """
    size = step + 2 * context
    pending: list[Tensor] = []
    begin = 0  # of what is kept, in the pending frames
    for item in slices:
        pending.append(item)
        while sum(map(len, pending)) > size:
            frames = torch.cat(pending)
            end = size - context
            yield frames[:size].clone(), slice(begin, end), False
            pending, begin = [frames[end - context :].clone()], context
    if pending:
        frames = torch.cat(pending)
        yield frames, slice(begin, len(frames)), True


@torch.inference_mode()
def _encoded(
    encoder: Callable[[Tensor, Tensor], Tensor], pool: Sequence[_Chunk | Piece], batch_frames: float
) -> list[Piece]:
    """Of each chunk the kept logits, in the order of the pool."""
    pieces = {index: item for index, item in enumerate(pool) if isinstance(item, Piece)}
    chunks = [(index, item) for index, item in enumerate(pool) if isinstance(item, _Chunk)]
    for batch in sorted_batches([len(chunk.features) for _, chunk in chunks], batch_frames):
        logits = encoder(*pad([chunks[index][1].features for index in batch])).float().cpu()
        for row, index in zip(logits, batch, strict=True):
            place, chunk = chunks[index]
            kept = row[chunk.keep].clone()
            if not bool(torch.isfinite(kept).all()):
                raise CheckpointError(
                    "the model produced non-finite logits",
                    hint="its training diverged: lower training.learning_rate, or set training.gradient_clip",
                )
            pieces[place] = Piece(chunk.recording, kept, chunk.last)
    return [pieces[index] for index in range(len(pool))]
