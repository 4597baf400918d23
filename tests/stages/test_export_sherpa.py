"""Exports to sherpa-onnx of what a run made: the transcripts of `parp eval`, or nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from parp_cli.data.audio import read_audio
from parp_cli.data.labels import Vocabulary
from parp_cli.errors import CheckpointError, UsageError
from parp_cli.exporters import sherpa
from parp_cli.exporters.sherpa import Symbols, write_tokens
from parp_cli.stages.evaluate import evaluate
from parp_cli.stages.export import export
from tests.tiny import World

pytest.importorskip("onnx", reason="the extra `onnx`")


def test_sherpa_onnx_recognises_what_parp_eval_does(world: World, trained: Path, tmp_path: Path) -> None:
    sherpa_onnx = pytest.importorskip("sherpa_onnx", reason="the extra `sherpa`")
    result = export(trained, to="sherpa", out=tmp_path / "new" / "sherpa")
    check = result.check
    assert check is not None
    assert check.largest_difference < 1e-4
    assert (check.transcripts, check.transcripts_changed) == (3, 0)
    assert check.transcribed_by == f"sherpa-onnx {sherpa_onnx.__version__}"
    files = sorted(result.path.iterdir())
    assert [path.name for path in files] == ["model.onnx", "tokens.txt"]
    assert result.size == sum(path.stat().st_size for path in files)
    recognizer = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc(model=str(files[0]), tokens=str(files[1]))
    evaluated = evaluate(trained, out=tmp_path / "eval.jsonl").as_it_is
    lines = evaluated.outputs.hypotheses.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 3
    for row in rows:
        stream = recognizer.create_stream()
        stream.accept_waveform(16_000, read_audio(world.folder / f"{row['id']}.wav").numpy())
        recognizer.decode_stream(stream)
        assert stream.result.text.split() == row["hypothesis"].split()
        assert row["hypothesis"]


def test_int8_tells_how_many_transcripts_change(trained: Path, tmp_path: Path) -> None:
    result = export(trained, to="sherpa", int8=True, out=tmp_path / "sherpa")
    assert result.check is not None
    assert result.check.transcripts == 3
    assert result.check.transcripts_changed in range(4)
    assert result.integer_products == 2 * 6 + 2 + 2, "blocks, features and head, two convolutions"
    assert sorted(path.name for path in result.path.iterdir()) == ["model.onnx", "tokens.txt"]


def test_other_transcripts_leave_nothing_behind(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one(symbols: Symbols, path: Path) -> None:
        texts = symbols.texts
        write_tokens(Symbols((texts[0], *texts[2:], texts[1]), symbols.printed, symbols.silent), path)

    def other(folder: Path, symbols: Symbols, speech: Any) -> tuple[list[str], str]:
        return ["X" for _ in speech], "a program"

    monkeypatch.setattr(sherpa, "write_tokens", off_by_one)
    if sherpa.importlib.util.find_spec("sherpa_onnx") is None:
        monkeypatch.setattr(sherpa, "transcribed", other)
    with pytest.raises(
        CheckpointError, match=r"makes other transcripts of 3 of 3 utterances than .*: nothing is written"
    ):
        export(trained, to="sherpa", out=tmp_path / "sherpa")
    assert not list(tmp_path.iterdir())


def test_labels_are_refused_before_speech_is_read(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaced = Vocabulary(("<blank>", "A B"), "letters")
    monkeypatch.setattr(sherpa, "vocabulary_of", lambda *_: spaced)
    monkeypatch.setattr("parp_cli.stages.export.some_speech", lambda *_: pytest.fail("it was read"))
    with pytest.raises(CheckpointError, match="has a label with a space in it"):
        export(trained, to="sherpa", out=tmp_path / "sherpa")


@pytest.mark.parametrize("out", [".", ".."])
def test_the_working_directory(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    below = tmp_path / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    export(trained, to="sherpa", out=Path(out))
    assert {"model.onnx", "tokens.txt"} <= {path.name for path in (below / out).iterdir()}
    with pytest.raises(UsageError, match="cannot write"):
        export(trained, to="onnx", out=Path(out))


def test_what_one_file_cannot_hold(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sherpa.onnx, "_MOST_BYTES", 1_000)
    with pytest.raises(UsageError, match="an ONNX file holds") as caught:
        export(trained, to="sherpa", out=tmp_path / "sherpa")
    assert "--to small" in (caught.value.hint or "")
    assert not list(tmp_path.iterdir())


def test_an_encoder_without_a_head(masked: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no output head"):
        export(masked, to="sherpa", out=tmp_path / "sherpa")
    assert not list(tmp_path.iterdir())
