"""Audio files whose headers do not tell how much is in them: joined ones, and such as were never finished.

libsndfile reads as many samples as a file's first header declares. `parts` divides or mends what declares too little:

* FLAC, OGG and WAV files one after another are a part each (an OGG chain, RFC 3533, section 4),
* an OGG without the mark of its end (as of Android's recorder) gets it,
* a WAV whose data chunk is said to be empty, or followed by what is no chunk, goes on to the file's end,
* an MP3 without the first frame that counts the others, or with more of them, gets one that does.
"""

import io
import mmap
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

_FLAC = b"fLaC\x00\x00\x00\x22"  # and the length of STREAMINFO, which comes first
_OGG, _BEGIN, _END = b"OggS", 0x02, 0x04
_OPEN_SIZE = struct.pack("<I", 0xFFFFFFFF)
_WAV_HEADER_BYTES, _MAX_WAV_BYTES = 1 << 20, 1 << 30

# MPEG audio, layer III: kbit/s by index, Hz by index, of version 1 and of the others (ISO 11172-3, 13818-3).
_KBITS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_RATES = (44_100, 48_000, 32_000)


def parts(path: Path, stack: ExitStack) -> list[Path | io.RawIOBase]:
    """What to read one after another instead of a file: usually the file itself.

    Args:
        path: of the file, which is not empty.
        stack: closes what is opened.

    Raises:
        OSError: the file cannot be read.
    """
    file = stack.enter_context(path.open("rb"))
    data = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    head = data[:12]
    if head.startswith(_FLAC):
        starts = [0, *_occurrences(data, _FLAC)]
    elif head.startswith(_OGG):
        return _ogg_parts(path, data)
    elif head[:4] == b"RIFF" and head[8:] == b"WAVE":
        return _wav_parts(path, data)
    elif _mp3_length(data, 0) or head.startswith(b"ID3"):
        mended = _counted_mp3(data)
        if mended is None:
            return [path]
        # libsndfile recognises MP3 by the name.
        copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="parp-", suffix=".mp3"))  # noqa: SIM115
        copy.write(mended)
        copy.flush()
        return [Path(copy.name)]
    else:
        return [path]
    return [path] if len(starts) == 1 else _views(data, starts)


def ogg_is_cut(path: Path) -> bool:
    """Whether an OGG file ends in the middle of a page."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        pages = list(_ogg_pages(data))
        return not pages or pages[-1][1] > len(data)


def _occurrences(data: mmap.mmap, magic: bytes) -> Iterator[int]:
    """Where `magic` is, but at the beginning."""
    place = data.find(magic, 1)
    while place >= 0:
        yield place
        place = data.find(magic, place + 1)


class _View(io.RawIOBase):
    """A part of a file, behind other bytes."""

    def __init__(self, data: mmap.mmap, start: int, end: int, prefix: bytes = b"") -> None:
        self._data, self._start, self._end, self._prefix, self._place = data, start, end, prefix, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: "Buffer") -> int:
        """Fill a buffer, and go on by as many bytes."""
        into = memoryview(buffer)
        prefix = self._prefix[self._place : self._place + len(into)]
        start = self._start + max(0, self._place - len(self._prefix))
        found = prefix + self._data[start : min(self._end, start + len(into) - len(prefix))]
        into[: len(found)] = found
        self._place += len(found)
        return len(found)

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte."""
        size = len(self._prefix) + self._end - self._start
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: size}[whence]
        return self._place

    def tell(self) -> int:
        """The byte that is read next."""
        return self._place


def _views(data: mmap.mmap, starts: list[int]) -> list[Path | io.RawIOBase]:
    return [_View(data, start, end) for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def _ogg_pages(data: mmap.mmap, place: int = 0) -> Iterator[tuple[int, int]]:
    """First byte of each page, and the byte after its last, which the last page may lack."""
    while data[place : place + 4] == _OGG and place + 27 <= len(data):
        segments = data[place + 26]
        end = place + 27 + segments + sum(data[place + 27 : place + 27 + segments])
        yield place, end
        place = end


def _ogg_parts(path: Path, data: mmap.mmap) -> list[Path | io.RawIOBase]:
    starts, last, begins = [], 0, False
    for place, end in _ogg_pages(data):
        if end > len(data):
            break
        begun, begins = begins, bool(data[place + 5] & _BEGIN)
        if begins and not begun:  # streams that are multiplexed all begin together
            starts.append(place)
        last = place
    if not starts or (len(starts) == 1 and data[last + 5] & _END):
        return [path]
    found = _views(data, starts)
    if not data[last + 5] & _END:
        _, end = next(_ogg_pages(data, last))
        page = bytearray(data[last:end])
        page[5] |= _END
        page[22:26] = bytes(4)
        page[22:26] = struct.pack("<I", _ogg_checksum(page))
        found[-1] = _View(data, end, len(data), data[starts[-1] : last] + page)
    return found


def _ogg_checksum(page: bytes | bytearray) -> int:
    """CRC-32 with the polynomial 0x04c11db7, most significant bit first (RFC 3533, section 6)."""
    checksum = 0
    for byte in page:
        checksum ^= byte << 24
        for _ in range(8):
            checksum = (checksum << 1 ^ 0x04C11DB7 if checksum & 0x80000000 else checksum << 1) & 0xFFFFFFFF
    return checksum


def _wav_parts(path: Path, data: mmap.mmap) -> list[Path | io.RawIOBase]:
    start = _wav_data(data)
    if start is None or start >= len(data):
        return [path]
    size = int.from_bytes(data[start - 4 : start], "little")
    place = start + size
    while size and place + 8 <= len(data):  # chunks behind the audio
        if not _is_chunk(data, place):
            place += place % 2  # not every writer pads chunks to an even length
        if data[place : place + 4] == b"RIFF" and data[place + 8 : place + 12] == b"WAVE":
            return _views(data, [0, place])
        if data[place : place + 3] in (b"ID3", b"TAG"):
            return [path]
        if not _is_chunk(data, place):
            size = 0
        place += 8 + int.from_bytes(data[place + 4 : place + 8], "little")
    if size:
        return [path]
    form = data.find(b"fmt ", 12) + 8
    align = max(1, int.from_bytes(data[form + 12 : form + 14], "little"))
    step = _MAX_WAV_BYTES // align * align
    header = data[: start - 4] + _OPEN_SIZE
    return [_View(data, at, min(at + step, len(data)), header) for at in range(start, len(data), step)]


def _is_chunk(data: mmap.mmap, place: int) -> bool:
    length = int.from_bytes(data[place + 4 : place + 8], "little")
    return data[place : place + 4].strip().isalnum() and place + 8 + length <= len(data) + 1


def _wav_data(data: mmap.mmap) -> int | None:
    """The first byte of a WAV file's audio."""
    place = 12
    while place + 8 <= min(len(data), _WAV_HEADER_BYTES):
        if data[place : place + 4] == b"data":
            return place + 8
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + length + length % 2
    return None


def _mp3_length(data: mmap.mmap | bytes, place: int) -> int:
    """Bytes of the MPEG frame of layer III that begins at `place`; 0 where none does."""
    head = data[place : place + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2 or head[1] & 0x18 == 0x08:
        return 0
    other, kbits, rate = int(head[1] & 0x18 != 0x18), head[2] >> 4, head[2] >> 2 & 3
    if kbits in (0, 15) or rate == 3:
        return 0
    hertz = _RATES[rate] // (1, 2, 4)[(head[1] & 0x18 != 0x18) + (head[1] & 0x18 == 0)]
    return (144, 72)[other] * 1000 * _KBITS[other][kbits] // hertz + (head[2] >> 1 & 1)


def _mp3_frames(data: mmap.mmap) -> Iterator[int]:
    """Where frames begin; what stands between them, such as tags, is passed over."""
    place = 0
    while place + 4 <= len(data):
        length = _mp3_length(data, place)
        after = place + length
        if length and (after + 4 > len(data) or _mp3_length(data, after) or _is_tag(data, after)):
            yield place
            place = after
        elif data[place : place + 3] == b"ID3":
            size = data[place + 6 : place + 10]
            place += 10 + sum(byte << shift for byte, shift in zip(size, (21, 14, 7, 0), strict=False))
        else:
            place = data.find(b"\xff", place + 1)
            if place < 0:
                return


def _is_tag(data: mmap.mmap, place: int) -> bool:
    return data[place : place + 3] in (b"ID3", b"TAG") or data[place : place + 8] == b"APETAGEX"


def _counted_mp3(data: mmap.mmap) -> bytes | None:
    """The file behind a first frame that counts the others; None where it has one that is right."""
    places = list(_mp3_frames(data))
    if not places:
        return None
    head = bytearray(data[places[0] : places[0] + 4])
    is_first_version, is_mono = head[1] & 0x18 == 0x18, head[3] >> 6 == 3
    side = (9 if is_mono else 17) if not is_first_version else (17 if is_mono else 32)
    tag = places[0] + 4 + side
    count = len(places)
    if data[tag : tag + 4] in (b"Xing", b"Info"):
        count -= 1
        if data[tag + 7] & 1 and int.from_bytes(data[tag + 8 : tag + 12], "big") >= count:
            return None
        places = places[1:]
    if not places:
        return None
    head[1] |= 1  # no checksum
    head[2] = head[2] & 0x0C | 0x90  # a frame that is long enough
    counter = bytes(head) + bytes(side) + b"Info" + struct.pack(">II", 1, count)
    length = _mp3_length(counter, 0)
    return counter.ljust(length, b"\0") + data[places[0] :]
