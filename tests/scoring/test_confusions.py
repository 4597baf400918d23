"""Errors are counted token by token."""

from collections import Counter

from parp_cli.scoring.metrics import Confusion, align, confusions, matrix, steps, utterance_errors
from tests.scoring.worlds import garbled


def test_most_frequent_errors_first() -> None:
    references = ["THE CAT SAT", "THE CAT SAT", "A CAT SAT", "THE DOG"]
    hypotheses = ["THE BAT SAT", "THE BAT", "CAT SAT ON", "A DOG ON"]
    found = confusions(align(references, hypotheses, "words"), "words")
    assert found.substitutions == (
        Confusion(reference="CAT", hypothesis="BAT", count=2, of=3),
        Confusion(reference="THE", hypothesis="A", count=1, of=3),
    )
    assert found.deletions == (
        Confusion(reference="A", hypothesis="", count=1, of=1),
        Confusion(reference="SAT", hypothesis="", count=1, of=3),
    )
    assert found.insertions == (Confusion(reference="", hypothesis="ON", count=2, of=2),)
    assert confusions(align(references, hypotheses, "words"), "words", limit=1).deletions == found.deletions[:1]
    perfect = confusions(align(["A"], ["A"], "words"), "words")
    assert perfect.substitutions == perfect.deletions == perfect.insertions == ()


def test_confusions_and_matrix_hold_all_errors_and_all_tokens() -> None:
    recognitions = garbled(0, 80)
    references, hypotheses = [this.reference for this in recognitions], [this.hypothesis for this in recognitions]
    alignments = align(references, hypotheses, "words")
    found, errors = confusions(alignments, "words", limit=1000), [utterance_errors(this) for this in alignments]
    assert sum(this.count for this in found.substitutions) == sum(this.substitutions for this in errors) > 0
    assert sum(this.count for this in found.deletions) == sum(this.deletions for this in errors) > 0
    assert sum(this.count for this in found.insertions) == sum(this.insertions for this in errors) > 0
    table = matrix(alignments, "words")
    said, recognised = (Counter(word for text in texts for word in text.split()) for texts in (references, hypotheses))
    assert table.symbols == ("", *sorted(said | recognised))
    for place, symbol in enumerate(table.symbols[1:], start=1):
        assert sum(table.counts[place]) == said[symbol]
        assert sum(row[place] for row in table.counts) == recognised[symbol]
    assert table.counts[0][0] == 0
    pairs = {(this.reference, this.hypothesis): this.count for this in (*found.substitutions, *found.deletions)}
    for row, symbol in enumerate(table.symbols):
        for column, other in enumerate(table.symbols):
            if row and row != column:
                assert table.counts[row][column] == pairs.get((symbol, other), 0)


def test_a_matrix_keeps_the_most_frequent_symbols() -> None:
    alignments = align(["AAAB C"], ["AAAB"], "characters")
    assert matrix(alignments, "characters", limit=2).symbols == ("", "A", "B")
    assert matrix(align(["A"], [""], "characters"), "characters").counts == ((0, 0), (1, 0))


def test_steps_take_stretches_apart() -> None:
    (alignment,) = align(["A B"], ["C D E"], "words")
    told = [(step.kind, step.reference, step.hypothesis) for step in steps(alignment)]
    assert sorted(kind for kind, *_ in told) == ["insert", "substitute", "substitute"]
    assert [reference for _, reference, _ in told if reference] == ["A", "B"]
    assert [hypothesis for *_, hypothesis in told] == ["C", "D", "E"]
    assert list(steps(())) == []
