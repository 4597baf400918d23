"""Whole files in, text out; what is wrong with one does not keep the others from it."""

import io
import json
import math
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from parp_cli.data.labels import BOUNDARY
from parp_cli.decoding.chunks import Chunking, Piece, logits_in_chunks
from parp_cli.errors import CheckpointError, UsageError
from parp_cli.models.recognizer import rebuild
from parp_cli.runtime.progress import Progress
from parp_cli.stages import transcribe as stage
from parp_cli.stages.evaluate import evaluate
from parp_cli.stages.transcribe import Transcription, transcribe
from parp_cli.storage import checkpoint
from tests.models.small import randomise
from tests.tiny import TEXTS, World, write_speech


def test_text_is_that_of_evaluation(world: World, trained: Path, tmp_path: Path) -> None:
    files = [str(world.folder / f"test-{number}.wav") for number in range(len(TEXTS["test"]))]
    hypotheses = evaluate(trained, out=tmp_path / "eval.jsonl").as_it_is.outputs.hypotheses
    expected = [json.loads(line)["hypothesis"] for line in hypotheses.read_text().splitlines()]
    for batch_seconds in (0.1, 60.0):
        result = transcribe(trained, files, batch_seconds=batch_seconds)
        assert [item.text for item in result.transcriptions] == expected
        assert [item.file for item in result.transcriptions] == files
        assert result.failures == ()
        assert result.error() is None
    assert any(expected)
    assert result.audio_seconds == pytest.approx(sum(soundfile.info(file).duration for file in files))


def test_words_have_the_times_at_which_they_were_said(trained: Path, tmp_path: Path) -> None:
    seconds = write_speech(tmp_path / "a.wav", "AB C")
    (made,) = transcribe(trained, [str(tmp_path / "a.wav")]).transcriptions
    assert made.text == " ".join(word.text for word in made.words)
    assert made.words
    times = [time for word in made.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert times[0] >= 0.0
    assert times[-1] <= seconds
    assert [word for segment in made.segments for word in segment.words] == list(made.words)


@pytest.fixture
def local(trained: Path, tmp_path: Path) -> Path:
    """A model that looks around by its convolutions alone, 5 frames far, and says something else at every moment."""
    content = checkpoint.read(trained)
    _, model = rebuild(content, torch.device("cpu"), source=str(trained))
    weights = randomise(model).state_dict()
    attention = [name for name in weights if ".attention.out_proj." in name]
    assert attention
    for name in attention:
        weights[name].zero_()
    # What it says most often divides words, so that there are many.
    assert content.metadata.vocabulary is not None
    most_often, boundary = (content.metadata.vocabulary.index(symbol) for symbol in ("R", BOUNDARY))
    for name in ("aux.weight", "aux.bias"):
        weights[name][[most_often, boundary]] = weights[name][[boundary, most_often]]
    pruned = {name: weights[name] * mask for name, mask in content.masks.items()}
    path = tmp_path / "local.safetensors"
    checkpoint.write(path, replace(content, weights={**weights, **pruned}))
    return path


def test_a_long_file_is_heard_in_chunks(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly the same words at the same times as at once, since the context is longer than the model's reach.

    Nearly, as the model normalises over time: a chunk has statistics of its own.
    """
    pieces: list[Piece] = []

    def counted(*arguments: Any, **options: Any) -> Iterator[Piece]:
        for piece in logits_in_chunks(*arguments, **options):
            pieces.append(piece)
            yield piece

    monkeypatch.setattr(stage, "logits_in_chunks", counted)
    file = str(tmp_path / "long.wav")
    assert write_speech(tmp_path / "long.wav", " ".join(TEXTS["train"] * 4)) > 20
    (whole,) = transcribe(local, [file], chunking=Chunking(math.inf, 1.0)).transcriptions
    assert len(pieces) == 1
    (made,) = transcribe(local, [file], chunking=Chunking(4.0, 1.0)).transcriptions
    assert len(pieces) > 10
    assert alike(made, whole) > 0.95
    assert len({word.text for word in whole.words}) > 20, "or this would show nothing"
    (without_context,) = transcribe(local, [file], chunking=Chunking(4.0, 0.0)).transcriptions
    assert alike(without_context, whole) < alike(made, whole)


def alike(made: Transcription, whole: Transcription) -> float:
    """The share of words that are the same at the same time."""
    return len(set(made.words) & set(whole.words)) / len(whole.words)


def bad_files(world: World, folder: Path) -> dict[str, str]:
    """Files with the words that are to be said about them, those that can be transcribed among them."""
    rate = 16_000
    speech, _ = soundfile.read(world.folder / "test-0.wav")
    soundfile.write(folder / "silence.wav", np.zeros(rate), rate)
    soundfile.write(folder / "clipped.wav", np.clip(20 * speech, -1, 1), rate)
    soundfile.write(folder / "faint.wav", speech / 1000, rate, subtype="FLOAT")
    soundfile.write(folder / "10ms.wav", speech[:160], rate)
    soundfile.write(folder / "stereo.flac", np.stack([speech, speech], axis=1), 48_000)
    (folder / "film.mp4").write_bytes(b"\x00\x00\x00\x20ftypisom" + bytes(2000))
    whole = (world.folder / "test-0.wav").read_bytes()
    (folder / "broken.wav").write_bytes(whole[:20])
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("no sound at all\n" * 100)
    return {
        "silence.wav": "it is silent",
        "clipped.wav": "samples are clipped",
        "faint.wav": "hardly louder than silence",
        "10ms.wav": "10 ms of audio are too short",
        "stereo.flac": "",
        "film.mp4": "Format not recognised",
        "broken.wav": ".",
        "cut.wav": "cut short",
        "empty.wav": "0 bytes",
        "text.wav": ".",
        "missing.wav": "no such file",
    }


def test_each_bad_file_gets_a_line_and_the_rest_is_transcribed(world: World, trained: Path, tmp_path: Path) -> None:
    expected = bad_files(world, tmp_path)
    said: list[str] = []

    def notify(step: Progress) -> None:
        if step.warning:
            said.append(step.warning)

    good = str(world.folder / "test-0.wav")
    files = [str(tmp_path / name) for name in expected] + [good]
    result = transcribe(trained, files, notify=notify)
    made = {Path(item.file).name: item for item in result.transcriptions}
    assert list(made) == ["silence.wav", "clipped.wav", "faint.wav", "stereo.flac", "test-0.wav"]
    assert made["test-0.wav"].text == transcribe(trained, [good]).transcriptions[0].text
    assert made["silence.wav"].text == ""
    assert made["stereo.flac"].seconds == pytest.approx(made["test-0.wav"].seconds / 3, abs=0.01)
    failures = {Path(failure.file).name: failure.reason for failure in result.failures}
    assert set(made) | set(failures) == {*expected, "test-0.wav"}
    for name, words in expected.items():
        lines = [line for line in said if line.startswith(f"{tmp_path / name}: ")]
        assert len(lines) == (1 if words else 0), name
        assert words in (made[name].warnings or ("",))[0] if name in made else words in lines[0] or words == "."
    error = result.error()
    assert error is not None
    assert error.exit_code == 3
    assert error.message == "7 of 12 files could not be transcribed"
    assert len(error.details) == 7
    assert "ffmpeg -i" in str(error.hint)


@pytest.mark.parametrize("open_ended", [False, True])
def test_standard_input(world: World, trained: Path, open_ended: bool) -> None:
    content = bytearray((world.folder / "test-0.wav").read_bytes())
    if open_ended:  # as of a writer that could not seek back
        content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    assert content[36:40] == b"data"
    result = transcribe(trained, ["-"], standard_input=io.BytesIO(bytes(content)))
    expected = transcribe(trained, [str(world.folder / "test-0.wav")]).transcriptions[0]
    assert result.transcriptions[0].file == "-"
    assert result.transcriptions[0].text == expected.text
    nothing = transcribe(trained, ["-"], standard_input=io.BytesIO())
    assert [failure.reason for failure in nothing.failures] == ["it is empty: 0 bytes"]
    error = nothing.error()
    assert error is not None
    assert error.details == ("standard input: it is empty: 0 bytes",)
    assert "-f wav -" in str(error.hint)


def test_pipes_are_files(world: World, trained: Path, tmp_path: Path) -> None:
    """As of `parp transcribe <(…)`, which can be read once."""
    file = world.folder / "test-0.wav"
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(file.read_bytes()))
    writer.start()
    found, expected = transcribe(trained, [str(tmp_path / "pipe"), str(file)]).transcriptions
    writer.join()
    assert found.text == expected.text
    assert found.words == expected.words


def test_a_header_that_says_more_is_noted(world: World, trained: Path, tmp_path: Path) -> None:
    whole = (world.folder / "test-0.wav").read_bytes()
    (tmp_path / "short.wav").write_bytes(whole[: len(whole) - 2 * 640])  # 40 ms
    (made,) = transcribe(trained, [str(tmp_path / "short.wav")]).transcriptions
    (warning,) = made.warnings
    assert warning.startswith("its header says ")
    assert warning.endswith("can be decoded: all is used")


def test_closed_standard_input(world: World, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of `parp transcribe … <&-`: only who wants to read from it is refused, before anything is read."""
    monkeypatch.setattr(sys, "stdin", None)
    assert transcribe(trained, [str(world.folder / "test-0.wav")]).error() is None
    with pytest.raises(UsageError, match="standard input is closed") as caught:
        transcribe(Path("no checkpoint"), ["missing.wav", "-"])
    assert "pipe in" in str(caught.value.hint)


def test_subtitles_are_made_where_they_are_shown(
    world: World, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("segments were made")

    monkeypatch.setattr(stage, "segments_of", refuse)
    files = [str(world.folder / "test-0.wav")]
    (made,) = transcribe(trained, files, out=tmp_path, times=True).transcriptions
    assert made.words
    for layout in ("srt", "vtt", "json"):
        with pytest.raises(AssertionError, match="segments were made"):
            made.rendered(layout)  # type: ignore[arg-type]


def test_a_name_that_is_not_utf8(world: World, trained: Path, tmp_path: Path) -> None:
    """Whatever becomes of the file itself, the others' texts are not lost."""
    name = tmp_path / os.fsdecode(b"\xff.wav")
    name.write_bytes((world.folder / "test-0.wav").read_bytes())
    missing = str(tmp_path / os.fsdecode(b"\xfe.wav"))
    files = [missing, str(name), str(world.folder / "test-1.wav")]
    said: list[Transcription] = []
    result = transcribe(trained, files, out=tmp_path / "out", layout="json", ready=said.append)
    assert said[-1].file == files[-1]
    assert said[-1].text
    assert {item.file for item in (*result.transcriptions, *result.failures)} == set(files)
    for made in result.transcriptions:
        assert made.path is not None
        assert json.loads(made.path.read_bytes())["file"] == made.file


@pytest.mark.parametrize(
    ("layout", "suffix", "begins"),
    [("text", ".txt", ""), ("json", ".json", '{"file": '), ("srt", ".srt", "1\n00:00:0"), ("vtt", ".vtt", "WEBVTT\n")],
)
def test_files_are_written(layout: str, suffix: str, begins: str, world: World, trained: Path, tmp_path: Path) -> None:
    seen: list[Transcription] = []
    files = [str(world.folder / f"test-{number}.wav") for number in range(2)]
    result = transcribe(trained, files, out=tmp_path / "out", layout=layout, ready=seen.append)  # type: ignore[arg-type]
    assert tuple(seen) == result.transcriptions
    for number, made in enumerate(result.transcriptions):
        assert made.path == tmp_path / "out" / f"test-{number}{suffix}"
        assert made.path.read_text() == made.rendered(layout)  # type: ignore[arg-type]
        assert made.path.read_text().startswith(begins or made.text)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"test-0{suffix}", f"test-1{suffix}"]


def test_two_files_of_one_name_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a/x\.wav and b/x\.flac would both be written to"):
        transcribe(trained, ["a/x.wav", "b/x.flac"], out=tmp_path)
    with pytest.raises(UsageError, match="standard input is named twice"):
        transcribe(trained, ["-", "-"])


def test_no_sound_file_is_overwritten(world: World, trained: Path, tmp_path: Path) -> None:
    sound = tmp_path / "a.txt"  # libsndfile does not look at endings
    sound.write_bytes((world.folder / "test-0.wav").read_bytes())
    with pytest.raises(UsageError, match=r"the transcript .*a\.txt would overwrite the audio file .*a\.txt"):
        transcribe(trained, [str(sound)], out=tmp_path)
    assert sound.read_bytes() == (world.folder / "test-0.wav").read_bytes()


def test_a_folder_that_cannot_be_written_is_known_at_once(world: World, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    seen: list[Transcription] = []
    with pytest.raises(UsageError, match="cannot write"):
        transcribe(trained, [str(world.folder / "test-0.wav")], out=tmp_path / "file" / "out", ready=seen.append)
    assert not seen


def test_an_encoder_without_a_head_is_refused(world: World) -> None:
    with pytest.raises(CheckpointError):
        transcribe(world.encoder, [str(world.folder / "test-0.wav")])


def test_results_come_in_the_order_of_the_files(world: World, trained: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000), 16_000)
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    spoken = [str(world.folder / f"test-{number}.wav") for number in (2, 0)]
    files = [spoken[0], str(tmp_path / "broken.wav"), str(tmp_path / "silent.wav"), spoken[1]]
    ready: list[Transcription] = []
    result = transcribe(trained, files, ready=ready.append)
    assert [item.file for item in ready] == [files[0], files[2], files[3]]
    assert list(result.transcriptions) == ready
