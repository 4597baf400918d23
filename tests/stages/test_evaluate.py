"""Errors are counted as jiwer counts them, no batch size changes a transcript, and what is wrong with some utterances
does not keep the others from being judged."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile

from parp_cli.config.finetune import Data
from parp_cli.decoding.choose import Decoding
from parp_cli.errors import CheckpointError, DataError, MaskError, UsageError
from parp_cli.pruning.masks import sparsity
from parp_cli.runtime.progress import Progress
from parp_cli.scoring.metrics import ErrorRate
from parp_cli.scoring.results import read_results
from parp_cli.stages.evaluate import Options, evaluate
from parp_cli.stages.finetune import finetune
from parp_cli.stages.mask import mask
from parp_cli.storage import checkpoint
from parp_cli.tasks.ctc.evaluation import Evaluated
from tests.tiny import TEXTS, TINY, World, write_encoder, write_manifest, write_speech


def errors_of(result: Evaluated, unit: str) -> ErrorRate:
    errors = result.errors(unit)  # type: ignore[arg-type]
    assert errors is not None
    return errors


def test_counts_are_jiwers_on_what_was_written(trained: Path, tmp_path: Path) -> None:
    result = evaluate(trained, out=tmp_path / "eval.jsonl").as_it_is
    rows = [json.loads(line) for line in result.outputs.hypotheses.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"test-{number}" for number in range(3)]
    assert [row["reference"] for row in rows] == TEXTS["test"]
    assert all(row["split"] == "test" and row["seconds"] > 0 for row in rows)
    references, hypotheses = [row["reference"] for row in rows], [row["hypothesis"] for row in rows]
    words, characters = jiwer.process_words(references, hypotheses), jiwer.process_characters(references, hypotheses)
    for unit, theirs, rate in (("words", words, words.wer), ("characters", characters, characters.cer)):
        ours = errors_of(result, unit)
        assert ours.rate == pytest.approx(rate)
        assert (ours.substitutions, ours.deletions, ours.insertions) == (
            theirs.substitutions,
            theirs.deletions,
            theirs.insertions,
        )
    assert errors_of(result, "words").tokens == 5
    assert any(hypotheses), "or this would show nothing"
    assert result.real_time_factor == result.seconds / result.audio_seconds > 0
    figures = json.loads((tmp_path / "eval.json").read_text())
    assert figures["words"]["rate"] == errors_of(result, "words").rate
    assert (figures["utterances"], figures["splits"], figures["sparsity"]) == (3, ["test"], 0.5)
    assert (figures["phones"], figures["left_out"], figures["data"]["corpus"]) == (None, [], "manifest")
    assert figures["report"]["metrics"][0]["errors"] == figures["words"]
    origin = dict(figures["report"]["origin"])
    assert checkpoint.file_hash(trained) in origin["checkpoint"]
    assert "torch" in origin["versions"]


@pytest.mark.parametrize("batch_seconds", [0.1, 1.5, 3.0])
def test_batches_change_no_transcript(trained: Path, tmp_path: Path, batch_seconds: float) -> None:
    splits = ("train",)
    whole = evaluate(trained, out=tmp_path / "whole.jsonl", options=Options(splits=splits)).as_it_is
    options = Options(splits=splits, batch_seconds=batch_seconds)
    parts = evaluate(trained, out=tmp_path / "parts.jsonl", options=options).as_it_is
    assert parts.outputs.hypotheses.read_bytes() == whole.outputs.hypotheses.read_bytes()


def test_phones_are_counted_as_tokens(world: World, tmp_path: Path) -> None:
    path = finetune(
        world.recipe("data.labels=phones", "data.strip_stress=false", "training.updates=2"), run=tmp_path
    ).path
    result = evaluate(path, out=tmp_path / "eval.jsonl").as_it_is
    assert (result.splits, result.errors("words"), result.errors("characters")) == (("test",), None, None)
    assert errors_of(result, "phones").tokens == sum(len(text.replace(" ", "")) for text in TEXTS["test"])
    assert json.loads((tmp_path / "eval.jsonl").read_text().splitlines()[0])["reference"] == "AH0 B S"


def test_several_splits(trained: Path, tmp_path: Path) -> None:
    result = evaluate(trained, out=tmp_path / "eval.jsonl", options=Options(splits=("test", "valid", "test"))).as_it_is
    assert result.splits == ("test", "valid")
    assert [(group.name, group.utterances) for group in result.report.by_split] == [("test", 3), ("valid", 3)]
    assert [this.split for this in read_results(result.outputs.hypotheses)] == ["test"] * 3 + ["valid"] * 3


def test_what_is_written_besides(trained: Path, tmp_path: Path) -> None:
    options = Options(html=tmp_path / "page.html", trn=tmp_path / "trn" / "test.v1")
    result = evaluate(trained, out=tmp_path / "eval.json", options=options).as_it_is
    assert result.outputs.figures == tmp_path / "eval-figures.json", "or one would overwrite the other"
    assert (result.outputs.html, [path.name for path in result.outputs.trn]) == (
        tmp_path / "page.html",
        ["test.v1.ref.trn", "test.v1.hyp.trn"],
    )
    found = read_results(result.outputs.hypotheses)
    lines = [path.read_text().splitlines() for path in result.outputs.trn]
    assert lines[0] == [f"{this.reference} ({this.id})" for this in found]
    assert lines[1] == [f"{this.hypothesis} ({this.id})" for this in found]
    HTMLParser().feed(page := (tmp_path / "page.html").read_text())
    assert checkpoint.file_hash(trained) in page
    assert "<p>manifest, test; greedy</p>" in page


def judged(rows: list[dict[str, object]], world: World, folder: Path, **more: str) -> Data:
    return replace(world.recipe().data, manifest=str(write_manifest(folder / "m.jsonl", rows)), **more)  # type: ignore[arg-type]


def test_what_is_wrong_with_some_utterances(world: World, trained: Path, tmp_path: Path) -> None:
    """Each has its line, and the others are judged."""
    seconds = write_speech(tmp_path / "fine.wav", "A BC")
    samples, rate = soundfile.read(tmp_path / "fine.wav")
    soundfile.write(tmp_path / "silence.wav", np.zeros(rate), rate)
    soundfile.write(tmp_path / "short.wav", samples[: rate // 100], rate)
    soundfile.write(tmp_path / "clipped.wav", np.clip(8 * samples, -1, 1), rate)
    stereo = np.repeat(np.stack([samples, samples], axis=1), 3, axis=0)
    soundfile.write(tmp_path / "stereo.wav", stereo, 3 * rate)
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(1000))
    (tmp_path / "broken.wav").write_bytes(b"RIFF" + (tmp_path / "fine.wav").read_bytes()[40:])
    names = ["fine", "silence", "short", "clipped", "stereo", "film.mp4", "broken", "gone"]
    rows: list[dict[str, object]] = [
        {"id": name.split(".")[0], "audio": name if "." in name else f"{name}.wav", "split": "test", "text": "A BC"}
        for name in names
    ]
    rows += [
        {"id": "empty", "audio": "fine.wav", "split": "test", "text": ""},
        {"id": "missing", "audio": "fine.wav", "split": "test"},
        {"id": "foreign", "audio": "fine.wav", "split": "test", "text": "Ä BC"},
        {"id": "long", "audio": "fine.wav", "split": "test", "text": "A BC " * 40},
        {"id": "twice", "audio": "fine.wav", "split": "test", "text": "A BC"},
        {"id": "twice", "audio": "fine.wav", "split": "test", "text": "A BC"},
    ]
    data = judged(rows, world, tmp_path)
    result = evaluate(trained, out=tmp_path / "eval.jsonl", data=data)
    found = {this.id: this for this in read_results(result.as_it_is.outputs.hypotheses)}
    assert list(found) == ["fine", "clipped", "stereo", "foreign", "long"]
    assert found["fine"].hypothesis == found["foreign"].hypothesis == found["long"].hypothesis != ""
    error = result.error()
    assert isinstance(error, DataError)
    assert error.exit_code == 3
    assert "9 problems with the utterances of test" in error.message
    assert "these were left out, the others evaluated" in error.message
    kinds = {(problem.utterance_id, problem.kind) for problem in result.left_out}
    assert kinds == {
        ("silence", "silence"),
        ("short", "too short"),
        ("film", "unreadable audio"),
        ("broken", "unreadable audio"),
        ("gone", "missing audio"),
        ("empty", "no label"),
        ("missing", "no label"),
        ("twice", "repeated id"),
    }
    assert any("film" in line and "Format not recognised" in line for line in error.details)
    notes = "\n".join(result.notes)
    assert re.search(r"test: clipped clipped, up to \d+\.\d% of the samples", notes)
    assert "stereo at 48,000 Hz" in notes
    assert "stereo with 2 channels" in notes
    assert "test: letters that the model cannot write in 1 of 14 references (foreign): they count as errors" in notes
    figures = json.loads(result.as_it_is.outputs.figures.read_text())
    assert {row["utterance_id"] for row in figures["left_out"]} == {utterance for utterance, _ in kinds}
    assert "8 utterances" in dict(figures["report"]["origin"])["left out"]
    assert seconds > 0

    skipping = evaluate(trained, out=tmp_path / "eval.jsonl", data=replace(data, unusable="skip"))
    assert skipping.left_out == result.left_out
    assert skipping.error() is None, "the recipe said so"


def test_nothing_is_left(world: World, trained: Path, tmp_path: Path) -> None:
    data = judged([{"id": "gone", "audio": "gone.wav", "split": "test", "text": "A"}], world, tmp_path)
    with pytest.raises(DataError, match="missing audio 1"):
        evaluate(trained, out=tmp_path / "eval.jsonl", data=data)
    assert not (tmp_path / "eval.jsonl").exists()


class TestComparison:
    def test_a_difference(self, dense: Path, many: Data, tmp_path: Path) -> None:
        first = evaluate(dense, out=tmp_path / "one" / "eval.jsonl", data=many).as_it_is
        assert first.report.metrics[0].interval is not None
        assert str(first.report.metrics[0].interval.units) == "6 speakers"
        worse = tmp_path / "two" / "eval.jsonl"
        worse.parent.mkdir()
        lines = first.outputs.hypotheses.read_text()
        worse.write_text(re.sub(r'"hypothesis": "[^"]*"', '"hypothesis": "X X X X X"', lines))
        options = Options(against=(first.outputs.hypotheses, worse))
        report = evaluate(dense, out=tmp_path / "three" / "eval.jsonl", data=many, options=options).as_it_is.report
        assert report.name == "three"
        same, other = report.comparisons
        assert (same.other, other.other) == ("one", "two")
        assert same.ours == same.theirs == report.metrics[0].errors
        assert same.verdict == "undecided"
        assert other.theirs.rate > other.ours.rate
        assert (other.verdict, other.worse_utterances) == ("better", 0)

    def test_other_utterances(self, trained: Path, tmp_path: Path) -> None:
        other = evaluate(trained, out=tmp_path / "valid.jsonl", options=Options(splits=("valid",))).as_it_is
        with pytest.raises(DataError, match="not of the same utterances"):
            evaluate(trained, out=tmp_path / "eval.jsonl", options=Options(against=(other.outputs.hypotheses,)))

    def test_no_results(self, trained: Path, tmp_path: Path) -> None:
        (tmp_path / "other.jsonl").write_text("hello\n")
        with pytest.raises(DataError, match="no file of results"):
            evaluate(trained, out=tmp_path / "eval.jsonl", options=Options(against=(tmp_path / "other.jsonl",)))


@pytest.fixture
def many(world: World, tmp_path: Path) -> Data:
    """All utterances as one split of six speakers: enough for intervals."""
    rows: list[dict[str, object]] = [
        {
            "id": f"{split}-{number}",
            "audio": str(world.folder / f"{split}-{number}.wav"),
            "split": "all",
            "text": text,
            "speaker": f"s{(len(split) + number) % 6}",
        }
        for split, texts in TEXTS.items()
        for number, text in enumerate(texts)
    ]
    return replace(world.recipe().data, manifest=str(write_manifest(tmp_path / "many.jsonl", rows)), test="all")


@pytest.fixture(scope="module")
def dense(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = ("pruning.method=dense", "training.updates=300", "training.validate_every=100")
    recipe = world.recipe(*settings, "training.layer_drop=0", "training.activation_dropout=0")
    return finetune(recipe, run=tmp_path_factory.mktemp("dense")).path


class TestMasks:
    def test_one_encoder_many_subnetworks(self, dense: Path, many: Data, tmp_path: Path) -> None:
        files = [
            mask(str(dense), sparsity=amount, scope=scope, out=tmp_path / f"{name}.safetensors").path
            for name, amount, scope in (
                ("most", 0.9, "transformer"),
                ("front", 0.5, "front-end"),
                ("half", 0.5, "transformer"),
            )
        ]
        result = evaluate(dense, out=tmp_path / "eval.jsonl", data=many, options=Options(masks=tuple(files)))
        assert [system.report.name for system in result.systems] == ["finetune", "most", "front", "half"]
        assert [system.sparsity for system in result.systems] == pytest.approx([0, 0.9, 0.5, 0.5], abs=1e-2)
        assert [system.outputs.hypotheses.name for system in result.systems] == [
            "eval.jsonl",
            "eval-most.jsonl",
            "eval-front.jsonl",
            "eval-half.jsonl",
        ]
        assert [[this.other for this in system.report.comparisons] for system in result.systems] == [
            [],
            *[["finetune"]] * 3,
        ]
        # Just as if the weights had been pruned in a file of their own, the front end's too.
        content = checkpoint.read(dense)
        for file, system in zip(files, result.systems[1:], strict=True):
            masks = checkpoint.read_masks(file)
            weights = {name: weight * masks.get(name, 1) for name, weight in content.weights.items()}
            checkpoint.write(tmp_path / "own.safetensors", replace(content, weights=weights))
            alone = evaluate(tmp_path / "own.safetensors", out=tmp_path / "own.jsonl", data=many).as_it_is
            assert system.outputs.hypotheses.read_bytes() == alone.outputs.hypotheses.read_bytes()
            assert str(file) in dict(system.report.origin)["mask"]
        texts = [system.outputs.hypotheses.read_text() for system in result.systems]
        assert texts[0] != texts[1], "or masks do nothing"
        assert texts[2] != texts[3], "or a front end is kept that is another one"

    def test_names_are_of_one_thing_each(self, dense: Path, many: Data, tmp_path: Path) -> None:
        half = mask(str(dense), sparsity=0.5, out=tmp_path / "half.safetensors").path
        other = tmp_path / "finetune.jsonl"
        lines = evaluate(dense, out=other, data=many).as_it_is.outputs.hypotheses.read_text()
        other.write_text(re.sub(r'"hypothesis": "[^"]*"', '"hypothesis": "X"', lines))
        options = Options(masks=(half,), against=(other,))
        systems = evaluate(dense, out=tmp_path / "eval.jsonl", data=many, options=options).systems
        names = [system.report.name for system in systems]
        others = [[this.other for this in system.report.comparisons] for system in systems]
        assert len({*names, *others[0]}) == 3
        assert others[1] == [names[0], *others[0]]
        assert systems[1].report.comparisons[0].theirs == systems[0].report.metrics[0].errors

    def test_over_a_pruned_checkpoint(self, trained: Path, world: World, tmp_path: Path) -> None:
        other = mask(str(world.encoder), sparsity=0.8, out=tmp_path / "other.safetensors", seed=1).path
        steps: list[Progress] = []
        options = Options(masks=(other,))
        result = evaluate(trained, out=tmp_path / "eval.jsonl", options=options, notify=steps.append)
        assert any("is itself pruned to 50.0%" in step.warning for step in steps)
        own, its = checkpoint.read_masks(trained), checkpoint.read_masks(other)
        assert result.systems[1].sparsity == sparsity({name: own[name] & its[name] for name in own})

    def test_a_mask_of_another_model(self, trained: Path, tmp_path: Path) -> None:
        wide = replace(TINY, feed_forward=96)
        write_encoder(tmp_path / "wide.safetensors", wide)
        other = mask(str(tmp_path / "wide.safetensors"), sparsity=0.5, out=tmp_path / "m.safetensors").path
        with pytest.raises(MaskError, match="mask does not fit"):
            evaluate(trained, out=tmp_path / "eval.jsonl", options=Options(masks=(other,)))

    def test_no_mask(self, trained: Path, world: World, tmp_path: Path) -> None:
        with pytest.raises(MaskError, match="has no mask"):
            evaluate(trained, out=tmp_path / "eval.jsonl", options=Options(masks=(world.encoder,)))


class TestDecoding:
    def test_a_lexicon_finds_its_words_alone(self, trained: Path, tmp_path: Path) -> None:
        pytest.importorskip("flashlight.lib.text")
        (tmp_path / "lexicon.txt").write_text("A A\nBC B C\nCA C A\n")
        decoding = Decoding(decoder="lexicon", lexicon=tmp_path / "lexicon.txt")
        result = evaluate(trained, out=tmp_path / "eval.jsonl", options=Options(decoding=decoding))
        found = {word for this in read_results(result.as_it_is.outputs.hypotheses) for word in this.hypothesis.split()}
        assert found <= {"A", "BC", "CA"}
        assert found
        assert result.notes == ("2 of 5 reference words are not in the lexicon and cannot be found: B, BCA",)
        assert "lexicon" in dict(result.as_it_is.report.origin)["decoding"]

    def test_tuned_weights_are_used(self, trained: Path, tmp_path: Path) -> None:
        pytest.importorskip("flashlight.lib.text")
        (tmp_path / "lexicon.txt").write_text(
            "".join(f"{w} {' '.join(w)}\n" for w in ("A", "B", "C", "BC", "CA", "BA"))
        )
        decoding = Decoding(decoder="lexicon", lexicon=tmp_path / "lexicon.txt", word_score=50.0)
        bad = evaluate(trained, out=tmp_path / "bad.jsonl", options=Options(decoding=decoding)).as_it_is
        good = evaluate(trained, out=tmp_path / "good.jsonl", options=Options(decoding=decoding, tuned=True)).as_it_is
        assert good.tuning is not None
        assert good.tuning.best.word_score < 50
        assert good.decoding.endswith(f"word score {good.tuning.best.word_score:g}")
        assert errors_of(good, "words").errors <= errors_of(bad, "words").errors
        assert "tuned on valid" in dict(good.report.origin)["decoding"]

    def test_not_on_what_is_judged(self, trained: Path, tmp_path: Path) -> None:
        (tmp_path / "lexicon.txt").write_text("A A\n")
        decoding = Decoding(decoder="lexicon", lexicon=tmp_path / "lexicon.txt")
        options = Options(decoding=decoding, tuned=True, splits=("test", "valid"))
        with pytest.raises(UsageError, match="tuned on valid, which is evaluated"):
            evaluate(trained, out=tmp_path / "eval.jsonl", options=options)

    def test_nothing_to_tune(self, trained: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no weights to tune"):
            evaluate(trained, out=tmp_path / "eval.jsonl", options=Options(tuned=True))

    def test_bfloat16(self, trained: Path, tmp_path: Path) -> None:
        result = evaluate(trained, out=tmp_path / "eval.jsonl", options=Options(precision="bfloat16")).as_it_is
        exact = evaluate(trained, out=tmp_path / "exact.jsonl").as_it_is
        assert dict(result.report.origin)["precision"] == "bfloat16"
        assert errors_of(result, "characters").rate == pytest.approx(errors_of(exact, "characters").rate, abs=0.3)


def test_no_such_split(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no split test-clean") as caught:
        evaluate(trained, out=tmp_path / "eval.jsonl", options=Options(splits=("test-clean",)))
    assert caught.value.details == ("splits there: test, train, valid",)


def test_a_checkpoint_without_a_head(masked: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no output head"):
        evaluate(masked, out=tmp_path / "eval.jsonl")


class TestFiles:
    """Nothing that is read, or written before, is overwritten by another thing."""

    def test_results_compared_with_stay(self, trained: Path, tmp_path: Path) -> None:
        out = tmp_path / "eval.jsonl"
        before = evaluate(trained, out=out).as_it_is.outputs.hypotheses.read_bytes()
        with pytest.raises(UsageError, match=r"--out .* would overwrite --against"):
            evaluate(trained, out=out, options=Options(against=(out,)))
        with pytest.raises(UsageError, match=r"--html .* would overwrite --out"):
            evaluate(trained, out=out, options=Options(html=tmp_path / "eval.json"))
        assert out.read_bytes() == before

    def test_a_checkpoint_stays(self, trained: Path) -> None:
        before = trained.read_bytes()
        with pytest.raises(UsageError, match="would overwrite the checkpoint"):
            evaluate(trained, out=trained)
        assert trained.read_bytes() == before

    def test_named_twice(self, trained: Path, masked: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="named twice"):
            evaluate(trained, out=tmp_path / "eval.jsonl", options=Options(masks=(masked, masked)))

    def test_what_sclite_would_misread_is_told_first(self, world: World, trained: Path, tmp_path: Path) -> None:
        rows: list[dict[str, object]] = [
            {"id": "odd", "audio": str(world.folder / "test-0.wav"), "split": "test", "text": "A; BC"}
        ]
        steps: list[Progress] = []
        with pytest.raises(DataError, match=r"cannot be written as \.trn"):
            evaluate(
                trained,
                out=tmp_path / "eval.jsonl",
                data=judged(rows, world, tmp_path),
                options=Options(trn=tmp_path / "trn"),
                notify=steps.append,
            )
        assert not [step for step in steps if step.task == "recognising"]


def test_what_tuning_leaves_out_is_told(world: World, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text")
    rows: list[dict[str, object]] = [
        {"id": f"{split}-{n}", "audio": str(world.folder / f"{split}-{n}.wav"), "split": split, "text": text}
        for split in ("valid", "test")
        for n, text in enumerate(TEXTS[split])
    ]
    rows.append({"id": "gone", "audio": "gone.wav", "split": "valid", "text": "A"})
    (tmp_path / "lexicon.txt").write_text("A A\nBC B C\nCA C A\n")
    decoding = Decoding(decoder="lexicon", lexicon=tmp_path / "lexicon.txt")
    options = Options(decoding=decoding, tuned=True)
    result = evaluate(trained, out=tmp_path / "eval.jsonl", data=judged(rows, world, tmp_path), options=options)
    assert [(problem.utterance_id, problem.split) for problem in result.left_out] == [("gone", "valid")]
    assert result.error() is not None


def test_results_of_another_system_are_kept(trained: Path, world: World, tmp_path: Path) -> None:
    out, html = tmp_path / "eval.jsonl", tmp_path / "page.html"
    evaluate(trained, out=out, options=Options(html=html))
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(first) == {"eval.jsonl", "eval.json", "page.html"}
    evaluate(trained, out=out, options=Options(html=html))
    assert {path.name for path in tmp_path.iterdir()} == set(first), "the same results are not kept twice"
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for number in (1, 2):
        evaluate(trained, out=out, options=Options(html=html, splits=(("valid", "train")[number - 1],)))
        assert {path.name for path in tmp_path.glob(f"*~{number}*")} == {
            name.replace(".", f"~{number}.") for name in first
        }
    assert {name: (tmp_path / name.replace(".", "~1.")).read_bytes() for name in first} == kept
