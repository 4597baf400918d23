"""Searches over many utterances, in several processes where that pays. Hypotheses are the same either way."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from parp_cli.decoding.search import Hypothesis, Search
from parp_cli.errors import ResourceError
from parp_cli.runtime.progress import Notify, Progress, silent

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")

PAYS_OFF_FRAMES = 250_000
"""With fewer frames (83 minutes of speech), starting processes takes longer than they save."""

MAX_WORKERS = 8
"""Processes by default: each may hold a language model of its own."""

_CHUNKS_PER_WORKER = 8
"""So that processes end at about the same time, whatever the utterances cost."""

_CHUNK = 64
"""Utterances searched between two reports in a single process."""


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def max_workers(search: Search, requested: int | None = None) -> int:
    """Processes that a search may be divided among: as requested, or one per core, at most `MAX_WORKERS`.

    1, whatever was requested, where processes do not pay.
    """
    if not search.pays_in_processes:
        return 1
    return min(usable_cores(), MAX_WORKERS) if requested is None else requested


def workers_for(search: Search, frames: int, requested: int | None) -> int:
    """Processes for a search over so many frames: 1 where the work is too little, unless a number was requested."""
    return max_workers(search, requested) if requested is not None or frames >= PAYS_OFF_FRAMES else 1


def search_all(
    search: Search, logits: Sequence[Tensor], *, workers: int | None = None, notify: Notify = silent
) -> list[list[Hypothesis]]:
    """Hypotheses of each utterance, best first, from its logits (T_i, V), in as many processes as `workers_for` says.

    Raises:
        ResourceError: a process was killed, as happens where memory is short.
    """
    workers = workers_for(search, sum(map(len, logits)), workers)
    # Dealt by length, so that every chunk holds long and short utterances.
    order = sorted(range(len(logits)), key=lambda index: -len(logits[index]))
    pieces = -(-len(logits) // _CHUNK) if workers <= 1 else min(workers * _CHUNKS_PER_WORKER, len(logits))
    chunks = [order[start::pieces] for start in range(pieces)]
    found: dict[int, list[Hypothesis]] = {}
    items = ([as_array(logits[index]) for index in chunk] for chunk in chunks)
    for chunk, hypotheses in zip(chunks, shared_map(_search, search, items, min(workers, len(chunks))), strict=True):
        found.update(zip(chunk, hypotheses, strict=True))
        notify(Progress("decoding", len(found), len(logits), kind="recognition"))
    return [found[index] for index in range(len(logits))]


def shared_map(
    function: Callable[[Shared, Item], Result], shared: Shared, items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """`function(shared, item)` of each item, in order, in so many processes; each is sent `shared` once."""
    each = (function(shared, item) for item in items)
    yield from each if workers <= 1 else _in_processes(function, shared, items, workers)


def as_array(logits: Tensor) -> NDArray[numpy.float32]:
    """Logits (T, V) in the form sent to other processes: sending tensors would take a file handle each."""
    return logits.detach().cpu().float().numpy()


def _search(search: Search, arrays: Sequence[NDArray[numpy.float32]]) -> list[list[Hypothesis]]:
    return search([torch.from_numpy(array) for array in arrays])


def _in_processes(
    function: Callable[[Shared, Item], Result], shared: Shared, items: Iterable[Item], workers: int
) -> Iterator[Result]:
    # Forked processes would hang in torch's thread pools, and cannot use CUDA.
    context = multiprocessing.get_context("spawn")
    initial = (function, shared)
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_keep, initargs=initial) as pool:
        try:
            yield from pool.map(_apply, items)
        except BrokenProcessPool as error:
            raise ResourceError("a decoding process was killed", hint="use fewer with --workers 1") from error
        finally:
            pool.shutdown(cancel_futures=True)


_kept: tuple[Callable[[Any, Any], Any], Any] | None = None
"""In worker processes: the function and what it shares."""


def _keep(function: Callable[[Any, Any], Any], shared: Any) -> None:
    global _kept
    torch.set_num_threads(1)
    _kept = function, shared


def _apply(item: Any) -> Any:
    assert _kept is not None
    function, shared = _kept
    return function(shared, item)
