"""Threads that read ahead while the main thread computes."""

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_Job = tuple["Future[Any]", Callable[[], Any]]
_Jobs = SimpleQueue[_Job | None]

_CLOSING_SECONDS = 5.0
"""For what is being read when threads are to end; a disk that does not answer is not waited for."""


class Readers:
    """A few threads that do what is submitted, in order, and hand over results and errors alike.

    They are daemons, unlike those of an executor: a program ends without waiting for what nobody will ask for.

    Args:
        count: threads; they start with the first job.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._jobs: _Jobs = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, job: Callable[[], T]) -> "Future[T]":
        """Have a job done; the future has its result, or raises its error."""
        if not self._threads:
            self._start()
        future: Future[T] = Future()
        self._jobs.put((future, job))
        return future

    def close(self) -> None:
        """Forget jobs that have not begun, and end the threads; another job would start new ones."""
        _end(self._jobs, len(self._threads))
        for thread in self._threads:
            thread.join(_CLOSING_SECONDS)
        self._threads = []

    def _start(self) -> None:
        self._jobs = SimpleQueue()
        self._threads = [threading.Thread(target=_work, args=(self._jobs,), daemon=True) for _ in range(self._count)]
        # Threads do not hold this object, so that they end with it where nobody closes it.
        weakref.finalize(self, _end, self._jobs, self._count)
        for thread in self._threads:
            thread.start()


def _work(jobs: _Jobs) -> None:
    while (job := jobs.get()) is not None:
        future, do = job
        try:
            future.set_result(do())
        except BaseException as error:
            future.set_exception(error)
        del job, future, do  # or what was read would stay until the next job comes


def _end(jobs: _Jobs, threads: int) -> None:
    try:
        while True:
            job = jobs.get_nowait()
            if job is not None:
                job[0].cancel()
    except Empty:
        pass
    for _ in range(threads):
        jobs.put(None)
