"""Audio files whose headers declare too little: joined and unfinished ones.

libsndfile reads as many samples as the first header declares. Therefore `parts` splits or repairs:

* FLAC, OGG (RFC 3533, section 4), WAV, AIFF, AU and CAF files one after another are one part each,
* WAV, RF64, AU and CAF that declare 0 bytes of audio, or fewer than come before the next chunk, last to the file's end,
* a FLAC whose last frame begins behind the declared length (RFC 9639, section 9.1) is read without one,
* an MP3 without a first frame that counts all others gets one that counts too many.
"""

import io
import mmap
import re
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

_FLAC = b"fLaC\x00\x00\x00\x22"  # with the length of STREAMINFO, which comes first
_CAF = b"caff\x00\x01\x00\x00"
_OPEN_SIZE = struct.pack("<I", 0xFFFFFFFF)
_MAX_PIECE = 1 << 26
_FLAC_COUNT = (1 << 36) - 1  # the last bits of STREAMINFO before its checksum

# MPEG audio, layer III: kbit/s by index, Hz by index, of version 1 and of the others (ISO 11172-3, 13818-3).
_KBITS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_RATES = (44_100, 48_000, 32_000)
_MP3_FRAMES = 0x7FFFFFFF  # more samples than any other header can declare


def parts(path: Path, stack: ExitStack) -> Iterable[Path | io.BytesIO]:
    """What to read one after another instead of a non-empty file: usually the file itself. `stack` closes it.

    Raises OSError: the file cannot be read.
    """
    file = stack.enter_context(path.open("rb"))
    data = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    head = data[:12]
    if head.startswith(b"ID3") and not _mp3_length(data, tagged := _id3_end(data, 0)) and tagged < len(data):
        return [io.BytesIO(data[tagged:])]  # libsndfile would look for MP3 in it
    if head.startswith(_FLAC):
        starts = [match.start() for match in re.finditer(_FLAC, data)]
        return _split(path, data, starts) if len(starts) > 1 else _flac_part(path, data)
    if head.startswith(b"OggS"):
        return _split(path, data, _ogg_starts(data))
    if head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
        return _wav_parts(path, data)
    if head[:4] == b".snd":
        return _au_parts(path, data)
    if head.startswith(_CAF):
        starts = [match.start() for match in re.finditer(_CAF, data)]
        return _split(path, data, starts) if len(starts) > 1 else _caf_part(path, data)
    if head[:4] == b"FORM":
        return _split(path, data, _chained(data, lambda place: 8 + int.from_bytes(data[place + 4 : place + 8], "big")))
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
    signature = data[:4]
    starts = [0]
    place, start, long_size = 12, 0, 0  # of a chunk, of the audio; its size if 32 bits are too few for it
    while place + 8 <= len(data):
        if not _is_chunk(data, place):
            place += place % 2  # not every writer pads chunks to an even length
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        if name == b"ds64":
            long_size = int.from_bytes(data[place + 16 : place + 24], "little")
        if not start and name == b"data":
            start = place + 8
            size = long_size if signature == b"RF64" and size == 0xFFFFFFFF else size
            size = 0 if size >> 62 else size
            if size == 0 and start < len(data) and len(starts) == 1:
                break
        elif start and name == signature and data[place + 8 : place + 12] == b"WAVE":
            starts.append(place)
            place, start = place + 12, 0
            continue
        elif not _is_chunk(data, place):
            if len(starts) > 1 or not start or name[:3] in (b"ID3", b"TAG"):
                return _split(path, data, starts)
            break
        place += 8 + size
    else:
        return _split(path, data, starts)
    form = data.find(b"fmt ", 12)
    described = data[form : form + 8 + int.from_bytes(data[form + 4 : form + 8], "little")]
    header = b"RIFF" + _OPEN_SIZE + b"WAVE" + described + b"data" + _OPEN_SIZE
    return _pieces(header, data, start, int.from_bytes(described[20:22], "little"))


def _pieces(header: bytes, data: mmap.mmap, start: int, align: int) -> Iterable[io.BytesIO]:
    """What lasts from `start` to the end of the file in pieces of whole `align` bytes, so that memory is bounded."""
    align = max(1, align)
    step = max(1, _MAX_PIECE // align) * align
    return (io.BytesIO(header + data[at : at + step]) for at in range(start, len(data), step))


def _au_parts(path: Path, data: mmap.mmap) -> Iterable[Path | io.BytesIO]:
    def length(place: int) -> int:
        return sum(int.from_bytes(data[place + at : place + at + 4], "big") for at in (4, 8))

    starts = _chained(data, length)
    if len(starts) > 1 or length(0) >= len(data):
        return _split(path, data, starts)
    start, channels = int.from_bytes(data[4:8], "big"), int.from_bytes(data[20:24], "big")
    return _pieces(data[:8] + _OPEN_SIZE + data[12:start], data, start, 24 * channels)


def _chained(data: mmap.mmap, length: Callable[[int], int]) -> list[int]:
    """Where files begin that follow each other at their declared `length` (place -> bytes)."""
    starts = [0]
    while (place := starts[-1] + length(starts[-1])) > starts[-1] and data[place : place + 4] == data[:4]:
        starts.append(place)
    return starts


def _caf_part(path: Path, data: mmap.mmap) -> Iterable[Path | io.BytesIO]:
    place = 8
    while place + 12 <= len(data):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 12], "big")
        end, rest = place + 12 + size, len(data) - place - 12
        if name == b"data" and (size == 0 or _caf_is_cut(data, end)):
            # libsndfile reads no more than is declared, and nothing if that is more than there is.
            return [io.BytesIO(data[: place + 4] + rest.to_bytes(8, "big") + data[place + 12 :])]
        place = end
    return [path]


def _caf_is_cut(data: mmap.mmap, end: int) -> bool:
    """Whether the audio of a CAF file ends neither at `end` nor before another chunk."""
    name = data[end : end + 4]
    return end != len(data) and not (name.isalnum() and len(name) == 4)


def _flac_part(path: Path, data: mmap.mmap) -> Iterable[Path | io.BytesIO]:
    declared = int.from_bytes(data[21:26], "big") & _FLAC_COUNT
    if not declared or _last_flac_sample(data) < declared:
        return [path]
    place = int.from_bytes(data[18:26], "big") & ~_FLAC_COUNT
    return [io.BytesIO(data[:18] + place.to_bytes(8, "big") + data[26:])]


def _last_flac_sample(data: mmap.mmap) -> int:
    """Index of the first sample of the last frame; 0 if no frame is found."""
    place = len(data)
    while (place := data.rfind(b"\xff", 42, place)) >= 0:
        head = data[place : place + 16]
        if len(head) < 6 or head[1] & 0xFE != 0xF8:
            continue
        number, length = _flac_number(head[4:])
        length += 4 + {6: 1, 7: 2}.get(head[2] >> 4, 0) + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
        if _crc8(head[:length]) == head[length : length + 1]:
            return number if head[1] & 1 else number * int.from_bytes(data[8:10], "big")
    return 0


def _flac_number(coded: bytes) -> tuple[int, int]:
    """A number in the manner of UTF-8, and its bytes."""
    length = max(1, 8 - (coded[0] ^ 0xFF).bit_length())
    number = coded[0] & (0x7F if length == 1 else 0x7F >> length)
    for byte in coded[1:length]:
        number = number << 6 | byte & 0x3F
    return number, length


def _crc8(content: bytes) -> bytes:
    remainder = 0
    for byte in content:
        remainder ^= byte
        for _ in range(8):
            remainder = (remainder << 1 ^ (0x07 if remainder & 0x80 else 0)) & 0xFF
    return bytes([remainder])


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
        place = _id3_end(data, place) if data[place : place + 3] == b"ID3" else data.find(b"\xff", place + 1)
    return place


def _id3_end(data: mmap.mmap, place: int) -> int:
    """The byte after the ID3v2 tag that begins at `place`."""
    size = data[place + 6 : place + 10]
    return place + 10 + sum(byte << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=False))


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
