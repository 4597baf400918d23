"""Files of format 1 stay readable: everything that reads a checkpoint reads these, with the results of their time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from parp_cli.config.finetune import Data
from parp_cli.errors import CheckpointError
from parp_cli.stages.compare import compare
from parp_cli.stages.evaluate import evaluate
from parp_cli.stages.export import export
from parp_cli.stages.finetune import finetune
from parp_cli.stages.inspect import inspect
from parp_cli.stages.mask import combine, mask
from parp_cli.stages.reprune import reprune
from parp_cli.storage import checkpoint
from tests.tiny import World

FOLDER = Path(__file__).parent / "format1"
ENCODER, LETTERS, PHONES = (FOLDER / f"{name}.safetensors" for name in ("encoder", "letters", "phones"))
SYMBOLS = {LETTERS: ("<blank>", "|", "A", "B", "C"), PHONES: ("<blank>", "AH0", "B", "S")}
PRUNED = {ENCODER: (2160, 4320), LETTERS: (2160, 4320), PHONES: (2048, 4096)}

REPRUNINGS = {ENCODER: 0, LETTERS: 14, PHONES: 8}
ERRORS = {LETTERS: ("characters", 8, 11), PHONES: ("phones", 1, 9)}
HYPOTHESES = {LETTERS: ["BABC", "ACBABC", "CBA"], PHONES: ["AH0 B S", "S AH0 B", "B S"]}

FILES = pytest.mark.parametrize("path", [ENCODER, LETTERS, PHONES], ids=lambda path: path.stem)


def header_of(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        header: dict[str, Any] = json.loads(file.metadata()["parp"])
    return header


def changed(path: Path, out: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> Path:
    tensors, header = load_file(path), header_of(path)
    change(tensors, header)
    save_file(tensors, out, metadata={"parp": json.dumps(header, sort_keys=True)})
    return out


@FILES
def test_weights_masks_and_metadata(path: Path) -> None:
    header = header_of(path)
    assert header["format"] == 1
    content = checkpoint.read(path)
    tensors = load_file(path)
    assert {name for name in tensors if not name.startswith("mask/")} == set(content.weights)
    assert all(torch.equal(tensors[name], weight) for name, weight in content.weights.items())
    assert sum(mask.numel() for mask in content.masks.values()) == PRUNED[path][1]
    assert sum(int((~mask).sum()) for mask in content.masks.values()) == PRUNED[path][0]
    assert all((content.weights[name][~mask] == 0).all() for name, mask in content.masks.items())
    masks = checkpoint.read_masks(path)
    assert set(masks) == set(content.masks) == set(content.metadata.prunable)
    assert all(torch.equal(masks[name], mask) for name, mask in content.masks.items())
    metadata = checkpoint.read_metadata(path)
    assert metadata == content.metadata
    assert metadata.recipe == header["recipe"]
    assert metadata.architecture == header["architecture"]
    assert [parent.stage for parent in metadata.parents] == ["pretrain", "mask"][: 2 if path == LETTERS else 1]
    if path == ENCODER:
        assert metadata.task is None
        assert metadata.vocabulary is None
    else:
        assert metadata.task == {"kind": "ctc", "labels": path.stem, "vocabulary": list(SYMBOLS[path])}
        assert (metadata.labels, metadata.vocabulary) == (path.stem, SYMBOLS[path])


@FILES
def test_what_is_written_from_it_is_format_2(path: Path, tmp_path: Path) -> None:
    content = checkpoint.read(path)
    checkpoint.write(tmp_path / "new", content)
    assert header_of(tmp_path / "new")["format"] == 2
    again = checkpoint.read(tmp_path / "new")
    assert again.metadata == content.metadata
    assert all(torch.equal(again.weights[name], weight) for name, weight in content.weights.items())
    assert all(torch.equal(again.masks[name], mask) for name, mask in content.masks.items())


@FILES
def test_damage_is_noticed(path: Path, tmp_path: Path) -> None:
    def flip(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
        next(tensor for name, tensor in tensors.items() if name.startswith("mask/"))[0] ^= 1

    damaged = changed(path, tmp_path / "file", flip)
    for reader in (checkpoint.read, checkpoint.read_masks):
        with pytest.raises(CheckpointError, match="changed or damaged"):
            reader(damaged)
    renamed = changed(path, tmp_path / "file", lambda _, header: header.update(stage="other"))
    with pytest.raises(CheckpointError, match="changed or damaged"):
        checkpoint.read_metadata(renamed)


@FILES
def test_the_first_files_had_no_hash_of_the_header(path: Path, tmp_path: Path) -> None:
    first = changed(path, tmp_path / "file", lambda _, header: header.pop("header_sha256"))
    assert checkpoint.read(first).metadata == checkpoint.read_metadata(path)


@pytest.mark.parametrize("path", [LETTERS, PHONES], ids=lambda path: path.stem)
def test_eval(path: Path, world: World, tmp_path: Path) -> None:
    data = Data(corpus="manifest", manifest=str(world.manifest), labels=path.stem, test="test")  # type: ignore[arg-type]
    result = evaluate(path, out=tmp_path / "eval.jsonl", data=data).as_it_is
    unit, errors, tokens = ERRORS[path]
    rate = result.errors(unit)  # type: ignore[arg-type]
    assert rate is not None
    assert (rate.errors, rate.tokens) == (errors, tokens)
    rows = [json.loads(line) for line in result.outputs.hypotheses.read_text().splitlines()]
    assert [row["hypothesis"] for row in rows] == HYPOTHESES[path]


@pytest.mark.parametrize("path", [ENCODER, LETTERS], ids=lambda path: path.stem)
def test_reprune(path: Path, tmp_path: Path) -> None:
    result = reprune(path, out=tmp_path / "reprune.safetensors", sparsity=0.7)
    assert (result.sparsity.pruned, result.sparsity.total, result.revived, result.dropped) == (3024, 4320, 0, 864)
    assert checkpoint.read_metadata(result.path).task == checkpoint.read_metadata(path).task


def test_reprune_keeps_the_pattern(tmp_path: Path) -> None:
    result = reprune(PHONES, out=tmp_path / "reprune.safetensors")
    assert (result.pattern, result.sparsity.pruned, result.revived, result.dropped) == ("2:4", 2048, 0, 0)


@FILES
def test_inspect(path: Path) -> None:
    result = inspect(path)
    assert result.overall is not None
    assert (result.overall.pruned, result.overall.total) == PRUNED[path]
    assert [group.name for group in result.by_layer] == ["0", "1"]
    assert len(result.reprunings) == REPRUNINGS[path]
    assert result.sha256 == checkpoint.file_hash(path)


def test_compare() -> None:
    result = compare([ENCODER, LETTERS])
    assert [file.pruned for file in result.files] == [2160, 2160]
    assert not result.left_out


@FILES
@pytest.mark.parametrize("to", ["hf", "torchaudio"])
def test_export(path: Path, to: Any, tmp_path: Path) -> None:
    result = export(path, to=to, out=tmp_path / "export")
    assert result.zeros == PRUNED[path][0]
    if to == "torchaudio":
        state = torch.load(tmp_path / "export", weights_only=True)
        weights = checkpoint.read(path).weights
        assert all(torch.equal(tensor, weights[name]) for name, tensor in state.items())


def test_a_run_starts_from_it_and_its_masks_are_combined(world: World, tmp_path: Path) -> None:
    started = finetune(world.recipe(f"model={ENCODER}", "training.updates=1"), run=tmp_path / "run", init=ENCODER)
    masks = checkpoint.read_masks(started.path)
    assert all(torch.equal(masks[name], kept) for name, kept in checkpoint.read_masks(ENCODER).items())
    combined = combine(ENCODER, unions=[LETTERS], out=tmp_path / "combined.safetensors")
    assert 0 < combined.sparsity.pruned < 2160
    anew = mask(str(LETTERS), sparsity=0.6, out=tmp_path / "mask.safetensors")
    assert checkpoint.read_metadata(anew.path).labels == "letters"
    again = combine(anew.path, minuses=[ENCODER], apply=str(PHONES), out=tmp_path / "over.safetensors")
    assert checkpoint.read_metadata(again.path).labels == "phones"
