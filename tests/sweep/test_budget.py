"""What of a sweep fits into a time."""

from pathlib import Path
from typing import Any

import pytest
import torch

from parp_cli.config.shipped import shipped
from parp_cli.errors import UsageError
from parp_cli.sweep.budget import Pace, find_pace, groups_of, left_out, parse_time, select
from parp_cli.sweep.grid import Cell, load_sweep
from parp_cli.sweep.run import run_sweep

CPU = torch.device("cpu")
GRID = """
grid:
  seed: [0, 1]
  pruning.sparsity: [0.5, 0.3]
  pruning.method: [dense, mpi, parp, omp]
"""
PACE = Pace(update=1.0, evaluation=10.0)


@pytest.fixture
def cells(write_sweep: Any) -> tuple[Cell, ...]:
    """Runs of 6 updates."""
    return load_sweep(write_sweep(GRID, "training.updates=6"), device=CPU).cells


def names(cells: Any) -> list[str]:
    return [cell.name for cell in cells]


def test_parp_with_dense_comes_first_then_other_methods_then_other_seeds(cells: tuple[Cell, ...]) -> None:
    groups = [names(group) for group in groups_of(cells)]
    assert groups[:6] == [
        ["parp, seed 0, 0.5 sparse", "dense, seed 0"],
        ["parp, seed 0, 0.3 sparse"],
        ["mpi, seed 0, 0.5 sparse"],
        ["omp, seed 0, 0.5 sparse"],
        ["mpi, seed 0, 0.3 sparse"],
        ["omp, seed 0, 0.3 sparse"],
    ]
    assert [[name.replace("seed 0", "seed 1") for name in group] for group in groups[:6]] == groups[6:]


def test_frozen_and_unfrozen_dense_come_with_the_parp_they_are_compared_with() -> None:
    cells = load_sweep(shipped("reproduce/main.yaml"), device=CPU).cells
    first, second, *_ = (names(group) for group in groups_of(cells))
    frozen, free = (f"dense, seed 0, freeze_encoder_updates {updates}" for updates in (500, 0))
    assert (first[0], set(first[1:])) == ("parp, seed 0, 0.5 sparse", {frozen, free})
    assert second == ["parp, seed 0, 0.3 sparse"]


def test_settings_that_are_varied_come_with_their_dense_network() -> None:
    cells = load_sweep(shipped("reproduce/ablations.yaml"), device=CPU).cells
    groups = groups_of(cells)
    rates = [
        {cell.recipe.pruning.method for cell in group}
        for group in groups
        if group[0].recipe.training.learning_rate != 4e-3
    ]
    assert rates == [{"parp", "dense"}] * 6  # of two rates and three seeds
    assert groups[0][0].values["pruning.interval"] == 10


def test_a_language_comes_with_all_masks_between_it_and_those_before_it() -> None:
    groups = groups_of(load_sweep(shipped("languages/transfer.yaml"), device=CPU).cells)
    assert [len(group) for group in groups] == [2, 6, 10, 14, 18] * 2
    own = [{name for c in group for name in (*c.recipe.data.language, *c.recipe.pruning.found_on)} for group in groups]
    assert own[:2] == [{"es"}, {"es", "fr"}]
    joint = groups_of(load_sweep(shipped("languages/joint.yaml"), device=CPU).cells)
    assert [len(group) for group in joint] == [4, *[2] * 9] * 2
    assert {len(cell.recipe.data.language) for cell in joint[0]} == {1, 10}


def test_what_fits_is_a_beginning_in_the_order_of_the_sweep(cells: tuple[Cell, ...]) -> None:
    pair = 2 * 6 + 2 * 10
    kept = select(cells, PACE, pair)
    assert names(kept) == ["dense, seed 0", "parp, seed 0, 0.5 sparse"]
    # OMP's dense run is paid for already.
    kept = select(cells, PACE, pair + 3 * 16)
    assert names(kept)[-2:] == ["omp, seed 0, 0.5 sparse", "parp, seed 0, 0.3 sparse"]
    assert len(select(cells, PACE, pair + 3 * 16 - 0.1)) == 4
    assert left_out(cells, kept) == "9 of 14 cells left out; nothing of seed 1"
    assert select(cells, PACE, 1e6) == list(cells)
    assert left_out(cells, cells) == ""


def test_too_little_for_anything(cells: tuple[Cell, ...]) -> None:
    with pytest.raises(UsageError, match=r"0\.517 minutes is too short") as caught:
        select(cells, PACE, 31)
    assert caught.value.details == ("it takes about 0.533 minutes: parp, seed 0, 0.5 sparse, dense, seed 0",)


def test_times() -> None:
    assert [parse_time(text) for text in ("2h", "45m", "1h30m", "1.5h", "10s")] == [7200, 2700, 5400, 5400, 10]
    for text in ("2", "h", "2 h", "2d", "0h", "-1h", "1h30"):
        with pytest.raises(UsageError, match="expected a time"):
            parse_time(text)


def test_the_pace_is_measured_once_and_then_of_what_is_done(write_sweep: Any, tmp_path: Path) -> None:
    path = write_sweep("grid: {pruning.method: [dense, parp]}\nsplits: [test]\n", "training.updates=6")
    sweep, run = load_sweep(path, device=CPU), tmp_path / "run"
    measured = find_pace(run, sweep.cells, "main", CPU)
    assert 0 < measured.update < 10
    assert 0 < measured.evaluation < 60
    assert not (run / "rounds").exists()
    assert find_pace(run, sweep.cells, "main", CPU) == measured
    other = load_sweep(path, ["training.updates=3"], device=CPU)
    result = run_sweep(other, run=run)
    found = find_pace(run, load_sweep(path, ["training.updates=3"], device=CPU).cells, "main", CPU)
    assert found != measured, "of other cells"
    assert result.failed == ()
