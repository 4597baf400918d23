"""A whole sweep: plan, run and report it."""

import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from parp_cli.errors import Interrupted
from parp_cli.runtime.interrupts import Stop, stopping
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage.atomic import forget_temporaries, set_aside
from parp_cli.storage.lock import only_one
from parp_cli.storage.run_folder import FEATURES, ROUNDS, STATE, round_folder
from parp_cli.sweep.cells import (
    Failure,
    Outcome,
    is_done,
    is_training,
    outcomes,
    read_failure,
    record_failure,
    run_cell,
    running_round,
    unfinished_rounds,
    updates_done,
)
from parp_cli.sweep.grid import Cell, Sweep, with_data
from parp_cli.sweep.languages import draw_languages, languages
from parp_cli.sweep.report import draw, panels, write_results
from parp_cli.sweep.workers import Pool, ProcessPool, RayPool

_POLL_SECONDS = 2.0  # between two looks at what workers have saved


@dataclass(frozen=True, kw_only=True)
class CellPlan:
    """What is left of a cell; `rounds` are its training runs: name, key, updates, updates done, number of cells that
    need it."""

    name: str
    key: str
    rounds: tuple[tuple[str, str, int, int, int], ...]
    done: bool


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """Size of a sweep, as `--dry-run` shows it: training runs and their updates, those that several cells need counted
    once; updates that are left; and the updates if the cells shared nothing."""

    cells: tuple[CellPlan, ...]
    runs: int
    updates: int
    updates_left: int
    updates_alone: int


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """Results of `parp sweep`, and the files that it wrote; `failed` has the name and message of each cell that failed,
    and `exit_code` is that of the first, or 0."""

    outcomes: tuple[Outcome, ...]
    failed: tuple[tuple[str, str], ...]
    exit_code: int
    results: Path
    tables: Path
    figures: tuple[Path, ...]


def plan_sweep(sweep: Sweep, run: Path) -> SweepPlan:
    """What `run_sweep` would do with a sweep `with_data`."""
    needed = [key for cell in sweep.cells for key in cell.keys]
    lengths, done = _updates(run, sweep.cells)
    cells = []
    for cell in sweep.cells:
        own = updates_done(run, cell)
        rounds = tuple(
            (training.name, key, lengths[key], own[key], needed.count(key))
            for training, key in zip(cell.rounds, cell.keys, strict=True)
        )
        cells.append(CellPlan(name=cell.name, key=cell.key, rounds=rounds, done=is_done(run, cell)))
    return SweepPlan(
        cells=tuple(cells),
        runs=len(lengths),
        updates=sum(lengths.values()),
        updates_left=sum(lengths.values()) - sum(done.values()),
        updates_alone=sum(lengths[key] for key in needed),
    )


def _updates(run: Path, cells: Iterable[Cell]) -> tuple[dict[str, int], dict[str, int]]:
    """Updates of every training run that cells need, and how many of them are done, by key."""
    lengths: dict[str, int] = {}
    done: dict[str, int] = {}
    for cell in cells:
        lengths |= {key: each.recipe.training.updates for key, each in zip(cell.keys, cell.rounds, strict=True)}
        # A deleted run is no longer needed by a cell that was trained, but perhaps by another.
        done |= {key: min(updates, done.get(key, updates)) for key, updates in updates_done(run, cell).items()}
    return lengths, done


def run_sweep(
    sweep: Sweep,
    *,
    run: Path,
    device: torch.device | None = None,
    workers: int | None = None,
    cluster: bool = False,
    conclude: Callable[[Sequence[Outcome]], str] = lambda outcomes: "",
    note: Callable[[str], None] = lambda text: None,
    notify: Notify = silent,
) -> SweepResult:
    """Run what is left of a sweep, and write its results.

    Args:
        run: the sweep's folder, which several may share: what is finished there is not run again, and results and links
            to cells are named after the sweep's file.
        device: by default the CPU.
        workers: processes on this machine; None is one for each GPU where `device` is CUDA without a number, and none
            otherwise, so that cells run in this process.
        cluster: hand cells to a Ray cluster instead, whose machines all see `run`.
        conclude: what else to write below the tables (Markdown), of the results so far.
        note: called with remarks for the user.

    Raises:
        Interrupted: by the user; the same call goes on.
        ResourceError: the disk is full.
        UsageError: the folder cannot be written to or another sweep is running there, or ray is not installed.
    """
    run, device = run.absolute(), device or torch.device("cpu")
    stem = run / sweep.file.stem

    def rows() -> tuple[Outcome, ...]:
        return tuple(row for cell in sweep.cells for row in outcomes(run, cell))

    def report() -> tuple[Path, Path]:
        _link_cells(run, stem.name, [cell for cell in sweep.cells if is_done(run, cell)])
        found = rows()
        return write_results(stem, found, languages(run, found).markdown(), conclude(found))

    with only_one(run, "sweep"):
        for folder in (run, *run.glob(f"{ROUNDS}/*"), *run.glob(f"{ROUNDS}/*/{STATE}"), *run.glob(f"{FEATURES}/*")):
            forget_temporaries(folder)
        sweep = with_data(sweep, notify)
        _keep_other_results(stem, sweep)
        left = [cell for cell in sweep.cells if not is_done(run, cell)]
        pool = _pool(run, device, workers, cluster) if left else None
        # Reports come after each cell, so that a long sweep has results before its end.
        run_cells(left, run=run, device=str(device), pool=pool, notify=notify, after_each=report)
        results, tables = report()
        failures = [(cell.name, failure) for cell in sweep.cells if (failure := read_failure(run, cell)) is not None]
        return SweepResult(
            outcomes=rows(),
            failed=tuple((name, failure.message) for name, failure in failures),
            exit_code=failures[0][1].exit_code if failures else 0,
            results=results,
            tables=tables,
            figures=_figures(run, stem, rows(), note),
        )


def _keep_other_results(stem: Path, sweep: Sweep) -> None:
    """Rename results of cells that are no longer in the sweep, such as those on other data."""
    keys = {cell.key for cell in sweep.cells}
    with suppress(FileNotFoundError):
        lines = stem.with_name(stem.name + ".jsonl").read_text(encoding="utf-8").splitlines()
        if not {json.loads(line)["key"] for line in lines} <= keys:
            set_aside(*(stem.with_name(stem.name + suffix) for suffix in (".jsonl", ".md", ".png", ".svg")))


def _pool(run: Path, device: torch.device, workers: int | None, cluster: bool) -> Pool | None:
    """None for this process alone."""
    if cluster:
        return RayPool(run, device.type)
    devices = [str(device)] * (workers or 1)
    if str(device) == "cuda":
        count = torch.cuda.device_count()
        devices = [f"cuda:{index}" for index in range(min(workers or count, count))]
    return None if len(devices) == 1 and workers is None else ProcessPool(run, devices)


def _link_cells(run: Path, sweep: str, cells: Sequence[Cell]) -> None:
    """Make `<run>/cells/<sweep>/` hold links to the folders of these cells, and no others."""
    place = run / "cells" / sweep
    with suppress(OSError):  # some file systems have no links; results name the folders too
        place.mkdir(parents=True, exist_ok=True)
        for link in place.iterdir():
            if link.is_symlink():
                link.unlink()
        for cell in cells:
            target = os.path.relpath(round_folder(run, cell.key), place)
            (place / re.sub(r"[^\w.=+-]+", "-", cell.name)).symlink_to(target, target_is_directory=True)


def _figures(run: Path, stem: Path, rows: Sequence[Outcome], note: Callable[[str], None]) -> tuple[Path, ...]:
    try:
        return (*draw(panels(rows), stem), *draw_languages(languages(run, rows), stem))
    except ImportError:
        note("no figure: matplotlib is not installed (`pip install 'parp-cli[plot]'`)")
        return ()


class _Meter:
    """Progress over all cells, in updates of those that were left at the beginning."""

    def __init__(self, run: Path, cells: Sequence[Cell], notify: Notify, stop: Stop) -> None:
        self._run, self._notify, self._stop = run, notify, stop
        self._lengths, self._done = _updates(run, cells)
        self._before, self._told = sum(self._done.values()), -1
        self._noted: set[str] = set()

    def listen(self, cell: Cell, step: Progress) -> None:
        """Turn what a cell in this process reports into progress of the sweep.

        Raises Interrupted: a stop was asked for. At updates the training itself stops, with its state saved.
        """
        if step.is_line:
            if step.warning and step.kind == "data":
                if step.warning not in self._noted:
                    self._noted.add(step.warning)
                    self._notify(step)
            elif step.warning:  # a line per validation would be many; each run's log has them
                self._notify(replace(step, warning=f"{cell.name}: {step.warning}"))
        elif is_training(step):
            self._reach({running_round(self._run, cell): step.done}, f"{cell.name}: {step.note}")
        else:
            _heed(self._stop)
            if step.kind != "recognition":  # short, and repeated for each cell
                self._notify(step)

    def look(self, running: Sequence[Cell]) -> None:
        """Update the progress of cells that run elsewhere by the states that they saved."""
        done: dict[str, int] = {}
        for cell in running:
            done |= updates_done(self._run, cell)
        self._reach(done, "; ".join(cell.name for cell in running))

    def close(self, cell: Cell) -> None:
        """Nothing of a cell is left to do, because it is done or failed."""
        self._done |= {key: self._lengths[key] for key in cell.keys}

    def _reach(self, updates: dict[str, int], note: str) -> None:
        self._done |= {key: max(self._done[key], update) for key, update in updates.items()}
        done, total = sum(self._done.values()), sum(self._lengths.values())
        if total > self._before and done != self._told:
            self._told = done
            self._notify(Progress("sweep", done - self._before, total - self._before, note))


def run_cells(
    cells: Sequence[Cell],
    *,
    run: Path,
    device: str,
    pool: Pool | None,
    notify: Notify,
    after_each: Callable[[], object],
) -> None:
    """Run cells that are not done in a pool, or without one in this process on `device`; `after_each` is called when
    one has ended. One that fails is recorded, and the others go on. A training run that several cells need is made by
    the first of them; the others wait, and then find it finished.

    Raises Interrupted: by the user; the same call goes on.
    """
    waiting, running = list(cells), list[Cell]()
    failed: dict[str, Failure] = {}  # by training run, so that no other cell tries it again

    def end(cell: Cell) -> None:
        meter.close(cell)
        after_each()

    try:
        with stopping() as stop:
            meter = _Meter(run, waiting, notify, stop)
            try:
                while waiting or running:
                    _heed(stop)
                    for cell in list(waiting):
                        broken = next((failed[key] for key in cell.keys if key in failed), None)
                        if broken is not None:
                            record_failure(run, cell, broken, broken.round)
                            waiting.remove(cell)
                            end(cell)
                        elif pool is None and not running:
                            waiting.remove(cell)
                            running.append(cell)
                            run_cell(run, cell, device, partial(meter.listen, cell))
                        elif pool is not None and pool.has_room() and not _clashes(run, cell, running):
                            waiting.remove(cell)
                            running.append(cell)
                            pool.start(cell)
                    for cell in list(running) if pool is None else pool.ended(_POLL_SECONDS):
                        running.remove(cell)
                        failure = read_failure(run, cell)
                        if failure is not None and failure.round is not None:
                            message = f"needs what failed in {cell.name}: {failure.message}"
                            failed[failure.round] = replace(failure, message=message)
                        end(cell)
                    meter.look(running)
            finally:
                if pool is not None:
                    pool.stop()
            _heed(stop)
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted("the sweep was stopped; what is done is kept", hint="the same command goes on") from error


def _heed(stop: Stop) -> None:
    """Raise Interrupted if a stop was asked for."""
    if stop.requested:
        raise Interrupted("the user asked for it")


def _clashes(run: Path, cell: Cell, running: Iterable[Cell]) -> bool:
    """Whether a cell needs a training run that another one makes now, or will."""
    taken = {key for other in running for key in (*unfinished_rounds(run, other), other.key)}
    return not taken.isdisjoint({*unfinished_rounds(run, cell), cell.key})
