"""Metrics of classes and numbers, against what defines them."""

import itertools
import math
import random

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parp_cli.scoring.classes import (
    class_metrics,
    confusion,
    measure_classes,
    measure_numbers,
    paired_test,
    pearson,
    ranks,
    score_difference,
)

PAIRS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30)


@given(PAIRS)
def test_metrics_of_classes_by_brute_force(pairs: list[tuple[int, int]]) -> None:
    references, predictions = zip(*pairs, strict=True)
    found = class_metrics(confusion(references, predictions, 3))
    assert found["accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    scores = []
    for label in range(3):
        right = sum(a == b == label for a, b in pairs)
        wrong = sum((a == label) != (b == label) for a, b in pairs)
        scores.append(2 * right / (2 * right + wrong) if right + wrong else 0.0)
    assert found["f1"] == pytest.approx(sum(scores) / 3)
    # Matthews' correlation of K classes: covariances of indicators, summed over classes (Gorodkin 2004, equation 8).
    one = numpy.eye(3)[list(references)]
    two = numpy.eye(3)[list(predictions)]

    def covariance(x: numpy.ndarray, y: numpy.ndarray) -> float:
        return float(((x - x.mean(0)) * (y - y.mean(0))).sum())

    spread = math.sqrt(covariance(one, one) * covariance(two, two))
    assert found["matthews"] == pytest.approx(covariance(one, two) / spread if spread > 1e-9 else 0.0, abs=1e-9)


def test_f1_of_two_classes_is_that_of_the_second() -> None:
    table = numpy.array([[50, 10], [5, 15]])
    assert class_metrics(table)["f1"] == pytest.approx(2 * 15 / (2 * 15 + 10 + 5))


def test_correlations() -> None:
    x, y = numpy.array([1.0, 2.0, 3.0, 4.0]), numpy.array([2.0, 1.0, 4.0, 3.0])
    assert pearson(x, y) == pytest.approx(numpy.corrcoef(x, y)[0, 1])
    assert pearson(x, numpy.ones(4)) == 0
    assert ranks(numpy.array([5.0, 1.0, 5.0, 9.0])).tolist() == [1.5, 0.0, 1.5, 3.0]
    measured = measure_numbers(x, numpy.exp(3 * x))
    assert measured["spearman"].value == pytest.approx(1)
    assert measured["pearson"].value < 0.9


def test_an_interval_covers_what_it_should() -> None:
    """Accuracy of 80 in 100: the exact interval of a binomial share is 0.708 to 0.873."""
    measured = measure_classes(numpy.array([[40, 10], [10, 40]]))["accuracy"]
    assert measured.value == 0.8
    assert measured.low == pytest.approx(0.72, abs=0.02)
    assert measured.high == pytest.approx(0.88, abs=0.02)
    assert measure_classes(numpy.array([[2, 0], [0, 1]]))["accuracy"].low is None


def test_systems_are_compared_on_the_texts_of_both() -> None:
    """p is that of McNemar's exact test: two-sided binomial over texts that one of them alone has right."""
    rng = random.Random(0)
    truth = {str(i): rng.choice("ab") for i in range(60)}
    ours = {key: (label, label) for key, label in truth.items()}
    theirs = {
        key: (label, "b" if label == "a" else "a") if int(key) < 8 else (label, label) for key, label in truth.items()
    }
    ours["0"] = ("a", "b") if truth["0"] == "a" else ("b", "a")
    theirs["0"] = (truth["0"], truth["0"])
    del theirs["59"]
    found = paired_test(ours, theirs, name="ours", other="theirs")
    assert found is not None
    assert (found.better, found.worse) == (7, 1)
    assert found.difference == pytest.approx(-6 / 59)
    assert found.p_value == pytest.approx(2 * sum(math.comb(8, k) for k in (0, 1)) / 2**8)


def test_every_table_of_two_classes_is_within_bounds() -> None:
    for cells in itertools.product(range(3), repeat=4):
        found = class_metrics(numpy.array(cells).reshape(2, 2))
        assert 0 <= found["accuracy"] <= 1
        assert 0 <= found["f1"] <= 1
        assert -1 - 1e-9 <= found["matthews"] <= 1 + 1e-9


def systems(seed: int, right: float, count: int = 200) -> tuple[list[str], list[list[str]]]:
    """References, and two systems that are right on about such a share."""
    rng = random.Random(seed)
    references = [random.Random(item).choice("ab") for item in range(count)]
    flipped = {"a": "b", "b": "a"}
    return references, [[label if rng.random() < right else flipped[label] for label in references] for _ in range(2)]


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews"])
def test_differences_of_scores(metric: str) -> None:
    references, ours = systems(1, 0.9)
    _, theirs = systems(2, 0.7)
    found = score_difference(references, ours, theirs, metric, ["a", "b"])
    assert found is not None

    def mean(side: list[list[str]]) -> float:
        tables = [confusion(["ab".index(x) for x in references], ["ab".index(x) for x in one], 2) for one in side]
        return float(numpy.mean([class_metrics(table)[metric] for table in tables]))

    assert found.value == pytest.approx(mean(ours) - mean(theirs))
    assert found.value > 0.1
    assert found.interval is not None
    assert 0 < found.interval.low < found.value < found.interval.high
    assert found.p_value < 0.01
    back = score_difference(references, theirs, ours, metric, ["a", "b"])
    assert back is not None
    assert back.value == pytest.approx(-found.value)
    _, alike = systems(3, 0.9)
    close = score_difference(references, ours, alike, metric, ["a", "b"])
    assert close is not None
    assert close.interval is not None
    assert close.interval.low < 0 < close.interval.high
    assert close.p_value > 0.05
    same = score_difference(references, ours, ours, metric, ["a", "b"])
    assert same is not None
    assert (same.value, same.p_value) == (0, 1)


@pytest.mark.parametrize("metric", ["pearson", "spearman"])
def test_differences_of_correlations(metric: str) -> None:
    rng = random.Random(0)
    references = [f"{rng.gauss(0, 1):.6f}" for _ in range(60)]
    near, far = ([[f"{float(x) + rng.gauss(0, noise):.6f}" for x in references]] for noise in (0.2, 3.0))
    found = score_difference(references, near, far, metric, [])
    assert found is not None
    known, mine, yours = (numpy.array([float(x) for x in row]) for row in (references, near[0], far[0]))
    if metric == "spearman":
        known, mine, yours = map(ranks, (known, mine, yours))
    assert found.value == pytest.approx(float(pearson(known, mine) - pearson(known, yours)))
    assert found.interval is not None
    assert 0 < found.interval.low < found.value < found.interval.high
    assert found.p_value < 0.01


def test_too_few_items_tell_no_difference() -> None:
    for metric in ("accuracy", "f1"):
        assert score_difference(["a", "b"], [["a", "b"]], [["b", "b"]], metric, ["a", "b"]) is None
