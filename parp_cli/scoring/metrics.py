"""Error rates of a corpus and of each utterance, counted by jiwer.

Whatever is told about a part of a corpus (a speaker, a split, a resample) is a sum over its utterances.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import jiwer

Unit = Literal["words", "characters", "phones"]
"""What is counted. Words and phones are divided by spaces; characters include the spaces."""

METRICS: dict[Unit, str] = {"words": "WER", "characters": "CER", "phones": "PER"}

Kind = Literal["equal", "substitute", "delete", "insert"]


@dataclass(frozen=True, kw_only=True)
class ErrorRate:
    """Edits that turn the references into the hypotheses, over one utterance or many together.

    Attributes:
        rate: (substitutions + deletions + insertions) / reference tokens; may exceed 1. Without reference tokens it is
            the number of insertions, as jiwer has it.
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
class Stretch:
    """Neighbouring tokens of an alignment to which the same happened.

    Attributes:
        reference: tokens; none where tokens were inserted.
        hypothesis: tokens; none where tokens were deleted; else as many as in the reference.
    """

    kind: Kind
    reference: tuple[str, ...]
    hypothesis: tuple[str, ...]


Alignment = tuple[Stretch, ...]
"""One utterance: its reference and its hypothesis side by side, with as few edits as can be."""


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Of tokens divided by spaces: words (WER), or phones (PER)."""
    return _of_output(jiwer.process_words(_nfc(references), _nfc(hypotheses)))


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Of characters, spaces included (CER)."""
    return _of_output(jiwer.process_characters(_nfc(references), _nfc(hypotheses)))


def _nfc(texts: Iterable[str]) -> list[str]:
    """Texts in one Unicode form: the same letters are no error, whichever way they are composed."""
    return [unicodedata.normalize("NFC", text) for text in texts]


def align(references: Sequence[str], hypotheses: Sequence[str], unit: Unit) -> list[Alignment]:
    """jiwer's alignment of each utterance; `utterance_errors` counts it."""
    process = jiwer.process_characters if unit == "characters" else jiwer.process_words
    output = process(_nfc(references), _nfc(hypotheses))
    return [
        tuple(
            Stretch(
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
    counts = {"equal": 0, "substitute": 0, "delete": 0, "insert": 0}
    for stretch in alignment:
        counts[stretch.kind] += max(len(stretch.reference), len(stretch.hypothesis))
    return _error_rate(
        counts["substitute"],
        counts["delete"],
        counts["insert"],
        counts["equal"] + counts["substitute"] + counts["delete"],
    )


def together(parts: Iterable[ErrorRate]) -> ErrorRate:
    """The errors of several utterances as one: every token counts the same, so long utterances count more."""
    parts = list(parts)
    return _error_rate(
        sum(part.substitutions for part in parts),
        sum(part.deletions for part in parts),
        sum(part.insertions for part in parts),
        sum(part.tokens for part in parts),
    )


def _of_output(output: jiwer.WordOutput | jiwer.CharacterOutput) -> ErrorRate:
    tokens = output.hits + output.substitutions + output.deletions
    return _error_rate(output.substitutions, output.deletions, output.insertions, tokens)


def _error_rate(substitutions: int, deletions: int, insertions: int, tokens: int) -> ErrorRate:
    return ErrorRate(
        rate=(substitutions + deletions + insertions) / max(1, tokens),
        substitutions=substitutions,
        deletions=deletions,
        insertions=insertions,
        tokens=tokens,
    )
