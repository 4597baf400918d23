"""A pool of worker processes on this machine, each on its own device. Every task gets a fresh process."""

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
from parp_cli.sweep.tasks import Failure, Task, lost_worker, run_task

_STOP_SECONDS = 30.0
"""For workers to save their state when they are asked to stop."""

_BUG = 1
"""Python's exit code after an exception."""


@dataclass(frozen=True)
class _Worker:
    task: Task
    process: SpawnProcess
    answer: Connection


class ProcessPool:
    """At most one process per entry of `devices` at a time: `cuda:0`, `cuda:1`, …; `cpu` may be repeated."""

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
        """Start a task on a free device."""
        task = replace(task, device=self._free.pop(0), threads=self._threads)
        answer, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_work, args=(task, sender), name=task.cell.name)
        process.start()
        sender.close()  # so that the pipe ends where a worker dies
        self._workers[task.cell.key] = _Worker(task, process, answer)

    def ended(self, seconds: float) -> list[tuple[str, Failure | None]]:
        """Wait at most this long for a worker to end.

        Raises:
            RuntimeError: a worker ended with an exception, whose traceback is on stderr.
            Interrupted: a worker was asked to stop.
        """
        gone = wait([worker.process.sentinel for worker in self._workers.values()], timeout=seconds)
        ended = []
        for key, worker in list(self._workers.items()):
            if worker.process.sentinel in gone:
                del self._workers[key]
                self._free.append(worker.task.device)
                ended.append((key, _failure(worker)))
        return ended

    def stop(self) -> None:
        """Ask every worker to save its state and end."""
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
    """The main function of a worker process."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the parent alone, which then asks each worker once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer.send(run_task(task))
    except Interrupted as error:
        sys.exit(error.exit_code)


def _end_with_parent() -> None:
    """End a worker whose parent was killed: another sweep may start in the folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(Interrupted.exit_code)


def _failure(worker: _Worker) -> Failure | None:
    """The failure of a worker that ended, if it failed."""
    worker.process.join()
    code = worker.process.exitcode
    if code == 0:
        answer: Failure | None = worker.answer.recv()
        return answer
    if code == Interrupted.exit_code:
        raise Interrupted("a worker was asked to stop")
    if code is None or code >= _BUG:
        raise RuntimeError(f"the worker of {worker.task.cell.name} ended with an exception")
    hint = "signal 9 is how a system ends processes that take too much memory: try fewer --workers"
    return lost_worker(worker.task, f"its process was killed by signal {-code}", hint=hint)
