"""Sound files in, waveforms out: any rate and channel count becomes 16 kHz mono."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio
from numpy.typing import NDArray
from torch import Tensor

from parp_cli.data.containers import Foreign, foreign
from parp_cli.errors import DataError

SAMPLE_RATE = 16_000
"""Hz of every waveform inside parp."""

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"})
"""Endings, in lower case, by which sound files are found in a folder."""

# Weights of the filter that resamples; those of 44,100 Hz are 71,000, and of 44,101 Hz 706 million, which take minutes.
_LARGEST_FILTER = 20_000_000

MUCH_CLIPPED = 1e-3
"""A share of clipped samples beyond which accuracy suffers."""

_CLIPPED = 0.999
"""Of full scale. Two neighbours alike and as large as this are taken for a flattened peak."""

_REPLACE = "replace the file, or convert it anew to 16-bit FLAC"

UNKNOWN_FRAMES = 1 << 48
"""Beyond it a count of samples means that the header leaves it open (FLAC from a pipe): libsndfile has the largest."""

# What writers that could not seek back put as the size of a WAV's data; everything up to the file's end is meant.
_OPEN_WAV_SIZE = 0x7FFF0000

# One MPEG frame: encoder delay and padding may be counted or not.
_MP3_SLACK_SAMPLES = 1152


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A sound file that was read to its end.

    Attributes:
        samples: of each channel, at the file's own rate.
        rate: Hz.
        channels: how many.
        silent: whether all samples are the same, once the channels are averaged.
        clipped: samples of all channels that are in a flattened peak.
    """

    samples: int
    rate: int
    channels: int
    silent: bool
    clipped: int = 0

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.samples / self.rate

    @property
    def resampled(self) -> int:
        """How many samples `read_audio` makes of it."""
        return -(-self.samples * SAMPLE_RATE // self.rate)

    @property
    def clipped_share(self) -> float:
        """Of all samples."""
        return self.clipped / max(1, self.samples * self.channels)


def read_audio(path: Path) -> Tensor:
    """Read a WAV, FLAC, OGG or MP3 file.

    Args:
        path: of any sampling rate; several channels are averaged.

    Returns:
        Samples (S,), float32 at `SAMPLE_RATE`; full scale is 1.

    Raises:
        DataError: the file is missing, unreadable, empty, cut short, has samples that are not finite, or a sampling
            rate that cannot well be changed.
    """
    return resample(*decode_audio(path))


def decode_audio(path: Path) -> tuple[Tensor, int]:
    """Samples (S,) at the file's own rate, and that rate in Hz; arguments and errors are those of `read_audio`.

    There is no arithmetic of torch in it, whose threads would take turns with those of the caller's other threads.
    """
    channels, rate = _decoded(path)
    if not can_resample(rate):
        raise unreadable(path, f"{rate:,} Hz have no simple ratio to {SAMPLE_RATE:,} Hz")
    return torch.from_numpy(_mono(channels)), rate


def resample(samples: Tensor, rate: int) -> Tensor:
    """Samples (S,) of `rate` Hz at `SAMPLE_RATE`, on the device they are on."""
    if rate == SAMPLE_RATE:
        return samples
    resampled: Tensor = torchaudio.functional.resample(samples, rate, SAMPLE_RATE)
    return resampled


def can_resample(rate: int) -> bool:
    """Whether a sampling rate in Hz has a ratio to `SAMPLE_RATE` that is simple enough."""
    return rate * SAMPLE_RATE // math.gcd(rate, SAMPLE_RATE) ** 2 <= _LARGEST_FILTER


def inspect_audio(path: Path) -> Sound:
    """Read a sound file to its end for what can be known of it; without torch, so that threads may do it.

    Raises:
        DataError: as `read_audio`, but for its rate.
    """
    channels, rate = _decoded(path)
    return Sound(
        samples=len(channels),
        rate=rate,
        channels=channels.shape[1],
        silent=bool(np.ptp(_mono(channels)) == 0),
        clipped=clipped_samples(channels),
    )


def clipped_samples(channels: NDArray[np.float32]) -> int:
    """How many of the samples (S, channels) are in a flattened peak."""
    flat = (np.abs(channels[1:]) >= _CLIPPED) & (channels[1:] == channels[:-1])
    return int(np.count_nonzero(flat))


def _decoded(path: Path) -> tuple[NDArray[np.float32], int]:
    """Samples (S, channels) as a float32 array, and their rate in Hz; errors are those of `read_audio`."""
    with opened(path) as file:
        declared = _frames(path, file)
        samples = file.read(dtype="float32", always_2d=True)
        rate = int(file.samplerate)
        if is_cut_short(path, file, declared=declared, read=len(samples)):
            raise unreadable(path, f"it is cut short: {len(samples) / rate:.2f} s are left")
    if len(samples) == 0:
        raise unreadable(path, "it holds no samples")
    finite = np.isfinite(samples).all(axis=1)
    if not finite.all():
        raise unreadable(path, f"a sample at {int(finite.argmin()) / rate:.3f} s is not a finite number")
    return samples, rate


def _mono(channels: NDArray[np.float32]) -> NDArray[np.float32]:
    mono: NDArray[np.float32] = channels.reshape(-1) if channels.shape[1] == 1 else channels.mean(axis=1)
    return mono


def audio_seconds(path: Path) -> float:
    """Length of a sound file in seconds, from its header alone.

    Raises:
        DataError: the file is missing, unreadable or empty.
    """
    with opened(path) as file:
        return _frames(path, file) / int(file.samplerate)


@contextmanager
def opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """The open file; libsndfile's errors become ours, those while decoding included."""
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "there is no such file"
        raise DataError(f"cannot read audio {path}", details=[what], hint="check the path")
    try:
        if path.stat().st_size == 0:
            raise unreadable(path, "it is empty: 0 bytes")
        with soundfile.SoundFile(path) as file:
            yield file
    except soundfile.SoundFileError as error:
        # LibsndfileError's own text repeats the path.
        raise unreadable(path, str(getattr(error, "error_string", error)).strip(), foreign(path)) from error
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from error
    except UnicodeEncodeError as error:  # soundfile opens no other names
        raise DataError(f"cannot read audio {path}", details=["its name is not UTF-8"], hint="rename it") from error


def _frames(path: Path, file: soundfile.SoundFile) -> int:
    frames = int(file.frames)
    if frames > UNKNOWN_FRAMES:
        raise unreadable(path, "its header does not give its length")
    if frames == 0:
        raise unreadable(path, "it holds no samples")
    return frames


def is_cut_short(path: Path, file: soundfile.SoundFile, *, declared: int, read: int) -> bool:
    """Whether the file ends before its header says so.

    A cut FLAC does not decode as a whole; read in blocks, it ends early.

    Args:
        declared: samples of each channel by the header.
        read: those that there were.
    """
    if file.format in ("WAV", "WAVEX"):
        # libsndfile quietly takes what is there; only its log tells the size that was declared.
        size = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
        return size is not None and int(size[2]) < int(size[1]) < _OPEN_WAV_SIZE
    if file.format == "MP3":
        # Without the encoder's Xing or Info frame the declared length is an estimate.
        with path.open("rb") as raw:
            head = raw.read(1 << 16)
        return (b"Xing" in head or b"Info" in head) and read < declared - _MP3_SLACK_SAMPLES
    if file.format == "OGG":
        return not _ogg_is_closed(path)
    return read < declared < UNKNOWN_FRAMES


def _ogg_is_closed(path: Path) -> bool:
    """Whether the last page is whole and marked as the end of the stream (RFC 3533, section 6)."""
    with path.open("rb") as raw:
        size = path.stat().st_size
        raw.seek(max(0, size - (1 << 17)))  # a page is at most 65,307 bytes
        tail = raw.read()
    start = tail.rfind(b"OggS")
    if start < 0 or start + 27 > len(tail):
        return False
    end_of_stream, segments = tail[start + 5] & 0x04, tail[start + 26]
    lengths = tail[start + 27 : start + 27 + segments]
    return bool(end_of_stream) and start + 27 + segments + sum(lengths) <= len(tail)


def unreadable(path: Path, reason: str, container: Foreign | None = None) -> DataError:
    """The error of a file that is no sound, or no whole one; `container` is of which sound can be made."""
    if container is not None:
        return DataError(f"cannot read audio {path}", details=[container.what], hint=container.remedy)
    return DataError(f"cannot read audio {path}", details=[reason], hint=_REPLACE)
