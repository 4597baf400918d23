"""Whether two systems differ on the same utterances, as numbers and as a sentence."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from parp_cli.data.text import fold
from parp_cli.errors import DataError, first_few
from parp_cli.scoring.intervals import RESAMPLES, Difference, Interval, Units, counted, paired_difference, units_of
from parp_cli.scoring.metrics import METRICS, ErrorRate, Unit, align, pooled, utterance_errors
from parp_cli.scoring.results import Recognition, repeated

SIGNIFICANT = 0.05
"""A difference counts where p is below it and the interval excludes 0."""

Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two systems on the utterances that both have.

    Attributes:
        only_ours, only_theirs: utterances of one system only, which are left out.
        better_utterances, worse_utterances: on which the first makes fewer, or more, errors.
        difference: None where there are too few units.
        verdict: of the first: better or worse where the interval of the difference excludes 0 and p is below
            `SIGNIFICANT`; otherwise undecided.
        words: the verdict as a sentence, in points, which are hundredths of the error rate.
    """

    name: str
    other: str
    metric: str
    ours: ErrorRate
    theirs: ErrorRate
    utterances: int
    only_ours: int
    only_theirs: int
    better_utterances: int
    worse_utterances: int
    units: Units
    difference: Difference | None
    verdict: Verdict
    words: str


def compare(
    ours: Sequence[Recognition],
    theirs: Sequence[Recognition],
    *,
    unit: Unit,
    name: str,
    other: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two systems on the utterances that both have: a bootstrap interval, and a sign-flip test.

    Utterances are matched by split and id, or by id alone where one side has no splits. Speakers may be known to either
    side.

    Raises `DataError`: no utterance is in both, or their references are not the same.
    """
    pairs = _match(ours, theirs, name, other)
    # Each against its own references, which may be of another case.
    our_errors, their_errors = (
        list(map(utterance_errors, align([one.reference for one in side], [one.hypothesis for one in side], unit)))
        for side in zip(*pairs, strict=True)
    )
    our_counts, their_counts = [rate.errors for rate in our_errors], [rate.errors for rate in their_errors]
    tokens, speakers = [rate.tokens for rate in our_errors], [mine.speaker or yours.speaker for mine, yours in pairs]
    difference = paired_difference(our_counts, their_counts, tokens, speakers, resamples=resamples, seed=seed)
    verdict = verdict_of(difference)
    units, only_ours, only_theirs = units_of(speakers), len(ours) - len(pairs), len(theirs) - len(pairs)
    words = _sentence(name, other, METRICS[unit], units, difference, verdict)
    words += "; one speaker says nothing about others" if units.one_speaker else ""
    if left_out := [f"{n:,} only in {owner}" for n, owner in ((only_ours, name), (only_theirs, other)) if n]:
        words += f"; on the {counted(len(pairs), 'utterance')} in both, without {' and '.join(left_out)}"
    return Comparison(
        name=name,
        other=other,
        metric=METRICS[unit],
        ours=pooled(our_errors),
        theirs=pooled(their_errors),
        utterances=len(pairs),
        only_ours=only_ours,
        only_theirs=only_theirs,
        better_utterances=sum(map(operator.lt, our_counts, their_counts)),
        worse_utterances=sum(map(operator.gt, our_counts, their_counts)),
        units=units,
        difference=difference,
        verdict=verdict,
        words=words,
    )


def verdict_of(difference: Difference | None) -> Verdict:
    """Whether a difference counts: its interval excludes 0, and p is below `SIGNIFICANT`."""
    if difference is None or difference.p_value >= SIGNIFICANT or _includes_zero(difference.interval):
        return "undecided"
    return "better" if difference.value < 0 else "worse"


def check_comparable(ours: Sequence[Recognition], theirs: Sequence[Recognition], *, name: str, other: str) -> None:
    """Raise what `compare` would raise, before anything is recognised: hypotheses are ignored."""
    _match(ours, theirs, name, other)


def _match(
    ours: Sequence[Recognition], theirs: Sequence[Recognition], name: str, other: str
) -> list[tuple[Recognition, Recognition]]:
    with_splits = all(this.split for this in (*ours, *theirs))

    def keyed(side: Sequence[Recognition], owner: str) -> dict[tuple[str, str], Recognition]:
        alike = side if with_splits else [replace(this, split="") for this in side]
        by_key = {(this.split, this.id): this for this in alike}
        if len(by_key) < len(side):
            raise DataError(f"{owner} has utterances more than once", details=first_few(repeated(alike)))
        return by_key

    mine, yours = keyed(ours, name), keyed(theirs, other)
    common = [key for key in mine if key in yours]
    if not common:
        alone = [[f"{_named(k)} is only in {owner}" for k in keys] for keys, owner in ((mine, name), (yours, other))]
        raise DataError(
            f"{name} and {other} are not of the same utterances: none is in both",
            details=[line for lines in alone for line in first_few(lines, 5)],
            hint="compare results of the same split of the same corpus",
        )
    # Each in the case of its model's labels.
    unlike = [key for key in common if fold(mine[key].reference) != fold(yours[key].reference)]
    if unlike:
        raise DataError(
            f"{name} and {other} have other references for {counted(len(unlike), 'utterance')}",
            details=first_few([f"{_named(k)}: {mine[k].reference!r} and {yours[k].reference!r}" for k in unlike], 10),
            hint="evaluate both with the same labels of the same corpus",
        )
    return [(mine[key], yours[key]) for key in common]


def _named(key: tuple[str, str]) -> str:
    split, id_ = key
    return f"{id_} of {split}" if split else id_


def _includes_zero(interval: Interval | None) -> bool:
    return interval is not None and interval.low <= 0 <= interval.high


def _sentence(name: str, other: str, metric: str, units: Units, difference: Difference | None, verdict: Verdict) -> str:
    if difference is None:
        return f"no significant difference between {name} and {other}: too few {units.over} to tell ({units.count})"
    interval, points, p = difference.interval, 100 * difference.value, difference.p_value
    if interval is None and points == 0:
        return f"no difference: {name} and {other} make equally many errors in all {units}"
    digits = difference.digits(1)
    # Words, as signs are easily misread.
    amount = f"{abs(points):.{digits}f} points of {metric} {'fewer' if points <= 0 else 'more'}"
    told = f"p {p_text(p, SIGNIFICANT)}"
    if interval is None:
        evidence = f"in all {units} alike; {told}"
    elif verdict == "undecided" and p < SIGNIFICANT:
        evidence = f"{told}, but the 95 % interval includes 0: {_reach(interval, digits)}; over {units}"
    elif verdict == "undecided" and not _includes_zero(interval):
        evidence = f"the 95 % interval excludes 0, {_reach(interval, digits)}, but {told}; over {units}"
    else:
        evidence = f"95 % interval {_reach(interval, digits)}; {told}; over {units}"
    if verdict == "undecided":
        return f"no significant difference between {name} and {other}: {amount} ({evidence})"
    return f"{name} is {verdict} than {other}: {amount} ({evidence})"


def p_text(p: float, level: float) -> str:
    """Such as "= 0.012" or "< 0.001", with enough decimals to see on which side of `level` it is."""
    if p < 0.001:
        return "< 0.001"
    digits = next(digits for digits in range(3, 20) if (float(f"{p:.{digits}f}") < level) == (p < level))
    return f"= {p:.{digits}f}"


def _reach(interval: Interval, digits: int) -> str:
    low, high = (f"{abs(100 * end):.{digits}f}" for end in (interval.low, interval.high))
    if interval.high < 0:
        return f"{high} to {low} fewer"
    return f"{low} to {high} more" if interval.low > 0 else f"{low} fewer to {high} more"
