"""How good predicted classes and numbers are: metrics, their intervals, and whether two systems differ.

N items, K classes, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy
from numpy.typing import NDArray

from parp_cli.scoring.comparison import SIGNIFICANT, p_text
from parp_cli.scoring.intervals import LEVEL, MIN_UNITS, Difference, Interval, paired_difference, units_of

CLASS_METRICS, NUMBER_METRICS = ("accuracy", "f1", "matthews"), ("pearson", "spearman")
NAMES = {
    "accuracy": "accuracy",
    "f1": "F1",
    "matthews": "Matthews",
    "pearson": "Pearson",
    "spearman": "Spearman",
}
"""Metrics for people."""

_RESAMPLES = 2000

_ROUNDING = 1e-12
"""Differences that differ by less are equal."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A metric with its 95 % interval (percentile bootstrap over items); None where there are too few items."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """One system's share of wrong classes minus another's on the same items; below 0 the first is better.

    The interval is bootstrapped over items, p is that of the sign-flip test (exact McNemar).
    """

    name: str
    other: str
    difference: float
    low: float | None
    high: float | None
    p_value: float
    better: int
    worse: int

    @property
    def verdict(self) -> Literal["better", "worse", "no significant difference"]:
        """What p and the difference say."""
        if self.p_value >= SIGNIFICANT:
            return "no significant difference"
        return "better" if self.difference < 0 else "worse"

    @property
    def words(self) -> str:
        """The difference in points of accuracy, where more are better."""
        points = 0.0 - 100 * self.difference  # never -0.0
        reach = "" if self.low is None or self.high is None else f" [{-100 * self.high:.1f}, {-100 * self.low:.1f}]"
        p = p_text(self.p_value, SIGNIFICANT)
        return (
            f"{self.name} against {self.other}: accuracy {points:+.1f} points{reach}, right on {self.better} texts "
            f"where the other is wrong, and wrong on {self.worse} where that is right (p {p}): {self.verdict}"
        )


def confusion(references: Sequence[int], predictions: Sequence[int], classes: int) -> NDArray[numpy.int64]:
    """How often each class (rows) was predicted as each (columns): (K, K)."""
    places = numpy.asarray(references, dtype=numpy.int64) * classes + numpy.asarray(predictions, dtype=numpy.int64)
    return numpy.bincount(places, minlength=classes * classes).reshape(classes, classes)


def class_metrics(table: NDArray[numpy.int64]) -> dict[str, NDArray[numpy.float64]]:
    """Accuracy, F1 and Matthews' correlation of confusion tables (..., K, K).

    F1 is that of the second class where there are two, else the mean over classes; that of a class that is neither
    there nor predicted is 0. The correlation is 0 where all references or all predictions are of one class.
    """
    counts = table.astype(numpy.float64)
    total, right = counts.sum((-2, -1)), counts.diagonal(axis1=-2, axis2=-1)
    there, predicted = counts.sum(-1), counts.sum(-2)
    f1 = 2 * right / numpy.maximum(there + predicted, 1)
    expected = (there * predicted).sum(-1)
    spread = (total**2 - (there**2).sum(-1)) * (total**2 - (predicted**2).sum(-1))
    agreement = right.sum(-1) * total - expected
    return {
        "accuracy": right.sum(-1) / numpy.maximum(total, 1),
        "f1": f1[..., 1] if table.shape[-1] == 2 else f1.mean(-1),
        "matthews": numpy.where(spread > 0, agreement / numpy.sqrt(numpy.maximum(spread, 1)), 0.0),
    }


def pearson(x: NDArray[numpy.float64], y: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
    """Correlation of rows (..., N); 0 where one of them is constant."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    spread = numpy.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    return numpy.where(spread > 0, (x * y).sum(-1) / numpy.where(spread > 0, spread, 1), 0.0)


def ranks(values: NDArray[numpy.float64]) -> NDArray[numpy.float64]:
    """Ranks from 0 of a vector (N,); equal values share the mean of theirs."""
    _, place, count = numpy.unique(values, return_inverse=True, return_counts=True)
    return (numpy.cumsum(count) - (count + 1) / 2)[place]


def measure_classes(table: NDArray[numpy.int64], *, seed: int = 0) -> dict[str, Measured]:
    """All metrics of a confusion table (K, K) with intervals: items drawn with replacement are a drawn table."""
    whole, total = class_metrics(table), int(table.sum())
    if total < MIN_UNITS:
        return {name: Measured(value=float(value)) for name, value in whole.items()}
    drawn = numpy.random.default_rng(seed).multinomial(total, table.ravel() / total, size=_RESAMPLES)
    resampled = class_metrics(drawn.reshape(-1, *table.shape))
    return {name: _measured(float(value), resampled[name]) for name, value in whole.items()}


def measure_numbers(references: Sequence[float], predictions: Sequence[float], *, seed: int = 0) -> dict[str, Measured]:
    """Pearson's and Spearman's correlation with intervals; ranks are those among all items in every resample."""
    x, y = numpy.asarray(references, dtype=numpy.float64), numpy.asarray(predictions, dtype=numpy.float64)
    both = {"pearson": (x, y), "spearman": (ranks(x), ranks(y))}
    values = {name: float(pearson(*pair)) for name, pair in both.items()}
    if len(x) < MIN_UNITS:
        return {name: Measured(value=value) for name, value in values.items()}
    generator = numpy.random.default_rng(seed)
    drawn = [generator.integers(len(x), size=len(x)) for _ in range(_RESAMPLES)]
    resampled = {
        name: numpy.array([pearson(one[items], other[items]) for items in drawn]) for name, (one, other) in both.items()
    }
    return {name: _measured(value, resampled[name]) for name, value in values.items()}


def _measured(value: float, resampled: NDArray[numpy.float64]) -> Measured:
    low, high = numpy.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Measured(value=value, low=low, high=high)


def paired_test(
    ours: Mapping[str, tuple[str, str]], theirs: Mapping[str, tuple[str, str]], *, name: str, other: str, seed: int = 0
) -> PairedTest | None:
    """Two systems' references and predictions by item, on the items that both have; None for too few."""
    shared = [key for key in ours if key in theirs]
    wrong, other_wrong = ([int(side[key][0] != side[key][1]) for key in shared] for side in (ours, theirs))
    found = paired_difference(wrong, other_wrong, [1] * len(shared), [None] * len(shared), seed=seed)
    if found is None:
        return None
    interval = found.interval
    return PairedTest(
        name=name,
        other=other,
        difference=found.value,
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        p_value=found.p_value,
        better=sum(a < b for a, b in zip(wrong, other_wrong, strict=True)),
        worse=sum(a > b for a, b in zip(wrong, other_wrong, strict=True)),
    )


def score_difference(
    references: Sequence[str],
    ours: Sequence[Sequence[str]],
    others: Sequence[Sequence[str]],
    metric: str,
    names: Sequence[str],
    *,
    seed: int = 0,
) -> Difference | None:
    """The mean of a metric over systems (of several seeds) minus that of as many others; above 0 the first are better.

    Of accuracy the interval and p are those of error rates. Of other metrics the interval is a percentile bootstrap
    over items, and p the share of random exchanges of the two sides' predictions of items that make as much of a
    difference.

    Args:
        references: of the items (N,), classes or numbers as text.
        ours, others: predictions (N,) of each system, side by side.
        names: the classes in their order; empty for numbers.

    Returns None for too few items.
    """
    if metric == "accuracy":
        wrong = [
            [sum(one[item] != reference for one in side) for item, reference in enumerate(references)]
            for side in (ours, others)
        ]
        counts = [len(ours)] * len(references)
        found = paired_difference(wrong[0], wrong[1], counts, [None] * len(references), seed=seed)
        return None if found is None else found.flipped
    units = units_of([None] * len(references))
    if not units.enough:
        return None
    index = {name: number for number, name in enumerate(names)}
    known, mine, yours = (
        numpy.array([[index[value] if names else float(value) for value in row] for row in rows])
        for rows in ([references], ours, others)
    )
    generator, count = numpy.random.default_rng(seed), len(references)

    def score(predictions: NDArray[Any], items: NDArray[Any] | slice = slice(None)) -> float:
        return float(numpy.mean([_score(metric, known[0][items], row[items], len(names)) for row in predictions]))

    value = score(mine) - score(yours)
    drawn = [generator.integers(count, size=count) for _ in range(_RESAMPLES)]
    low, high = numpy.quantile(
        [score(mine, items) - score(yours, items) for items in drawn], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    ).tolist()
    extreme = 0
    for _ in range(_RESAMPLES):
        swapped = generator.random(count) < 0.5
        exchanged = numpy.where(swapped, yours, mine), numpy.where(swapped, mine, yours)
        extreme += abs(score(exchanged[0]) - score(exchanged[1])) >= abs(value) - _ROUNDING
    return Difference(
        value=value,
        interval=Interval(low=low, high=high, units=units),
        p_value=(extreme + 1) / (_RESAMPLES + 1),
        units=units,
    )


def _score(metric: str, references: NDArray[Any], predictions: NDArray[Any], classes: int) -> float:
    """A metric of classes by their number, or of numbers."""
    if classes:
        return float(class_metrics(confusion(references, predictions, classes))[metric])  # type: ignore[arg-type]
    pair = (references, predictions) if metric == "pearson" else (ranks(references), ranks(predictions))
    return float(pearson(*pair))
