"""Files of many formats and codecs, whole, joined, tagged, cut and with wrong headers, against what was encoded."""

import contextlib
import io
import random
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import soundfile

from parp_cli.data.audio import audio_seconds, inspect_audio
from parp_cli.errors import DataError

SECONDS = 8.0

CODECS = {
    ("WAV", "PCM_16"): "wav",
    ("WAV", "PCM_U8"): "wav",
    ("WAV", "PCM_24"): "wav",
    ("WAV", "FLOAT"): "wav",
    ("WAV", "ULAW"): "wav",
    ("WAV", "IMA_ADPCM"): "wav",
    ("WAV", "GSM610"): "wav",
    ("WAVEX", "PCM_16"): "wav",
    ("RF64", "PCM_16"): "wav",
    ("W64", "PCM_16"): "w64",
    ("AIFF", "PCM_16"): "aiff",
    ("AU", "PCM_16"): "au",
    ("AU", "ALAW"): "au",
    ("CAF", "PCM_16"): "caf",
    ("CAF", "ALAC_16"): "caf",
    ("NIST", "PCM_16"): "sph",
    ("FLAC", "PCM_16"): "flac",
    ("FLAC", "PCM_24"): "flac",
    ("OGG", "VORBIS"): "ogg",
    ("OGG", "OPUS"): "opus",
    ("MP3", "MPEG_LAYER_III"): "mp3",
}
ONLY_16_KHZ_MONO = {"GSM610", "OPUS"}

ID3V1 = b"TAG" + bytes(125)
ID3V2 = b"ID3\x03\0\0\0\0\0\x0a" + b"TIT2" + bytes(6)


def declaring(new: Callable[[int], int]) -> Callable[[bytes, str], bytes | None]:
    """Changes the declared length of a file; None where the format has none, or none that a writer leaves wrong."""

    def changed(content: bytes, kind: str) -> bytes | None:
        match kind:
            case "WAV" | "WAVEX":
                place, width, order = content.index(b"data") + 4, 4, "little"
            case "RF64":
                place, width, order = content.index(b"ds64") + 16, 8, "little"
            case "W64":
                place, width, order = content.index(b"data") + 16, 8, "little"
            case "AIFF":
                place, width, order = content.index(b"COMM") + 10, 4, "big"
            case "AU":
                place, width, order = 8, 4, "big"
            case "CAF":
                place, width, order = content.index(b"data") + 4, 8, "big"
            case "FLAC":
                place, width, order = 22, 4, "big"
            case _:
                return None
        size = new(int.from_bytes(content[place : place + width], order))  # type: ignore[arg-type]
        return content[:place] + size.to_bytes(width, order) + content[place + width :]  # type: ignore[arg-type]

    return changed


# How a file is changed, and its length relative to what was encoded.
CHANGES: dict[str, tuple[Callable[[bytes, str], bytes | None], float]] = {
    "as-is": (lambda content, _: content, 1),
    "joined": (lambda content, _: content + content, 2),
    "three": (lambda content, _: 3 * content, 3),
    "tag-behind": (lambda content, _: content + ID3V1, 1),
    "tag-before": (lambda content, _: ID3V2 + content, 1),
    "less": (declaring(lambda size: size // 2 // 48 * 48), 1),
    "more": (declaring(lambda size: size + 960), 1),
    "zero": (declaring(lambda size: 0), 1),
    "cut-98": (lambda content, _: content[: int(0.98 * len(content))], 0.98),
    "cut-60": (lambda content, _: content[: int(0.6 * len(content))], 0.6),
    "cut-20": (lambda content, _: content[: int(0.2 * len(content))], 0.2),
}


@lru_cache
def encoded(kind: str, subtype: str, rate: int, channels: int, seconds: float = SECONDS) -> bytes:
    samples = 0.1 * np.random.default_rng(0).standard_normal((int(seconds * rate), channels))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


FILES = [
    (codec, sound, change)
    for codec in CODECS
    for sound in [(16_000, 1), (44_100, 2)]
    for change in CHANGES
    if sound == (16_000, 1) or codec[1] not in ONLY_16_KHZ_MONO
]


def test_there_are_many() -> None:
    assert len(FILES) > 300


@pytest.mark.parametrize(
    ("codec", "sound", "change"),
    FILES,
    ids=[f"{'-'.join(codec)}-{rate}-{change}" for codec, (rate, _), change in FILES],
)
def test_no_audio_is_lost_in_silence(
    codec: tuple[str, str], sound: tuple[int, int], change: str, tmp_path: Path
) -> None:
    make, share = CHANGES[change]
    content = make(encoded(*codec, *sound), codec[0])
    if content is None:
        return
    path = tmp_path / f"a.{CODECS[codec]}"
    path.write_bytes(content)
    # How much is missing behind the last page of an OGG that was cut, nothing says.
    may_be_refused = share < 0.95 or (change == "cut-98" and codec[0] == "OGG")
    try:
        info = inspect_audio(path)
    except DataError:
        if not may_be_refused:
            raise
    else:
        copies = max(1, share)  # an MP3's encoder adds up to 0.11 s to each
        assert share * SECONDS - 0.5 <= info.seconds <= share * SECONDS + 0.15 * copies


@pytest.mark.parametrize("codec", CODECS, ids="-".join)
def test_damaged_files_are_read_or_refused(codec: tuple[str, str], tmp_path: Path) -> None:
    """Whatever sizes, rates and channels a header names."""
    rng = random.Random(0)
    whole = encoded(*codec, 16_000, 1, 0.5)
    path = tmp_path / f"a.{CODECS[codec]}"
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 3, 10])):
            place = rng.randrange(rng.choice([min(200, len(content)), len(content)]))
            content[place] = rng.choice([0, 255, rng.randrange(256)])
        if rng.random() < 0.3:
            del content[rng.randrange(1, len(content)) :]
        elif rng.random() < 0.3:
            content += content[rng.randrange(len(content)) :]
        path.write_bytes(content)
        for read in inspect_audio, audio_seconds:
            with contextlib.suppress(DataError):
                read(path)
