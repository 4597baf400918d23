"""Corpora of others from their files to error rates."""

import json
from dataclasses import replace
from pathlib import Path

import jiwer
import pytest

from parp_cli.errors import DataError
from parp_cli.stages.evaluate import evaluate
from parp_cli.stages.finetune import finetune
from parp_cli.storage import checkpoint
from tests.others import CORPORA, Corpus, common_voice
from tests.tiny import TEXTS, World, write_manifest

SHORT = ("training.updates=2", "training.validate_every=2", "pruning.interval=1")


def settings(corpus: Corpus, *more: str) -> list[str]:
    names = [f"data.{split}={name}" for split, name in corpus.names.items()]
    return [f"data.manifest={corpus.path}", *names, *SHORT, *more]


@pytest.mark.parametrize("name", CORPORA)
def test_from_a_corpus_to_its_error_rate(name: str, world: World, tmp_path: Path) -> None:
    corpus = CORPORA[name](tmp_path)
    trained = finetune(world.recipe(*settings(corpus)), run=tmp_path / "run").path
    result = evaluate(trained, out=tmp_path / "eval.jsonl").as_it_is
    rows = [json.loads(line) for line in result.outputs.hypotheses.read_text().splitlines()]
    assert [row["reference"] for row in rows] == TEXTS["test"]


def test_ids_that_a_corpus_lacks_are_counted_and_named(world: World, tmp_path: Path) -> None:
    corpus = common_voice(tmp_path)
    lists = tmp_path / "lists"
    lists.mkdir()
    for name, prefix in (("train", "5t"), ("dev", "3d"), ("test", "4t")):
        ids = [f"common_voice_ky_{prefix}{number:04d}" for number in range(3)]
        (lists / f"{name}.txt").write_text("\n".join([*ids, f"common_voice_ky_gone_{name}"]) + "\n")
    given = settings(corpus, f"data.lists={lists}")
    with pytest.raises(DataError, match="missing audio 2") as caught:
        finetune(world.recipe(*given), run=tmp_path / "run")
    for name in ("train", "dev"):
        assert any(f"common_voice_ky_gone_{name}" in detail for detail in caught.value.details)
    trained = finetune(world.recipe(*given, "data.unusable=skip"), run=tmp_path / "run").path
    evaluate(trained, out=tmp_path / "eval.jsonl")
    left_out = json.loads((tmp_path / "eval.json").read_text())["left_out"]
    assert {each["utterance_id"] for each in left_out} == {"common_voice_ky_gone_test"}
    assert "missing audio" in {each["kind"] for each in left_out}
    assert len((tmp_path / "eval.jsonl").read_text().splitlines()) == 3


def test_phones_of_ones_own_language(world: World, tmp_path: Path) -> None:
    """Audio and text are enough; PER is jiwer's over space-separated phones."""
    pytest.importorskip("espeakng_loader", reason="espeak-ng comes with the extra demo")
    corpus = common_voice(tmp_path)
    words = {"A": "habari", "B": "mama", "C": "baba"}
    for split in corpus.names.values():
        lines = [line.split("\t") for line in (corpus.path / f"{split}.tsv").read_text().splitlines()]
        for cells in lines[1:]:
            cells[3], cells[11] = " ".join(words[letter] for letter in cells[3].replace(" ", "")), ""
        (corpus.path / f"{split}.tsv").write_text("".join("\t".join(cells) + "\n" for cells in lines))
    given = settings(corpus, "data.labels=phones")
    with pytest.raises(DataError, match="no phones"):
        finetune(world.recipe(*given), run=tmp_path / "run")
    recipe = world.recipe(*given, "data.language=sw", "training.updates=60", "training.validate_every=60")
    trained = finetune(recipe, run=tmp_path / "run").path
    task = checkpoint.read(trained).metadata.task
    assert task is not None
    assert {"h", "a", "b"} < set(task["vocabulary"])
    assert not any("ˈ" in symbol for symbol in task["vocabulary"])
    result = evaluate(trained, out=tmp_path / "eval.jsonl").as_it_is
    rows = [json.loads(line) for line in result.outputs.hypotheses.read_text().splitlines()]
    references, hypotheses = [row["reference"] for row in rows], [row["hypothesis"] for row in rows]
    assert references[0] == "h a b a r i m a m a b a b a"
    errors = result.errors("phones")
    assert errors is not None
    assert errors.rate == pytest.approx(jiwer.wer(references, hypotheses))
    stressed = replace(recipe, data=replace(recipe.data, strip_stress=False))
    again = finetune(stressed, run=tmp_path / "stressed").path
    task = checkpoint.read(again).metadata.task
    assert task is not None
    assert any("ˈ" in symbol for symbol in task["vocabulary"])


@pytest.mark.parametrize(
    ("strip", "vocabulary", "reference"),
    [
        ((), "m ɑ51 ɑː55 ˈɑ55", "m ˈɑ55 m ɑ51 m ɑː55"),
        (("stress",), "m ɑ51 ɑ55 ɑː55", "m ɑ55 m ɑ51 m ɑː55"),
        (("length",), "m ɑ51 ɑ55 ˈɑ55", "m ˈɑ55 m ɑ51 m ɑ55"),
        (("tone",), "m ɑ ɑː ˈɑ", "m ˈɑ m ɑ m ɑː"),
        (("stress", "length"), "m ɑ51 ɑ55", "m ɑ55 m ɑ51 m ɑ55"),
        (("stress", "length", "tone"), "m ɑ", "m ɑ m ɑ m ɑ"),
    ],
)
def test_error_rates_of_phones_with_and_without_their_marks(
    strip: tuple[str, ...], vocabulary: str, reference: str, world: World, tmp_path: Path
) -> None:
    """Whatever stays of tones, stress and length tells phones apart, and PER is jiwer's over space-separated phones."""
    phones = {"A": "m ˈɑ55", "B": "m ɑ51", "C": "m ɑː55"}
    rows = [json.loads(line) for line in world.manifest.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(world.folder / row["audio"])
        row["phones"] = " ".join(phones.get(letter, "|") for letter in row["text"])
    given = [f"data.strip_{mark}={str(mark in strip).lower()}" for mark in ("stress", "length", "tone")]
    manifest = write_manifest(tmp_path / "manifest.jsonl", rows)
    recipe = world.recipe(f"data.manifest={manifest}", "data.labels=phones", "training.updates=80", *given)
    trained = finetune(recipe, run=tmp_path / "run").path
    task = checkpoint.read(trained).metadata.task
    assert task is not None
    assert task["vocabulary"][1:] == vocabulary.split()
    result = evaluate(trained, out=tmp_path / "eval.jsonl").as_it_is
    written = [json.loads(line) for line in result.outputs.hypotheses.read_text().splitlines()]
    references, hypotheses = [row["reference"] for row in written], [row["hypothesis"] for row in written]
    assert references[0] == reference
    assert any(hypotheses), "or nothing but deletions would be counted"
    errors = result.errors("phones")
    assert errors is not None
    assert errors.rate == jiwer.wer(references, hypotheses)
    assert errors.tokens == sum(len(each.split()) for each in references)


def test_languages_that_a_corpus_does_not_have(world: World, tmp_path: Path) -> None:
    corpus = common_voice(tmp_path)
    with pytest.raises(DataError, match="nothing in sw") as caught:
        finetune(world.recipe(*settings(corpus, "data.language=sw")), run=tmp_path / "run")
    assert caught.value.details == ("languages there: ky",)
