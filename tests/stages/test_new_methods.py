"""Wanda, movement pruning, first-order scores, and a method of a user's own, through whole runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from parp_cli.errors import UsageError
from parp_cli.pruning import methods
from parp_cli.pruning.masks import Masks, count_pruned
from parp_cli.pruning.methods import Method, MethodSpec, Snapshot, register
from parp_cli.stages.evaluate import evaluate
from parp_cli.stages.finetune import finetune
from parp_cli.storage import checkpoint
from tests.stops import check_it_goes_on
from tests.tiny import World

N = 16832
"""Prunable weights of the tiny encoder."""

BIASES = 448
"""Of those."""

NEW = {
    "wanda": ("pruning.method=wanda",),
    "wanda 2:4": ("pruning.method=wanda", "pruning.pattern=2:4"),
    "movement": ("pruning.method=movement",),
    "taylor": ("pruning.method=taylor",),
}


@pytest.mark.parametrize("name", NEW)
def test_a_run_prunes_to_its_target(world: World, tmp_path: Path, name: str) -> None:
    result = finetune(world.recipe(*NEW[name]), run=tmp_path)
    for path in (result.path, result.last):
        content = checkpoint.read(path)
        amount = content.metadata.sparsity
        assert amount is not None
        assert (amount.target, amount.pruned) == (0.5, count_pruned(content.masks))
        assert all((content.weights[key][~kept] == 0).all() for key, kept in content.masks.items())
        if name == "taylor":
            assert abs(amount.pruned - N / 2) <= 33, "half of a unit, of 64 weights and a bias"
            for mask in content.masks.values():
                rows = mask.unsqueeze(-1).flatten(1)
                assert torch.equal(rows.all(1), rows.any(1))
        else:
            assert amount.total == (N if name == "movement" else N - BIASES)
            assert amount.pruned == amount.total / 2
    assert [change.update for change in result.reprunings] == {
        "movement": [3, 6, 9, 12],
        "taylor": [3, 6, 9],
    }.get(name, [])
    assert result.plan.reprunings == len(result.reprunings)


def test_wanda_is_not_magnitude_pruning(world: World, tmp_path: Path) -> None:
    found = [
        checkpoint.read_masks(finetune(world.recipe(*settings, "training.updates=1"), run=tmp_path / str(n)).last)
        for n, settings in enumerate((NEW["wanda"], NEW["wanda"], ("pruning.method=mpi", "pruning.pattern=row")))
    ]
    wanda, again, magnitudes = found
    assert set(wanda) == set(magnitudes)
    assert all(torch.equal(mask, again[name]) for name, mask in wanda.items())
    assert any(not torch.equal(mask, magnitudes[name]) for name, mask in wanda.items())
    for mask in wanda.values():
        assert (mask.sum(1) == mask.shape[1] / 2).all(), "half of each output's weights"


@pytest.mark.parametrize("name", NEW)
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(world: World, tmp_path: Path, name: str) -> None:
    check_it_goes_on(world.recipe(*NEW[name]), tmp_path, after=5)


@pytest.mark.parametrize("name", ["wanda", "taylor"])
def test_a_mask_to_start_from_is_refused(world: World, masked: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=rf"\({name}\) finds its own mask, but .* is pruned"):
        finetune(world.recipe(*NEW[name]), run=tmp_path, init=masked)


# ------------------------------------------------------------------------------------------------ one of one's own


class Alternating(Method):
    """Prunes the first entries of every tensor, then the last ones."""

    def masks(self, snapshot: Snapshot) -> Masks:
        scores: dict[str, Tensor] = {}
        for name, weight in snapshot.weights.items():
            places = torch.arange(weight.numel(), dtype=torch.float32).reshape(weight.shape)
            scores[name] = places if snapshot.update % 2 else weight.numel() - places
        return self.settings.keep_largest(scores, self.settings.sparsity)


@pytest.fixture
def alternating() -> Iterator[MethodSpec]:
    yield register(
        MethodSpec(
            name="alternating",
            description="first, then last",
            build=Alternating,
            reads=("sparsity", "interval", "interval_unit", "start", "end"),
            patterns=("tensor",),
            pattern="tensor",
        )
    )
    del methods.all_specs()["alternating"]


@pytest.mark.usefixtures("alternating")
def test_a_method_is_one_object(world: World, tmp_path: Path) -> None:
    result = finetune(world.recipe("pruning.method=alternating"), run=tmp_path)
    assert [change.update for change in result.reprunings] == [3, 6, 9, 12]
    assert all(change.revived == change.dropped > 0 for change in result.reprunings[1:])
    masks = checkpoint.read_masks(result.last)
    assert all((mask.flatten()[: mask.numel() // 2]).all() for mask in masks.values()), "after an even update"
    assert evaluate(result.path, out=tmp_path / "eval.jsonl").as_it_is.sparsity == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(ValueError, match="'alternating' already"):
        register(MethodSpec(name="alternating", description=""))
