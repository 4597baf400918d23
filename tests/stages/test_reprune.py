"""The third step alone: a new mask from the weights as they are."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from parp_cli.errors import CheckpointError, UsageError
from parp_cli.stages.mask import mask
from parp_cli.stages.reprune import reprune
from parp_cli.storage import checkpoint
from tests.tiny import World


@pytest.fixture
def grown(masked: Path, tmp_path: Path) -> Path:
    """A checkpoint whose pruned weights have grown back, as PARP leaves them between two re-prunings."""
    content = checkpoint.read(masked)
    generator = torch.Generator().manual_seed(5)
    weights = {
        name: weight + 0.05 * torch.randn(weight.shape, generator=generator) if name in content.masks else weight
        for name, weight in content.weights.items()
    }
    path = tmp_path / "grown.safetensors"
    checkpoint.write(path, checkpoint.Checkpoint(weights=weights, masks=content.masks, metadata=content.metadata))
    return path


@pytest.mark.parametrize("sparsity", [None, 0.2, 0.5, 0.9])
def test_against_brute_force(grown: Path, tmp_path: Path, sparsity: float | None) -> None:
    result = reprune(grown, out=tmp_path / "out.safetensors", sparsity=sparsity)
    before, after = checkpoint.read(grown), checkpoint.read(result.path)
    names = before.metadata.prunable
    magnitudes = torch.cat([before.weights[name].abs().flatten() for name in names])
    order = magnitudes.argsort(stable=True)
    count = round((sparsity or 0.5) * len(magnitudes))
    kept = torch.ones(len(magnitudes), dtype=torch.bool)
    kept[order[:count]] = False
    old = torch.cat([before.masks[name].flatten() for name in names])
    assert torch.equal(torch.cat([after.masks[name].flatten() for name in names]), kept)
    assert (result.revived, result.dropped) == (int((kept & ~old).sum()), int((old & ~kept).sum()))
    assert result.revived > 0
    assert result.kept_zeros == 0  # all have grown
    assert (result.sparsity.target, result.sparsity.pruned) == (sparsity or 0.5, count)
    for name in names:
        assert torch.equal(after.weights[name], before.weights[name].masked_fill(~after.masks[name], 0))
    assert after.metadata.parents[-1].sha256 == checkpoint.file_hash(grown)


def test_zeros_that_come_back(grown: Path, masked: Path, tmp_path: Path) -> None:
    def against_brute_force(source: Path, sparsity: float) -> int:
        result = reprune(source, out=tmp_path / "out.safetensors", sparsity=sparsity)
        after = checkpoint.read(result.path)
        zeros = sum(int(((after.weights[name] == 0) & kept).sum()) for name, kept in after.masks.items())
        assert result.kept_zeros == zeros
        return zeros

    assert against_brute_force(masked, 0.3) == round(0.5 * 16832) - round(0.3 * 16832)
    assert against_brute_force(masked, 0.7) == 0
    content = checkpoint.read(grown)
    for weight in content.weights.values():
        weight.view(-1)[:5] = 0  # a few among grown ones
    checkpoint.write(tmp_path / "some.safetensors", content)
    assert against_brute_force(tmp_path / "some.safetensors", 0.0) == 5 * len(content.masks)


def test_twice_is_once(masked: Path, tmp_path: Path) -> None:
    result = reprune(masked, out=tmp_path / "out.safetensors")
    assert (result.revived, result.dropped) == (0, 0)
    assert reprune(masked, out=tmp_path / "again.safetensors").sha256 == result.sha256


def test_without_a_mask_everything_was_kept(world: World, tmp_path: Path) -> None:
    result = reprune(world.encoder, out=tmp_path / "out.safetensors", sparsity=0.25)
    assert (result.revived, result.dropped) == (0, result.sparsity.pruned)
    direct = checkpoint.read_masks(mask(str(world.encoder), sparsity=0.25, out=tmp_path / "m.safetensors").path)
    assert all(torch.equal(kept, direct[name]) for name, kept in checkpoint.read_masks(result.path).items())


def test_a_head_stays(trained: Path, tmp_path: Path) -> None:
    before, after = checkpoint.read(trained), checkpoint.read(reprune(trained, out=tmp_path / "o.safetensors").path)
    assert torch.equal(before.weights["aux.weight"], after.weights["aux.weight"])
    assert after.metadata.vocabulary == before.metadata.vocabulary


@pytest.mark.parametrize("sparsity", [-0.5, 1.0, float("nan")])
def test_sparsity_outside_its_range(masked: Path, tmp_path: Path, sparsity: float) -> None:
    with pytest.raises(UsageError, match="outside"):
        reprune(masked, out=tmp_path / "out.safetensors", sparsity=sparsity)


def test_no_sparsity_to_keep(world: World, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no mask whose sparsity to keep"):
        reprune(world.encoder, out=tmp_path / "out.safetensors")


def test_scope_and_pattern_stay(world: World, tmp_path: Path) -> None:
    source = mask(str(world.encoder), scope="feed-forward", pattern="2:4", out=tmp_path / "m.safetensors").path
    result = reprune(source, out=tmp_path / "out.safetensors")
    before, after = checkpoint.read(source), checkpoint.read(result.path)
    assert result.pattern == "2:4"
    assert after.metadata.prunable == before.metadata.prunable
    assert all((kept.reshape(-1, 4).sum(1) == 2).all() for kept in after.masks.values())
    assert (result.revived, result.dropped) == (0, 0)


def test_the_pattern_of_a_fine_tuning_stays(trained: Path, tmp_path: Path) -> None:
    content = checkpoint.read(trained)
    assert content.metadata.recipe is not None
    pruning = {**content.metadata.recipe["pruning"], "pattern": "tensor"}
    metadata = replace(content.metadata, recipe={**content.metadata.recipe, "pruning": pruning})
    source = tmp_path / "tensor.safetensors"
    checkpoint.write(source, checkpoint.Checkpoint(weights=content.weights, masks=content.masks, metadata=metadata))
    for kept in checkpoint.read_masks(reprune(source, out=tmp_path / "out.safetensors").path).values():
        assert int((~kept).sum()) == round(0.5 * kept.numel())


def test_another_pattern(trained: Path, tmp_path: Path) -> None:
    result = reprune(trained, pattern="1:4", out=tmp_path / "out.safetensors")
    assert (result.sparsity.target, result.sparsity.exact) == (0.75, 0.75)
    before, after = checkpoint.read(trained), checkpoint.read(result.path)
    assert set(after.masks) == set(after.metadata.prunable)
    assert set(after.masks) == {name for name in before.masks if name.endswith("weight")}
    assert all((kept.reshape(-1, 4).sum(1) == 1).all() for kept in after.masks.values())
    assert reprune(result.path, out=tmp_path / "again.safetensors").pattern == "1:4"
    assert after.metadata.recipe is not None
    assert before.metadata.recipe is not None
    assert after.metadata.recipe["data"] == before.metadata.recipe["data"]
    assert reprune(result.path, pattern="global", sparsity=0.3, out=tmp_path / "o.safetensors").sparsity.target == 0.3


def test_patterns_that_cannot_be(masked: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot have sparsity 0\.3"):
        reprune(masked, sparsity=0.3, pattern="2:4", out=tmp_path / "out.safetensors")
    with pytest.raises(UsageError, match=r"no weight of .* can hold pattern 48x48"):
        reprune(masked, pattern="48x48", out=tmp_path / "out.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_trained_checkpoint_is_not_overwritten(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(trained.read_bytes())
    reprune(copy, out=copy, sparsity=0.75)
    assert (tmp_path / "copy~1.safetensors").read_bytes() == trained.read_bytes()
    reprune(trained, out=copy, sparsity=0.8)
    assert len(list(tmp_path.iterdir())) == 2, "what is made in a moment is"
