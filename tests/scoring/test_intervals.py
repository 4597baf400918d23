"""Intervals cover as often as they say, and a difference is found where there is one and only there."""

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy
import pytest

from parp_cli.scoring.intervals import (
    MIN_UNITS,
    Interval,
    Units,
    paired_difference,
    rate_interval,
    sign_flip_p,
    units_of,
)

CORPORA = 400
TRUE_RATE = 0.2


def corpus(
    draw: numpy.random.Generator, *, speakers: int, utterances: int, spread: float
) -> tuple[numpy.ndarray, numpy.ndarray, list[str]]:
    """Errors and tokens of each utterance, and who speaks it; `spread` is how unlike speakers are."""
    rates = TRUE_RATE * draw.gamma(1 / spread, spread, speakers) if spread else numpy.full(speakers, TRUE_RATE)
    who = numpy.repeat(numpy.arange(speakers), utterances)
    tokens = draw.integers(3, 30, len(who))
    # An insertion is an error too: errors may be more than tokens, so that no rate is cut off at 1.
    return draw.poisson(rates[who] * tokens), tokens, [f"speaker {number}" for number in who]


def unknown(utterances: Sequence[object]) -> list[None]:
    """Speakers that nobody knows."""
    return [None] * len(utterances)


def coverage(interval: Callable[..., Interval | None], **shape: float) -> float:
    """The share of simulated corpora whose interval holds the true rate."""
    held = 0
    for seed in range(CORPORA):
        errors, tokens, who = corpus(numpy.random.default_rng(seed), **shape)
        found = interval(errors, tokens, who, resamples=400, seed=seed)
        assert found is not None
        held += found.low <= TRUE_RATE <= found.high
    return held / CORPORA


# 400 corpora tell a coverage of 95 % to ±2 points (two standard errors).


def test_coverage_over_utterances() -> None:
    share = coverage(
        lambda errors, tokens, who, **options: rate_interval(errors, tokens, unknown(who), **options),
        speakers=120,
        utterances=1,
        spread=0.3,
    )
    assert 0.93 <= share <= 0.97


@pytest.mark.parametrize("speakers", [8, 24])
def test_coverage_over_speakers(speakers: int) -> None:
    share = coverage(rate_interval, speakers=speakers, utterances=15, spread=0.3)
    assert 0.92 <= share <= 0.97, "93.5 % of 2,000 corpora, as speakers' rates are skewed"


def test_utterances_of_few_speakers_claim_too_much() -> None:
    """The reason for drawing speakers: over utterances the interval is far too short."""
    share = coverage(
        lambda errors, tokens, who, **options: rate_interval(errors, tokens, unknown(who), **options),
        speakers=24,
        utterances=15,
        spread=0.3,
    )
    assert share < 0.8


def test_no_difference_is_found_where_there_is_none_but_rarely() -> None:
    found = 0
    for seed in range(CORPORA):
        draw = numpy.random.default_rng(seed)
        errors, tokens, who = corpus(draw, speakers=24, utterances=10, spread=0.3)
        # Two systems with the same hard utterances: one's errors are the other's, shuffled a little.
        ours, theirs = (errors + draw.binomial(3, 0.3, len(errors)) for _ in range(2))
        difference = paired_difference(ours, theirs, tokens, who, resamples=400, seed=seed)
        assert difference is not None
        assert difference.interval is not None
        outside = difference.interval.low > 0 or difference.interval.high < 0
        assert outside == (difference.p_value < 0.05) or 0.02 < difference.p_value < 0.1, "they hardly differ"
        found += outside
    assert 0.03 <= found / CORPORA <= 0.07


def p_values_under_the_null(units: int, corpora: int) -> numpy.ndarray:
    """Two systems that are the same but for luck: each speaker suits one of them more, by as much as the other."""
    draw = numpy.random.default_rng(units)
    hard = 40 * draw.gamma(4, 0.25, (corpora, units))
    ours, theirs = (draw.poisson(hard * draw.lognormal(0, 0.3, (corpora, units))) for _ in range(2))
    return numpy.array([sign_flip_p(one) for one in ours - theirs])


def hold_to_their_level(p: numpy.ndarray, units: int) -> None:
    for level in (0.05, 0.01, 0.001):
        share, luck = (p < level).mean(), 3.5 * math.sqrt(level / len(p))
        assert share <= level + luck, f"{units} units: p < {level} is {share:.2%}"
        # With few units p has few values: the next below a level may be half of it.
        reached = level if 2.0 ** (4 - units) < level else 0.0
        assert share >= 0.6 * reached - luck, f"{units} units: p < {level} is {share:.2%}"


@pytest.mark.parametrize(("units", "corpora"), [(5, 4000), (6, 4000), (8, 4000), (13, 4000), (40, 2000)])
def test_p_is_below_a_level_as_rarely_as_it_says(units: int, corpora: int) -> None:
    hold_to_their_level(p_values_under_the_null(units, corpora), units)


@pytest.mark.slow
@pytest.mark.parametrize("units", [5, 6, 8, 13, 24, 40, 100])
def test_p_is_below_a_level_as_rarely_as_it_says_of_many_corpora(units: int) -> None:
    hold_to_their_level(p_values_under_the_null(units, 40_000), units)


@pytest.mark.parametrize("units", [0, 1, 2, 5, 9, 12])
def test_p_counts_every_way_to_give_signs(units: int) -> None:
    draw = numpy.random.default_rng(units)
    for _ in range(20):
        differences = draw.integers(-6, 9, units)
        sums = [sum(signs * differences) for signs in map(numpy.array, product((-1, 1), repeat=units))]
        expected = numpy.mean([abs(total) >= abs(differences.sum()) for total in sums])
        assert sign_flip_p(differences) == pytest.approx(expected, rel=1e-12)


def test_p_of_a_large_test_set_is_that_of_random_signs() -> None:
    """As many utterances as LibriSpeech's test-clean, of which drawn signs can tell p only roughly."""
    draw = numpy.random.default_rng(0)
    differences = draw.poisson(0.8, 2620) - draw.poisson(0.83, 2620)
    signs = 1 - 2 * draw.integers(0, 2, (4000, 2620), dtype=numpy.int8)
    drawn = (numpy.abs(signs @ differences) >= abs(differences.sum())).mean()
    assert 0.01 < drawn < 0.5, "or this would show little"
    assert sign_flip_p(differences) == pytest.approx(drawn, abs=4 * math.sqrt(drawn / 4000))


def test_a_small_difference_on_the_same_utterances_is_found() -> None:
    """Pairing tells what two intervals laid beside each other do not."""
    draw = numpy.random.default_rng(0)
    errors, tokens, who = corpus(draw, speakers=30, utterances=20, spread=0.3)
    worse = errors + draw.binomial(1, 0.1, len(errors))
    difference = paired_difference(errors, worse, tokens, who)
    ours, theirs = rate_interval(errors, tokens, who), rate_interval(worse, tokens, who)
    assert difference is not None
    assert ours is not None
    assert theirs is not None
    assert difference.value == pytest.approx((errors.sum() - worse.sum()) / tokens.sum())
    assert difference.interval is not None
    assert difference.interval.low < difference.value < difference.interval.high < 0
    assert difference.p_value < 0.001
    assert ours.high > theirs.low, "each alone they overlap"


ERRORS, OTHERS, TOKENS = [2, 0, 5, 1, 3], [1, 1, 3, 2, 3], [10, 4, 9, 7, 12]
STRETCH = math.sqrt(5 / 4) * 2.776445 / 1.959964  # Student's t of 4 degrees of freedom, from a table


def every_resample(errors: list[int], tokens: list[int]) -> numpy.ndarray:
    """The ratios of all 5 ** 5 ways to draw 5 of 5, stretched away from the whole's."""
    whole = sum(errors) / sum(tokens)
    ratios = [sum(errors[i] for i in drawn) / sum(tokens[i] for i in drawn) for drawn in product(range(5), repeat=5)]
    return numpy.array([whole + STRETCH * (ratio - whole) for ratio in ratios])


@pytest.mark.parametrize("clustered", [False, True])
def test_all_ways_to_draw_five_of_five(clustered: bool) -> None:
    errors, others, tokens = ERRORS, OTHERS, TOKENS
    who: list[str | None] = [None] * 5
    if clustered:  # the same five units, told in parts
        errors, others, tokens = [*errors, 0, 4, 1], [*others, 2, 0, 0], [*tokens, 3, 3, 3]
        who = [*"abcde", "c", "a", "a"]
    named = who if clustered else [*"abcde"]
    units = [
        [sum(value for value, w in zip(values, named, strict=True) if w == name) for name in "abcde"]
        for values in (errors, others, tokens)
    ]
    interval = rate_interval(errors, tokens, who, resamples=100_000)
    exact = every_resample(units[0], units[2])
    assert interval is not None
    assert interval.units == Units(over="speakers" if clustered else "utterances", count=5)
    assert interval.low == pytest.approx(max(0.0, numpy.quantile(exact, 0.025)), abs=0.01)
    assert interval.high == pytest.approx(numpy.quantile(exact, 0.975), abs=0.01)
    difference = paired_difference(errors, others, tokens, who, resamples=100_000)
    each = [a - b for a, b in zip(units[0], units[1], strict=True)]
    exact = every_resample(each, units[2])
    assert difference is not None
    assert difference.interval is not None
    assert difference.value == pytest.approx((sum(errors) - sum(others)) / sum(tokens))
    assert difference.interval.low == pytest.approx(numpy.quantile(exact, 0.025), abs=0.01)
    assert difference.interval.high == pytest.approx(numpy.quantile(exact, 0.975), abs=0.01)
    assert difference.p_value == sign_flip_p(each)


def test_the_other_way_round_all_signs_change() -> None:
    draw = numpy.random.default_rng(3)
    tokens = draw.integers(1, 20, 50)
    ours, theirs = draw.binomial(tokens, 0.3), draw.binomial(tokens, 0.32)
    there, back = (paired_difference(*pair, tokens, unknown(tokens)) for pair in ((ours, theirs), (theirs, ours)))
    assert there is not None
    assert back is not None
    assert there.interval is not None
    assert back.interval is not None
    assert back.value == -there.value != 0
    assert back.interval.low == pytest.approx(-there.interval.high)
    assert back.interval.high == pytest.approx(-there.interval.low)
    assert back.p_value == there.p_value


def test_the_same_system_twice() -> None:
    difference = paired_difference(ERRORS, ERRORS, TOKENS, unknown(TOKENS))
    assert difference is not None
    assert (difference.value, difference.interval, difference.p_value) == (0, None, 1)


def test_what_is_drawn() -> None:
    assert units_of(["a", "b", "a"]) == Units(over="speakers", count=2)
    assert units_of(["a"] * 9) == Units(over="utterances", count=9, one_speaker=True)
    for unsure in (["a", "b", None], ["a", "a", None], [None] * 3):
        assert units_of(unsure) == Units(over="utterances", count=3)
    assert units_of([]) == Units(over="utterances", count=0)
    told = [str(units_of(who)) for who in (["a", "b"], ["a"] * 1200, [None], [])]
    assert told == ["2 speakers", "1,200 utterances of one speaker", "1 utterance", "0 utterances"]


ONE_WRONG = [0] * 19 + [1]
TWO_EACH = [2] * 20


@pytest.mark.parametrize(
    ("speakers", "over"),
    [
        ([None] * 20, "20 utterances"),
        (["a"] * 20, "20 utterances of one speaker"),
        ([*"abcde"] * 4, "5 speakers"),
        (["a"] * 19 + [None], "20 utterances"),
    ],
)
def test_enough_to_draw(speakers: list[str | None], over: str) -> None:
    interval = rate_interval(ONE_WRONG, TWO_EACH, speakers)
    difference = paired_difference(ONE_WRONG, [0] * 20, TWO_EACH, speakers)
    assert interval is not None
    assert difference is not None
    assert str(interval.units) == str(difference.units) == over


@pytest.mark.parametrize("speakers", [["a", "b"] * 10, [*"abcd"] * 5])
def test_few_speakers_tell_nothing(speakers: list[str]) -> None:
    """Their utterances go wrong together, and so few do not tell how unlike they are."""
    assert rate_interval(ONE_WRONG, TWO_EACH, speakers) is None
    assert paired_difference(ONE_WRONG, [0] * 20, TWO_EACH, speakers) is None


def test_few_utterances_tell_nothing() -> None:
    few = MIN_UNITS - 1
    for who in (None, "a"):
        assert rate_interval([1] * few, [2] * few, [who] * few) is None
        assert paired_difference([1] * few, [2] * few, [3] * few, [who] * few) is None
    assert rate_interval([], [], []) is None


def test_without_any_error_the_rate_is_not_nothing_for_certain() -> None:
    for units in (5, 8, 2620):
        interval = rate_interval([0] * units, [10] * units, [None] * units)
        assert interval is not None
        assert (interval.low, interval.units.count) == (0.0, units)
        # If more units than that had errors, as many without would be seen less than 5 times of 100.
        assert (1 - interval.high) ** units == pytest.approx(0.05)
        assert interval.high <= 3 / units, "the rule of three"
    speakers = rate_interval([0] * 20, [10] * 20, [*"abcde"] * 4)
    assert speakers is not None
    assert speakers.high == pytest.approx(1 - 0.05**0.2), "tokens and utterances of one speaker are not units"


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
def test_the_bound_holds_the_true_rate(share: float) -> None:
    """Some speakers are not understood at all, and most without an error: the worst there is for few."""
    held, draw = 0, numpy.random.default_rng(0)
    for seed in range(CORPORA):
        lost = draw.random(10) < share
        interval = rate_interval(20.0 * lost, [20] * 10, [*"abcdefghij"], resamples=200, seed=seed)
        held += interval is None or interval.low <= share <= interval.high
    assert held / CORPORA >= 0.93


def test_where_all_have_the_same_rate_nothing_is_told_of_how_they_vary() -> None:
    assert rate_interval([1, 2, 3, 4, 5], [3, 6, 9, 12, 15], unknown(ERRORS)) is None
    assert rate_interval([7] * 9, [7] * 9, [*"abcdefghi"]) is None
    alike = paired_difference([0] * 9, [2] * 9, [4] * 9, [*"abcdefghi"])
    assert alike is not None
    assert (alike.value, alike.interval, alike.p_value) == (-0.5, None, 2 / 2**9)


def test_no_error_rate_is_below_nothing_and_no_reference_divides_by_nothing() -> None:
    interval = rate_interval([0] * 9 + [1], [5] * 10, [None] * 10)
    assert interval is not None
    assert interval.low == 0.0
    for errors in ([0, 1, 0, 2, 0], [0] * 5):
        assert rate_interval(errors, [0] * 5, unknown(errors)) is None


def test_the_seed_decides_and_the_order_of_speakers_does_not() -> None:
    draw = numpy.random.default_rng(1)
    errors, tokens, who = corpus(draw, speakers=10, utterances=5, spread=0.3)
    mixed = draw.permutation(50)
    first = rate_interval(errors, tokens, who, seed=1)
    assert first == rate_interval(errors[mixed], tokens[mixed], [who[place] for place in mixed], seed=1)
    assert first != rate_interval(errors, tokens, who, seed=2)
