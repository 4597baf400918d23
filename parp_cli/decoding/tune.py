"""The language model's weight and the word score that make the fewest word errors on a development split."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from parp_cli.decoding.lexicon_search import LexiconSearch
from parp_cli.decoding.parallel import PAYS_OFF_FRAMES, as_array, most_workers, worker_pool
from parp_cli.decoding.rescore import Rescored
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.scoring.metrics import word_errors

LM_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.5)
WORD_SCORES = (-2.0, -1.0, 0.0, 1.0, 2.0)
"""The first grid. The search goes beyond it where that is better."""


class Weights(NamedTuple):
    """What is tuned: see `LexiconSearch`."""

    lm_weight: float
    word_score: float


_FIRST_STEPS = Weights(0.5, 0.5)
"""Once the grid has shown where to look; halved when no neighbour is better."""

_HALVINGS = 2


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One pair of weights that was tried.

    Attributes:
        errors: substitutions, deletions and insertions over the whole split.
        rate: these by the words of the references.
    """

    lm_weight: float
    word_score: float
    errors: int
    rate: float


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was found.

    Attributes:
        best: the first of `best_first`.
        trials: all of them in the order in which they were tried.
    """

    best: Trial
    trials: tuple[Trial, ...]


def best_first(trials: Iterable[Trial]) -> list[Trial]:
    """Fewest errors first; of equals that with the least weights, as there is no reason for more."""
    return sorted(trials, key=lambda trial: (trial.errors, trial.lm_weight, abs(trial.word_score), trial.word_score))


def tune(
    search: LexiconSearch | Rescored,
    logits: Sequence[Tensor],
    references: Sequence[str],
    *,
    lm_weights: Sequence[float] = LM_WEIGHTS,
    word_scores: Sequence[float] = WORD_SCORES,
    workers: int | None = None,
    notify: Notify = silent,
) -> Tuning:
    """Try a grid, then ever smaller steps from its best point. The same input gives the same result.

    Args:
        search: its own weights do not matter.
        logits: of the development split's utterances, (T_i, V): computed once, searched many times.
        references: what they say; none may be empty.
        workers: processes, each of which tries other weights; by default as many as `most_workers` says where the work
            is worth it. Where a language model only reorders what a beam search found, one does it all: the search is
            done once.

    Raises:
        UsageError: the extra `lm` is not installed.
        DataError: the language model cannot be read.
        ResourceError: a process was killed.
    """
    best_only = replace(search, nbest=1)
    words = sum(len(reference.split()) for reference in references)
    steps = _FIRST_STEPS
    if isinstance(search, LexiconSearch) and search.trie.language_model is None:
        lm_weights, steps = (0.0,), Weights(0.0, _FIRST_STEPS.word_score)
    grid = [Weights(weight, score) for weight in lm_weights for score in word_scores]
    much = workers is not None or sum(map(len, logits)) * len(grid) >= PAYS_OFF_FRAMES
    workers = min(most_workers(search, workers), len(grid)) if much else 1
    if workers == 1 or isinstance(best_only, Rescored):
        errors = _Errors(best_only, logits, references)
        return _descend(lambda tried: map(errors, tried), words, grid, steps, notify)
    kept = (best_only, [as_array(item) for item in logits], list(references))
    with worker_pool(workers, _keep, kept) as pool:
        return _descend(lambda tried: pool.map(_count, tried), words, grid, steps, notify)


def _descend(
    count: Callable[[list[Weights]], Iterable[int]], words: int, grid: list[Weights], steps: Weights, notify: Notify
) -> Tuning:
    """Grid, then pattern search with halving steps.

    Args:
        count: word errors with each of several weights.
        words: of the references.
    """
    trials: dict[Weights, Trial] = {}

    def attempt(some: Iterable[Weights]) -> Trial:
        fresh = [weights for weights in dict.fromkeys(some) if weights not in trials]
        done, total = len(trials), len(trials) + len(fresh)
        for weights, errors in zip(fresh, count(fresh), strict=True):
            trials[weights] = Trial(
                lm_weight=weights.lm_weight, word_score=weights.word_score, errors=errors, rate=errors / words
            )
            done += 1
            best = best_first(trials.values())[0]
            notify(Progress("tuning the language model", done, total, note=f"best WER {best.rate:.1%}"))
        return best_first(trials.values())[0]

    best = attempt(grid)
    for halving in range(_HALVINGS + 1):
        weight, score = (step / 2**halving for step in steps)
        while True:
            around = ((-weight, 0.0), (weight, 0.0), (0.0, -score), (0.0, score))
            neighbours = (Weights(best.lm_weight + up, best.word_score + right) for up, right in around)
            before, best = best, attempt(neighbour for neighbour in neighbours if neighbour.lm_weight >= 0)
            if best.errors >= before.errors:
                break
    return Tuning(best=best, trials=tuple(trials.values()))


class _Errors:
    """Word errors of a split, given weights."""

    def __init__(self, search: LexiconSearch | Rescored, logits: Sequence[Tensor], references: Sequence[str]) -> None:
        self._search, self._logits, self._references = search, logits, references
        # The weights have no part in the search itself where a language model only reorders what it finds.
        self._judged = search.judge(logits) if isinstance(search, Rescored) else None

    def __call__(self, weights: Weights) -> int:
        search = replace(self._search, lm_weight=weights.lm_weight, word_score=weights.word_score)
        if isinstance(search, Rescored) and self._judged is not None:
            found = [search.order(judged) for judged in self._judged]
        else:
            found = search(self._logits)
        counted = word_errors(self._references, [hypotheses[0].text if hypotheses else "" for hypotheses in found])
        return counted.substitutions + counted.deletions + counted.insertions


_kept: _Errors | None = None
"""In worker processes: the split."""


def _keep(kept: tuple[LexiconSearch | Rescored, list[NDArray[numpy.float32]], list[str]]) -> None:
    global _kept
    search, arrays, references = kept
    _kept = _Errors(search, [torch.from_numpy(array) for array in arrays], references)


def _count(weights: Weights) -> int:
    assert _kept is not None
    return _kept(weights)
