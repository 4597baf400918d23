"""`parp transcribe` from the command line."""

import json
import os
from pathlib import Path

from tests.cli.conftest import Parp
from tests.tiny import World


def test_text(parp: Parp, world: World, trained: Path) -> None:
    first, second = world.folder / "test-0.wav", world.folder / "test-1.wav"
    alone = parp("transcribe", first, "-c", trained)
    assert alone.code == 0
    assert len(alone.out.splitlines()) == 1
    both = parp("transcribe", first, second, "-c", trained)
    assert both.out.splitlines()[0] == f"{first}\t{alone.out.rstrip()}"
    assert both.out.splitlines()[1].startswith(f"{second}\t")
    times = parp("transcribe", first, "-c", trained, "--times")
    words = [line.split("\t") for line in times.out.splitlines()]
    assert " ".join(word for _, _, word in words) == alone.out.rstrip()


def test_what_cannot_be_read_is_said_at_the_end(parp: Parp, world: World, trained: Path) -> None:
    answer = parp("transcribe", "missing.wav", world.folder / "test-0.wav", "-c", trained)
    assert answer.code == 3
    assert answer.out.startswith(f"{world.folder / 'test-0.wav'}\t")
    assert "parp: error: 1 of 2 files could not be transcribed\n  missing.wav: there is no such file" in answer.err
    answer = parp("transcribe", "missing.wav", world.folder / "test-0.wav", "-c", trained, "--json")
    result = json.loads(answer.out)
    assert answer.code == 3
    assert [failure["file"] for failure in result["failures"]] == ["missing.wav"]
    assert len(result["transcriptions"]) == 1


def test_subtitles(parp: Parp, world: World, trained: Path) -> None:
    files = [world.folder / f"test-{number}.wav" for number in range(2)]
    answer = parp("transcribe", *files, "-c", trained, "--format", "vtt")
    assert answer.code == 2
    assert "--out DIR" in answer.err
    printed = parp("transcribe", files[0], "-c", trained, "--format", "vtt")
    assert printed.out.startswith("WEBVTT\n\n00:00:0")
    answer = parp("transcribe", *files, "-c", trained, "--format", "vtt", "--out", "subtitles")
    assert answer.code == 0
    assert answer.out.splitlines() == ["wrote subtitles/test-0.vtt", "wrote subtitles/test-1.vtt"]
    assert Path("subtitles/test-0.vtt").read_text() == printed.out


def test_names_that_are_not_utf8(parp: Parp, world: World, trained: Path) -> None:
    missing, good = os.fsdecode(b"\xff.flac"), world.folder / "test-0.wav"
    alone = parp("transcribe", good, "-c", trained).out
    answer = parp("transcribe", missing, good, "-c", trained)
    assert (answer.code, answer.out) == (3, f"{good}\t{alone}")
    assert "\\udcff.flac: there is no such file" in answer.err
    answer = parp("transcribe", missing, good, "-c", trained, "--json")
    result = json.loads(answer.out)
    assert result["failures"][0]["file"] == missing
    assert result["transcriptions"][0]["text"] == alone.strip()
    assert result["transcriptions"][0]["segments"]


def test_infinite_chunks_are_not_cut(parp: Parp, world: World, trained: Path) -> None:
    file = world.folder / "test-0.wav"
    assert parp("transcribe", file, "-c", trained, "--chunk-seconds", "nan").code == 2
    whole = parp("transcribe", file, "-c", trained, "--chunk-seconds", "inf")
    assert (whole.code, whole.out) == (0, parp("transcribe", file, "-c", trained).out)
