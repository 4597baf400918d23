"""The language model weight and word score that make the fewest word errors on a development split."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from torch import Tensor

from parp_cli.decoding.lexicon import LexiconSearch
from parp_cli.decoding.parallel import search_all, workers_for
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
        workers: processes; by default as `parallel.workers_for` says.

    Raises:
        UsageError: the extra `lm` is not installed.
        DataError: the language model cannot be read.
        ResourceError: a process was killed.
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
