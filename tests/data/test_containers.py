"""Files whose headers declare too little, or a little too much, are read to the end of what decodes."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from parp_cli.data.audio import audio_seconds, inspect_audio, read_audio, waveform_blocks
from parp_cli.errors import DataError

NOISE = 0.1 * np.random.default_rng(0).standard_normal(48_000)  # 3 s
DELAY = 0.11
"""Seconds that an MP3's encoder may add, per file."""


def encoded(kind: str, rate: int = 16_000, **options: Any) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, NOISE, rate, format=kind, **options)
    return buffer.getvalue()


WAV, FLAC, VORBIS, OPUS = (
    encoded("WAV", subtype="PCM_16"),
    encoded("FLAC"),
    encoded("OGG", subtype="VORBIS"),
    encoded("OGG", subtype="OPUS"),
)
MP3S = {name: encoded("MP3", bitrate_mode=name, compression_level=0.5) for name in ("CONSTANT", "VARIABLE")}
DATA = WAV.index(b"data") + 8


def declaring(size: int) -> bytes:
    """The WAV with another size of its data."""
    return WAV[: DATA - 4] + struct.pack("<I", size) + WAV[DATA:]


def uncounted(content: bytes) -> bytes:
    """An MP3 without its first frame, which counts the others."""
    kbits = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)[content[2] >> 4]
    return content[72_000 * kbits // 16_000 + (content[2] >> 1 & 1) :]


def titled(title: bytes) -> bytes:
    """An ID3 tag."""
    frame = b"TIT2" + struct.pack(">I", len(title) + 1) + b"\0\0\0" + title
    return b"ID3\x03\0\0\0\0\0" + bytes([len(frame)]) + frame


def endless(content: bytes) -> bytes:
    """An OGG whose last page does not say that it is the last."""
    changed = bytearray(content)
    page = changed.rfind(b"OggS")
    changed[page + 5] &= ~4
    changed[page + 22 : page + 26] = bytes(4)
    remainder = 0
    for byte in changed[page:]:
        remainder ^= byte << 24
        for _ in range(8):
            remainder = (remainder << 1 ^ (0x04C11DB7 if remainder & 0x80000000 else 0)) & 0xFFFFFFFF
    changed[page + 22 : page + 26] = struct.pack("<I", remainder)
    return bytes(changed)


WHOLE: dict[str, tuple[bytes, float]] = {
    "16-bytes-more.wav": (declaring(96_016), 3),
    "zero.wav": (declaring(0), 3),
    "open.wav": (declaring(0xFFFFFFFF), 3),
    "half.wav": (declaring(48_000), 3),
    "list.wav": (WAV + b"LIST" + struct.pack("<I", 4) + b"INFO", 3),
    "xmp.wav": (WAV + b"_PMX" + struct.pack("<I", 4) + b"<x/>", 3),
    "id3.wav": (WAV + titled(b"Info"), 3),
    "appended.wav": (WAV + WAV[DATA:], 6),
    "joined.wav": (WAV + WAV, 6),
    "97-percent.wav": (WAV[: int(0.97 * len(WAV))], 2.91),
    "joined.flac": (FLAC * 3, 9),
    "joined.ogg": (VORBIS + VORBIS, 6),
    "endless.ogg": (endless(VORBIS), 3),
    "joined.opus": (OPUS + OPUS, 6),
    "endless.opus": (endless(OPUS), 3),
    **{f"{kind}.mp3": (content, 3) for kind, content in MP3S.items()},
    **{f"{kind}-uncounted.mp3": (uncounted(content), 3) for kind, content in MP3S.items()},
    **{f"{kind}-joined.mp3": (content + content, 6) for kind, content in MP3S.items()},
    **{f"{kind}-news.mp3": (titled(b"Course News") + uncounted(content), 3) for kind, content in MP3S.items()},
    **{f"{kind}-info.mp3": (titled(b"Course Info") + uncounted(content), 3) for kind, content in MP3S.items()},
    "tagged-between.mp3": (titled(b"one") + MP3S["VARIABLE"] + titled(b"two") + MP3S["CONSTANT"], 6),
    "44100-joined.mp3": (2 * encoded("MP3", 44_100, bitrate_mode="VARIABLE"), 2 * 48_000 / 44_100),
}


@pytest.mark.parametrize("name", WHOLE)
def test_everything_that_decodes_is_read(name: str, tmp_path: Path) -> None:
    content, seconds = WHOLE[name]
    (tmp_path / name).write_bytes(content)
    info = inspect_audio(tmp_path / name)
    # At an end that is not marked, libsndfile drops as much of an Opus stream as its encoder adds at the beginning.
    slack = 0.01 if name == "endless.opus" else 1e-3
    if name.endswith("mp3"):
        slack = DELAY * max(1, round(seconds / 3))
    assert info.seconds == pytest.approx(seconds, abs=slack)
    assert audio_seconds(tmp_path / name) == pytest.approx(seconds, abs=max(slack, 0.1))
    samples = read_audio(tmp_path / name)
    assert len(samples) == info.resampled
    torch.testing.assert_close(torch.cat(list(waveform_blocks(tmp_path / name))), samples, rtol=0, atol=1e-6)
    # It is the same noise, once more for each time that it was joined.
    first, last = samples[2_000:18_000], samples[-30_000:]
    assert 0.05 < float(first.std()) < 0.15
    assert 0.05 < float(last.std()) < 0.15


def test_joined_files_are_the_files(tmp_path: Path) -> None:
    for content, suffix in (WAV, "wav"), (FLAC, "flac"), (VORBIS, "ogg"):
        (tmp_path / f"one.{suffix}").write_bytes(content)
        (tmp_path / f"two.{suffix}").write_bytes(2 * content)
        one, two = (read_audio(tmp_path / f"{name}.{suffix}") for name in ("one", "two"))
        assert torch.equal(two, torch.cat([one, one]))
        info = inspect_audio(tmp_path / f"two.{suffix}")
        assert info.missing_seconds == -3
        assert info.differs_from_header


@pytest.mark.parametrize("tail", [b"", b"TAG" + bytes(125), b"APETAGEX" + bytes(300)], ids=["none", "ID3v1", "APE"])
def test_an_mp3_that_counts_its_frames_is_as_long_as_what_was_encoded(tail: bytes, tmp_path: Path) -> None:
    for name, content in MP3S.items():
        (tmp_path / name).with_suffix(".mp3").write_bytes(content + tail)
        info = inspect_audio((tmp_path / name).with_suffix(".mp3"))
        assert (info.samples, info.missing_seconds) == (48_000, 0)


def test_files_of_different_rates_are_not_joined(tmp_path: Path) -> None:
    (tmp_path / "a.flac").write_bytes(FLAC + encoded("FLAC", 8_000))
    with pytest.raises(DataError, match="several recordings of different sampling rates"):
        read_audio(tmp_path / "a.flac")


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
@pytest.mark.parametrize(
    "content", [WAV, FLAC, OPUS, VORBIS, VORBIS + VORBIS], ids=["WAV", "FLAC", "Opus", "Vorbis", "joined"]
)
def test_what_is_cut_is_refused(content: bytes, cut: float, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(content[: int(cut * len(content))])
    with pytest.raises(DataError, match="cannot read audio"):
        read_audio(tmp_path / "a")
