"""A whole sweep: plan, run and report it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from parp_cli.data.corpora import load
from parp_cli.runtime.progress import Notify, silent
from parp_cli.storage.lock import only_one
from parp_cli.sweep.execute import Pool, run_cells
from parp_cli.sweep.grid import Sweep
from parp_cli.sweep.report import write_results
from parp_cli.sweep.tasks import (
    Outcome,
    is_done,
    keep_training,
    name_folders,
    outcomes,
    read_failure,
    tidy,
    updates_done,
)


@dataclass(frozen=True, kw_only=True)
class CellPlan:
    """What is left of a cell.

    Attributes:
        rounds: its training runs: name, key, updates, updates done, number of cells that need it.
        done: whether nothing is left.
    """

    name: str
    key: str
    rounds: tuple[tuple[str, str, int, int, int], ...]
    done: bool


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Size of a sweep, as `--dry-run` shows it.

    Attributes:
        runs: training runs; one that several cells need counts once.
        updates: of all runs.
        updates_left: not yet done.
        updates_alone: if the cells shared nothing.
    """

    cells: tuple[CellPlan, ...]
    runs: int
    updates: int
    updates_left: int
    updates_alone: int


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """Results of `parp sweep`, and the files that it wrote.

    Attributes:
        failed: name and message of each cell that failed.
        exit_code: of the first failure; 0 without one.
        figures: PNG and SVG; empty without matplotlib.
    """

    outcomes: tuple[Outcome, ...]
    failed: tuple[tuple[str, str], ...]
    exit_code: int
    results: Path
    tables: Path
    figures: tuple[Path, ...]


def plan_sweep(sweep: Sweep, run: Path) -> SweepPlan:
    """What `run_sweep` would do."""
    needed = [key for cell in sweep.cells for key in cell.keys]
    lengths: dict[str, int] = {}
    done: dict[str, int] = {}
    cells = []
    for cell in sweep.cells:
        own = updates_done(run, cell)
        rounds = []
        for training, key in zip(cell.rounds, cell.keys, strict=True):
            lengths[key] = training.recipe.training.updates
            # A deleted run is no longer needed by a cell that was trained, but perhaps by another.
            done[key] = min(own[key], done.get(key, own[key]))
            rounds.append((training.name, key, lengths[key], own[key], needed.count(key)))
        cells.append(CellPlan(name=cell.name, key=cell.key, rounds=tuple(rounds), done=is_done(run, cell)))
    return SweepPlan(
        cells=tuple(cells),
        runs=len(lengths),
        updates=sum(lengths.values()),
        updates_left=sum(lengths.values()) - sum(done.values()),
        updates_alone=sum(lengths[key] for key in needed),
    )


def check_data(sweep: Sweep, run: Path, notify: Notify = silent) -> None:
    """Read, and generate or download, every split that a cell is trained, validated or evaluated on.

    Raises:
        DataError: a split does not exist, or its data is missing or broken.
    """
    checked = set()
    for cell in sweep.cells:
        if is_done(run, cell):
            continue
        data = cell.recipe.data
        for split in (data.train, data.valid, *cell.splits):
            if (data, split) not in checked:
                # Utterances that cannot be trained on are reported by each run.
                load(data, split, notify, lenient=split not in cell.splits)
                checked.add((data, split))


def run_sweep(
    sweep: Sweep,
    *,
    run: Path,
    device: torch.device | None = None,
    workers: int | None = None,
    cluster: bool = False,
    note: Callable[[str], None] = lambda text: None,
    notify: Notify = silent,
) -> SweepResult:
    """Run what is left of a sweep, and write its results.

    Several sweeps may share a folder: results and links to cells are named after the sweep's file.

    Args:
        sweep: from `grid.load_sweep`.
        run: the sweep's folder; what an earlier call finished there is not run again.
        device: by default the CPU.
        workers: processes on this machine; None is one for each GPU where `device` is CUDA without a number, and none
            otherwise, so that cells run in this process.
        cluster: hand cells to a Ray cluster instead, whose machines all see `run`.
        note: called with remarks for the user.

    Raises:
        Interrupted: by the user; the same call goes on.
        ResourceError: the disk is full.
        UsageError: the folder cannot be written to or another sweep is running there, or ray is not installed.
    """
    run, device = run.absolute(), device or torch.device("cpu")
    stem = run / sweep.file.stem

    def results_so_far() -> tuple[Outcome, ...]:
        return tuple(outcome for cell in sweep.cells for outcome in outcomes(run, cell))

    def report() -> tuple[Path, Path]:
        for cell in sweep.cells:
            keep_training(run, cell)
        name_folders(run, stem.name, [cell for cell in sweep.cells if is_done(run, cell)])
        return write_results(stem, results_so_far())

    with only_one(run, "sweep"):
        tidy(run)
        check_data(sweep, run, notify)
        finished = all(is_done(run, cell) for cell in sweep.cells)
        run_cells(
            sweep.cells,
            run=run,
            device=str(device),
            pool=None if finished else _pool(device, workers, cluster),
            notify=notify,
            after_each=report,  # so that a long sweep has results before its end
        )
        results, tables = report()
        failures = [(cell.name, failure) for cell in sweep.cells if (failure := read_failure(run, cell)) is not None]
        return SweepResult(
            outcomes=results_so_far(),
            failed=tuple((name, failure.message) for name, failure in failures),
            exit_code=failures[0][1].exit_code if failures else 0,
            results=results,
            tables=tables,
            figures=_figures(stem, results_so_far(), note),
        )


def _pool(device: torch.device, workers: int | None, cluster: bool) -> Pool | None:
    if cluster:
        from parp_cli.sweep.cluster import RayPool

        return RayPool(device.type)
    if str(device) == "cuda":
        count = min(workers or torch.cuda.device_count(), torch.cuda.device_count())
        devices = [f"cuda:{index}" for index in range(count)]
    else:
        devices = [str(device)] * (workers or 1)
    if len(devices) == 1 and workers is None:
        return None
    from parp_cli.sweep.workers import ProcessPool

    return ProcessPool(devices)


def _figures(stem: Path, outcomes: tuple[Outcome, ...], note: Callable[[str], None]) -> tuple[Path, ...]:
    try:
        from parp_cli.sweep.figure import draw
    except ImportError:
        note("no figure: matplotlib is not installed (`pip install 'parp-cli[plot]'`)")
        return ()
    from parp_cli.sweep.report import panels

    return draw(panels(outcomes), stem)
