"""A model and a search: utterances in, text out; and the search's weights, tuned on a development split.

Several processes may share the work: those of torchrun recognise a part of the utterances each, and a search that is
slow is divided among processes of its own where that pays. Hypotheses are the same either way.

T frames, V labels.
"""

import multiprocessing
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import TYPE_CHECKING, Literal

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from parp_cli.data.utterances import Utterance
from parp_cli.decoding.lexicon import LexiconSearch
from parp_cli.decoding.logits import Features, logits_of
from parp_cli.decoding.search import Hypothesis, Rescored, Search
from parp_cli.errors import ResourceError
from parp_cli.models.speech.forward import encode
from parp_cli.runtime.processes import SINGLE, World
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.scoring.metrics import word_errors

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import SpeechNetwork

Precision = Literal["float32", "bfloat16"]

Tunable = LexiconSearch | Rescored
"""Searches with a language model weight and a word score."""

LM_WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
WORD_SCORES = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
"""The grid that is searched."""

PAYS_OFF_FRAMES = 250_000
"""With fewer frames (83 minutes of speech), starting processes takes longer than they save."""

MAX_WORKERS = 8
"""Processes by default: each may hold a language model of its own."""

_CHUNKS_PER_WORKER = 8  # so that processes end at about the same time, whatever the utterances cost
_GROUP = 64  # utterances searched at a time, between two reports, where one process does it

Arrays = Sequence[NDArray[numpy.float32]]
"""Logits in the form sent to other processes: sending tensors would take a file handle each."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One pair of weights that was tried, with the word errors over the whole split, and their rate."""

    lm_weight: float
    word_score: float
    errors: int
    rate: float


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The first of `best_first`, and all trials in the order in which they were tried."""

    best: Trial
    trials: tuple[Trial, ...]


@dataclass(frozen=True, kw_only=True)
class Recognizer:
    """How utterances are recognised.

    Attributes:
        model: with a CTC head.
        precision: of the encoder. With bfloat16 a transcript may depend on its batch, by rounding.
        batch_seconds: padded audio in one forward pass.
        workers: processes that search, where they pay; by default as `workers_for` has it.
        world: among which the utterances are dealt out.
    """

    model: "SpeechNetwork"
    features: Features
    precision: Precision = "float32"
    batch_seconds: float = 60.0
    workers: int | None = None
    world: World = SINGLE
    notify: Notify = silent

    def texts(self, utterances: Sequence[Utterance], search: Search) -> list[str]:
        """The best hypothesis of each utterance, in all processes; "" where the search finds none.

        Raises:
            CheckpointError: the model produced non-finite logits.
            ResourceError: a process that searches was killed.
        """
        # What several processes search has to be there before it can be dealt out; one need not keep it.
        several = max_workers(search, self.workers) > 1
        logits = self._logits(utterances, self.world)
        texts: dict[int, str] = {}
        while group := dict(islice(logits, len(utterances) if several else _GROUP)):
            found = search_all(
                search, list(group.values()), workers=self.workers, notify=self.notify if several else silent
            )
            texts |= {index: best[0].text if best else "" for index, best in zip(group, found, strict=True)}
        for rows in self.world.gather(list(texts.items())):
            texts |= dict(rows)
        return [texts[index] for index in range(len(utterances))]

    def tuned(
        self, search: Tunable, utterances: Sequence[Utterance], references: Sequence[str]
    ) -> tuple[Tunable, Tuning]:
        """The search with the weights that make the fewest word errors, and how they were found. Raises as `texts`."""
        logits = dict(self._logits(utterances, SINGLE))
        in_order = [logits[index] for index in range(len(utterances))]
        found = tune(search, in_order, references, workers=self.workers, notify=self.notify)
        return replace(search, lm_weight=found.best.lm_weight, word_score=found.best.word_score), found

    def _logits(self, utterances: Sequence[Utterance], world: World) -> Iterator[tuple[int, Tensor]]:
        found = logits_of(
            self.model,
            self.features,
            utterances,
            batch_seconds=self.batch_seconds,
            encoder=self._encode,
            world=world,
            notify=self.notify,
        )
        # Rows of a batch would keep all of it, padding included.
        return ((index, row.clone()) for index, row in found)

    def _encode(self, features: Tensor, lengths: Tensor) -> Tensor:
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return encode(self.model, features, lengths)


def best_first(trials: Iterable[Trial]) -> list[Trial]:
    """Fewest errors first; among equals the smallest weights, as nothing speaks for larger ones."""
    return sorted(trials, key=lambda trial: (trial.errors, trial.lm_weight, abs(trial.word_score), trial.word_score))


@dataclass(frozen=True)
class _Grid:
    """A search with every pair of weights at once: for each utterance one hypothesis per pair."""

    search: Tunable
    pairs: list[tuple[float, float]]

    @property
    def pays_in_processes(self) -> bool:
        return self.search.pays_in_processes

    def __call__(self, logits: Sequence[Tensor]) -> list[list[Hypothesis]]:
        search = self.search
        if isinstance(search, Rescored):
            scored = search.score(logits)  # whatever the weights
            found = [list(map(replace(search, lm_weight=a, word_score=b).order, scored)) for a, b in self.pairs]
        else:
            found = [replace(search, lm_weight=a, word_score=b)(logits) for a, b in self.pairs]
        return [[each[0] if each else Hypothesis("", 0.0) for each in of_one] for of_one in zip(*found, strict=True)]


def tune(
    search: Tunable,
    logits: Sequence[Tensor],
    references: Sequence[str],
    *,
    workers: int | None = None,
    notify: Notify = silent,
) -> Tuning:
    """Try all weights of a grid. The same input gives the same result.

    Args:
        search: its own weights do not matter.
        logits: of the development split's utterances, (T_i, V): computed once, searched many times.
        references: their transcripts; none may be empty.
        workers: processes; by default as `workers_for` says.

    Raises as `Search` and `search_all`.
    """
    without_lm = isinstance(search, LexiconSearch) and search.trie.language_model is None
    pairs = list(product((0.0,) if without_lm else LM_WEIGHTS, WORD_SCORES))
    workers = workers_for(search, sum(map(len, logits)) * len(pairs), workers)
    found = search_all(_Grid(replace(search, nbest=1), pairs), logits, workers=workers, notify=notify)
    words = sum(len(reference.split()) for reference in references)
    trials: list[Trial] = []
    for (lm_weight, word_score), hypotheses in zip(pairs, zip(*found, strict=True), strict=True):
        errors = word_errors(references, [hypothesis.text for hypothesis in hypotheses]).errors
        trials.append(Trial(lm_weight=lm_weight, word_score=word_score, errors=errors, rate=errors / words))
        note = f"best WER {best_first(trials)[0].rate:.1%}"
        notify(Progress("tuning the language model", len(trials), len(pairs), note=note))
    return Tuning(best=best_first(trials)[0], trials=tuple(trials))


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def max_workers(search: Search, requested: int | None = None) -> int:
    """Processes for a search: as requested, or one per core up to `MAX_WORKERS`; always 1 where they do not pay."""
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

    Raises `ResourceError`: a process was killed, as happens where memory is short.
    """
    workers = workers_for(search, sum(map(len, logits)), workers)
    # Dealt by length, so that every chunk holds long and short utterances.
    order = sorted(range(len(logits)), key=lambda index: -len(logits[index]))
    pieces = -(-len(logits) // _GROUP) if workers <= 1 else min(workers * _CHUNKS_PER_WORKER, len(logits))
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


_kept: list[Search] = []  # in worker processes: the search, which is sent once to each


def _keep(search: Search) -> None:
    torch.set_num_threads(1)
    _kept.append(search)


def _search_kept(arrays: Arrays) -> list[list[Hypothesis]]:
    return _search(_kept[0], arrays)
