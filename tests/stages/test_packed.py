"""Packed checkpoints and masks alone, as every stage takes them."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from parp_cli.errors import CheckpointError, MaskError, UsageError
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, build
from parp_cli.models.speech.prunable import prunable_parameters
from parp_cli.stages.compare import compare
from parp_cli.stages.evaluate import Options, evaluate
from parp_cli.stages.export import export
from parp_cli.stages.finetune import finetune
from parp_cli.stages.inspect import inspect
from parp_cli.stages.mask import combine, mask
from parp_cli.stages.reprune import reprune
from parp_cli.stages.transcribe import transcribe
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Checkpoint, Metadata
from parp_cli.storage.packed import Values
from parp_cli.storage.run_folder import EXPORTS, newest_checkpoint
from tests.tiny import TINY, World


@pytest.fixture(scope="module")
def dense(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows some letters, not pruned."""
    settings = ("training.updates=200", "training.validate_every=100", "training.layer_drop=0")
    recipe = world.recipe("pruning.method=dense", *settings, "training.activation_dropout=0")
    return finetune(recipe, run=tmp_path_factory.mktemp("dense")).path


@pytest.fixture(scope="module")
def pruned(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reprune(dense, sparsity=0.3, out=tmp_path_factory.mktemp("pruned") / "reprune.safetensors").path


@pytest.mark.parametrize("values", get_args(Values))
def test_packed_ones_recognise_the_same(world: World, pruned: Path, values: Values, tmp_path: Path) -> None:
    result = export(pruned, to="packed", values=values, out=tmp_path / "packed.safetensors")
    assert result.check is not None
    assert result.check.largest_difference < {"float32": 1e-4, "float16": 1e-2, "bfloat16": 0.1, "int8": 0.3}[values]
    assert result.check.transcripts_changed == (None if values == "float32" else 0)
    whole, packed = (
        evaluate(path, out=tmp_path / f"{number}.jsonl").as_it_is for number, path in enumerate((pruned, result.path))
    )
    assert packed.report.metrics[0].errors == whole.report.metrics[0].errors
    assert packed.sparsity == whole.sparsity == pytest.approx(0.3, abs=1e-4)
    assert result.zeros >= checkpoint.read_metadata(pruned).sparsity.pruned  # type: ignore[union-attr]
    assert checkpoint.read_metadata(result.path).parents[-1].sha256 == checkpoint.file_hash(pruned)


def test_every_stage_takes_a_packed_one(world: World, pruned: Path, tmp_path: Path) -> None:
    packed = export(pruned, to="packed", values="int8", out=tmp_path / "packed.safetensors").path
    assert packed.stat().st_size < 0.5 * pruned.stat().st_size
    assert inspect(packed).overall == inspect(pruned).overall
    assert compare([packed, pruned]).pairs[0].overall.iou == 1
    assert reprune(packed, sparsity=0.5, out=tmp_path / "reprune.safetensors").dropped
    assert mask(str(packed), sparsity=0.5, out=tmp_path / "mask.safetensors").sparsity.exact == pytest.approx(0.5)
    further = finetune(world.recipe("model=null", "training.updates=2"), run=tmp_path / "run", init=packed)
    assert further.sparsity is not None
    again = export(packed, to="packed", out=tmp_path / "again.safetensors").path
    first, second = checkpoint.read(packed).weights, checkpoint.read(again).weights
    assert all(torch.equal(weight.float(), second[name].float()) for name, weight in first.items())
    assert export(packed, to="torchaudio", out=tmp_path / "model.pt").size


@pytest.mark.parametrize("family", ["wav2vec2-base", "hubert-large", "wavlm-base", "wav2vec2-large-lv60k"])
def test_every_family(family: str, tmp_path: Path) -> None:
    known = ARCHITECTURES[family]
    fields = {**TINY.to_json(), "name": "custom", "family": known.family, "conv_norm": known.conv_norm}
    if known.family == "wavlm":
        fields |= {"buckets": 8, "max_distance": 16}
    architecture = Architecture.from_json({**fields, "norm_first": known.norm_first, "conv_bias": known.conv_bias})
    torch.manual_seed(0)
    model = build(architecture)
    names = tuple(prunable_parameters(model))
    metadata = Metadata(stage="pretrain", architecture=architecture.to_json(), prunable=names)
    encoder = tmp_path / "encoder.safetensors"
    checkpoint.write(encoder, Checkpoint(weights=model.state_dict(), masks={}, metadata=metadata))
    source = mask(str(encoder), sparsity=0.5, out=tmp_path / "mask.safetensors").path
    result = export(source, to="packed", out=tmp_path / "packed.safetensors")
    assert result.check is not None
    assert result.check.largest_difference < 1e-4
    whole, packed = (checkpoint.read(path).weights for path in (source, result.path))
    assert all(torch.equal(weight, packed[name]) for name, weight in whole.items())


def test_an_exported_mask_over_its_own_backbone(world: World, dense: Path, pruned: Path, tmp_path: Path) -> None:
    alone = export(pruned, to="mask", out=tmp_path / "alone.safetensors").path
    assert alone.stat().st_size < 0.3 * pruned.stat().st_size
    assert inspect(alone).overall == inspect(pruned).overall
    whole = evaluate(pruned, out=tmp_path / "whole.jsonl").as_it_is
    under = evaluate(dense, out=tmp_path / "under.jsonl", options=Options(masks=(alone,))).systems[1]
    assert under.report.metrics[0].errors == whole.report.metrics[0].errors
    assert under.sparsity == whole.sparsity
    file = [str(world.folder / "test-0.wav")]
    assert transcribe(dense, file, mask=alone).transcriptions[0].text == transcribe(pruned, file).transcriptions[0].text
    assert compare([alone, pruned]).pairs[0].overall.iou == 1
    carried = combine(alone, out=tmp_path / "carried.safetensors", apply=str(world.encoder))
    assert carried.sparsity.pruned == whole.sparsity * carried.sparsity.total
    begun = finetune(world.recipe(f"pruning.initial={alone}", "training.updates=2"), run=tmp_path / "run")
    assert begun.sparsity is not None
    assert begun.sparsity.pruned == carried.sparsity.pruned


def test_an_exported_mask_over_other_weights_is_refused(dense: Path, pruned: Path, tmp_path: Path) -> None:
    alone = export(pruned, to="mask", out=tmp_path / "alone.safetensors").path
    content = checkpoint.read(dense)
    other = tmp_path / "other.safetensors"
    weights = {name: weight * 1.01 for name, weight in content.weights.items()}
    checkpoint.write(other, Checkpoint(weights=weights, masks={}, metadata=content.metadata))
    with pytest.raises(MaskError, match="was exported for other weights") as caught:
        evaluate(other, out=tmp_path / "a.jsonl", options=Options(masks=(alone,)))
    assert "--apply" in (caught.value.hint or "")
    with pytest.raises(MaskError, match="was exported for other weights"):
        transcribe(other, [], mask=alone)
    with pytest.raises(CheckpointError, match="holds masks alone"):
        evaluate(alone, out=tmp_path / "a.jsonl")
    with pytest.raises(CheckpointError, match="holds masks alone"):
        export(alone, to="packed", out=tmp_path / "packed")


def test_masks_of_torch_prune_are_taken_beside_a_checkpoint(
    world: World, dense: Path, pruned: Path, tmp_path: Path
) -> None:
    masks = checkpoint.read_masks(pruned)
    torch.save({f"{name}_mask": mask.float() for name, mask in masks.items()}, tmp_path / "masks.pt")
    ours, theirs = (
        evaluate(dense, out=tmp_path / f"{n}.jsonl", options=Options(masks=(path,))).systems[1]
        for n, path in enumerate((pruned, tmp_path / "masks.pt"))
    )
    assert ours.report.metrics == theirs.report.metrics
    assert ours.sparsity == theirs.sparsity
    for paths in [(tmp_path / "masks.pt", pruned), (pruned, tmp_path / "masks.pt")]:
        assert compare(paths).pairs[0].overall.iou == 1
    with pytest.raises(MaskError, match="none of these files says for which model"):
        compare([tmp_path / "masks.pt", tmp_path / "masks.pt"])
    recipe = world.recipe(f"pruning.initial={tmp_path / 'masks.pt'}", "training.updates=2")
    begun = finetune(recipe, run=tmp_path / "run")
    assert begun.sparsity is not None
    assert begun.sparsity.pruned == sum(int((~mask).sum()) for mask in masks.values())


def test_the_newest_of_a_run_folder_has_weights(pruned: Path, tmp_path: Path) -> None:
    packed = export(pruned, to="packed", out=tmp_path / EXPORTS["packed"]).path
    export(pruned, to="mask", out=tmp_path / EXPORTS["mask"])
    assert newest_checkpoint(tmp_path) == packed


def test_what_cannot_be_exported_so(dense: Path, pruned: Path, tmp_path: Path) -> None:
    for target in ("packed", "mask"):
        with pytest.raises(MaskError, match="has no mask"):
            export(dense, to=target, out=tmp_path / "a")
    with pytest.raises(UsageError, match="--values goes with --to packed"):
        export(pruned, to="mask", values="int8", out=tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_failed_check_leaves_nothing_behind(pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = checkpoint.read

    def off(path: Path) -> Any:
        content = read(path)
        if path == pruned:
            return content
        weights = {name: weight + 0.1 for name, weight in content.weights.items()}
        return Checkpoint(weights=weights, masks=content.masks, metadata=content.metadata)

    monkeypatch.setattr(checkpoint, "read", off)
    with pytest.raises(CheckpointError, match="gives other logits, and is not written"):
        export(pruned, to="packed", out=tmp_path / "packed.safetensors")
    assert not list(tmp_path.iterdir())
