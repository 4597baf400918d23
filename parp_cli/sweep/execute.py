"""Run the cells of a sweep: one after another here, or several at a time in a pool of workers.

What cells share is settled through the sweep's folder: a training run that two cells need is made by one of them
while the other waits, and is then found finished there.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from parp_cli.errors import Interrupted
from parp_cli.runtime.interrupts import Stop, stopping
from parp_cli.runtime.progress import Notify, Progress
from parp_cli.sweep.grid import Cell
from parp_cli.sweep.tasks import (
    Failure,
    Task,
    is_done,
    is_training,
    record_failure,
    remote_progress,
    run_task,
    running_round,
    unfinished_rounds,
    updates_done,
)

_POLL_SECONDS = 2.0
"""Between two looks at how far workers are."""


class Pool(Protocol):
    """Workers, each for one task at a time."""

    def has_room(self) -> bool:
        """Whether another task can be started."""

    def start(self, task: Task) -> None:
        """Give a task to a worker."""

    def ended(self, seconds: float) -> list[tuple[str, Failure | None]]:
        """Wait at most so long for a task to end; the cells' keys, and why each that failed did."""

    def stop(self) -> None:
        """End all workers, with what they do saved where that is possible."""


class Meter:
    """Progress over all cells, in updates that are left to do.

    Args:
        run: the sweep's folder.
        cells: those that are not done.
        notify: is told `sweep`, with the running cell as a note.
    """

    def __init__(self, run: Path, cells: Sequence[Cell], notify: Notify) -> None:
        self._run, self._notify = run, notify
        self._first: dict[str, int] = {}
        self._left: dict[str, int] = {}
        for cell in cells:
            done = updates_done(run, cell)
            for this, key in zip(cell.rounds, cell.keys, strict=True):
                self._first[key] = done[key]
                self._left[key] = this.recipe.training.updates - done[key]
        self._now = dict.fromkeys(self._left, 0)
        self._told: Progress | None = None

    @property
    def total(self) -> int:
        """Updates left at the beginning."""
        return sum(self._left.values())

    def listen(self, cell: Cell, stop: Stop) -> Notify:
        """What a cell that runs in this process reports to.

        Raises (what it reports to):
            Interrupted: a stop was asked for; not between updates, where the training itself stops and is saved.
        """

        def notify(step: Progress) -> None:
            if step.is_line:
                if step.warning:  # news of validations are many; each run's log has them
                    self._notify(replace(step, warning=f"{cell.name}: {step.warning}"))
                return
            if is_training(step):
                self._reach(running_round(self._run, cell), step.done)
                self._tell(f"{cell.name}: {step.note}")
                return
            _heed(stop)
            if step.kind != "recognition":  # short, and repeated for each cell
                self._notify(step)

        return notify

    def look(self, running: Sequence[Cell]) -> None:
        """See how far cells are that run elsewhere, by what they saved and what they tell."""
        for cell in running:
            for key, updates in updates_done(self._run, cell).items():
                self._reach(key, updates)
            told = remote_progress(self._run, cell)
            if told is not None:
                self._reach(*told)
        self._tell("; ".join(cell.name for cell in running))

    def close(self, cell: Cell) -> None:
        """Nothing of a cell is left to do, because it is done or failed."""
        for key in cell.keys:
            self._now[key] = self._left[key]

    def _reach(self, key: str, update: int) -> None:
        self._now[key] = max(self._now[key], min(update - self._first[key], self._left[key]))

    def _tell(self, note: str) -> None:
        step = Progress("sweep", sum(self._now.values()), self.total, note)
        if self.total and step != self._told:
            self._told = step
            self._notify(step)


def run_cells(
    cells: Sequence[Cell],
    *,
    run: Path,
    device: str,
    pool: Pool | None,
    notify: Notify,
    after_each: Callable[[], object],
) -> None:
    """Run whatever is left of the cells. One that fails is recorded, and the others go on.

    Args:
        cells: of a sweep.
        run: the sweep's folder.
        device: for what runs in this process.
        pool: of workers; None runs one cell after another in this process.
        after_each: called when a cell has ended.

    Raises:
        Interrupted: by the user; the same call goes on.
    """
    left = [cell for cell in cells if not is_done(run, cell)]
    meter = Meter(run, left, notify)
    ledger = _Ledger(run)
    try:
        with stopping() as stop:
            if pool is None:
                _one_by_one(left, run, device, meter, ledger, after_each, stop)
            else:
                _in_parallel(left, run, device, pool, meter, ledger, after_each, stop)
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted("the sweep was stopped; what is done is kept", hint="the same command goes on") from error


class _Ledger:
    """Training runs that failed, so that no other cell tries them again."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._failed: dict[str, Failure] = {}

    def refuses(self, cell: Cell) -> bool:
        """Whether a cell needs a run that failed; it is recorded to have failed then."""
        for key in cell.keys:
            if key in self._failed:
                record_failure(self._run, cell, self._failed[key])
                return True
        return False

    def enter(self, cell: Cell, failure: Failure | None) -> None:
        """Note how a cell ended."""
        if failure is not None and failure.round is not None:
            self._failed[failure.round] = replace(
                failure, message=f"needs what failed in {cell.name}: {failure.message}"
            )


def _heed(stop: Stop) -> None:
    if stop.requested:
        raise Interrupted("the user asked for it")


def _one_by_one(
    cells: Sequence[Cell],
    run: Path,
    device: str,
    meter: Meter,
    ledger: _Ledger,
    after_each: Callable[[], object],
    stop: Stop,
) -> None:
    for cell in cells:
        if not ledger.refuses(cell):
            ledger.enter(cell, run_task(Task(cell=cell, run=run, device=device), meter.listen(cell, stop)))
        meter.close(cell)
        after_each()
        _heed(stop)


def _in_parallel(
    cells: Sequence[Cell],
    run: Path,
    device: str,
    pool: Pool,
    meter: Meter,
    ledger: _Ledger,
    after_each: Callable[[], object],
    stop: Stop,
) -> None:
    waiting = list(cells)
    running: dict[str, Cell] = {}
    try:
        while waiting or running:
            _heed(stop)
            for cell in list(waiting):
                if ledger.refuses(cell):
                    waiting.remove(cell)
                    meter.close(cell)
                    after_each()
                elif pool.has_room() and not _clashes(run, cell, running.values()):
                    waiting.remove(cell)
                    running[cell.key] = cell
                    pool.start(Task(cell=cell, run=run, device=device))
            for key, failure in pool.ended(_POLL_SECONDS):
                cell = running.pop(key)
                ledger.enter(cell, failure)
                meter.close(cell)
                after_each()
            meter.look(list(running.values()))
    finally:
        pool.stop()


def _clashes(run: Path, cell: Cell, running: Iterable[Cell]) -> bool:
    """Whether a cell would make a training run that another one is making, or will."""
    taken = {key for other in running for key in (*unfinished_rounds(run, other), other.key)}
    return not taken.isdisjoint({*unfinished_rounds(run, cell), cell.key})
