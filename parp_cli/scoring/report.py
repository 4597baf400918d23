"""Everything measured about how well a system recognises: plain data, for a terminal, JSON or a page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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

WORST = 20
"""Worst utterances that are shown in full."""

_BINS = 10  # of the histogram, between no error and all wrong

Scored = tuple[Recognition, ErrorRate]
Bootstrap = Callable[[Sequence[Scored]], Interval | None]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric of the whole.

    Attributes:
        name: WER, CER or PER.
        interval: None for too few units, and where all have the same rate above 0.
    """

    name: str
    unit: Unit
    errors: ErrorRate
    interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Utterances that share a speaker, a band of durations, or a split.

    Attributes:
        seconds: of audio; None where not known for all.
        errors: by the report's first metric.
        interval: over the group's own units; None as for `Metric`.
    """

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
        name: of the system.
        origin: where the numbers come from, as names and values. No dates, so that equal reports are equal bytes.
        seconds: of audio; None where not known for all.
        speakers: number of known speakers.
        faultless: utterances without an error.
        empty: utterances in which nothing was recognised.
        units: what the intervals of the whole are over.
        resamples: per interval.
        metrics: groups, confusions, worst utterances and comparisons are by the first.
        by_speaker, by_duration, by_split: empty where not known for all utterances; speakers from worst to best.
        histogram: of utterances by error rate.
        symbols: confusions of letters, where the first metric is of words.
        matrix: confusion matrix of letters or phones.
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
    histogram: tuple[Bin, ...]
    confusions: Confusions
    symbols: Confusions | None
    matrix: Matrix
    worst: tuple[Aligned, ...]
    comparisons: tuple[Comparison, ...]


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
        recognitions: of one or several splits.
        against: other systems by name, to compare with on the utterances that both have.
        resamples, seed: of the bootstrap.

    Raises:
        DataError: there is no utterance, or another system has none of them, or other references.
    """
    if not recognitions:
        raise DataError("there is nothing to report: no utterance was recognised")
    texts = [this.reference for this in recognitions], [this.hypothesis for this in recognitions]
    alignments = {unit: align(*texts, unit) for unit in UNITS[labels]}
    scored = {
        unit: list(zip(recognitions, map(utterance_errors, aligned), strict=True))
        for unit, aligned in alignments.items()
    }
    main, finest = UNITS[labels][0], UNITS[labels][-1]
    bootstrap = partial(_interval, resamples=resamples, seed=seed)
    bands = {_band(edge): place for place, edge in enumerate(BAND_EDGES)}
    by_duration = _groups(scored[main], _band_of, bootstrap)
    by_speaker = _groups(scored[main], lambda this: this.speaker, bootstrap)
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
            Metric(
                name=METRICS[unit],
                unit=unit,
                errors=pooled(errors for _, errors in scored[unit]),
                interval=bootstrap(scored[unit]),
            )
            for unit in UNITS[labels]
        ),
        by_speaker=tuple(sorted(by_speaker, key=lambda group: (-group.errors.rate, group.name))),
        by_duration=tuple(sorted(by_duration, key=lambda group: bands[group.name])),
        by_split=tuple(_groups(scored[main], lambda this: this.split or None, bootstrap)),
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


def _interval(scored: Sequence[Scored], *, resamples: int, seed: int) -> Interval | None:
    return rate_interval(
        [errors.errors for _, errors in scored],
        [errors.tokens for _, errors in scored],
        [this.speaker for this, _ in scored],
        resamples=resamples,
        seed=seed,
    )


def _groups(scored: Sequence[Scored], key: Callable[[Recognition], str | None], bootstrap: Bootstrap) -> list[Group]:
    """Groups in order of first occurrence; none where the key of some utterance is unknown."""
    members: dict[str, list[Scored]] = {}
    for this, errors in scored:
        name = key(this)
        if name is None:
            return []
        members.setdefault(name, []).append((this, errors))
    return [
        Group(
            name=name,
            utterances=len(some),
            seconds=_seconds([this for this, _ in some]),
            errors=pooled(errors for _, errors in some),
            interval=bootstrap(some),
        )
        for name, some in members.items()
    ]


def _seconds(recognitions: Iterable[Recognition]) -> float | None:
    known = [this.seconds for this in recognitions]
    return None if None in known else sum(seconds for seconds in known if seconds is not None)


def _band_of(recognition: Recognition) -> str | None:
    if recognition.seconds is None:
        return None
    return _band(max(edge for edge in BAND_EDGES if edge <= max(0.0, recognition.seconds)))


def _band(start: int) -> str:
    """A band's name, by the second it begins at."""
    ends = dict(pairwise(BAND_EDGES))
    return f"{start} to {ends[start]} s" if start in ends else f"{start} s and more"


def _histogram(counted: Sequence[ErrorRate]) -> tuple[Bin, ...]:
    edges: list[float | None] = [0.0, *(step / _BINS for step in range(_BINS + 1)), None]
    # By whole numbers: 3 errors of 10 are in the bin that ends at 30 %, whatever 0.3 is in binary.
    places = [min(_BINS + 1, -(-_BINS * errors.errors // max(1, errors.tokens))) for errors in counted]
    return tuple(
        Bin(low=low or 0.0, high=high, utterances=places.count(place))
        for place, (low, high) in enumerate(pairwise(edges))
    )


def _worst(scored: Sequence[Scored], alignments: Sequence[Alignment]) -> tuple[Aligned, ...]:
    wrong = [entry for entry in zip(scored, alignments, strict=True) if entry[0][1].errors]
    wrong.sort(key=lambda entry: (-entry[0][1].rate, -entry[0][1].tokens, entry[0][0].split, entry[0][0].id))
    return tuple(
        Aligned(
            id=this.id,
            split=this.split,
            speaker=this.speaker,
            seconds=this.seconds,
            errors=errors,
            alignment=alignment,
        )
        for (this, errors), alignment in wrong[:WORST]
    )
