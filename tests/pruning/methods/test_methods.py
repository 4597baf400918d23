"""When methods re-prune and to what sparsity, without a network."""

import math

import pytest
import torch

from parp_cli.pruning.methods import Method, Schedule, Settings, Snapshot, spec_of
from parp_cli.pruning.methods.rigl import RigL
from parp_cli.pruning.patterns import Pattern


def made(name: str, **changes: object) -> Method:
    settings = {"sparsity": 0.8, "schedule": Schedule(interval=10, updates=45), **changes}
    return spec_of(name).build(Settings(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schedule", "times"),
    [
        (Schedule(interval=10, updates=45), (10, 20, 30, 40, 45)),
        (Schedule(interval=10, updates=40), (10, 20, 30, 40)),
        (Schedule(interval=10, updates=45, final=False), (10, 20, 30, 40)),
        (Schedule(interval=10, updates=45, start=20), (20, 30, 40, 45)),
        (Schedule(interval=10, updates=45, start=21), (30, 40, 45)),
        (Schedule(interval=10, updates=45, end=30), (10, 20, 30, 45)),
        (Schedule(interval=10, updates=45, end=29, final=False), (10, 20)),
        (Schedule(interval=10, updates=45, start=11, end=19), (45,)),
        (Schedule(interval=50, updates=45), (45,)),
        (Schedule(interval=50, updates=45, final=False), ()),
    ],
)
def test_schedule(schedule: Schedule, times: tuple[int, ...]) -> None:
    assert schedule.times == times
    assert tuple(update for update in range(1, 46) if schedule.due(update)) == times


@pytest.mark.parametrize("name", ["dense", "fixed", "mpi", "rp", "omp", "imp", "pap"])
def test_baselines_never_change_their_mask(name: str) -> None:
    method = made(name)
    masks = {"a": torch.tensor([True, False, True, False])}
    snapshot = Snapshot(update=3, weights={"a": torch.tensor([0.0, 9.0, 1.0, 2.0])}, masks=masks)
    assert not any(method.adjusts(update) for update in range(46))
    assert not spec_of(name).reprunes
    assert method.masks(snapshot) is None
    assert method.final_masks(snapshot) is None


def test_parp_adjusts_to_its_last_repruning() -> None:
    assert all(made("parp").adjusts(update) for update in range(45))
    early = made("parp", schedule=Schedule(interval=10, updates=45, end=30, final=False))
    assert [update for update in range(45) if early.adjusts(update)] == list(range(30))
    never = made("parp", schedule=Schedule(interval=50, updates=45, final=False))
    assert not any(never.adjusts(update) for update in range(45))


@pytest.mark.parametrize(
    ("growth", "expected"),
    [
        ("linear", [0.3, 0.4, 0.5, 0.6, 0.7]),
        ("cubic", [0.7 - 0.5 * (1 - share) ** 3 for share in (0.2, 0.4, 0.6, 0.8, 1.0)]),
    ],
)
def test_progressive_sparsity(growth: str, expected: list[float]) -> None:
    method = made("parp-p", sparsity=0.7, start_sparsity=0.2, growth=growth)
    grown = [method.settings.sparsity_after(update) for update in (10, 20, 30, 40, 45)]
    assert grown == pytest.approx(expected)
    assert grown[-1] == 0.7, "exactly"


def test_what_would_be_shipped_has_the_target_sparsity() -> None:
    """Also in the middle of a growth: a validation judges the model that the run is for."""
    method = made("parp-p", sparsity=0.75, start_sparsity=0.25)
    weights = {"a": torch.arange(8.0) + 1}
    snapshot = Snapshot(update=10, weights=weights, masks={"a": weights["a"] > 2})
    final, now = method.final_masks(snapshot), method.masks(snapshot)
    assert final is not None
    assert now is not None
    assert final["a"].tolist() == [False] * 6 + [True] * 2
    assert int((~now["a"]).sum()) == round(8 * 0.35)


def test_parp_takes_the_pattern() -> None:
    method = made("parp", sparsity=0.5, pattern=Pattern.parse("layer"), layers={"a": "0", "b": "1"})
    weights = {"a": torch.tensor([4.0, -3.0, 2.0, 1.0]), "b": torch.tensor([40.0, 30.0, -20.0, 10.0])}
    masks = method.masks(Snapshot(update=10, weights=weights, masks={}))
    assert masks is not None
    assert {name: mask.tolist() for name, mask in masks.items()} == {name: [True, True, False, False] for name in "ab"}


def rigl(**changes: object) -> RigL:
    method = made("rigl", **changes)
    assert isinstance(method, RigL)
    return method


def test_rigl_swaps_fewer_and_fewer_and_stops() -> None:
    method = rigl(drop_fraction=0.4, schedule=Schedule(interval=10, updates=100, end=75, final=False))
    counts = [method.swapped(1000, update) for update in (0, 10, 30, 50, 75, 90)]
    assert counts == [round(200 * (1 + math.cos(math.pi * min(1, u / 75)))) for u in (0, 10, 30, 50, 75, 90)]
    assert (counts[0], counts[-2:]) == (400, [0, 0])
    assert not any(method.adjusts(update) for update in range(101))


def test_rigl_in_a_tensor_with_less_room_than_it_would_grow() -> None:
    method = rigl(drop_fraction=1.0, schedule=Schedule(interval=1, updates=1000, end=750, final=False))
    weights = {"a": torch.tensor([5.0, 4.0, 0.0, 3.0])}
    masks = {"a": torch.tensor([True, True, False, True])}
    method.observe(Snapshot(update=1, weights=weights, gradients={"a": torch.ones(4)}, masks=masks))
    after = method.masks(Snapshot(update=1, weights=weights, masks=masks))
    assert int(after["a"].sum()) == 3
    assert after["a"].tolist()[:2] == [True, True], "one of three may go, the smallest"


def test_rigl_changes_nothing_after_an_update_that_was_skipped() -> None:
    method = rigl(drop_fraction=1.0, schedule=Schedule(interval=1, updates=1000, end=750, final=False))
    masks = {"a": torch.tensor([True, True, False, False])}
    snapshot = Snapshot(update=1, weights={"a": torch.tensor([5.0, 4.0, 0.0, 0.0])}, masks=masks)
    method.observe(Snapshot(update=1, weights=snapshot.weights, gradients={"a": torch.ones(4)}, masks=masks))
    method.masks(snapshot)
    assert method.masks(Snapshot(update=2, weights=snapshot.weights, masks=masks)) == masks
