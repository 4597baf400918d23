"""Searches over many utterances, in several processes where that pays. Hypotheses are the same either way."""

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from parp_cli.decoding.search import Hypothesis, Search
from parp_cli.errors import ResourceError
from parp_cli.runtime.progress import Notify, Progress, silent

PAYS_OFF_FRAMES = 250_000
"""With fewer frames (83 minutes of speech), starting processes takes longer than they save."""

MAX_WORKERS = 8
"""Processes by default: each may hold a language model of its own."""

_CHUNKS_PER_WORKER = 8
"""So that processes end at about the same time, whatever the utterances cost."""

_CHUNK = 64
"""Utterances searched between two reports in a single process."""

Arrays = Sequence[NDArray[numpy.float32]]
"""Logits in the form sent to other processes: sending tensors would take a file handle each."""


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
    items = ([logits[index].detach().cpu().float().numpy() for index in chunk] for chunk in chunks)
    workers = min(workers, len(chunks))
    results = (_search(search, item) for item in items) if workers <= 1 else _in_processes(search, items, workers)
    found: dict[int, list[Hypothesis]] = {}
    for chunk, hypotheses in zip(chunks, results, strict=True):
        found.update(zip(chunk, hypotheses, strict=True))
        notify(Progress("decoding", len(found), len(logits), kind="recognition"))
    return [found[index] for index in range(len(logits))]


def _search(search: Search, arrays: Arrays) -> list[list[Hypothesis]]:
    return search([torch.from_numpy(array) for array in arrays])


def _in_processes(search: Search, items: Iterable[Arrays], workers: int) -> Iterator[list[list[Hypothesis]]]:
    # Forked processes would hang in torch's thread pools, and cannot use CUDA.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_keep, initargs=(search,)) as pool:
        try:
            yield from pool.map(_search_kept, items)
        except BrokenProcessPool as error:
            raise ResourceError("a decoding process was killed", hint="use fewer with --workers 1") from error
        finally:
            pool.shutdown(cancel_futures=True)


_kept: list[Search] = []
"""In worker processes: the search, which is sent once to each."""


def _keep(search: Search) -> None:
    torch.set_num_threads(1)
    _kept.append(search)


def _search_kept(arrays: Arrays) -> list[list[Hypothesis]]:
    return _search(_kept[0], arrays)
