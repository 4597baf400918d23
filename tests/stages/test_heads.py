"""A trained head, and a mask, are kept where they can be kept; where they are not, it is said."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from parp_cli.data.labels import Vocabulary, recorded_vocabulary
from parp_cli.runtime.progress import Progress, silent
from parp_cli.stages.finetune import finetune, prepare
from parp_cli.stages.mask import mask
from parp_cli.storage import checkpoint
from tests.tiny import World, write_manifest

STILL = ("training.learning_rate=1e-12", "training.updates=1", "pruning.method=fixed")


def with_text(world: World, folder: Path, text: str) -> str:
    """The setting of a manifest whose utterances for training and validation say this."""
    rows = [json.loads(line) for line in world.manifest.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(world.folder / row["audio"])
        row["text"] = row["text"] if row["split"] == "test" else text
    return f"data.manifest={write_manifest(folder / 'text.jsonl', rows)}"


def cut(trained: Path, symbols: tuple[str, ...], out: Path) -> Path:
    """The trained checkpoint with these of its labels alone."""
    content = checkpoint.read(trained)
    assert content.metadata.vocabulary is not None
    rows = [content.metadata.vocabulary.index(symbol) for symbol in symbols]
    weights = {name: w[rows] if name.startswith("aux.") else w for name, w in content.weights.items()}
    metadata = replace(content.metadata, task=Vocabulary(symbols, "letters").to_json())
    checkpoint.write(out, replace(content, weights=weights, metadata=metadata))
    return out


def prepared(world: World, *settings: str, init: Path | None = None) -> tuple[Vocabulary, list[str]]:
    """The labels of a run, and what is said before it."""
    told: list[Progress] = []
    vocabulary = recorded_vocabulary(prepare(world.recipe(*settings), init, told.append).task.describe())
    assert vocabulary is not None
    return vocabulary, [progress.warning for progress in told if progress.warning]


def test_the_head_of_a_model_is_kept(world: World, trained: Path, tmp_path: Path) -> None:
    model = cut(trained, ("<blank>", "|", "A", "B", "C"), tmp_path / "model.safetensors")
    after = checkpoint.read(finetune(world.recipe(*STILL, f"model={model}"), run=tmp_path / "run").last)
    before = checkpoint.read(model)
    assert after.metadata.vocabulary == before.metadata.vocabulary
    torch.testing.assert_close(after.weights["aux.weight"], before.weights["aux.weight"])
    torch.testing.assert_close(after.weights["aux.bias"], before.weights["aux.bias"])


def test_a_new_label_is_put_to_the_head(world: World, trained: Path, tmp_path: Path) -> None:
    init = cut(trained, ("<blank>", "|", "B", "A"), tmp_path / "model.safetensors")
    settings = with_text(world, tmp_path, "ABC"), *STILL
    vocabulary, notes = prepared(world, *settings, init=init)
    assert vocabulary.symbols == ("<blank>", "|", "B", "A", "C")
    assert [note for note in notes if "new to it: C" in note]
    after = checkpoint.read(finetune(world.recipe(*settings), run=tmp_path / "run", init=init).last)
    for name in ("aux.weight", "aux.bias"):
        assert len(after.weights[name]) == 5
        torch.testing.assert_close(after.weights[name][:4], checkpoint.read(init).weights[name])


@pytest.mark.parametrize(
    ("text", "alphabet", "symbols", "note"),
    [
        ("AB", "english", "AB", ""),
        ("ABÉ", "found", "ABÉ", "new to it: É"),
        ("aéb", "found", "ABÉ", "new to it: É"),
        ("AB CDE", "found", "ABCDE", "new to it: C D E"),
        ("CDEF", "found", "CDEF", "too few of the letters of the transcripts"),
        ("CDE", "english", "ABCDEFGHIJKLMNOPQRSTUVWXYZ'", "too few of the letters of the transcripts"),
    ],
)
def test_labels_of_a_run(
    world: World, trained: Path, tmp_path: Path, text: str, alphabet: str, symbols: str, note: str
) -> None:
    init = cut(trained, ("<blank>", "|", "A", "B"), tmp_path / "model.safetensors")
    settings = with_text(world, tmp_path, text), f"data.alphabet={alphabet}", "data.unusable=skip", *STILL
    vocabulary, notes = prepared(world, *settings, init=init)
    assert "".join(vocabulary.symbols[2:]) == symbols
    assert any(note in each for each in notes) if note else not any("head" in each for each in notes)


def test_a_head_of_other_labels_is_left_out(world: World, trained: Path) -> None:
    vocabulary, notes = prepared(world, "data.labels=phones", "data.strip_stress=true", *STILL, init=trained)
    assert vocabulary.labels == "phones"
    assert any("for letters (--set data.labels=letters)" in note for note in notes)


def test_the_mask_of_a_model_is_kept(world: World, masked: Path, tmp_path: Path) -> None:
    scoped = mask(str(masked), sparsity=0.6, scope="attention", out=tmp_path / "attention.safetensors").path
    result = finetune(world.recipe(*STILL, f"model={scoped}"), run=tmp_path / "run")
    assert result.sparsity is not None
    assert result.sparsity.target == 0.6
    expected, found = checkpoint.read_masks(scoped), checkpoint.read_masks(result.path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], kept) for name, kept in expected.items())
    said = world.recipe(*STILL, f"model={scoped}", "pruning.sparsity=0.6", "pruning.scope=attention")
    assert prepare(said, None, silent).start.masks


@pytest.mark.parametrize(
    "setting", ["pruning.method=dense", "pruning.sparsity=0.7", "pruning.initial=random", "pruning.method=rp"]
)
def test_a_mask_that_is_not_kept(world: World, masked: Path, setting: str) -> None:
    told: list[Progress] = []
    start = prepare(world.recipe(f"model={masked}", setting), None, told.append).start
    assert not start.masks
    (note,) = [progress.warning for progress in told if "mask" in progress.warning]
    assert f"the mask of {masked}, which prunes 50.0%, is not used" in note
