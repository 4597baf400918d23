"""Pools that run several cells of a sweep at a time: processes on this machine, or a Ray cluster (extra `cluster`)."""

import multiprocessing
import os
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from parp_cli.errors import Interrupted, ResourceError, UsageError
from parp_cli.sweep.cells import record_failure, run_cell
from parp_cli.sweep.grid import Cell

_STOP_SECONDS = 30.0  # for workers to save their state when they are asked to stop


class Pool(Protocol):
    """Workers, each for one cell at a time, whose results and failures are in the sweep's folder. `ended` waits at most
    so many seconds, returns the cells that ended, and raises what ended a worker: Interrupted, or a bug."""

    def has_room(self) -> bool: ...
    def start(self, cell: Cell) -> None: ...
    def ended(self, seconds: float) -> Sequence[Cell]: ...
    def stop(self) -> None: ...


class ProcessPool:
    """At most one process per entry of `devices` at a time: `cuda:0`, `cuda:1`, …; `cpu` may be repeated. Every cell
    gets a fresh process."""

    def __init__(self, run: Path, devices: Sequence[str]) -> None:
        self._run, self._free = run, list(devices)
        on_cpu = self._free.count("cpu")
        self._threads = max(1, torch.get_num_threads() // on_cpu) if on_cpu else torch.get_num_threads()
        self._workers: dict[int, tuple[Cell, str, SpawnProcess]] = {}  # by their sentinel

    def has_room(self) -> bool:
        return bool(self._free)

    def start(self, cell: Cell) -> None:
        device = self._free.pop(0)
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        process = context.Process(target=_work, args=(self._run, cell, device, self._threads), name=cell.name)
        process.start()
        self._workers[process.sentinel] = (cell, device, process)

    def ended(self, seconds: float) -> list[Cell]:
        cells = []
        for sentinel in wait(list(self._workers), timeout=seconds):
            cell, device, process = self._workers.pop(cast(int, sentinel))
            process.join()
            code = process.exitcode or 0
            if code == Interrupted.exit_code:
                raise Interrupted("a worker was asked to stop")
            if code > 0:
                raise RuntimeError(f"the worker of {cell.name} ended with an exception")
            if code < 0:
                hint = "signal 9 is how a system ends processes that take too much memory: try fewer --workers"
                message = f"its process was killed by signal {-code}"
                record_failure(self._run, cell, ResourceError(message, hint=hint))
            self._free.append(device)
            cells.append(cell)
        return cells

    def stop(self) -> None:
        processes = [process for _, _, process in self._workers.values()]
        for process in processes:
            process.terminate()  # which saves its state
        try:
            for process in processes:
                process.join(_STOP_SECONDS)
        finally:  # a second Ctrl-C does not wait
            for process in processes:
                process.kill()


def _work(run: Path, cell: Cell, device: str, threads: int) -> None:
    """The main function of a worker process."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the parent alone, which then asks each worker once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        run_cell(run, cell, device)
    except Interrupted as error:
        sys.exit(error.exit_code)


def _end_with_parent() -> None:
    """End a worker whose parent was killed: another sweep may start in the folder."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(Interrupted.exit_code)


class RayPool:
    """As many cells at a time as the cluster has GPUs or, where `device` is `cpu`, CPU cores. It is the cluster that
    this process already uses, else that of RAY_ADDRESS, else one on this machine. Lost cells are restarted by Ray."""

    def __init__(self, run: Path, device: str) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError("a cluster needs Ray", hint="pip install 'parp-cli[cluster]'") from error
        self._ray: Any = ray
        self._joined = not ray.is_initialized()
        try:
            self._ray.init(ignore_reinit_error=True, logging_level="ERROR", log_to_driver=False)
        except ConnectionError as error:
            hint = "start one with `ray start --head`, or unset RAY_ADDRESS to use this machine"
            raise UsageError("no Ray cluster can be reached", details=str(error).splitlines()[:1], hint=hint) from error
        self._resource, needs = ("GPU", {"num_gpus": 1}) if device == "cuda" else ("CPU", {"num_cpus": 1})
        self._work = self._ray.remote(**needs)(lambda cell: run_cell(run, cell, device))
        self._run, self._cells = run, dict[Any, Cell]()

    def has_room(self) -> bool:
        return len(self._cells) < max(1, int(self._ray.cluster_resources().get(self._resource, 0)))

    def start(self, cell: Cell) -> None:
        self._cells[self._work.remote(cell)] = cell

    def ended(self, seconds: float) -> list[Cell]:
        gone, _ = self._ray.wait(list(self._cells), timeout=seconds)
        for reference in gone:
            try:
                self._ray.get(reference)
            except self._ray.exceptions.RayTaskError:
                raise
            except self._ray.exceptions.RayError as error:  # its machine was lost more often than Ray tries
                lost = ResourceError("its Ray worker was lost", details=str(error).splitlines()[:1])
                record_failure(self._run, self._cells[reference], lost)
        return [self._cells.pop(reference) for reference in gone]

    def stop(self) -> None:
        for reference in self._cells:
            self._ray.cancel(reference)
        if self._cells:
            self._ray.wait(list(self._cells), num_returns=len(self._cells), timeout=_STOP_SECONDS)
        if self._joined:
            self._ray.shutdown()
