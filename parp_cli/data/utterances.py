"""One utterance: what every corpus is a list of."""

from dataclasses import dataclass
from pathlib import Path

from parp_cli.data.text import normalize_text


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """A recording and what is known about it.

    `text` and `phones` are both None for unlabelled audio, which pre-training reads.
    """

    id: str
    """Unique within its split, such as "84-121123-0001"."""

    audio: Path
    """The audio file, ready to open (not relative to a manifest)."""

    split: str
    """The split it belongs to, such as "test-clean"; "" where there are no splits."""

    seconds: float
    """Length in seconds; 0 where the corpus does not give it, until the audio is decoded."""

    text: str | None = None
    """Transcript in Unicode's NFC, words separated by single spaces; in the case that it has in its corpus."""

    phones: tuple[tuple[str, ...], ...] | None = None
    """Phone symbols, one tuple per word."""

    speaker: str | None = None
    """Name of the speaker, where the corpus has it."""


def parse_phones(line: str) -> tuple[tuple[str, ...], ...]:
    """Read "HH AH0 | DH EH1 R" (phones separated by spaces, words by "|"), in NFC; empty words are dropped."""
    words = (tuple(word.split()) for word in normalize_text(line).split("|"))
    return tuple(word for word in words if word)
