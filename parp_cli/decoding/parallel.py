"""Searches over many utterances, in several processes where that pays. Hypotheses are the same either way."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Protocol, TypeVar

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from parp_cli.decoding.beam import Hypothesis
from parp_cli.errors import ResourceError
from parp_cli.runtime.progress import Notify, Progress, silent

Kept = TypeVar("Kept")

PAYS_OFF_FRAMES = 250_000
"""Below so many frames (83 minutes of speech), starting processes takes longer than they save."""

MOST_WORKERS = 8
"""Processes where nobody says how many: each may hold a language model of its own."""

_CHUNKS_A_WORKER = 8
"""So that processes end at about the same time, whatever the utterances cost."""

_CHUNK = 64
"""Utterances searched between two reports where there is one process."""


class Search(Protocol):
    """What turns logits into hypotheses. Where processes pay, it can be sent to them."""

    @property
    def pays_in_processes(self) -> bool:
        """Whether several processes search faster than one, their start and what each has to load counted in."""
        ...

    def __call__(self, logits: Sequence[Tensor], /) -> list[list[Hypothesis]]:
        """Hypotheses of each utterance, best first, from its logits (T_i, V)."""
        ...


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def most_workers(search: Search, asked: int | None = None) -> int:
    """Processes that a search may be divided among, where there is enough to do for them.

    Args:
        asked: how many the user wants; by default one a core, and `MOST_WORKERS` at most.

    Returns:
        1, whatever was asked for, where processes do not pay.
    """
    if not search.pays_in_processes:
        return 1
    return min(usable_cores(), MOST_WORKERS) if asked is None else asked


def search_all(
    search: Search, logits: Sequence[Tensor], *, workers: int | None = None, notify: Notify = silent
) -> list[list[Hypothesis]]:
    """Hypotheses of each utterance, best first.

    Args:
        logits: of each utterance, (T_i, V), on any device.
        workers: processes, where the search is one that they pay for; by default as many as `most_workers` says, where
            there is work enough for them.

    Raises:
        ResourceError: a process was killed, as happens where memory is short.
    """
    much = workers is not None or sum(map(len, logits)) >= PAYS_OFF_FRAMES
    workers = most_workers(search, workers) if much else 1
    # Dealt by length, so that every chunk holds long utterances and short ones.
    order = sorted(range(len(logits)), key=lambda index: -len(logits[index]))
    pieces = -(-len(logits) // _CHUNK) if workers <= 1 else min(workers * _CHUNKS_A_WORKER, len(logits))
    chunks = [order[start::pieces] for start in range(pieces)]
    found: dict[int, list[Hypothesis]] = {}

    def collect(results: Iterable[list[list[Hypothesis]]]) -> None:
        for chunk, hypotheses in zip(chunks, results, strict=True):
            found.update(zip(chunk, hypotheses, strict=True))
            notify(Progress("decoding", len(found), len(logits)))

    workers = min(workers, len(chunks))
    if workers <= 1:
        collect(search([logits[index] for index in chunk]) for chunk in chunks)
    else:
        with worker_pool(workers, _keep_search, search) as pool:
            collect(pool.map(_search, ([as_array(logits[index]) for index in chunk] for chunk in chunks)))
    return [found[index] for index in range(len(logits))]


@contextmanager
def worker_pool(workers: int, prepare: Callable[[Kept], None], kept: Kept) -> Iterator[ProcessPoolExecutor]:
    """Processes that each call `prepare(kept)` once.

    Raises:
        ResourceError: a process was killed.
    """
    # Forked processes would hang in torch's thread pools, and cannot use CUDA.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare, initargs=(prepare, kept)) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            raise ResourceError("a decoding process was killed", hint="use fewer with --workers 1") from error
        finally:
            pool.shutdown(cancel_futures=True)


def as_array(logits: Tensor) -> NDArray[numpy.float32]:
    """Logits (T, V) as they go to other processes: sending tensors would take a file handle each."""
    return logits.detach().cpu().float().numpy()


_kept_search: Search | None = None
"""In worker processes: what they search with."""


def _prepare(prepare: Callable[[Kept], None], kept: Kept) -> None:
    torch.set_num_threads(1)
    prepare(kept)


def _keep_search(search: Search) -> None:
    global _kept_search
    _kept_search = search


def _search(arrays: Sequence[NDArray[numpy.float32]]) -> list[list[Hypothesis]]:
    assert _kept_search is not None
    return _kept_search([torch.from_numpy(array) for array in arrays])
