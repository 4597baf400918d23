"""Utterances, of which every corpus is a list."""

from dataclasses import dataclass
from pathlib import Path

from parp_cli.data.text import normalize_text


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """A recording and its labels; pre-training reads audio with neither `text` nor `phones`."""

    id: str
    """Unique within its split, such as "84-121123-0001"."""

    audio: Path
    """The audio file, as it can be opened (not relative to a manifest)."""

    split: str
    """Its split, such as "test-clean"; "" if there are no splits."""

    seconds: float
    """Length in seconds; 0 if the corpus does not give it, until the audio is decoded."""

    text: str | None = None
    """Transcript in Unicode's NFC, words separated by single spaces; in the case of its corpus."""

    phones: tuple[tuple[str, ...], ...] | None = None
    """Phone symbols, one tuple per word."""

    speaker: str | None = None
    """Name of the speaker, if the corpus gives it."""

    language: str | None = None
    """Code of the language, such as "es", if the corpus gives it."""


def parse_phones(line: str) -> tuple[tuple[str, ...], ...]:
    """Read "HH AH0 | DH EH1 R" (phones separated by spaces, words by "|"), in NFC; empty words are dropped."""
    words = (tuple(word.split()) for word in normalize_text(line).split("|"))
    return tuple(word for word in words if word)
