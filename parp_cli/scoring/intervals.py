"""How far an error rate can be trusted, and whether two systems differ: by drawing units, and by flipping them.

A unit is an utterance, or a speaker with all of theirs. Utterances of one speaker go wrong together, so where speakers
are known the units are speakers: over utterances alone an interval would be too short. With 2 to 4 of them there is
none, for that few do not tell how unlike speakers are. Utterances of one single speaker are units again, and what they
tell is of that speaker alone.

An interval is what a test set would have given with other units, imitated by drawing its own anew, with replacement
(the bootstrap: Efron 1979; for speech Bisani and Ney 2004). Drawing n of n is too tame for few: deviations are
stretched by sqrt(n / (n - 1)) and by Student's t over the normal quantile (Hesterberg 2015, "What teachers should know
about the bootstrap", adjusts for the same two). On simulated corpora the intervals then hold the true rate 93 to 95
times of 100 from 8 speakers on, and 92 where a few speakers make most of the errors.

Where no unit has an error there is nothing to draw from, and the interval is a bound: were errors in more than a share
1 - 0.05^(1/U) of all units (about 3 / U, the "rule of three"), U units without one would be seen less than 5 times of
100. That is taken for the rate as well, which is right as long as a unit with errors has on average no more of them
than a unit has tokens. Tokens are not counted as 3 / tokens would: one garbled utterance has many errors at once.
Where all units have the same rate, and it isn't 0, nothing is told of how they vary, and there is no interval.

Whether two systems differ is tested by flipping (Fisher's randomisation test). Were they the same but for luck, then
each unit's difference could as well have had the other sign: p is the share of all 2^U ways to give signs in which the
sum is at least as far from 0 as the one seen. That is exact for any number of units, where the stretch above is made
for the 95 % interval and for no other. Where two systems are equally good on average and yet not the same, so that one
is much worse on a few units and a little better on all others, p is below 0.05 about 8 times of 100.

Letters: U units, R resamples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 10_000
FEWEST_UNITS = 5
"""With fewer there is no interval."""

_ROWS_AT_ONCE = 128
"""Resamples drawn together: as many as stay in a processor's cache."""


def counted(number: int, noun: str) -> str:
    """A count with a noun whose plural ends in s, such as "1 error" or "2,620 errors"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@dataclass(frozen=True, kw_only=True)
class Units:
    """What is drawn and flipped.

    Attributes:
        over: speakers where all are known and there are several.
        count: of these.
        one_speaker: whether they are utterances of one known speaker, and tell nothing of others.
    """

    over: Literal["utterances", "speakers"]
    count: int
    one_speaker: bool = False

    @property
    def enough(self) -> bool:
        """Whether there are as many as an interval takes."""
        return self.count >= FEWEST_UNITS

    def __str__(self) -> str:
        """Such as "8 speakers" or "120 utterances of one speaker"."""
        return counted(self.count, self.over.removesuffix("s")) + (" of one speaker" if self.one_speaker else "")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Where an error rate lies, at `LEVEL`; without any error a bound, from 0."""

    low: float
    high: float
    units: Units


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One system's error rate less another's on the same utterances; below 0 the first is better.

    Attributes:
        value: of the error rates themselves.
        interval: of the difference, bootstrapped; None where it is the same in all units.
        p_value: two-sided, by flipping; with U units never below 2 / 2^U, which is 0.06 for 5.
        units: that were drawn and flipped.
    """

    value: float
    interval: Interval | None
    p_value: float
    units: Units


def units_of(speakers: Sequence[str | None]) -> Units:
    """What to draw of a corpus.

    Args:
        speakers: of each utterance.
    """
    known = set(speakers)
    if None in known or len(known) < 2:
        return Units(over="utterances", count=len(speakers), one_speaker=len(known) == 1 and None not in known)
    return Units(over="speakers", count=len(known))


def rate_interval(
    errors: ArrayLike,
    tokens: ArrayLike,
    speakers: Sequence[str | None],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """The interval of sum(errors) / sum(tokens), or None: too few units, all of one rate above 0, or no tokens.

    Args:
        errors, tokens: of each utterance.
        speakers: of each utterance; None where not known.
    """
    units = units_of(speakers)
    if not units.enough:
        return None
    sums = _sums(numpy.asarray(errors), numpy.asarray(tokens), units, speakers)
    all_errors, all_tokens = sums.sum(0).tolist()
    if all_errors == 0 and all_tokens > 0:
        return Interval(low=0.0, high=1 - (1 - LEVEL) ** (1 / units.count), units=units)
    if _all_alike(sums):
        return None
    return _interval(_resampled(sums, resamples, seed), units, least=0.0)


def paired_difference(
    errors: ArrayLike,
    other_errors: ArrayLike,
    tokens: ArrayLike,
    speakers: Sequence[str | None],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference | None:
    """The difference of two systems' error rates, or None for too few units.

    Each resample draws the same units for both, so what makes a unit hard for both cancels out.

    Args:
        errors, other_errors: of each utterance, by the first system and by the second.
        tokens: of each utterance's reference.
        speakers: of each utterance; None where not known.
    """
    units = units_of(speakers)
    if not units.enough:
        return None
    sums = _sums(numpy.asarray(errors) - numpy.asarray(other_errors), numpy.asarray(tokens), units, speakers)
    return Difference(
        value=_ratio(sums.sum(0)),
        interval=None if _all_alike(sums) else _interval(_resampled(sums, resamples, seed), units),
        p_value=sign_flip_p(sums[:, 0]),
        units=units,
    )


def sign_flip_p(differences: ArrayLike) -> float:
    """The share of all ways to give these numbers signs in which their sum is at least as far from 0 as it is.

    Args:
        differences: (U,), whole numbers; divided by the same tokens they are differences of error rates.
    """
    whole = numpy.asarray(differences).astype(numpy.int64)
    steps = numpy.sort(numpy.abs(whole[whole != 0]))
    # The share of ways for each sum of those that get a plus. All sums are whole numbers, so that there are far fewer
    # of them than of ways, and adding number after number counts every way.
    shares = numpy.ones(1)
    for step in steps.tolist():
        longer = numpy.zeros(len(shares) + step)
        longer[: len(shares)] = shares / 2
        longer[step:] += shares / 2
        shares = longer
    flipped = 2 * numpy.arange(len(shares)) - steps.sum()
    return min(1.0, float(shares[numpy.abs(flipped) >= abs(whole.sum())].sum()))


def _sums(
    errors: NDArray[numpy.generic], tokens: NDArray[numpy.generic], units: Units, speakers: Sequence[str | None]
) -> NDArray[numpy.float64]:
    """Errors and tokens of each unit (U, 2)."""
    values = numpy.stack([errors, tokens], axis=1).astype(numpy.float64)
    if units.over == "utterances":
        return values
    _, of_utterance = numpy.unique(numpy.asarray(speakers), return_inverse=True)
    return numpy.stack([numpy.bincount(of_utterance, weights=column) for column in values.T], axis=1)


def _all_alike(sums: NDArray[numpy.float64]) -> bool:
    """Whether all units have the same ratio: of whole numbers, so that products are exact."""
    all_errors, all_tokens = sums.sum(0)
    return bool((sums[:, 0] * all_tokens == sums[:, 1] * all_errors).all())


def _resampled(sums: NDArray[numpy.float64], resamples: int, seed: int) -> NDArray[numpy.float64]:
    """Ratios (R,) of sums (U, 2), each over U units drawn with replacement, stretched away from the whole's ratio."""
    generator = numpy.random.default_rng(seed)
    units = len(sums)
    errors_of, tokens_of = numpy.ascontiguousarray(sums.T)
    ratios = numpy.empty(resamples)
    for start in range(0, resamples, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, resamples - start)
        drawn = generator.integers(units, size=(rows, units), dtype=numpy.int32)
        errors, tokens = errors_of[drawn].sum(1), tokens_of[drawn].sum(1)
        ratios[start : start + rows] = errors / numpy.maximum(tokens, 1)
    whole = _ratio(sums.sum(0))
    return whole + _stretch(units) * (ratios - whole)


def _ratio(sums: NDArray[numpy.float64]) -> float:
    errors, tokens = sums.tolist()
    return float(errors / max(tokens, 1))


def _interval(resampled: NDArray[numpy.float64], units: Units, least: float = -math.inf) -> Interval:
    low, high = numpy.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return Interval(low=max(least, low), high=high, units=units)


def _stretch(units: int) -> float:
    normal = NormalDist().inv_cdf((1 + LEVEL) / 2)
    return math.sqrt(units / (units - 1)) * _student(normal, units - 1) / normal


def _student(z: float, freedom: int) -> float:
    """Student's t quantile from the normal one, to 0.3 % from 4 degrees of freedom on (Abramowitz, Stegun 26.7.5)."""
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
