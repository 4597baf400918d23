"""The commands on texts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.text import transformers
from tests.tasks.classification.world import Films, films, lines

__all__ = ["films"]


def write_recipe(films: Films, *more: str) -> Path:
    text = [
        "task: classification",
        f"model: {films.model}",
        f"data: {{root: {films.data}}}",
        "pruning: {interval: 3}",
        "training: {updates: 12, batch_size: 4, max_length: 16, learning_rate: 5e-3, validate_every: 6}",
    ]
    path = films.data / "recipe.yaml"
    path.write_text("\n".join([*text, *more]))
    return path


@pytest.fixture
def trained(parp: Any, films: Films) -> Films:
    answer = parp("finetune", write_recipe(films))
    assert answer.code == 0, answer.err
    assert "accuracy" in answer.out
    return films


def test_from_a_mask_to_predictions(parp: Any, films: Films, tmp_path: Path) -> None:
    masked = parp("mask", "--model", films.model, "--sparsity", "0.5")
    assert masked.code == 0, masked.err
    tuned = parp("finetune", write_recipe(films), "--json")
    assert tuned.code == 0, tuned.err
    assert json.loads(tuned.out)["plan"]["outputs"] == 2
    judged = parp("eval", "--json")
    assert judged.code == 0, judged.err
    system = json.loads(judged.out)["systems"][0]
    assert system["texts"] == len(lines())
    assert sum(map(sum, system["confusion"])) == len(lines())
    assert system["metrics"]["accuracy"]["low"] <= system["metrics"]["accuracy"]["value"]
    rows = [json.loads(line) for line in Path("parp-run/eval-dev.jsonl").read_text().splitlines()]
    assert rows[0].keys() == {"id", "split", "reference", "hypothesis", "probability"}
    right = sum(row["reference"] == row["hypothesis"] for row in rows)
    assert right / len(rows) == pytest.approx(system["metrics"]["accuracy"]["value"])
    (tmp_path / "new.txt").write_text("this is a very good film\nthe bad film\n")
    predicted = parp("predict", "new.txt")
    assert predicted.code == 0, predicted.err
    assert [row.split("\t")[0] for row in predicted.out.splitlines()] == ["id", "1", "2"]
    table = parp("predict", films.data / "dev.tsv", "--format", "jsonl")
    assert [json.loads(line)["label"] for line in table.out.splitlines()] == [row["hypothesis"] for row in rows]
    for command in (
        ["inspect"],
        ["reprune", "--sparsity", "0.7"],
        ["compare", "parp-run/mask.safetensors", "parp-run/finetune.safetensors"],
    ):
        answer = parp(*command)
        assert answer.code == 0, answer.err


def test_systems_side_by_side(parp: Any, trained: Films) -> None:
    assert parp("mask", "--model", trained.model, "--sparsity", "0.9", "--run", "other").code == 0
    answer = parp("eval", "parp-run/finetune.safetensors", "--mask", "other/mask.safetensors", "--json")
    assert answer.code == 0, answer.err
    whole, masked = json.loads(answer.out)["systems"]
    assert masked["sparsity"] > 0.85 > whole["sparsity"]
    assert masked["comparisons"][0]["other"] == whole["name"]
    again = parp(
        "eval", "parp-run/finetune-last.safetensors", "--against", "parp-run/eval-dev.jsonl", "--out", "last.jsonl"
    )
    assert again.code == 0, again.err
    assert "last against eval-dev" in again.out


@pytest.mark.parametrize("head", [False, True])
def test_an_export_has_the_logits_of_transformers(head: bool, parp: Any, trained: Films, tmp_path: Path) -> None:
    from parp_cli.models.recognizer import rebuild
    from parp_cli.storage import checkpoint

    source = Path("parp-run/finetune.safetensors")
    if not head:
        assert parp("mask", "--model", trained.model, "--run", "masked").code == 0
        source = Path("masked/mask.safetensors")
    answer = parp("export", source, "--to", "hf", "--out", "exported")
    assert answer.code == 0, answer.err
    reader = transformers.AutoModelForSequenceClassification if head else transformers.AutoModel
    theirs, tokenizer = (
        reader.from_pretrained("exported").eval(),
        transformers.AutoTokenizer.from_pretrained("exported"),
    )
    inputs = dict(tokenizer(["a good film", "this is not a very bad film"], padding=True, return_tensors="pt"))
    content = checkpoint.read(source)
    network = rebuild(content, torch.device("cpu"), source="")[1]
    with torch.no_grad():
        found = theirs(**inputs)
        torch.testing.assert_close(
            network(inputs), found.logits if head else found.last_hidden_state, rtol=0, atol=1e-5
        )
    state = theirs.state_dict()
    for name, mask in content.masks.items():
        assert not state[name if head else name.removeprefix("bert.")][~mask].any()
    if head:
        assert theirs.config.id2label == {0: "bad", 1: "good"}
        assert parp("mask", "--model", "exported", "--run", "again").code == 0  # with its head
        assert checkpoint.read_metadata(Path("again/mask.safetensors")).task["names"] == ["bad", "good"]  # type: ignore[index]


def test_a_sweep(parp: Any, films: Films) -> None:
    recipe = write_recipe(films)
    sweep = films.data / "sweep.yaml"
    sweep.write_text(f"recipe: {recipe}\ngrid:\n  pruning.method: [dense, parp]\n  pruning.sparsity: [0.5]\n")
    answer = parp("sweep", sweep, "--run", "sweep", "--workers", "1")
    assert answer.code == 0, answer.err
    rows = [json.loads(line) for line in Path("sweep/sweep.jsonl").read_text().splitlines()]
    assert [(row["method"], row["metric"], row["wer"]) for row in rows] == [
        ("dense", "accuracy", None),
        ("parp", "accuracy", None),
    ]
    assert all(0 <= row["score"] <= 1 for row in rows)
    assert "accuracy, dev" in answer.out


def test_keys_of_the_task(parp: Any) -> None:
    answer = parp("finetune", "--keys", "--set", "task=classification")
    assert answer.code == 0
    assert "data.glue" in answer.out
    assert "training.max_length" in answer.out
    assert "batch_seconds" not in answer.out


def test_what_goes_with_other_heads(parp: Any, trained: Films, tmp_path: Path) -> None:
    checkpoint = "parp-run/finetune.safetensors"
    speech = parp("transcribe", "a.wav", "-c", checkpoint)
    assert speech.code in (3, 4)
    options = parp("eval", checkpoint, "--lm", "x", "--html", "y")
    assert (options.code, "--html, --lm is for speech" in options.err) == (2, True)
    assert parp("export", checkpoint, "--to", "torchaudio").code == 4
    headless = parp("mask", "--model", trained.model, "--run", "body")
    assert headless.code == 0
    missing = parp("eval", "--run", "body")
    assert (missing.code, "has no output head" in missing.err) == (4, True)
    no_head = parp("predict", "x.txt", "--run", "body")
    assert (no_head.code, "has no output head" in no_head.err) == (4, True)
    mask = parp("mask", "--from", checkpoint, "--apply", "mini", "--run", "no")
    assert (mask.code, "another model" in mask.err) == (4, True)
    labels = tmp_path / "other"
    labels.mkdir()
    (labels / "dev.tsv").write_text("text\tlabel\na film\tfine\n")
    judged = parp("eval", checkpoint, "--set", f"data.root={labels}")
    assert (judged.code, "label 'fine' is none of bad, good" in judged.err) == (3, True)
    assert parp("eval", checkpoint, "--split", "nowhere").code == 3
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    assert parp("predict", empty, "-c", checkpoint).code == 3


def test_lines_that_cannot_be_judged_are_left_out(parp: Any, trained: Films) -> None:
    path = trained.data / "dev.tsv"
    path.write_text(path.read_text() + "\tgood\n")
    answer = parp("eval", "--json")
    assert answer.code == 3
    assert json.loads(answer.out)["left_out"] == [f"dev.tsv, line {len(lines()) + 2}: no text"]
    assert parp("eval", "--set", "data.unusable=skip").code == 0
