"""A pool of worker processes on this machine, each on a device of its own. A task gets a fresh process."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from parp_cli.errors import Interrupted
from parp_cli.sweep.tasks import Failure, Task, lost_worker, run_remote_task

_STOP_SECONDS = 30.0
"""Time to save what is being done, when all is to end."""

_BUG = 1
"""Python's exit code after an exception."""


@dataclass(frozen=True)
class _Worker:
    task: Task
    process: SpawnProcess
    answer: Connection


class ProcessPool:
    """One process for each of `devices` at a time (`cuda:0`, `cuda:1`, …; or `cpu` as often as wanted)."""

    def __init__(self, devices: Sequence[str]) -> None:
        self._context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self._free = list(devices)
        on_cpu = sum(device == "cpu" for device in devices)
        self._threads = max(1, torch.get_num_threads() // on_cpu) if on_cpu else None
        self._workers: dict[str, _Worker] = {}

    def has_room(self) -> bool:
        """Whether a device is free."""
        return bool(self._free)

    def start(self, task: Task) -> None:
        """Begin a task on a free device."""
        task = replace(task, device=self._free.pop(0), threads=self._threads)
        answer, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(task, sender), name=task.cell.name)
        process.start()
        sender.close()  # so that a worker that dies is the end of the pipe
        self._workers[task.cell.key] = _Worker(task, process, answer)

    def ended(self, seconds: float) -> list[tuple[str, Failure | None]]:
        """Wait at most so long for a worker to end.

        Raises:
            RuntimeError: an exception ended one, whose traceback is on stderr.
            Interrupted: a worker was asked to stop.
        """
        gone = wait([worker.process.sentinel for worker in self._workers.values()], timeout=seconds)
        found = []
        for key, worker in list(self._workers.items()):
            if worker.process.sentinel in gone:
                del self._workers[key]
                self._free.append(worker.task.device)
                found.append((key, _failure(worker)))
        return found

    def stop(self) -> None:
        """Ask every worker to save what it has and end."""
        for worker in self._workers.values():
            worker.process.terminate()
        try:
            for worker in self._workers.values():
                worker.process.join(_STOP_SECONDS)
        finally:  # a second Ctrl-C does not wait
            for worker in self._workers.values():
                worker.process.kill()
            self._workers.clear()


def _work(task: Task, answer: Connection) -> None:
    """What a worker process does."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is for the parent, which then asks each worker once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer.send(run_remote_task(task))
    except Interrupted as error:
        sys.exit(error.exit_code)


def _end_with_parent() -> None:
    """Two sweeps must not be at one folder: a worker whose parent was killed ends too."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(Interrupted.exit_code)


def _failure(worker: _Worker) -> Failure | None:
    """Why a worker that ended did not finish its task, if it did not."""
    worker.process.join()
    code = worker.process.exitcode
    if code == 0:
        answer: Failure | None = worker.answer.recv()
        return answer
    if code == Interrupted.exit_code:
        raise Interrupted("a worker was asked to stop")
    if code is None or code >= _BUG:
        raise RuntimeError(f"the worker of {worker.task.cell.name} ended with an exception")
    hint = "signal 9 is how a system ends what takes too much memory: try fewer --workers"
    return lost_worker(worker.task, f"its process was killed by signal {-code}", hint=hint)
