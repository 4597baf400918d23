"""The first mask: exactly as many weights as asked for, the smallest or any."""

from pathlib import Path

import pytest
import torch

from parp_cli import checkpoint
from parp_cli.errors import CheckpointError, UsageError
from parp_cli.stages.finetune import finetune
from parp_cli.stages.mask import mask
from tests.tiny import World


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_prunes_exactly_so_many_and_writes_zeros(world: World, tmp_path: Path, sparsity: float, method: str) -> None:
    result = mask(str(world.encoder), sparsity=sparsity, out=tmp_path / "m.safetensors", method=method)  # type: ignore[arg-type]
    content = checkpoint.read(result.path)
    total = sum(content.weights[name].numel() for name in content.metadata.prunable)
    pruned = sum(int((~kept).sum()) for kept in content.masks.values())
    assert pruned == round(sparsity * total)
    assert (result.sparsity.pruned, result.sparsity.total) == (pruned, total)
    assert set(content.masks) == set(content.metadata.prunable)
    assert all((content.weights[name][~kept] == 0).all() for name, kept in content.masks.items())


def test_the_rest_is_as_it_was(world: World, masked: Path) -> None:
    before, after = checkpoint.read(world.encoder), checkpoint.read(masked)
    assert set(before.weights) == set(after.weights)
    for name, weight in after.weights.items():
        kept = after.masks.get(name, torch.ones(weight.shape, dtype=torch.bool))
        assert torch.equal(weight[kept], before.weights[name].float()[kept]), name


def test_magnitude_prunes_the_smallest_of_all_and_random_does_not(world: World, tmp_path: Path) -> None:
    weights = checkpoint.read(world.encoder).weights

    def largest_pruned_and_smallest_kept(method: str) -> tuple[float, float]:
        out = mask(str(world.encoder), sparsity=0.4, out=tmp_path / f"{method}.safetensors", method=method).path  # type: ignore[arg-type]
        masks = checkpoint.read_masks(out)
        pruned = torch.cat([weights[name][~kept].abs() for name, kept in masks.items()])
        kept = torch.cat([weights[name][kept].abs() for name, kept in masks.items()])
        return float(pruned.max()), float(kept.min())

    largest, smallest = largest_pruned_and_smallest_kept("magnitude")
    assert largest <= smallest
    largest, smallest = largest_pruned_and_smallest_kept("random")
    assert largest > smallest


def test_biases_can_be_left_alone(world: World, tmp_path: Path) -> None:
    content = checkpoint.read(mask(str(world.encoder), sparsity=0.9, out=tmp_path / "m.safetensors", biases=False).path)
    assert content.masks
    assert not any(name.endswith("bias") for name in content.metadata.prunable)


@pytest.mark.parametrize("labels", ["letters", "phones"])
def test_a_head_keeps_its_labels(world: World, tmp_path: Path, labels: str) -> None:
    recipe = world.recipe(f"data.labels={labels}", "training.updates=1", "pruning.mode=dense")
    tuned = finetune(recipe, run=tmp_path).path
    before = checkpoint.read_metadata(tuned)
    masked = mask(str(tuned), sparsity=0.5, out=tmp_path / "m.safetensors").path
    after = checkpoint.read_metadata(masked)
    assert (after.labels, after.vocabulary) == (before.labels, before.vocabulary) == (labels, before.vocabulary)
    finetune(world.recipe(f"data.labels={labels}", "training.updates=1"), run=tmp_path, init=masked)


def test_the_same_bytes_twice(world: World, tmp_path: Path) -> None:
    def made(name: str, seed: int) -> bytes:
        out = tmp_path / name / "m.safetensors"
        return mask(str(world.encoder), sparsity=0.5, out=out, method="random", seed=seed).path.read_bytes()

    assert made("a", 1) == made("b", 1)
    assert made("a", 1) != made("c", 2)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsity_outside_its_range(world: World, tmp_path: Path, sparsity: float) -> None:
    with pytest.raises(UsageError, match=r"outside \[0, 1\)"):
        mask(str(world.encoder), sparsity=sparsity, out=tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no model minni") as caught:
        mask("minni", sparsity=0.5, out=tmp_path / "m.safetensors")
    assert caught.value.hint == "did you mean mini?"
