"""What is said of two systems, and which pairs of results cannot be compared."""

import math
import random
import re
from dataclasses import replace

import numpy
import pytest

from parp_cli.errors import DataError
from parp_cli.scoring.comparison import Comparison, check_comparable, compare, p_text
from parp_cli.scoring.intervals import Units
from parp_cli.scoring.results import Recognition
from tests.scoring.worlds import garbled


def test_a_better_system_is_found_and_said_to_be() -> None:
    ours, theirs = garbled(0, 200, wrong=0.1), garbled(0, 200, wrong=0.3)
    found = compare(ours, theirs, unit="words", name="ours", other="theirs")
    assert found.difference is not None
    assert found.difference.interval is not None
    assert found.verdict == "better"
    points = 100 * (found.theirs.rate - found.ours.rate)
    reach = f"{-100 * found.difference.interval.high:.1f} to {-100 * found.difference.interval.low:.1f}"
    # All of 8 speakers are better: 2 of 2 ** 8 ways to give signs.
    told = f"{points:.1f} points of WER fewer (95 % interval {reach} fewer; p = 0.008; over 8 speakers)"
    assert found.words == f"ours is better than theirs: {told}"
    assert (found.utterances, found.only_ours, found.only_theirs) == (200, 0, 0)
    assert found.difference.value == pytest.approx(found.ours.rate - found.theirs.rate)
    assert found.better_utterances > found.worse_utterances
    back = compare(theirs, ours, unit="words", name="theirs", other="ours")
    assert back.verdict == "worse"
    reach = f"{100 * back.difference.interval.low:.1f} to {100 * back.difference.interval.high:.1f}"  # type: ignore[union-attr]
    assert f"theirs is worse than ours: {points:.1f} points of WER more (95 % interval {reach} more; " in back.words
    assert (back.better_utterances, back.worse_utterances) == (found.worse_utterances, found.better_utterances)


def test_systems_whose_labels_have_another_case() -> None:
    """Each is aligned with its own references: equal errors are equal, whatever the case."""
    ours = garbled(0, 50)
    theirs = [replace(one, reference=one.reference.lower(), hypothesis=one.hypothesis.lower()) for one in ours]
    found = compare(ours, theirs, unit="words", name="upper", other="lower")
    assert found.ours == found.theirs
    assert (found.better_utterances, found.worse_utterances) == (0, 0)


def test_two_runs_of_one_system_cannot_be_told_apart() -> None:
    found = compare(garbled(0, 200), garbled(0, 200, noise=1), unit="words", name="a", other="b")
    assert found.ours.errors != found.theirs.errors
    assert found.verdict == "undecided"
    assert found.words.startswith("no significant difference between a and b: ")
    assert " fewer to " in found.words


def test_the_same_hypotheses() -> None:
    ours = garbled(0, 50)
    found = compare(ours, ours, unit="words", name="a", other="b")
    assert found.words == "no difference: a and b make equally many errors in all 8 speakers"
    assert (found.verdict, found.better_utterances, found.worse_utterances) == ("undecided", 0, 0)


def test_a_difference_near_nothing_has_digits_enough_to_see_its_side() -> None:
    ours = [Recognition(id=str(n), reference="A " * 100, hypothesis="A " * 100) for n in range(40)]
    theirs = [replace(this, hypothesis=this.hypothesis + "B") if n % 7 == 0 else this for n, this in enumerate(ours)]
    found = compare(ours, theirs, unit="words", name="a", other="b")
    assert re.search(r"0\.15 points of WER fewer \(95 % interval 0\.0[1-9] to 0\.\d\d fewer; p = 0\.031;", found.words)
    assert found.verdict == "better"


def test_too_few_utterances() -> None:
    ours = garbled(0, 4)
    found = compare(ours, [replace(this, hypothesis="") for this in ours], unit="words", name="a", other="b")
    assert found.difference is None
    assert found.verdict == "undecided"
    assert found.words == "no significant difference between a and b: too few speakers to tell (4)"
    unknown = [replace(this, speaker=None) for this in ours]
    assert "too few utterances to tell (4)" in compare(unknown, unknown, unit="words", name="a", other="b").words


@pytest.mark.parametrize("speakers", [2, 3, 4])
def test_few_speakers_are_no_verdict_however_many_utterances(speakers: int) -> None:
    ours, theirs = (garbled(0, 400, wrong=wrong, speakers=speakers) for wrong in (0.0, 0.5))
    found = compare(ours, theirs, unit="words", name="a", other="b")
    assert (found.difference, found.verdict) == (None, "undecided")
    assert found.units == Units(over="speakers", count=speakers)
    assert found.words == f"no significant difference between a and b: too few speakers to tell ({speakers})"
    assert found.ours.rate < found.theirs.rate


def test_one_speaker_tells_nothing_of_others_and_so_it_is_said() -> None:
    ours, theirs = (garbled(0, 100, wrong=wrong, speakers=1) for wrong in (0.1, 0.5))
    found = compare(ours, theirs, unit="words", name="a", other="b")
    assert found.verdict == "better"
    assert found.words.endswith("over 100 utterances of one speaker); one speaker says nothing about others")
    nobody = [[replace(this, speaker=None) for this in some] for some in (ours, theirs)]
    found = compare(*nobody, unit="words", name="a", other="b")
    assert found.words.endswith("over 100 utterances)")


def test_utterances_are_matched_by_id_and_not_by_place() -> None:
    ours, theirs = garbled(0, 60), garbled(0, 60, wrong=0.5)
    found = compare(ours, theirs, unit="characters", name="a", other="b")
    mixed = compare(ours, theirs[::-1], unit="characters", name="a", other="b")
    assert mixed == found
    assert found.metric == "CER"


def test_speakers_and_splits_may_be_known_to_one_side_only() -> None:
    ours = garbled(0, 60)
    plain = [replace(this, speaker=None, split="") for this in ours]
    for first, second in ((ours, plain), (plain, ours)):
        found = compare(first, second, unit="words", name="a", other="b")
        assert found.difference is not None
        assert found.difference.units == Units(over="speakers", count=8)


def test_the_same_id_in_two_splits() -> None:
    both = [replace(this, split=split) for split in ("dev", "test") for this in garbled(0, 30)]
    assert compare(both, both, unit="words", name="a", other="b").utterances == 60
    with pytest.raises(DataError, match="a has utterances more than once"):
        compare(both, [replace(this, split="") for this in both], unit="words", name="a", other="b")


def test_what_only_one_has_is_left_out_and_counted() -> None:
    ours, theirs = garbled(0, 200, wrong=0.1), garbled(0, 200, wrong=0.3)
    both = compare(ours[3:-1], theirs[3:-1], unit="words", name="a", other="b")
    found = compare(ours[3:], theirs[:-1], unit="words", name="a", other="b")
    assert (found.utterances, found.only_ours, found.only_theirs) == (196, 1, 3)
    assert (found.ours, found.theirs, found.difference) == (both.ours, both.theirs, both.difference)
    assert found.words == f"{both.words}; on the 196 utterances in both, without 1 only in a and 3 only in b"
    found = compare(ours[:1], theirs, unit="words", name="a", other="b")
    assert found.words.endswith("; on the 1 utterance in both, without 199 only in b")


class TestRefusal:
    """The same before anything is recognised and after it."""

    @staticmethod
    def refused(ours: list[Recognition], theirs: list[Recognition]) -> DataError:
        unrecognized = [replace(this, hypothesis="") for this in ours]
        with pytest.raises(DataError) as before:
            check_comparable(unrecognized, theirs, name="a", other="b")
        with pytest.raises(DataError) as after:
            compare(ours, theirs, unit="words", name="a", other="b")
        assert str(before.value) == str(after.value)
        return before.value

    def test_no_utterance_in_common(self) -> None:
        error = self.refused(garbled(0, 12, split="test"), garbled(0, 12, split="dev"))
        assert error.message == "a and b are not of the same utterances: none is in both"
        assert error.details[0] == "0-0000 of test is only in a"
        assert error.details[6] == "0-0000 of dev is only in b"

    def test_other_references(self) -> None:
        ours = garbled(0, 12)
        error = self.refused(ours, [replace(ours[0], reference="OTHER"), *ours[2:]])
        assert error.message == "a and b have other references for 1 utterance"
        assert error.details == (f"{ours[0].id} of test: {ours[0].reference!r} and 'OTHER'",)

    def test_the_same_id_twice(self) -> None:
        both = [replace(this, split=split) for split in ("dev", "test") for this in garbled(0, 2)]
        error = self.refused(both, [replace(this, split="") for this in both[:2]])
        assert error.message == "a has utterances more than once"
        assert error.details == ("utterance 0-0000 comes 2 times", "utterance 1-0001 comes 2 times")

    def test_nothing_to_refuse(self) -> None:
        ours = garbled(0, 12)
        check_comparable([replace(this, hypothesis="") for this in ours[1:]], ours[:-1], name="a", other="b")


def claims(found: Comparison) -> tuple[bool, float, float]:
    """What the sentence says: whether it tells a difference, the p it shows, and whether its interval holds 0."""
    difference = re.search(r"p ([=<]) ([\d.]+)", found.words)
    assert difference is not None
    return " is better than " in found.words or " is worse than " in found.words, *[
        float(difference[2]) - (difference[1] == "<") * 1e-9,
        " fewer to " in found.words,
    ]


def test_verdict_interval_and_p_never_contradict_each_other() -> None:
    kinds = set()
    for seed in range(250):
        luck = random.Random(seed)
        # Few units and a difference near what can just be told, so that the two often disagree.
        ours, theirs = (
            [
                Recognition(id=str(n), reference="A " * 10, hypothesis="A " * (10 - luck.choice(wrong)))
                for n in range(5 + seed % 6)
            ]
            for wrong in ((0, 1, 2), (0, 1, 2, 6))
        )
        found = compare(ours, theirs, unit="words", name="a", other="b", resamples=500)
        assert found.difference is not None
        if found.difference.interval is None:
            continue
        told, p, holds_zero = claims(found)
        assert told == (p < 0.05 and not holds_zero) == (found.verdict != "undecided")
        assert (p < 0.05) == (found.difference.p_value < 0.05)
        kinds.add((p < 0.05, holds_zero))
        if p < 0.05 and holds_zero:
            assert "but the 95 % interval includes 0" in found.words
        if p >= 0.05 and not holds_zero:
            assert "the 95 % interval excludes 0, " in found.words
    assert len(kinds) >= 3


def test_a_p_just_below_the_level_is_seen_to_be() -> None:
    """Rounded to 0.050 it would contradict the verdict."""
    assert [p_text(p, 0.05) for p in (0.0499, 0.05, 0.049996, 0.0501, 0.4, 0.00099)] == [
        "= 0.0499",
        "= 0.050",
        "= 0.049996",
        "= 0.050",
        "= 0.400",
        "< 0.001",
    ]


def test_the_same_difference_everywhere_needs_no_interval() -> None:
    ours = [Recognition(id=str(n), reference="A B", hypothesis="A B") for n in range(9)]
    theirs = [replace(this, hypothesis="") for this in ours]
    found = compare(ours, theirs, unit="words", name="a", other="b")
    assert found.words == "a is better than b: 100.0 points of WER fewer (in all 9 utterances alike; p = 0.004)"
    few = compare(ours[:5], theirs[:5], unit="words", name="a", other="b")
    assert few.verdict == "undecided"
    assert few.words.endswith("100.0 points of WER fewer (in all 5 utterances alike; p = 0.062)")


@pytest.mark.parametrize("speakers", [2, 4, 5, 8, 20])
def test_verdicts_where_there_is_no_difference(speakers: int) -> None:
    """Each speaker suits one of two equal systems more: told to be a difference at most 5 times of 100."""
    corpora, told = 100, 0
    for seed in range(corpora):
        draw = numpy.random.default_rng(seed)
        suits = draw.random((2, speakers))
        ours, theirs = (
            [
                Recognition(id=str(n), reference="A " * 20, hypothesis="A " * (20 - errors), speaker=str(n % speakers))
                for n, errors in enumerate(draw.binomial(20, numpy.resize(suit, 10 * speakers)).tolist())
            ]
            for suit in suits
        )
        told += compare(ours, theirs, unit="words", name="a", other="b", resamples=400).verdict != "undecided"
    assert told / corpora <= 0.05 + 2 * math.sqrt(0.05 / corpora)
