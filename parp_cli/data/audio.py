"""Audio files decoded to 16 kHz mono waveforms of S samples, whole or in blocks."""

import math
import os
import re
import shlex
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import soundfile
import torch
import torchaudio
from numpy.typing import NDArray
from torch import Tensor

from parp_cli.data.containers import ogg_is_cut, parts
from parp_cli.errors import DataError
from parp_cli.runtime.device import on_device
from parp_cli.storage.conventions import SAMPLE_RATE as SAMPLE_RATE

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"})
"""Lower-case suffixes of the audio files that a folder is searched for."""

MUCH_CLIPPED = 1e-3
"""Fraction of clipped samples beyond which accuracy suffers."""

# Weights of the resampling filter: 71,000 for 44,100 Hz, and 706 million for 44,101 Hz, which take minutes.
_MAX_FILTER = 20_000_000

# Of torchaudio's resampling: zero crossings of its filter on each side, and its cut-off relative to the lower rate.
_ZERO_CROSSINGS, _ROLLOFF = 6, 0.99

_CLIPPED = 0.999  # of full scale: two equal neighbours of at least this amplitude count as clipped
_BLOCK_SECONDS = 10
_BLOCK_SAMPLES = 1 << 23  # of all channels, whatever rate and channels a damaged header has

# Missing audio is a note up to the larger of the first two, and damage beyond it.
_MISSING_SHARE, _MISSING_SECONDS, _NOTED_SECONDS = 0.05, 0.05, 0.01

# Larger counts of samples mean that the header leaves the length open (FLAC from a pipe, MP3 without a count).
_OPEN_FRAMES = 1 << 40

# What writers that could not seek back put as the size of a WAV's data; everything up to the file's end is meant.
_OPEN_WAV_SIZE = 0x7FFF0000

# Where libsndfile silently takes fewer bytes or samples than declared, only its log has the number.
_LOGGED_BYTES = re.compile(r"^\s*(?:data|SSND|BODY|Data Size|riff)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_LOGGED_FRAMES = re.compile(r"'ds64' chunk of (\d+)")

_MP3_SLACK_SAMPLES = 1152  # one frame: encoder delay and padding may be counted or not
_REENCODE = "replace the file, or re-encode it as 16-bit FLAC"


@dataclass(kw_only=True)
class AudioInfo:
    """What is in an audio file; complete once the file was read to its end."""

    rate: int = 0  # Hz
    channels: int = 0
    samples: int = 0  # of each channel, at the file's own rate
    declared: int = 0  # samples of each channel by the header; 0 where it does not say
    lowest: float = math.inf  # sample, the channels averaged; full scale is 1
    highest: float = -math.inf
    clipped: int = 0  # samples of all channels that are in a flattened peak
    checksum: int = 0  # CRC-32 of the file, where it was inspected

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.samples / self.rate if self.rate else 0.0

    @property
    def resampled(self) -> int:
        """Samples that `read_audio` returns."""
        return -(-self.samples * SAMPLE_RATE // self.rate)

    @property
    def missing_seconds(self) -> float:
        """Declared minus actual length in seconds; negative where there is more than the header says."""
        return (self.declared - self.samples) / self.rate if self.declared else 0.0

    @property
    def differs_from_header(self) -> bool:
        """Whether the audio is noticeably shorter or longer than its header says."""
        return abs(self.missing_seconds) >= _NOTED_SECONDS

    @property
    def silent(self) -> bool:
        """Whether all samples are the same."""
        return self.lowest >= self.highest

    @property
    def peak_to_peak(self) -> float:
        """Highest minus lowest sample; 2 at full scale."""
        return max(0.0, self.highest - self.lowest)

    @property
    def clipped_share(self) -> float:
        """Fraction of all samples."""
        return self.clipped / max(1, self.samples * self.channels)

    def add(self, block: NDArray[np.float32], mono: NDArray[np.float32]) -> None:
        """Count the next samples (S, channels), whose average is `mono` (S,)."""
        self.samples += len(block)
        self.lowest = min(self.lowest, float(mono.min()))
        self.highest = max(self.highest, float(mono.max()))
        flat = (np.abs(block[1:]) >= _CLIPPED) & (block[1:] == block[:-1])
        self.clipped += int(np.count_nonzero(flat))


def read_audio(path: Path) -> Tensor:
    """Samples (S,), float32 at `SAMPLE_RATE`, of a WAV, FLAC, OGG or MP3 file; channels are averaged, full scale is 1.

    Raises DataError: the file is missing, unreadable, empty or damaged, has samples that are not finite, or a sampling
    rate without a simple ratio to `SAMPLE_RATE`.
    """
    return resample(*decode_audio(path))


def decode_audio(path: Path) -> tuple[Tensor, int]:
    """Samples (S,) at the file's own rate, and that rate in Hz; errors as `read_audio`.

    It does no arithmetic in torch, whose threads would compete with the caller's other threads.
    """
    info = AudioInfo()
    blocks = list(_mono_blocks(path, info))
    _check_rate(path, info.rate)
    return torch.from_numpy(blocks[0] if len(blocks) == 1 else np.concatenate(blocks)), info.rate


def waveform_blocks(path: Path, info: AudioInfo | None = None) -> Iterator[Tensor]:
    """What `read_audio` returns, to rounding, in consecutive blocks (S,) without seams; `info` is filled in on the way.

    Raises DataError: as `read_audio`; for a damaged file only when the damage is reached.
    """
    info = info or AudioInfo()
    blocks = map(torch.from_numpy, _mono_blocks(path, info))
    first = next(blocks)
    _check_rate(path, info.rate)
    yield from chain([first], blocks) if info.rate == SAMPLE_RATE else _resampled(first, blocks, info.rate)


def inspect_audio(path: Path) -> AudioInfo:
    """Decode an audio file to its end and add up its bytes; without torch, so that threads may do it.

    Raises DataError: as `read_audio`, except for the sampling rate.
    """
    info = AudioInfo()
    for _ in _mono_blocks(path, info):
        pass
    with path.open("rb") as file:
        while content := file.read(1 << 20):
            info.checksum = zlib.crc32(content, info.checksum)
    return info


def audio_seconds(path: Path) -> float:
    """Length of an audio file in seconds: from its header, or decoded if that does not give it.

    Raises DataError: the file is missing, unreadable or empty.
    """
    with _opened(path) as files:
        lengths = [(_declared(file), int(file.samplerate)) for file in files]
    if all(declared for declared, _ in lengths):
        return sum(declared / rate for declared, rate in lengths)
    return inspect_audio(path).seconds


def resample(samples: Tensor, rate: int, wanted: int = SAMPLE_RATE) -> Tensor:
    """Samples (S,) of `rate` Hz at the `wanted` one, on the device they are on."""
    return cast("Tensor", _filter(rate, wanted, samples.device)(samples))


@lru_cache(maxsize=32)
def _filter(rate: int, wanted: int, device: torch.device) -> Any:
    """torchaudio's, which would be made again each time, and its copy waited for."""
    with torch.inference_mode(False):
        made = torchaudio.transforms.Resample(rate, wanted, dtype=torch.float32)
        if rate != wanted:
            made.kernel = on_device(made.kernel, device)
    return made


def can_resample(rate: int) -> bool:
    """Whether the ratio of a rate in Hz to `SAMPLE_RATE` is simple enough for a small filter."""
    return rate * SAMPLE_RATE // math.gcd(rate, SAMPLE_RATE) ** 2 <= _MAX_FILTER


def _check_rate(path: Path, rate: int) -> None:
    if not can_resample(rate):
        raise _unreadable(path, f"{rate:,} Hz have no simple ratio to {SAMPLE_RATE:,} Hz")


def _mono_blocks(path: Path, info: AudioInfo) -> Iterator[NDArray[np.float32]]:
    """Samples (S,) at the file's own rate, to the end of what decodes; at least one block."""
    with _opened(path) as files:
        for number, file in enumerate(files):
            if number == 0:
                info.rate, info.channels, info.declared = int(file.samplerate), int(file.channels), _declared(file)
            elif (info.rate, info.channels) != (file.samplerate, file.channels):
                raise _unreadable(path, "it is several recordings of different sampling rates or channels")
            for block in _blocks(path, file, info):
                finite = np.isfinite(block).all(axis=1)
                if not finite.all():
                    seconds = (info.samples + int(finite.argmin())) / info.rate
                    raise _unreadable(path, f"a sample at {seconds:.3f} s is not a finite number")
                mono: NDArray[np.float32] = block[:, 0].copy() if block.shape[1] == 1 else block.mean(axis=1)
                info.add(block, mono)
                yield mono
        if info.samples == 0:
            raise _unreadable(path, "it holds no samples")
        if file.format == "MP3" and 0 < info.declared - info.samples <= _MP3_SLACK_SAMPLES:
            info.declared = info.samples
        _check_length(path, info, info.samples)


def _blocks(path: Path, file: "_AudioFile", info: AudioInfo) -> Iterator[NDArray[np.float32]]:
    """Samples (S, channels) of one part, including those of a block in which decoding fails."""
    length = max(1, min(_BLOCK_SECONDS * info.rate, _BLOCK_SAMPLES // info.channels))
    while True:
        # A NaN that stays is a sample that was not decoded.
        block = np.full((length, info.channels), np.nan, dtype=np.float32)
        try:
            block = block[: len(file.read(out=block))]
        except soundfile.LibsndfileError as error:
            block = block[: int(np.count_nonzero(~np.isnan(block[:, -1])))]
            if not info.declared:
                raise
            _check_length(path, info, info.samples + len(block), error)
        if len(block):
            yield block
        if len(block) < length:
            return


def _check_length(path: Path, info: AudioInfo, samples: int, error: Exception | None = None) -> None:
    """Refuse a file with much fewer samples than its header declares, or whose last OGG page is incomplete."""
    tolerance = max(_MISSING_SHARE * info.declared, _MISSING_SECONDS * info.rate)
    # The declared length of an OGG file is that of its last page.
    if info.declared - samples > tolerance or (error is None and ogg_is_cut(path)):
        what = "cut short" if error is None else "cut short or damaged"
        raise _unreadable(path, f"it is {what}: {samples / info.rate:.2f} s can be decoded") from error


class _AudioFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file that is read once from the beginning: soundfile would seek after each block, which not all files allow."""

    def seekable(self) -> bool:
        return False


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[_AudioFile]]:
    """The open parts of a file, usually one; libsndfile's errors, also while decoding, become DataErrors."""
    try:
        if not path.is_file():
            what = "it is a folder" if path.is_dir() else "there is no such file"
            raise DataError(f"cannot read audio {path}", details=[what], hint="check the path")
        if path.stat().st_size == 0:
            raise _unreadable(path, "it is empty: 0 bytes")
        with ExitStack() as stack:
            sources = (os.fsencode(part) if isinstance(part, Path) else part for part in parts(path, stack))
            yield (stack.enter_context(_AudioFile(source)) for source in sources)
    except soundfile.LibsndfileError as error:
        # Its own text repeats the path.
        reason = error.error_string.strip() or "it cannot be decoded"
        raise _unreadable(path, reason, f"convert it: {conversion(path)}") from error
    except TypeError as error:  # soundfile's for files that end in .raw
        raise _unreadable(path, "its name says that it has no header", f"convert it: {conversion(path)}") from error
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error


def conversion(path: Path) -> str:
    """The ffmpeg command that writes the audio of a file or video beside it as 16 kHz mono FLAC."""
    target = path.with_suffix(".flac")
    if path.suffix.lower() == ".flac":  # some file systems do not tell cases apart
        target = path.with_name(f"{path.stem}-audio.flac")
    return shlex.join(["ffmpeg", "-i", str(path), "-vn", "-ac", "1", "-ar", "16000", str(target)])


def _declared(file: soundfile.SoundFile) -> int:
    """Samples of each channel by the header; 0 where it does not say."""
    frames = int(file.frames)
    if frames > _OPEN_FRAMES:
        return 0
    log = file.extra_info
    if (size := _LOGGED_BYTES.search(log)) is not None and int(size[2]):
        declared, there = int(size[1]), int(size[2])
        return round(frames * declared / there) if there < declared < _OPEN_WAV_SIZE else frames
    return int(logged[1]) if (logged := _LOGGED_FRAMES.search(log)) is not None else frames


def _resampled(first: Tensor, blocks: Iterator[Tensor], rate: int) -> Iterator[Tensor]:
    """Blocks (S,) of `rate` Hz at `SAMPLE_RATE`.

    The filter turns every `group` samples into `made`, and reaches further on both sides: so each block is resampled
    with `context` samples (whole groups) around it, whose results are dropped.
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


def _unreadable(path: Path, reason: str, hint: str = _REENCODE) -> DataError:
    return DataError(f"cannot read audio {path}", details=[reason], hint=hint)
