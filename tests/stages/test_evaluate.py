"""Errors are counted as jiwer counts them, and no batch size changes a transcript."""

import json
from dataclasses import replace
from pathlib import Path

import jiwer
import pytest

from parp_cli.errors import CheckpointError, DataError
from parp_cli.stages.evaluate import evaluate
from parp_cli.stages.finetune import finetune
from tests.tiny import TEXTS, World, write_manifest


def test_counts_are_jiwers_on_what_was_written(trained: Path, tmp_path: Path) -> None:
    result = evaluate(trained, out=tmp_path / "eval.jsonl", split="test")
    rows = [json.loads(line) for line in result.hypotheses.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"test-{number}" for number in range(3)]
    assert [row["reference"] for row in rows] == TEXTS["test"]
    references, hypotheses = [row["reference"] for row in rows], [row["hypothesis"] for row in rows]
    words, characters = jiwer.process_words(references, hypotheses), jiwer.process_characters(references, hypotheses)
    for ours, theirs, rate in ((result.words, words, words.wer), (result.characters, characters, characters.cer)):
        assert ours is not None
        assert ours.rate == pytest.approx(rate)
        assert (ours.substitutions, ours.deletions, ours.insertions) == (
            theirs.substitutions,
            theirs.deletions,
            theirs.insertions,
        )
    assert result.words is not None
    assert result.words.tokens == 5
    assert any(hypotheses), "or this would show nothing"
    assert result.real_time_factor == result.seconds / result.audio_seconds > 0
    figures = json.loads((tmp_path / "eval.json").read_text())
    assert figures["words"]["rate"] == result.words.rate
    assert (figures["utterances"], figures["split"], figures["sparsity"]) == (3, "test", 0.5)


@pytest.mark.parametrize("batch_seconds", [0.1, 1.5, 3.0])
def test_batches_change_no_transcript(trained: Path, tmp_path: Path, batch_seconds: float) -> None:
    whole = evaluate(trained, out=tmp_path / "whole.jsonl", split="train")
    parts = evaluate(trained, out=tmp_path / "parts.jsonl", split="train", batch_seconds=batch_seconds)
    assert parts.hypotheses.read_bytes() == whole.hypotheses.read_bytes()


def test_phones_are_counted_as_tokens(world: World, tmp_path: Path) -> None:
    path = finetune(world.recipe("data.labels=phones", "training.updates=2"), run=tmp_path).path
    result = evaluate(path, out=tmp_path / "eval.jsonl")
    assert (result.split, result.words, result.characters) == ("test", None, None)
    assert result.phones is not None
    assert result.phones.tokens == sum(len(text.replace(" ", "")) for text in TEXTS["test"])
    assert json.loads((tmp_path / "eval.jsonl").read_text().splitlines()[0])["reference"] == "AH0 B S"


def test_an_utterance_without_a_reference(world: World, trained: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"id": "silent", "audio": str(world.folder / "test-0.wav"), "split": "test"},
        {"id": "fine", "audio": str(world.folder / "test-1.wav"), "split": "test", "text": "AB"},
    ]
    data = replace(world.recipe().data, manifest=str(write_manifest(tmp_path / "m.jsonl", rows)))
    with pytest.raises(DataError, match="1 utterances of test have no letters") as caught:
        evaluate(trained, out=tmp_path / "eval.jsonl", data=data)
    assert caught.value.details == ("silent",)
    assert not (tmp_path / "eval.jsonl").exists()


def test_no_such_split(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split test-clean") as caught:
        evaluate(trained, out=tmp_path / "eval.jsonl", split="test-clean")
    assert caught.value.details == ("splits there: test, train, valid",)


def test_a_checkpoint_without_a_head(masked: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no output head"):
        evaluate(masked, out=tmp_path / "eval.jsonl")
