"""Normalisation of transcripts: one Unicode form, single spaces, and letters in the case that labels need."""

import re
import unicodedata
from pathlib import Path
from typing import Literal

from parp_cli.errors import DataError

Case = Literal["upper", "lower"]

_MARKS = ("<s>", "</s>")
_APOSTROPHE = re.compile("[‘’]")
_FINAL_SIGMA = re.compile(r"(?<=\w)Σ(?!\w)")


def read_utf8(path: Path, *, what: str, hint: str = "save it as UTF-8") -> str:
    """The content of a text file, which messages call `what`, without byte order mark.

    Raises DataError where it cannot be read, or is not UTF-8, with this hint.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{what} is not UTF-8 text", details=[str(error)], hint=hint) from error
    except OSError as error:
        raise DataError(f"cannot read {what}", details=[error.strerror or str(error)], hint="check the path") from error


def numbered_lines(text: str) -> list[tuple[int, str]]:
    """Number (from 1) and text of every line that is not blank.

    Unlike those of splitlines, which also splits at characters that a text may contain.
    """
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def normalize_text(text: str) -> str:
    """Unicode's NFC with single spaces, without byte order mark and without the marks of sentences, <s> and </s>;
    everything else, such as case, is kept."""
    return " ".join(word for sentence in without_marks(text) for word in sentence)


def without_punctuation(text: str) -> str:
    """A text (NFC) without Unicode's punctuation and symbols, which nobody speaks, except apostrophes inside words.

    "What's this? A half-open door." is "What's this A half open door"; ’ becomes an apostrophe.
    """
    text = _APOSTROPHE.sub("'", text)
    is_letter = [False, *(unicodedata.category(character)[0] in "LM" for character in text), False]
    spoken = [
        character if unicodedata.category(character)[0] not in "PS" or (character == "'" and before and after) else " "
        for before, character, after in zip(is_letter, text, is_letter[2:], strict=False)
    ]
    return " ".join("".join(spoken).split())


def without_marks(text: str) -> list[list[str]]:
    """The words (NFC) of each sentence of a text, where <s> and </s> mark sentences; at least one sentence."""
    words = unicodedata.normalize("NFC", text.removeprefix("\ufeff")).split()
    sentences: list[list[str]] = [[]]
    for word in words:
        if word.lower() not in _MARKS:
            sentences[-1].append(word)
        elif sentences[-1]:
            sentences.append([])
    return sentences


def columns_of(text: str) -> int:
    """Width in columns: two for letters such as 中, none for marks that combine with the letter before."""
    return sum(
        0 if unicodedata.category(letter) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


def lower(text: str, language: str) -> str:
    """Lower case as a language has it: I is ı in Turkish and its relatives."""
    if language.split("-")[0] in ("az", "crh", "tr"):
        text = text.replace("İ", "i").replace("I", "ı")
    return text.lower()


def fold(text: str) -> str:
    """The same for a text in any case. Unlike `str.casefold` it distinguishes ß from ss."""
    return text.lower().replace("ς", "σ")


def in_case(text: str, case: Case) -> str:
    """Text (NFC) in upper or lower case, except letters that the other case would turn into others.

    These are kept: ß (whose capital is SS), ı (whose capital is that of i), and letters of scripts that do not begin
    sentences with capitals (Georgian). "Σ" becomes "ς" at the end of a word.
    """
    return "".join(map(_capital, text) if case == "upper" else map(_small, final_sigmas(text)))


def final_sigmas(text: str) -> str:
    """Text with ς instead of Σ at the end of words."""
    return _FINAL_SIGMA.sub("ς", text)


def _capital(character: str) -> str:
    if character == "ς":
        return "Σ"
    upper = character.upper()
    return upper if len(upper) == 1 and upper.lower() == character != character.title() else character


def _small(character: str) -> str:
    lower = character.lower()
    return lower if len(lower) == 1 and lower.upper() == character else character
