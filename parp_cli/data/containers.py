"""Files with sound in them that libsndfile does not read: videos above all, and what makes a sound file of them."""

import shlex
from dataclasses import dataclass
from pathlib import Path

_HEAD_BYTES = 64

_BRANDS = {
    b"M4A ": "MPEG-4 audio (AAC)",
    b"M4B ": "MPEG-4 audio (AAC)",
    b"qt  ": "QuickTime video",
    b"3gp": "3GP video",
}


@dataclass(frozen=True)
class Foreign:
    """A container that libsndfile does not read.

    Attributes:
        what: it is, for an error's details.
        remedy: a command line that takes the sound out, for an error's hint.
    """

    what: str
    remedy: str


def foreign(path: Path) -> Foreign | None:
    """What a file that libsndfile refused is, by its first bytes; None where they tell nothing.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        kind = _kind(file.read(_HEAD_BYTES))
    if kind is None:
        return None
    return Foreign(
        f"it is {kind}, which libsndfile does not read",
        f"take out the sound: {extraction(path)}",
    )


def extraction(path: Path) -> str:
    """The command line that writes a file's sound beside it, as 16 kHz mono FLAC."""
    target = path.with_suffix(".flac")
    if path.suffix.lower() == ".flac":  # its name lies, and some file systems do not tell cases apart
        target = path.with_name(f"{path.stem}-sound.flac")
    return shlex.join(["ffmpeg", "-i", str(path), "-vn", "-ac", "1", "-ar", "16000", str(target)])


def _kind(head: bytes) -> str | None:
    if head[4:8] == b"ftyp":
        return next((name for brand, name in _BRANDS.items() if head[8:].startswith(brand)), "MPEG-4 video")
    if head.startswith(b"\x1a\x45\xdf\xa3"):  # EBML
        return "WebM video" if b"webm" in head else "Matroska video"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "AVI video"
    if head.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"):
        return "Windows Media"
    if head.startswith(b"FLV"):
        return "Flash video"
    if head.startswith((b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")):
        return "MPEG video"
    if head.startswith(b"\x47\x40"):
        return "an MPEG transport stream"
    if head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xF6 == 0xF0:  # ADTS: layer 0, which no MP3 has
        return "AAC audio"
    if head.startswith(b"#!AMR"):
        return "AMR audio"
    return None
