"""Sound of any length, a block at a time: what `audio.read_audio` reads at once.

S samples.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parp_cli.data.audio import (
    SAMPLE_RATE,
    UNKNOWN_FRAMES,
    can_resample,
    clipped_samples,
    is_cut_short,
    opened,
    resample,
    unreadable,
)

_BLOCK_SECONDS = 10

# Of torchaudio's resampling: zero crossings of its filter on each side, and its cut-off relative to the lower rate.
_ZERO_CROSSINGS, _ROLLOFF = 6, 0.99


@dataclass(kw_only=True)
class SoundReport:
    """What was seen of a sound file while its blocks were read; whole once they are at their end.

    Attributes:
        rate: Hz of the file.
        channels: how many.
        samples: of each channel, at the file's own rate.
        lowest, highest: sample, the channels averaged; full scale is 1.
        clipped: samples of all channels that are in a flattened peak.
    """

    rate: int = 0
    channels: int = 0
    samples: int = 0
    lowest: float = math.inf
    highest: float = -math.inf
    clipped: int = 0

    @property
    def seconds(self) -> float:
        """Length of what was read."""
        return self.samples / self.rate if self.rate else 0.0

    @property
    def silent(self) -> bool:
        """Whether all samples are the same."""
        return self.lowest >= self.highest

    @property
    def swing(self) -> float:
        """Between the lowest sample and the highest; at most 2 at full scale."""
        return max(0.0, self.highest - self.lowest)

    @property
    def clipped_share(self) -> float:
        """Of all samples."""
        return self.clipped / max(1, self.samples * self.channels)

    def add(self, block: NDArray[np.float32], mono: NDArray[np.float32]) -> None:
        """Take in the next samples (S, channels), and their average (S,)."""
        self.samples += len(block)
        self.lowest = min(self.lowest, float(mono.min()))
        self.highest = max(self.highest, float(mono.max()))
        self.clipped += clipped_samples(block)


def waveform_blocks(path: Path, report: SoundReport | None = None) -> Iterator[Tensor]:
    """The waveform of a sound file, in consecutive blocks (S,), float32 at `SAMPLE_RATE`, the channels averaged.

    Together they are what `audio.read_audio` returns, to rounding: there are no seams.

    Args:
        path: of a WAV, FLAC, OGG or MP3 file, of any length.
        report: is filled in on the way.

    Raises:
        DataError: as `audio.read_audio`; that a file is cut short, or broken in the middle, only when it comes to it.
    """
    report = report or SoundReport()
    blocks = _mono_blocks(path, report)
    first = next(blocks)
    rate = report.rate
    if not can_resample(rate):
        raise unreadable(path, f"{rate:,} Hz have no simple ratio to {SAMPLE_RATE:,} Hz")
    if rate == SAMPLE_RATE:
        yield first
        yield from blocks
    else:
        yield from _resampled(first, blocks, rate)


def _mono_blocks(path: Path, report: SoundReport) -> Iterator[Tensor]:
    """Samples (S,) at the file's own rate; at least one block."""
    with opened(path) as file:
        declared = int(file.frames)
        if declared > UNKNOWN_FRAMES:  # libsndfile cannot read such a file in blocks
            raise unreadable(path, "its header does not give its length")
        report.rate, report.channels = int(file.samplerate), int(file.channels)
        while len(block := file.read(_BLOCK_SECONDS * report.rate, dtype="float32", always_2d=True)):
            finite = np.isfinite(block).all(axis=1)
            if not finite.all():
                seconds = (report.samples + int(finite.argmin())) / report.rate
                raise unreadable(path, f"a sample at {seconds:.3f} s is not a finite number")
            mono = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1)
            report.add(block, mono)
            yield torch.from_numpy(np.ascontiguousarray(mono))
        if is_cut_short(path, file, declared=declared, read=report.samples):
            raise unreadable(path, f"it is cut short: {report.seconds:.2f} s are left")
    if report.samples == 0:
        raise unreadable(path, "it holds no samples")


def _resampled(first: Tensor, blocks: Iterator[Tensor], rate: int) -> Iterator[Tensor]:
    """Blocks (S,) of `rate` Hz at `SAMPLE_RATE`.

    Every `group` samples become `made`, by a filter that reaches some samples further on both sides: so each block is
    resampled with `context` samples around it, which are whole groups, and what came of those is dropped.
    """
    common = math.gcd(rate, SAMPLE_RATE)
    group, made = rate // common, SAMPLE_RATE // common
    reach = math.ceil(_ZERO_CROSSINGS * group / (_ROLLOFF * min(group, made)))
    context = (math.ceil(reach / group) + 1) * group
    pending, left = first, 0  # samples not yet done with, and how many of them are context
    while True:
        whole = (len(pending) - left - context) // group * group
        if whole > 0:
            done = left + whole
            yield resample(pending[: done + context], rate)[left // group * made : done // group * made]
            left = min(context, done)
            pending = pending[done - left :]
        block = next(blocks, None)
        if block is None:
            break
        pending = torch.cat([pending, block])
    yield resample(pending, rate)[left // group * made :]
