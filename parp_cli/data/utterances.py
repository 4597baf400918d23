"""One utterance: the unit that every corpus is a list of."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """A recording and what is known about it.

    `text` and `phones` are both None for unlabelled audio, which pre-training reads.
    """

    id: str
    """Unique within its split, such as "84-121123-0001"."""

    audio: Path
    """The sound file, ready to open (not relative to a manifest)."""

    split: str
    """The split that it belongs to, such as "test-clean"; "" where there are no splits."""

    seconds: float
    """Length in seconds; 0 where it is not known because the file cannot be read."""

    text: str | None = None
    """Transcript: upper case words divided by single spaces."""

    phones: tuple[tuple[str, ...], ...] | None = None
    """Phone symbols, one tuple a word."""

    speaker: str | None = None
    """Whoever speaks, where the corpus says so."""


def normalize_text(text: str) -> str:
    """Upper case, words divided by single spaces."""
    return " ".join(text.upper().split())


def parse_phones(line: str) -> tuple[tuple[str, ...], ...]:
    """Read "HH AH0 | DH EH1 R" (phones divided by spaces, words by "|"); empty words are dropped."""
    words = (tuple(word.split()) for word in line.split("|"))
    return tuple(word for word in words if word)
