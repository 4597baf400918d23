"""Small corpora with real sound files, made anew for each test."""

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import soundfile

from parp_cli.data.utterances import Utterance

WriteTone = Callable[..., Path]
MakeUtterance = Callable[..., Utterance]


@pytest.fixture
def write_tone() -> WriteTone:
    """Writes a sine of 440 Hz; the suffix decides the format."""

    def write(path: Path, *, seconds: float = 0.5, rate: int = 16_000, channels: int = 1) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        time = numpy.arange(round(seconds * rate)) / rate
        tone = 0.5 * numpy.sin(2 * numpy.pi * 440 * time)
        soundfile.write(path, numpy.tile(tone[:, None], (1, channels)), rate)
        return path

    return write


@pytest.fixture
def write_chapter(write_tone: WriteTone) -> Callable[..., Path]:
    """Writes `<folder>/<speaker>/<chapter>` with one FLAC for each transcript."""

    def write(folder: Path, speaker: str, chapter: str, texts: list[str], *, phones: list[str] | None = None) -> Path:
        where = folder / speaker / chapter
        names = [f"{speaker}-{chapter}-{index:04d}" for index in range(len(texts))]
        for name in names:
            write_tone(where / f"{name}.flac")
        lines = [f"{name} {text}\n" for name, text in zip(names, texts, strict=True)]
        (where / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines), encoding="utf-8")
        if phones is not None:
            lines = [f"{name} {phone}\n" for name, phone in zip(names, phones, strict=True)]
            (where / f"{speaker}-{chapter}.phones.txt").write_text("".join(lines), encoding="utf-8")
        return where

    return write


@pytest.fixture
def make_utterance() -> MakeUtterance:
    """An utterance of a second that needs no file, with whatever fields a test sets."""

    def make(**fields: object) -> Utterance:
        defaults: dict[str, object] = {"id": "u", "audio": Path("u.flac"), "split": "train", "seconds": 1.0}
        return Utterance(**{**defaults, **fields})  # type: ignore[arg-type]

    return make
