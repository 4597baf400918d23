"""Run the cells of a sweep, one after another here, or several at a time in a pool of workers.

A training run that several cells need is made by the first of them; the others wait, and then find it finished in the
sweep's folder.
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
    run_task,
    running_round,
    unfinished_rounds,
    updates_done,
)

_POLL_SECONDS = 2.0
"""Between two looks at what workers have saved."""


class Pool(Protocol):
    """Workers, each for one task at a time."""

    def has_room(self) -> bool:
        """Whether another task can be started."""

    def start(self, task: Task) -> None:
        """Give a task to a worker."""

    def ended(self, seconds: float) -> list[tuple[str, Failure | None]]:
        """Wait at most this long for a task to end: the keys of cells that did, each with its failure if it failed."""

    def stop(self) -> None:
        """End all workers; what they do is saved where possible."""


class _ThisProcess:
    """A pool of one, whose task runs while the others would be waited for."""

    def __init__(self, listener: Callable[[Cell], Notify]) -> None:
        self._listener = listener
        self._task: Task | None = None

    def has_room(self) -> bool:
        return self._task is None

    def start(self, task: Task) -> None:
        self._task = task

    def ended(self, _seconds: float) -> list[tuple[str, Failure | None]]:
        task, self._task = self._task, None
        return [] if task is None else [(task.cell.key, run_task(task, self._listener(task.cell)))]

    def stop(self) -> None:
        pass


class _Meter:
    """Progress over all cells: updates done of those that were left at the beginning, by training run."""

    def __init__(self, run: Path, cells: Sequence[Cell], notify: Notify, stop: Stop) -> None:
        self._run, self._notify, self._stop = run, notify, stop
        self._first: dict[str, int] = {}
        self._left: dict[str, int] = {}
        for cell in cells:
            self._first |= updates_done(run, cell)
            lengths = (training.recipe.training.updates for training in cell.rounds)
            self._left |= {key: length - self._first[key] for key, length in zip(cell.keys, lengths, strict=True)}
        self._done = dict.fromkeys(self._left, 0)
        self._last: Progress | None = None

    def listen(self, cell: Cell) -> Notify:
        """Turns what a cell in this process reports into progress of the sweep.

        The result raises Interrupted where a stop was asked for, except at updates: the training itself stops there,
        with its state saved.
        """

        def notify(step: Progress) -> None:
            if step.is_line:
                if step.warning:  # a line per validation would be many; each run's log has them
                    self._notify(replace(step, warning=f"{cell.name}: {step.warning}"))
            elif is_training(step):
                self._reach(running_round(self._run, cell), step.done)
                self._report(f"{cell.name}: {step.note}")
            else:
                _heed(self._stop)
                if step.kind != "recognition":  # short, and repeated for each cell
                    self._notify(step)

        return notify

    def look(self, running: Sequence[Cell]) -> None:
        """Update the progress of cells that run elsewhere by the states that they saved."""
        for cell in running:
            for key, updates in updates_done(self._run, cell).items():
                self._reach(key, updates)
        self._report("; ".join(cell.name for cell in running))

    def close(self, cell: Cell) -> None:
        """Nothing of a cell is left to do, because it is done or failed."""
        for key in cell.keys:
            self._done[key] = self._left[key]

    def _reach(self, key: str, update: int) -> None:
        self._done[key] = max(self._done[key], min(update - self._first[key], self._left[key]))

    def _report(self, note: str) -> None:
        step = Progress("sweep", sum(self._done.values()), sum(self._left.values()), note)
        if step.total and step != self._last:
            self._last = step
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
    """Run whatever is left of the cells. A cell that fails is recorded, and the others go on.

    Args:
        cells: of a sweep.
        run: the sweep's folder.
        device: of what runs in this process.
        pool: of workers; None runs one cell after another in this process.
        after_each: called when a cell has ended.

    Raises:
        Interrupted: by the user; the same call goes on.
    """
    waiting = [cell for cell in cells if not is_done(run, cell)]
    running: dict[str, Cell] = {}
    failed: dict[str, Failure] = {}  # by training run, so that no other cell tries it again
    try:
        with stopping() as stop:
            meter = _Meter(run, waiting, notify, stop)
            workers = _ThisProcess(meter.listen) if pool is None else pool
            try:
                while waiting or running:
                    _heed(stop)
                    for cell in list(waiting):
                        broken = next((failed[key] for key in cell.keys if key in failed), None)
                        if broken is not None:
                            record_failure(run, cell, broken)
                            waiting.remove(cell)
                            meter.close(cell)
                            after_each()
                        elif workers.has_room() and not _clashes(run, cell, running.values()):
                            waiting.remove(cell)
                            running[cell.key] = cell
                            workers.start(Task(cell=cell, run=run, device=device))
                    for key, failure in workers.ended(_POLL_SECONDS):
                        cell = running.pop(key)
                        if failure is not None and failure.round is not None:
                            message = f"needs what failed in {cell.name}: {failure.message}"
                            failed[failure.round] = replace(failure, message=message)
                        meter.close(cell)
                        after_each()
                    if pool is not None:
                        meter.look(list(running.values()))
            finally:
                workers.stop()
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
