"""Audio files whose headers declare too little: joined and unfinished ones.

libsndfile reads as many samples as the first header declares. Therefore `parts` splits or repairs:

* FLAC, OGG (RFC 3533, section 4) and WAV files one after another are one part each,
* a WAV whose data chunk declares 0 bytes, or is followed by something that is no chunk, lasts to the end of the file,
* an MP3 without a first frame that counts all others gets one that counts too many.
"""

import io
import mmap
import re
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

_FLAC = b"fLaC\x00\x00\x00\x22"  # with the length of STREAMINFO, which comes first
_OPEN_SIZE = struct.pack("<I", 0xFFFFFFFF)
_MAX_WAV_BYTES = 1 << 26

# MPEG audio, layer III: kbit/s by index, Hz by index, of version 1 and of the others (ISO 11172-3, 13818-3).
_KBITS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_RATES = (44_100, 48_000, 32_000)
_MP3_FRAMES = 0x7FFFFFFF  # more samples than any other header can declare


def parts(path: Path, stack: ExitStack) -> Iterable[Path | io.BytesIO]:
    """What to read one after another instead of a non-empty file: usually the file itself. `stack` closes it.

    Raises:
        OSError: the file cannot be read.
    """
    file = stack.enter_context(path.open("rb"))
    data = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    head = data[:12]
    if head.startswith(_FLAC):
        return _split(path, data, [match.start() for match in re.finditer(_FLAC, data)])
    if head.startswith(b"OggS"):
        return _split(path, data, _ogg_starts(data))
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        return _wav_parts(path, data)
    if (_mp3_length(data, 0) or head.startswith(b"ID3")) and (repaired := _uncounted_mp3(data)) is not None:
        # libsndfile recognises MP3 by its name.
        copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="parp-", suffix=".mp3"))  # noqa: SIM115
        copy.write(repaired)
        copy.flush()
        return [Path(copy.name)]
    return [path]


def ogg_is_cut(path: Path) -> bool:
    """Whether a file is OGG and ends in the middle of a page."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        *_, (_, end) = [(0, 0), *_ogg_pages(data)]
        return end > len(data)


def _split(path: Path, data: mmap.mmap, starts: list[int]) -> Iterable[Path | io.BytesIO]:
    if len(starts) < 2:
        return [path]
    return (io.BytesIO(data[start:end]) for start, end in zip(starts, [*starts[1:], len(data)], strict=True))


def _ogg_pages(data: mmap.mmap) -> Iterator[tuple[int, int]]:
    """First byte of each page, and the byte after its last, which the last page may lack."""
    place = 0
    while data[place : place + 4] == b"OggS" and place + 27 <= len(data):
        segments = data[place + 26]
        end = place + 27 + segments + sum(data[place + 27 : place + 27 + segments])
        yield place, end
        place = end


def _ogg_starts(data: mmap.mmap) -> list[int]:
    """Pages at which a recording begins; streams that are multiplexed all begin together."""
    starts, begins = [], False
    for place, _ in _ogg_pages(data):
        begun, begins = begins, bool(data[place + 5] & 0x02)
        if begins and not begun:
            starts.append(place)
    return starts


def _wav_parts(path: Path, data: mmap.mmap) -> Iterable[Path | io.BytesIO]:
    place, start = 12, 0  # of a chunk, of the audio
    while place + 8 <= len(data):
        if not _is_chunk(data, place):
            place += place % 2  # not every writer pads chunks to an even length
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if not start and name == b"data":
            start = place + 8
            if size == 0 and start < len(data):
                break
        elif start and name == b"RIFF" and data[place + 8 : place + 12] == b"WAVE":
            return _split(path, data, [0, place])
        elif not _is_chunk(data, place):
            if not start or name[:3] in (b"ID3", b"TAG"):
                return [path]
            break
        place += 8 + size
    else:
        return [path]
    form = data.find(b"fmt ", 12) + 8
    align = max(1, int.from_bytes(data[form + 12 : form + 14], "little"))
    step = _MAX_WAV_BYTES // align * align
    header = data[: start - 4] + _OPEN_SIZE
    return (io.BytesIO(header + data[at : at + step]) for at in range(start, len(data), step))


def _is_chunk(data: mmap.mmap, place: int) -> bool:
    length = int.from_bytes(data[place + 4 : place + 8], "little")
    name = data[place : place + 4].replace(b"_", b"").strip()
    return name.isalnum() and place + 8 + length <= len(data) + 1


def _mp3_length(data: mmap.mmap | bytes, place: int) -> int:
    """Bytes of the MPEG frame of layer III that begins at `place`; 0 where none does."""
    head = data[place : place + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2 or head[1] & 0x18 == 0x08:
        return 0
    other, kbits, rate = int(head[1] & 0x18 != 0x18), head[2] >> 4, head[2] >> 2 & 3
    if kbits in (0, 15) or rate == 3:
        return 0
    hertz = _RATES[rate] >> other + (head[1] & 0x18 == 0)
    return (144, 72)[other] * 1000 * _KBITS[other][kbits] // hertz + (head[2] >> 1 & 1)


def _first_mp3_frame(data: mmap.mmap) -> int:
    """Where the first frame that another one follows begins, behind tags; -1 if there is none."""
    place = 0
    while place >= 0 and not ((length := _mp3_length(data, place)) and _mp3_length(data, place + length)):
        if data[place : place + 3] == b"ID3":
            size = data[place + 6 : place + 10]
            place += 10 + sum(byte << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=False))
        else:
            place = data.find(b"\xff", place + 1)
    return place


def _uncounted_mp3(data: mmap.mmap) -> bytes | None:
    """The file behind a first frame that declares more frames than it has; None if its own first frame is right."""
    place = _first_mp3_frame(data)
    if place < 0:
        return None
    head = bytearray(data[place : place + 4])
    is_first_version, is_mono = head[1] & 0x18 == 0x18, head[3] >> 6 == 3
    side = (9 if is_mono else 17) if not is_first_version else (17 if is_mono else 32)
    tag = place + 4 + side
    if data[tag : tag + 4] in (b"Xing", b"Info"):
        end = place + int.from_bytes(data[tag + 12 : tag + 16], "big")
        if data[tag + 7] & 3 == 3 and not _mp3_length(data, end) and data[end : end + 3] != b"ID3":
            return None
        place += _mp3_length(data, place)
    head[1] |= 1  # no checksum
    head[2] = head[2] & 0x0C | 0x90  # a frame that is long enough
    counter = bytes(head) + bytes(side) + b"Info" + struct.pack(">II", 1, _MP3_FRAMES)
    return counter.ljust(_mp3_length(counter, 0), b"\0") + data[place:]
