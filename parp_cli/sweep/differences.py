"""Whether the methods of a sweep differ: on the same utterances, with the same seeds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from parp_cli.pruning.methods import spec_of
from parp_cli.scoring.classes import score_difference
from parp_cli.scoring.intervals import Difference, paired_difference
from parp_cli.scoring.metrics import Unit, align, utterance_errors
from parp_cli.scoring.results import read_results
from parp_cli.sweep.cells import Outcome

PARP = "parp"

_File = tuple[Path, int, Unit]  # results, when they were written, and what is counted in them


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A method at a sparsity against another, which is dense or at the same sparsity.

    Attributes:
        seeds: how many both have; the errors of an utterance are summed over them.
        difference: of the error rates, below 0 if the method makes fewer errors; of texts of the score, above 0 if it
            is better; None for too few speakers or texts.
    """

    method: str
    sparsity: float
    other: str
    seeds: int
    difference: Difference | None

    @property
    def flipped(self) -> Difference | None:
        """Of the other to the method."""
        return None if self.difference is None else self.difference.flipped


def differences(outcomes: Sequence[Outcome], run: Path) -> list[Paired]:
    """Every method against the dense network, and every other one against PARP, of the outcomes of one table."""
    by_place: dict[tuple[str, float], dict[int, Outcome]] = {}
    for outcome in outcomes:
        if outcome.result is not None:
            by_place.setdefault((outcome.method, outcome.sparsity_target), {})[outcome.seed] = outcome
    dense = next((place for place in by_place if not spec_of(place[0]).prunes), None)
    pairs = []
    for method, sparsity in by_place:
        others = [dense, (PARP, sparsity)] if method != PARP else [dense]
        for other in others:
            if other in by_place and other is not None and other != (method, sparsity) and (method, sparsity) != dense:
                pairs.append(_paired(by_place, (method, sparsity), other, run))
    return [pair for pair in pairs if pair.seeds]


def _paired(
    by_place: dict[tuple[str, float], dict[int, Outcome]], place: tuple[str, float], other: tuple[str, float], run: Path
) -> Paired:
    ours, theirs = by_place[place], by_place[other]
    there = [{seed for seed, one in each.items() if _results(one, run).is_file()} for each in (ours, theirs)]
    seeds = sorted(there[0] & there[1])
    difference = difference_over([(ours[seed], theirs[seed]) for seed in seeds], run)
    return Paired(method=place[0], sparsity=place[1], other=other[0], seeds=len(seeds), difference=difference)


def difference_over(pairs: Sequence[tuple[Outcome, Outcome]], run: Path) -> Difference | None:
    """The difference of the first results of pairs to the second, whose errors on an utterance are summed over pairs;
    of texts that of the mean score.

    None for too few speakers or texts, or without an utterance or text that is in both.
    """
    if pairs and (metric := pairs[0][0].metric) is not None:
        ours, theirs = (tuple(_results(pair[side], run) for pair in pairs) for side in range(2))
        return _score_difference(metric, ours, theirs, tuple(path.stat().st_mtime_ns for path in (*ours, *theirs)))
    return _difference(tuple((_file(one, run), _file(other, run)) for one, other in pairs))


@lru_cache(maxsize=10_000)
def _difference(pairs: tuple[tuple[_File, _File], ...]) -> Difference | None:
    sums: dict[str, list[int]] = {}
    speakers: dict[str, str | None] = {}
    for pair in pairs:
        mine, yours = (_read(*each) for each in pair)
        for id_ in mine.keys() & yours.keys():
            count, tokens, speakers[id_] = mine[id_]
            found = sums.setdefault(id_, [0, 0, 0])
            sums[id_] = [a + b for a, b in zip(found, (count, yours[id_][0], tokens), strict=True)]
    ids = sorted(sums)
    errors, others, counts = ([sums[id_][column] for id_ in ids] for column in range(3))
    return paired_difference(errors, others, counts, [speakers[id_] for id_ in ids]) if ids else None


@lru_cache(maxsize=10_000)
def _score_difference(
    metric: str, ours: tuple[Path, ...], theirs: tuple[Path, ...], _changed: tuple[int, ...]
) -> Difference | None:
    read = [{f"{one.split}/{one.id}": one for one in read_results(path)} for path in (*ours, *theirs)]
    shared = [key for key in read[0] if all(key in results for results in read)]
    if not shared:
        return None
    predictions = [[results[key].hypothesis for key in shared] for results in read]
    names = json.loads(ours[0].with_suffix(".json").read_text(encoding="utf-8"))["names"]
    references = [read[0][key].reference for key in shared]
    return score_difference(references, predictions[: len(ours)], predictions[len(ours) :], metric, names)


def _unit(outcome: Outcome) -> Unit:
    return "words" if outcome.per is None else "phones"


def _results(outcome: Outcome, run: Path) -> Path:
    return (run / str(outcome.checkpoint)).parent / f"eval-{outcome.split}.jsonl"


def _file(outcome: Outcome, run: Path) -> _File:
    path = _results(outcome, run)
    return path, path.stat().st_mtime_ns, _unit(outcome)


@lru_cache(maxsize=1000)
def _read(path: Path, _changed: int, unit: Unit) -> dict[str, tuple[int, int, str | None]]:
    """Errors, tokens and speaker of each utterance by its id."""
    results = read_results(path)
    errors = map(utterance_errors, align([one.reference for one in results], [one.hypothesis for one in results], unit))
    return {one.id: (rate.errors, rate.tokens, one.speaker) for one, rate in zip(results, errors, strict=True)}
