"""Error rates over a corpus, counted by jiwer."""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer


@dataclass(frozen=True, kw_only=True)
class ErrorRate:
    """Edits that turn the references into the hypotheses, over all utterances together.

    Attributes:
        rate: (substitutions + deletions + insertions) / reference tokens; may exceed 1.
        tokens: words, characters or phones in the references.
    """

    rate: float
    substitutions: int
    deletions: int
    insertions: int
    tokens: int


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Of tokens divided by spaces: words (WER), or phones (PER). References must not be empty."""
    return _error_rate(jiwer.process_words(list(references), list(hypotheses)))


def character_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Of characters, spaces included (CER). References must not be empty."""
    return _error_rate(jiwer.process_characters(list(references), list(hypotheses)))


def _error_rate(output: jiwer.WordOutput | jiwer.CharacterOutput) -> ErrorRate:
    edits = output.substitutions + output.deletions + output.insertions
    tokens = output.hits + output.substitutions + output.deletions
    return ErrorRate(
        rate=edits / tokens if tokens else 0.0,
        substitutions=output.substitutions,
        deletions=output.deletions,
        insertions=output.insertions,
        tokens=tokens,
    )
