"""Everything measured about how well a system classifies texts, or predicts numbers for them: plain data for a page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from parp_cli.scoring.classes import Measured, PairedTest

WORST = 20
"""Wrong predictions that are shown in full."""


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """A text, or pair, with its reference and what is predicted; the probability is None for numbers."""

    id: str
    split: str
    text: str
    text_b: str | None
    reference: str
    prediction: str
    probability: float | None


@dataclass(frozen=True, kw_only=True)
class Class:
    """How many texts of a class there are and are taken for it, the share of the first that is recognised, and the
    share of the second that is right (0 where there are none)."""

    name: str
    texts: int
    predicted: int
    recognised: float
    precise: float


@dataclass(frozen=True, kw_only=True)
class ClassReport:
    """One system on labelled texts.

    Attributes:
        origin: where the numbers come from, as names and values. No dates, so that equal reports are equal bytes.
        metrics: the first is the one that decides.
        classes, confusion: empty for numbers.
        wrong: the surest mistakes, or the numbers that are farthest off.
    """

    name: str
    origin: tuple[tuple[str, str], ...]
    texts: int
    metrics: Mapping[str, Measured]
    classes: tuple[Class, ...]
    confusion: tuple[tuple[int, ...], ...]
    wrong: tuple[Predicted, ...]
    comparisons: tuple[PairedTest, ...]

    @property
    def right(self) -> float:
        """Share of the texts whose class is recognised."""
        return sum(row[place] for place, row in enumerate(self.confusion)) / max(1, self.texts)

    @property
    def largest(self) -> float:
        """Share of the texts that are of the largest class."""
        return max(each.texts for each in self.classes) / max(1, self.texts)


def class_report(
    predictions: Sequence[Predicted],
    *,
    name: str,
    origin: Iterable[tuple[str, str]],
    metrics: Mapping[str, Measured],
    names: Sequence[str],
    confusion: Sequence[Sequence[int]],
    comparisons: Iterable[PairedTest],
) -> ClassReport:
    """The report of predictions; their metrics and confusion table (K, K) as `scoring.classes` computes them."""
    classes = []
    for place, of_class in enumerate(names):
        there, taken = sum(confusion[place]), sum(row[place] for row in confusion)
        right = confusion[place][place]
        classes.append(
            Class(
                name=of_class,
                texts=there,
                predicted=taken,
                recognised=right / max(1, there),
                precise=right / max(1, taken),
            )
        )

    def sureness(one: Predicted) -> float:
        return (one.probability or 0.0) if names else abs(float(one.reference) - float(one.prediction))

    wrong = [one for one in predictions if one.reference != one.prediction]
    return ClassReport(
        name=name,
        origin=tuple(origin),
        texts=len(predictions),
        metrics=metrics,
        classes=tuple(classes),
        confusion=tuple(map(tuple, confusion)),
        wrong=tuple(sorted(wrong, key=lambda one: (-sureness(one), one.split, one.id))[:WORST]),
        comparisons=tuple(comparisons),
    )
