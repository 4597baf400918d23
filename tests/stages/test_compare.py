"""Masks of several files against one another, counted by hand, and without reading weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from parp_cli.errors import CheckpointError, MaskError, UsageError
from parp_cli.pruning.overlap import Overlap
from parp_cli.stages.compare import compare
from parp_cli.stages.mask import mask
from parp_cli.storage import checkpoint
from parp_cli.storage.run_folder import shortest_labels
from tests.tiny import TINY, World, write_encoder


@pytest.fixture(scope="module")
def random(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny encoder, 70 % of it pruned at random."""
    out = tmp_path_factory.mktemp("random") / "mask.safetensors"
    return mask(str(world.encoder), sparsity=0.7, method="random", out=out).path


def counted(first: Path, second: Path, part: str) -> Overlap:
    """Of the masks whose names hold `part`."""

    pairs = [(mask, checkpoint.read_masks(second)[n]) for n, mask in checkpoint.read_masks(first).items() if part in n]
    a, b = (torch.cat([pair[which].flatten() for pair in pairs]) for which in (0, 1))
    return Overlap(
        total=len(a),
        kept_first=int(a.sum()),
        kept_second=int(b.sum()),
        kept_both=int((a & b).sum()),
        kept_both_by_chance=pytest.approx(sum(int(a.sum()) * int(b.sum()) / a.numel() for a, b in pairs)),  # type: ignore[arg-type]
    )


def test_against_brute_force(masked: Path, trained: Path, random: Path) -> None:
    result = compare([masked, trained, random])
    assert [(f.pruned, f.total) for f in result.files] == [(8416, 16832), (8416, 16832), (11782, 16832)]
    assert result.files[2].sparsity == pytest.approx(0.7, abs=1e-4)
    assert [(pair.first, pair.second) for pair in result.pairs] == [
        ("masked", "trained"),
        ("masked", result.files[2].label),
        ("trained", result.files[2].label),
    ]
    assert result.left_out == ()
    for (first, second), pair in zip(
        [(masked, trained), (masked, random), (trained, random)], result.pairs, strict=True
    ):
        assert pair.overall == counted(first, second, "")
        assert list(pair.by_layer) == ["0", "1"]
        assert list(pair.by_kind) == ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
        for layer, overlap in pair.by_layer.items():
            assert overlap == counted(first, second, f".layers.{layer}.")
        for kind, overlap in pair.by_kind.items():
            spelled = {"fc1": "intermediate_dense", "fc2": "output_dense"}.get(kind, kind)
            assert overlap == counted(first, second, f".{spelled}.")
        assert pair.by_layer_and_kind["1", "q_proj"] == counted(first, second, ".layers.1.attention.q_proj.")
        assert len(pair.by_layer_and_kind) == 12


def test_a_trained_mask_is_near_its_first_and_a_random_one_is_at_chance(
    masked: Path, trained: Path, random: Path
) -> None:
    near, far, _ = compare([masked, trained, random]).pairs
    assert near.overall.iou_by_chance_pooled == pytest.approx(1 / 3)
    assert 1 / 3 < near.overall.iou_by_chance < 0.4 < 0.5 < near.overall.iou
    assert far.overall.iou == pytest.approx(far.overall.iou_by_chance, abs=0.02)


def test_masks_that_share_only_how_much_of_each_tensor_they_prune_are_at_chance(masked: Path, tmp_path: Path) -> None:
    """The masks of 20 files have for each tensor the sparsity that a magnitude mask has there, at random places."""
    content = checkpoint.read(masked)
    assert len({int(mask.sum()) / mask.numel() for mask in content.masks.values()}) > 6
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for number in range(20):
        masks = {
            name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].reshape(mask.shape)
            for name, mask in content.masks.items()
        }
        other = tmp_path / f"{number}.safetensors"
        checkpoint.write(other, replace(content, masks=masks))
        pairs += compare([masked, other]).pairs

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    # Four standard errors, of which fc2 has more, as it is a quarter of the weights.
    for found, error in (([pair.overall for pair in pairs], 0.002), ([pair.by_kind["fc2"] for pair in pairs], 0.004)):
        assert mean([one.iou for one in found]) == pytest.approx(found[0].iou_by_chance, abs=error)
        assert mean([one.agreement for one in found]) == pytest.approx(found[0].agreement_by_chance, abs=error)
    assert pairs[0].overall.iou_by_chance > pairs[0].overall.iou_by_chance_pooled + 0.01


def test_layers_are_in_order_beyond_ten(world: World, tmp_path: Path) -> None:
    deep = replace(TINY, name="deep", layers=11)
    write_encoder(tmp_path / "deep.safetensors", deep)
    path = mask(str(tmp_path / "deep.safetensors"), scope="everything", out=tmp_path / "m.safetensors").path
    (pair,) = compare([path, path]).pairs
    assert list(pair.by_layer) == ["front-end", "other", *map(str, range(11))]
    assert pair.overall.iou == pair.overall.agreement == 1


def test_masks_of_different_scope_are_compared_where_both_are(masked: Path, world: World, tmp_path: Path) -> None:
    other = mask(str(world.encoder), pattern="2:4", scope="feed-forward", out=tmp_path / "m.safetensors").path
    result = compare([other, masked])
    shared = set(checkpoint.read_masks(other))
    assert set(result.left_out) == set(checkpoint.read_masks(masked)) - shared
    assert result.pairs[0].overall.total == sum(m.numel() for m in checkpoint.read_masks(other).values())
    assert (result.files[0].total, result.files[1].total) == (result.pairs[0].overall.total, 16832)


def test_what_cannot_be_compared(masked: Path, world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one checkpoint cannot be compared"):
        compare([masked])
    with pytest.raises(CheckpointError, match="no checkpoint"):
        compare([masked, tmp_path / "absent.safetensors"])
    with pytest.raises(MaskError, match=r"encoder\.safetensors has no mask"):
        compare([masked, world.encoder])
    deeper = replace(TINY, name="deeper", layers=3)
    write_encoder(tmp_path / "deeper.safetensors", deeper)
    other = mask(str(tmp_path / "deeper.safetensors"), out=tmp_path / "m.safetensors").path
    with pytest.raises(MaskError, match="is that of another model than") as caught:
        compare([masked, other])
    assert [detail.split(": ")[1] for detail in caught.value.details] == ["tiny", "deeper"]
    halves = [mask(str(world.encoder), scope=s, out=tmp_path / s).path for s in ("attention", "feed-forward")]
    with pytest.raises(MaskError, match="no weight in common"):
        compare(halves)


def test_weights_are_not_read(masked: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was read whole")

    monkeypatch.setattr(checkpoint, "read", refuse)
    assert compare([masked, trained]).pairs


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["runs/mpi.safetensors", "runs/parp.safetensors"], ["mpi", "parp"]),
        (["mpi/mask.safetensors", "parp/mask.safetensors"], ["mpi", "parp"]),
        (["a/x/m.safetensors", "b/x/m.safetensors"], ["a", "b"]),
        (["a/m.safetensors", "a/n.safetensors", "b/m.safetensors"], ["a/m", "a/n", "b/m"]),
        (["m.safetensors", "m.safetensors"], ["m.safetensors (1)", "m.safetensors (2)"]),
    ],
)
def test_labels(paths: list[str], labels: list[str]) -> None:
    assert shortest_labels([Path(path) for path in paths]) == labels
