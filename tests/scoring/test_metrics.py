"""Errors of utterances add up to the corpus's, which are jiwer's, and no alignment has fewer."""

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parp_cli.scoring.metrics import (
    AlignmentChunk,
    ErrorRate,
    align,
    character_errors,
    pooled,
    utterance_errors,
    word_errors,
)
from tests.scoring.oracle import fewest_edits

TEXTS = st.lists(st.sampled_from(["A", "B", "AB", "ÉA"]), max_size=4).map(" ".join)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4)


@settings(max_examples=50, deadline=None)
@given(PAIRS)
def test_words_and_characters_of_each_utterance(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    for unit, whole, split, process in (
        ("words", word_errors, str.split, jiwer.process_words),
        ("characters", character_errors, list, jiwer.process_characters),
    ):
        alignments = align(references, hypotheses, unit)
        counted = [utterance_errors(alignment) for alignment in alignments]
        for (reference, hypothesis), alignment, errors in zip(pairs, alignments, counted, strict=True):
            edits = (errors.substitutions, errors.deletions, errors.insertions)
            assert edits in fewest_edits(split(reference), split(hypothesis))
            assert errors.tokens == len(split(reference))
            assert errors.rate == sum(edits) / max(1, errors.tokens)
            assert [token for stretch in alignment for token in stretch.reference] == split(reference)
            assert [token for stretch in alignment for token in stretch.hypothesis] == split(hypothesis)
        assert pooled(counted) == whole(references, hypotheses)
        theirs = process(references, hypotheses)
        assert whole(references, hypotheses).rate == (theirs.wer if unit == "words" else theirs.cer)


def test_stretches_of_an_alignment() -> None:
    (alignment,) = align(["THE BIG CAT SAT ON IT"], ["THE CAT SET ON IT NOW"], "words")
    assert alignment == (
        AlignmentChunk("equal", ("THE",), ("THE",)),
        AlignmentChunk("delete", ("BIG",), ()),
        AlignmentChunk("equal", ("CAT",), ("CAT",)),
        AlignmentChunk("substitute", ("SAT",), ("SET",)),
        AlignmentChunk("equal", ("ON", "IT"), ("ON", "IT")),
        AlignmentChunk("insert", (), ("NOW",)),
    )
    errors = ErrorRate(rate=0.5, substitutions=1, deletions=1, insertions=1, tokens=6)
    assert utterance_errors(alignment) == errors
    assert errors.errors == 3


def test_long_utterances_count_more() -> None:
    short, long = word_errors(["A"], ["B"]), word_errors(["A " * 9], ["A " * 9])
    assert pooled([short, long]).rate == pytest.approx(0.1)


def test_without_reference_every_word_is_one_too_many() -> None:
    assert word_errors([""], ["A B"]) == ErrorRate(rate=2.0, substitutions=0, deletions=0, insertions=2, tokens=0)
    assert word_errors([""], [""]).rate == 0.0
    assert pooled([]).rate == 0.0


def test_the_form_of_unicode_is_no_error() -> None:
    composed, decomposed = "D\u00c9J\u00c0 VU", "DE\u0301JA\u0300 VU"
    assert word_errors([composed], [decomposed]).rate == character_errors([decomposed], [composed]).rate == 0
    assert [part.kind for part in align([composed], [decomposed], "characters")[0]] == ["equal"]
