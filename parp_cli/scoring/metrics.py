"""Error rates of a corpus and of each utterance, and confusions, all from alignments by jiwer.

The errors of any part of a corpus (a speaker, a split, a resample) are sums over its utterances.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, cast

import jiwer

Unit = Literal["words", "characters", "phones"]
"""The tokens counted. Words and phones are separated by spaces; characters include the spaces."""

METRICS: dict[Unit, str] = {"words": "WER", "characters": "CER", "phones": "PER"}

Kind = Literal["equal", "substitute", "delete", "insert"]

MAX_CONFUSIONS = 20
"""Confusions listed per kind."""

MAX_SYMBOLS = 40
"""Rows and columns of a confusion matrix: more cannot be told apart on a page."""


@dataclass(frozen=True, kw_only=True)
class ErrorRate:
    """Edits that turn the references into the hypotheses, over one utterance or many.

    Attributes:
        rate: (substitutions + deletions + insertions) / reference tokens; may exceed 1. Without reference tokens it is
            the number of insertions, as in jiwer.
        tokens: words, characters or phones in the references.
    """

    rate: float
    substitutions: int
    deletions: int
    insertions: int
    tokens: int

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True)
class AlignmentChunk:
    """Consecutive tokens of an alignment with the same kind of edit: equally many on both sides, or none on one."""

    kind: Kind
    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]


Alignment = tuple[AlignmentChunk, ...]
"""The reference and hypothesis of one utterance side by side, with the fewest possible edits."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A recurring error, of how many occurrences of the token: in the references, or of an insertion in the hypotheses.

    "" stands for no token.
    """

    reference: str
    hypothesis: str
    count: int
    of: int


@dataclass(frozen=True, kw_only=True)
class Confusions:
    """The most frequent errors of each kind, in falling order; equally frequent ones alphabetically."""

    unit: Unit
    substitutions: tuple[Confusion, ...]
    deletions: tuple[Confusion, ...]
    insertions: tuple[Confusion, ...]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """How often each letter or phone was recognised as each.

    Attributes:
        symbols: the most frequent, alphabetically; "" comes first and stands for none, so that its row holds the
            insertions and its column the deletions.
        counts: one row per reference symbol, one column per hypothesis symbol.
    """

    unit: Unit
    symbols: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Step:
    """One column of an alignment; "" stands for no token."""

    kind: Kind
    reference: str
    hypothesis: str


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Errors in tokens separated by spaces: words (WER), or phones (PER)."""
    return pooled(map(utterance_errors, align(references, hypotheses, "words")))


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Errors in characters, spaces included (CER)."""
    return pooled(map(utterance_errors, align(references, hypotheses, "characters")))


def align(references: Sequence[str], hypotheses: Sequence[str], unit: Unit) -> list[Alignment]:
    """jiwer's alignment of each utterance; `utterance_errors` counts it.

    Texts are brought to one Unicode form: the same letters are no error, whichever way they are composed.
    """
    process = jiwer.process_characters if unit == "characters" else jiwer.process_words
    composed = [[unicodedata.normalize("NFC", text) for text in texts] for texts in (references, hypotheses)]
    output = process(composed[0], composed[1])
    return [
        tuple(
            AlignmentChunk(
                cast(Kind, chunk.type),
                tuple(reference[chunk.ref_start_idx : chunk.ref_end_idx]),
                tuple(hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]),
            )
            for chunk in chunks
        )
        for reference, hypothesis, chunks in zip(output.references, output.hypotheses, output.alignments, strict=True)
    ]


def utterance_errors(alignment: Alignment) -> ErrorRate:
    """The errors of one utterance."""
    counts = Counter[str]()
    for chunk in alignment:
        counts[chunk.kind] += max(len(chunk.reference), len(chunk.hypothesis))
    edits = counts["substitute"], counts["delete"], counts["insert"]
    return _error_rate(*edits, tokens=sum(len(chunk.reference) for chunk in alignment))


def pooled(parts: Iterable[ErrorRate]) -> ErrorRate:
    """The errors of several utterances together: every token counts the same, so long utterances count more."""
    counts = [(part.substitutions, part.deletions, part.insertions, part.tokens) for part in parts]
    return _error_rate(*map(sum, zip(*counts, strict=True))) if counts else _error_rate(0, 0, 0, 0)


def _error_rate(substitutions: int, deletions: int, insertions: int, tokens: int) -> ErrorRate:
    return ErrorRate(
        rate=(substitutions + deletions + insertions) / max(1, tokens),
        substitutions=substitutions,
        deletions=deletions,
        insertions=insertions,
        tokens=tokens,
    )


def steps(alignment: Alignment) -> Iterator[Step]:
    """An alignment token by token."""
    for chunk in alignment:
        for reference, hypothesis in zip_longest(chunk.reference, chunk.hypothesis, fillvalue=""):
            yield Step(chunk.kind, reference, hypothesis)


def confusions(alignments: Sequence[Alignment], unit: Unit, limit: int = MAX_CONFUSIONS) -> Confusions:
    """Count the errors of all utterances, token by token."""
    pairs = Counter(step for alignment in alignments for step in steps(alignment))
    in_references, in_hypotheses = Counter[str](), Counter[str]()
    for step, count in pairs.items():
        in_references[step.reference] += count
        in_hypotheses[step.hypothesis] += count

    def of_kind(kind: Kind) -> tuple[Confusion, ...]:
        some = [(step, count) for step, count in pairs.items() if step.kind == kind]
        some.sort(key=lambda item: (-item[1], item[0].reference, item[0].hypothesis))
        return tuple(
            Confusion(
                reference=step.reference,
                hypothesis=step.hypothesis,
                count=count,
                of=in_references[step.reference] if step.reference else in_hypotheses[step.hypothesis],
            )
            for step, count in some[:limit]
        )

    return Confusions(
        unit=unit,
        substitutions=of_kind("substitute"),
        deletions=of_kind("delete"),
        insertions=of_kind("insert"),
    )


def matrix(alignments: Sequence[Alignment], unit: Unit, limit: int = MAX_SYMBOLS) -> Matrix:
    """Count how often each symbol was taken for each, among the `limit` most frequent on either side."""
    pairs = Counter((step.reference, step.hypothesis) for alignment in alignments for step in steps(alignment))
    occurrences = Counter[str]()
    for pair, count in pairs.items():
        for symbol in filter(None, pair):
            occurrences[symbol] += count
    frequent = sorted(occurrences, key=lambda symbol: (-occurrences[symbol], symbol))[:limit]
    symbols = ("", *sorted(frequent))
    counts = tuple(tuple(pairs[reference, hypothesis] for hypothesis in symbols) for reference in symbols)
    return Matrix(unit=unit, symbols=symbols, counts=counts)
