"""Text as transcripts have it: one Unicode form, single spaces, and letters in the case that labels need."""

import re
import unicodedata
from typing import Literal

Case = Literal["upper", "lower"]

_BYTE_ORDER_MARK = "\ufeff"
_FINAL_SIGMA = re.compile(r"(?<=\w)Σ(?!\w)")


def normalize_text(text: str) -> str:
    """Unicode's NFC, words separated by single spaces, no byte order mark; case and everything else is kept."""
    return " ".join(unicodedata.normalize("NFC", text.removeprefix(_BYTE_ORDER_MARK)).split())


def fold(text: str) -> str:
    """What a text has in common with itself in another case. Unlike `str.casefold` it keeps ß apart from ss."""
    return text.lower().replace("ς", "σ")


def in_case(text: str, case: Case) -> str:
    """Text (NFC) in upper or lower case, but for letters that would not be the same letter in the other case.

    These stay as they are: ß (whose capital is SS), ı (whose capital is that of i), and letters of scripts that do not
    begin sentences with capitals (Georgian). "Σ" becomes "ς" at the end of a word.
    """
    if case == "upper":
        return "".join(map(_capital, text))
    return "".join(map(_small, final_sigmas(text)))


def final_sigmas(text: str) -> str:
    """Text whose words do not end in Σ but in ς."""
    return _FINAL_SIGMA.sub("ς", text)


def _capital(character: str) -> str:
    if character == "ς":
        return "Σ"
    upper = character.upper()
    return upper if len(upper) == 1 and upper.lower() == character != character.title() else character


def _small(character: str) -> str:
    lower = character.lower()
    return lower if len(lower) == 1 and lower.upper() == character else character
