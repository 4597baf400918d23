"""The first mask: exactly as many weights as asked for, the smallest or any; and masks made of others."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parp_cli.errors import CheckpointError, MaskError, UsageError
from parp_cli.models.sources.load import random_encoder
from parp_cli.pruning.select import prune_count
from parp_cli.stages.finetune import finetune, plan
from parp_cli.stages.mask import combine, mask
from parp_cli.storage import checkpoint
from tests.tiny import TINY, World, write_encoder


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("method", ["magnitude", "random", "random-weights"])
def test_prunes_exactly_so_many_and_writes_zeros(world: World, tmp_path: Path, sparsity: float, method: str) -> None:
    result = mask(str(world.encoder), sparsity=sparsity, out=tmp_path / "m.safetensors", method=method)  # type: ignore[arg-type]
    content = checkpoint.read(result.path)
    total = sum(content.weights[name].numel() for name in content.metadata.prunable)
    pruned = sum(int((~kept).sum()) for kept in content.masks.values())
    assert pruned == round(sparsity * total)
    assert (result.sparsity.pruned, result.sparsity.total) == (pruned, total)
    assert set(content.masks) == set(content.metadata.prunable)
    assert all((content.weights[name][~kept] == 0).all() for name, kept in content.masks.items())


@pytest.mark.parametrize(("sparsity", "pattern"), [(0.999999, "global"), (0.999999, "tensor"), (0.995, "row")])
def test_a_sparsity_that_comes_to_all_weights(world: World, tmp_path: Path, sparsity: float, pattern: str) -> None:
    with pytest.raises(UsageError, match=r"leaves none of the [0-9,]+ prunable weights"):
        mask(str(world.encoder), sparsity=sparsity, pattern=pattern, biases=False, out=tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["parp", "parp-p", "omp", "movement", "rigl"])
def test_training_towards_a_sparsity_that_comes_to_all_weights(world: World, tmp_path: Path, method: str) -> None:
    recipe = world.recipe(f"pruning.method={method}", "pruning.sparsity=0.999999")
    with pytest.raises(UsageError, match=r"leaves none of the [0-9,]+ prunable weights"):
        finetune(recipe, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()


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
    recipe = world.recipe(f"data.labels={labels}", "training.updates=1", "pruning.method=dense")
    tuned = finetune(recipe, run=tmp_path).path
    before = checkpoint.read_metadata(tuned)
    masked = mask(str(tuned), sparsity=0.5, out=tmp_path / "m.safetensors").path
    after = checkpoint.read_metadata(masked)
    assert after.task == before.task
    assert after.labels == labels
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


def test_random_weights_ignore_the_models_own(world: World, tmp_path: Path) -> None:
    def made(encoder: Path, seed: int) -> dict[str, Tensor]:
        out = tmp_path / "m.safetensors"
        return checkpoint.read_masks(mask(str(encoder), method="random-weights", out=out, seed=seed).path)

    other = tmp_path / "other.safetensors"
    write_encoder(other, seed=9)
    masks = made(world.encoder, 1)
    assert all(torch.equal(kept, masks[name]) for name, kept in made(other, 1).items())
    assert any(not torch.equal(kept, masks[name]) for name, kept in made(world.encoder, 2).items())
    untrained = random_encoder(TINY, seed=1).weights
    pruned = torch.cat([untrained[name][~kept].abs() for name, kept in masks.items()])
    kept = torch.cat([untrained[name][kept].abs() for name, kept in masks.items()])
    assert pruned.max() <= kept.min()


def test_a_scope_is_all_that_is_pruned(world: World, tmp_path: Path) -> None:
    content = checkpoint.read(mask(str(world.encoder), scope="attention", out=tmp_path / "m.safetensors").path)
    assert content.masks
    assert all(".attention." in name for name in content.metadata.prunable)
    assert content.metadata.recipe is not None
    assert content.metadata.recipe["scope"] == "attention"


@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_two_of_four(world: World, tmp_path: Path, method: Any) -> None:
    result = mask(str(world.encoder), pattern="2:4", method=method, out=tmp_path / "m.safetensors")
    content = checkpoint.read(result.path)
    assert result.sparsity.target == result.sparsity.exact == 0.5
    assert content.metadata.recipe is not None
    assert content.metadata.recipe["pattern"] == "2:4"
    assert content.masks
    for name, kept in content.masks.items():
        assert name.endswith("weight")  # biases are no matrices
        assert (kept.reshape(-1, 4).sum(1) == 2).all()
        assert (content.weights[name][~kept] == 0).all()


def test_patterns_that_cannot_be(world: World, tmp_path: Path) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(UsageError, match=message):
            mask(str(world.encoder), out=tmp_path / "m.safetensors", **options)

    refused("cannot have sparsity 0.3", pattern="2:4", sparsity=0.3)
    refused("no weight of scope attention can hold pattern 48x48", pattern="48x48", scope="attention")
    refused("no pattern 'diagonal'", pattern="diagonal")
    refused("no prunable parameter matches", scope="heads")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def masks(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Masks of the tiny encoder, of several sparsities."""
    folder = tmp_path_factory.mktemp("masks")
    return {
        name: mask(str(world.encoder), sparsity=share, method=method, out=folder / f"{name}.safetensors").path
        for name, share, method in (("a", 0.5, "magnitude"), ("b", 0.5, "random"), ("c", 0.7, "random-weights"))
    }


def kept_in(path: Path) -> Tensor:
    found = checkpoint.read_masks(path)
    return torch.cat([found[name].flatten() for name in sorted(found)])


def test_masks_made_from_others(masks: dict[str, Path], tmp_path: Path) -> None:
    paths = list(masks.values())
    a, b, c = map(kept_in, paths)

    def made(**options: Any) -> Tensor:
        result = combine(paths[0], out=tmp_path / "m.safetensors", **options)
        found = kept_in(result.path)
        assert (result.sparsity.pruned, result.sparsity.total) == (int((~found).sum()), len(found))
        assert prune_count(result.sparsity.target, len(found)) == result.sparsity.pruned
        content = checkpoint.read(result.path)
        assert all((content.weights[name][~kept] == 0).all() for name, kept in content.masks.items())
        return found

    assert torch.equal(made(), a)
    assert torch.equal(made(unions=[paths[1]]), a | b)
    assert torch.equal(made(intersections=[paths[1], paths[2]]), a & b & c)
    assert torch.equal(made(minuses=[paths[2]]), a & ~c)
    assert torch.equal(made(unions=[paths[1]], minuses=[paths[2]]), (a | b) & ~c)
    assert torch.equal(made(unions=[paths[1]], intersections=[paths[2]]), (a | b) & c)


def test_what_is_recorded_of_a_combination(masks: dict[str, Path], world: World, tmp_path: Path) -> None:
    a, b = masks["a"], masks["b"]
    result = combine(a, unions=[b], apply=str(world.encoder), out=tmp_path / "m.safetensors")
    metadata, source = checkpoint.read_metadata(result.path), checkpoint.read_metadata(a)
    assert metadata.recipe == {
        "from": str(a),
        "union": [str(b)],
        "intersect": [],
        "minus": [],
        "apply": str(world.encoder),
        "scope": "transformer",
        "biases": True,
        "pattern": "global",
    }
    assert (metadata.stage, metadata.prunable) == ("mask", source.prunable)
    # The encoder, which both descend from, is named once.
    assert [parent.file for parent in metadata.parents] == ["encoder.safetensors", "a.safetensors", "b.safetensors"]
    assert metadata.parents[-1].sha256 == checkpoint.file_hash(b)
    again = combine(a, unions=[b], apply=str(world.encoder), out=tmp_path / "again.safetensors")
    assert again.sha256 == result.sha256


def test_the_sparsity_of_a_combination_can_be_given_as_it_is_shown(
    masks: dict[str, Path], world: World, tmp_path: Path
) -> None:
    result = combine(masks["a"], unions=[masks["b"]], out=tmp_path / "m.safetensors")
    exact, shown = result.sparsity.target, f"{result.sparsity.target:g}"
    assert float(shown) != exact
    plan(world.recipe(f"pruning.sparsity={shown}"), init=result.path)
    with pytest.raises(UsageError, match=f"is pruned to {shown}"):
        plan(world.recipe(f"pruning.sparsity={exact + 1e-4}"), init=result.path)


def test_own_weights_and_those_of_another(masks: dict[str, Path], world: World, tmp_path: Path) -> None:
    own = checkpoint.read(combine(masks["a"], unions=[masks["b"]], out=tmp_path / "own.safetensors").path)
    source = checkpoint.read(masks["a"])
    assert all(torch.equal(weight, source.weights[name]) for name, weight in own.weights.items())
    applied = combine(masks["a"], unions=[masks["b"]], apply=str(world.encoder), out=tmp_path / "applied.safetensors")
    encoder, over = checkpoint.read(world.encoder), checkpoint.read(applied.path)
    assert over.masks
    for name, weight in over.weights.items():
        whole = encoder.weights[name].float()
        assert torch.equal(weight, whole.masked_fill(~over.masks[name], 0) if name in over.masks else whole)


def test_a_mask_goes_to_a_fine_tuned_model_with_its_head(world: World, trained: Path, tmp_path: Path) -> None:
    source = mask(str(world.encoder), pattern="2:4", out=tmp_path / "a.safetensors").path
    moved = checkpoint.read(combine(source, apply=str(trained), out=tmp_path / "moved.safetensors").path)
    before = checkpoint.read(trained)
    assert moved.metadata.task == before.metadata.task
    assert torch.equal(moved.weights["aux.weight"], before.weights["aux.weight"])
    theirs = checkpoint.read_masks(source)
    assert all(torch.equal(kept, theirs[name]) for name, kept in moved.masks.items())
    # As nothing was combined, it is still what it was called.
    assert moved.metadata.recipe is not None
    assert moved.metadata.recipe["pattern"] == "2:4"
    finetune(
        world.recipe("training.updates=1", "pruning.method=fixed", "pruning.pattern=2:4"),
        run=tmp_path,
        init=tmp_path / "moved.safetensors",
    )


def test_a_transferred_mask_keeps_its_target(world: World, tmp_path: Path) -> None:
    source = mask(str(world.encoder), sparsity=0.3, out=tmp_path / "a.safetensors")
    assert source.sparsity.exact != 0.3
    moved = combine(source.path, apply=str(world.encoder), out=tmp_path / "moved.safetensors")
    assert moved.sparsity == source.sparsity


def test_masks_that_cannot_be_combined(masks: dict[str, Path], world: World, tmp_path: Path) -> None:
    def refused(message: str, **options: Any) -> MaskError:
        with pytest.raises(MaskError, match=message) as caught:
            combine(masks["a"], out=tmp_path / "m.safetensors", **options)
        assert not (tmp_path / "m.safetensors").exists()
        return caught.value

    refused("encoder.safetensors has no mask", minuses=[world.encoder])
    refused("keeps no weight", minuses=[masks["a"]])
    # The first layers of a deeper model would have the right names and shapes.
    deeper = replace(TINY, name="deeper", layers=3)
    write_encoder(tmp_path / "deeper.safetensors", deeper)
    error = refused("is that of another model than", apply=str(tmp_path / "deeper.safetensors"))
    assert error.details[0].endswith(": tiny")
    assert error.details[1].endswith(": deeper")
    other = mask(str(tmp_path / "deeper.safetensors"), out=tmp_path / "other.safetensors").path
    refused("is that of another model than .*other.safetensors", unions=[other])
    # One that only says that it is of this model.
    content = checkpoint.read(masks["b"])
    shapes = {name: torch.ones(3, 3, dtype=torch.bool) for name in content.masks}
    checkpoint.write(tmp_path / "forged.safetensors", replace(content, masks=shapes))
    refused("mask does not fit the model of .*forged.safetensors", intersections=[tmp_path / "forged.safetensors"])


def test_weights_that_one_file_does_not_mask_are_kept_by_it(
    masks: dict[str, Path], world: World, tmp_path: Path
) -> None:
    a = checkpoint.read_masks(masks["a"])
    narrow = mask(str(world.encoder), pattern="2:4", scope="attention", out=tmp_path / "24.safetensors").path
    b = checkpoint.read_masks(narrow)
    assert set(b) < set(a)
    whole = {masks["a"]: a, narrow: {name: b.get(name, torch.ones_like(kept)) for name, kept in a.items()}}
    operations = {"intersections": torch.logical_and, "unions": torch.logical_or, "minuses": torch.gt}
    for first, second in ((masks["a"], narrow), (narrow, masks["a"])):
        for option, operation in operations.items():
            result = combine(first, out=tmp_path / "m.safetensors", **{option: [second]})  # type: ignore[arg-type]
            found = checkpoint.read_masks(result.path)
            assert set(found) == set(a)
            expected = {name: operation(whole[first][name], whole[second][name]) for name in a}
            assert all(torch.equal(kept, expected[name]) for name, kept in found.items())
            assert result.completed == {str(narrow): tuple(name for name in masked_names(masks["a"]) if name not in b)}
            metadata = checkpoint.read_metadata(result.path)
            assert metadata.prunable == masked_names(masks["a"])
            assert metadata.recipe is not None
            assert (metadata.recipe["scope"], metadata.recipe["biases"]) == ("transformer", True)
    # A run takes it up as it is.
    finetune(world.recipe("training.updates=1", "pruning.method=fixed"), run=tmp_path, init=tmp_path / "m.safetensors")


def test_masks_of_different_parts(world: World, tmp_path: Path) -> None:
    """Of three files, each keeps what it does not mask, whatever the order they are named in."""
    parts = {
        scope: mask(str(world.encoder), scope=scope, biases=False, out=tmp_path / f"{scope}.safetensors").path
        for scope in ("attention", "feed-forward", "front-end")
    }
    first, second, third = parts.values()
    result = combine(first, intersections=[second], unions=[third], out=tmp_path / "m.safetensors")
    halves = {name: kept for path in (first, second) for name, kept in checkpoint.read_masks(path).items()}
    found = checkpoint.read_masks(result.path)
    assert set(found) == {*halves, *checkpoint.read_masks(third)}
    for name, kept in found.items():
        # The union with the third file, which keeps all of the first's weights, comes before the intersection.
        assert torch.equal(kept, halves[name]) if name in checkpoint.read_masks(second) else kept.all()
    recipe = checkpoint.read_metadata(result.path).recipe
    assert recipe is not None
    assert (recipe["scope"], recipe["biases"]) == (None, False)


def masked_names(path: Path) -> tuple[str, ...]:
    """The names of the weights that a file masks, in the order of the model."""
    return checkpoint.read_metadata(path).prunable


def test_what_cannot_hold_the_pattern_is_told(world: World, tmp_path: Path) -> None:
    result = mask(str(world.encoder), pattern="2:4", out=tmp_path / "m.safetensors")
    weights = checkpoint.read(world.encoder).weights
    everything = checkpoint.read_metadata(world.encoder).prunable
    assert result.cannot_hold == {n: weights[n].numel() for n in everything if n.endswith("bias")}
    assert sum(result.cannot_hold.values()) + result.sparsity.total == 16832
    assert mask(str(world.encoder), out=tmp_path / "m.safetensors").cannot_hold == {}
