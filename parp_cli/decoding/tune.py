"""The language model weight and word score that make the fewest word errors on a development split."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from parp_cli.decoding.lexicon import LexiconSearch
from parp_cli.decoding.parallel import as_array, shared_map, workers_for
from parp_cli.decoding.search import Hypothesis, Rescored
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.scoring.metrics import word_errors

Tunable = LexiconSearch | Rescored
"""Searches with a language model weight and a word score."""

LM_WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
WORD_SCORES = (-2.0, -1.0, 0.0, 1.0, 2.0, 3.0)
"""The grid that is searched."""


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


def best_first(trials: Iterable[Trial]) -> list[Trial]:
    """Fewest errors first; among equals the smallest weights, as nothing speaks for larger ones."""
    return sorted(trials, key=lambda trial: (trial.errors, trial.lm_weight, abs(trial.word_score), trial.word_score))


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
        workers: processes, each of which tries other weights; by default as `parallel.workers_for` says. A search whose
            n-best lists are only reordered runs in one process: its beam search is done once.

    Raises:
        UsageError: the extra `lm` is not installed.
        DataError: the language model cannot be read.
        ResourceError: a process was killed.
    """
    search = replace(search, nbest=1)
    without_lm = isinstance(search, LexiconSearch) and search.trie.language_model is None
    grid = list(product((0.0,) if without_lm else LM_WEIGHTS, WORD_SCORES))
    found: Iterable[list[str]]
    if isinstance(search, Rescored):
        scored = search.score(logits)
        found = (_transcripts(map(replace(search, lm_weight=a, word_score=b).order, scored)) for a, b in grid)
    else:
        workers = min(workers_for(search, sum(map(len, logits)) * len(grid), workers), len(grid))
        found = shared_map(_search, (search, [as_array(item) for item in logits]), grid, workers)
    words = sum(len(reference.split()) for reference in references)
    trials: list[Trial] = []
    for (lm_weight, word_score), texts in zip(grid, found, strict=True):
        errors = word_errors(references, texts).errors
        trials.append(Trial(lm_weight=lm_weight, word_score=word_score, errors=errors, rate=errors / words))
        note = f"best WER {best_first(trials)[0].rate:.1%}"
        notify(Progress("tuning the language model", len(trials), len(grid), note=note))
    return Tuning(best=best_first(trials)[0], trials=tuple(trials))


def _search(shared: tuple[LexiconSearch, list[NDArray[numpy.float32]]], weights: tuple[float, float]) -> list[str]:
    search, arrays = shared
    weighted = replace(search, lm_weight=weights[0], word_score=weights[1])
    return _transcripts(weighted([torch.from_numpy(array) for array in arrays]))


def _transcripts(found: Iterable[list[Hypothesis]]) -> list[str]:
    return [hypotheses[0].text if hypotheses else "" for hypotheses in found]
