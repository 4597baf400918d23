"""Everything measured about how well a system recognises: plain data, for a terminal, JSON or a page."""

from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from parp_cli.data.labels import Labels
from parp_cli.errors import DataError
from parp_cli.scoring.comparison import Comparison, compare
from parp_cli.scoring.intervals import RESAMPLES, Interval, Units, rate_interval, units_of
from parp_cli.scoring.metrics import (
    METRICS,
    Alignment,
    Confusions,
    ErrorRate,
    Matrix,
    Unit,
    align,
    confusions,
    matrix,
    pooled,
    utterance_errors,
)
from parp_cli.scoring.results import Recognition

UNITS: dict[Labels, tuple[Unit, ...]] = {"letters": ("words", "characters"), "phones": ("phones",)}
"""Units counted for a kind of labels; systems are compared by the first."""

BAND_EDGES = (0, 1, 2, 3, 5, 8, 12, 20, 30)
"""Seconds at which bands of durations begin; the same for every corpus, so that reports can be compared."""

_BANDS = [*(f"{low} to {high} s" for low, high in pairwise(BAND_EDGES)), f"{BAND_EDGES[-1]} s and more"]

WORST = 20
"""Worst utterances that are shown in full."""

_NOTHING_LEARNED = 0.9
"""Share of letters or phones that are left out from which on a system has not learned to recognise anything."""

_BINS = 10  # of the histogram, between no error and all wrong

Scored = tuple[Recognition, ErrorRate]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of the whole (WER, CER or PER); no interval for too few units, or all of the same rate above 0."""

    name: str
    unit: Unit
    errors: ErrorRate
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Utterances that share a speaker, a band of durations, a split or a language; errors by the report's first
    metric."""

    name: str
    utterances: int
    seconds: float | None
    errors: ErrorRate
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Utterances whose error rate is above `low` and at most `high`; None is no limit, and 0 to 0 is exactly 0."""

    low: float
    high: float | None
    utterances: int


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """An utterance with its reference and hypothesis aligned."""

    id: str
    split: str
    speaker: str | None
    seconds: float | None
    errors: ErrorRate
    alignment: Alignment


@dataclass(frozen=True, kw_only=True)
class Report:
    """One system on one corpus.

    Attributes:
        origin: where the numbers come from, as names and values. No dates, so that equal reports are equal bytes.
        seconds: of audio; None where not known for all.
        faultless, empty: number of utterances without an error, and of those in which nothing was recognised.
        metrics: groups, confusions, worst utterances and comparisons are by the first.
        by_speaker, by_duration, by_split, by_language: empty where not known for all utterances; speakers from worst to
            best.
        histogram: of utterances by error rate.
        symbols: confusions of letters, where the first metric is of words.
        worst: by error rate, longer first among equals.
    """

    name: str
    origin: tuple[tuple[str, str], ...]
    utterances: int
    seconds: float | None
    speakers: int
    faultless: int
    empty: int
    units: Units
    resamples: int
    metrics: tuple[Metric, ...]
    by_speaker: tuple[Group, ...]
    by_duration: tuple[Group, ...]
    by_split: tuple[Group, ...]
    by_language: tuple[Group, ...]
    histogram: tuple[Bin, ...]
    confusions: Confusions
    symbols: Confusions | None
    matrix: Matrix
    worst: tuple[Aligned, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def nothing_learned(self) -> str | None:
        """What to do where hypotheses are empty, or nearly so; None where they are not."""
        finest = self.metrics[-1]
        share = finest.errors.deletions / max(1, finest.errors.tokens)
        if share < _NOTHING_LEARNED:
            return None
        finding = f"{share:.1%} of the {finest.unit} are left out"
        if self.empty == self.utterances:
            finding = "every hypothesis is empty"
        return (
            f"{finding}: the model has not learned to spell yet; train it longer (training.updates), try another "
            "training.learning_rate, or begin from a model that was pre-trained on speech like this"
        )


def build_report(
    recognitions: Sequence[Recognition],
    *,
    labels: Labels,
    name: str,
    origin: Iterable[tuple[str, str]] = (),
    against: Mapping[str, Sequence[Recognition]] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Report:
    """Compute all metrics, groups, confusions and comparisons.

    Args:
        against: other systems by name, to compare with on the utterances that both have.
        resamples, seed: of the bootstrap.

    Raises `DataError`: there is no utterance, or another system has none of them, or other references.
    """
    if not recognitions:
        raise DataError("there is nothing to report: no utterance was recognised")
    texts = [this.reference for this in recognitions], [this.hypothesis for this in recognitions]
    alignments = {unit: align(*texts, unit) for unit in UNITS[labels]}
    scored = {
        unit: list(zip(recognitions, map(utterance_errors, some), strict=True)) for unit, some in alignments.items()
    }
    main, finest = UNITS[labels][0], UNITS[labels][-1]

    def interval(some: Sequence[Scored]) -> Interval | None:
        errors, tokens = [errors.errors for _, errors in some], [errors.tokens for _, errors in some]
        return rate_interval(errors, tokens, [this.speaker for this, _ in some], resamples=resamples, seed=seed)

    def groups(key: Callable[[Recognition], str | None]) -> list[Group]:
        """In order of first occurrence; none where the key of some utterance is unknown."""
        members: dict[str | None, list[Scored]] = {}
        for this, errors in scored[main]:
            members.setdefault(key(this), []).append((this, errors))
        return [
            Group(
                name=name,
                utterances=len(some),
                seconds=_seconds([this for this, _ in some]),
                errors=pooled(errors for _, errors in some),
                interval=interval(some),
            )
            for name, some in members.items()
            if name is not None and None not in members
        ]

    return Report(
        name=name,
        origin=tuple(origin),
        utterances=len(recognitions),
        seconds=_seconds(recognitions),
        speakers=len({this.speaker for this in recognitions} - {None}),
        faultless=sum(errors.errors == 0 for _, errors in scored[main]),
        empty=sum(not this.hypothesis.strip() for this in recognitions),
        units=units_of([this.speaker for this in recognitions]),
        resamples=resamples,
        metrics=tuple(
            Metric(name=METRICS[unit], unit=unit, errors=pooled(errors for _, errors in some), interval=interval(some))
            for unit, some in scored.items()
        ),
        by_speaker=tuple(sorted(groups(lambda this: this.speaker), key=lambda group: (-group.errors.rate, group.name))),
        by_duration=tuple(sorted(groups(_band), key=lambda group: _BANDS.index(group.name))),
        by_split=tuple(groups(lambda this: this.split or None)),
        by_language=tuple(groups(lambda this: this.language)),
        histogram=_histogram([errors for _, errors in scored[main]]),
        confusions=confusions(alignments[main], main),
        symbols=confusions(alignments[finest], finest) if finest != main else None,
        matrix=matrix(alignments[finest], finest),
        worst=_worst(scored[main], alignments[main]),
        comparisons=tuple(
            compare(recognitions, theirs, unit=main, name=name, other=other, resamples=resamples, seed=seed)
            for other, theirs in (against or {}).items()
        ),
    )


def _seconds(recognitions: Sequence[Recognition]) -> float | None:
    known = [this.seconds for this in recognitions if this.seconds is not None]
    return sum(known) if len(known) == len(recognitions) else None


def _band(recognition: Recognition) -> str | None:
    seconds = recognition.seconds
    return None if seconds is None else _BANDS[bisect(BAND_EDGES, max(0.0, seconds)) - 1]


def _histogram(counted: Sequence[ErrorRate]) -> tuple[Bin, ...]:
    edges: list[float | None] = [0.0, *(step / _BINS for step in range(_BINS + 1)), None]
    # By whole numbers: 3 errors of 10 are in the bin that ends at 30 %, whatever 0.3 is in binary.
    places = [min(_BINS + 1, -(-_BINS * errors.errors // max(1, errors.tokens))) for errors in counted]
    return tuple(
        Bin(low=low or 0.0, high=high, utterances=places.count(place))
        for place, (low, high) in enumerate(pairwise(edges))
    )


def _worst(scored: Sequence[Scored], alignments: Sequence[Alignment]) -> tuple[Aligned, ...]:
    wrong = [
        Aligned(
            id=this.id,
            split=this.split,
            speaker=this.speaker,
            seconds=this.seconds,
            errors=errors,
            alignment=alignment,
        )
        for (this, errors), alignment in zip(scored, alignments, strict=True)
        if errors.errors
    ]
    wrong.sort(key=lambda this: (-this.errors.rate, -this.errors.tokens, this.split, this.id))
    return tuple(wrong[:WORST])
