"""Phones in one form: the International Phonetic Alphabet, one symbol per phone, whatever program wrote it.

Marks of stress, length and tone are part of a phone's symbol, and may be left out.
"""

import re
import unicodedata
from collections.abc import Collection
from typing import Literal, get_args

Mark = Literal["stress", "length", "tone"]
MARKS: frozenset[Mark] = frozenset(get_args(Mark))

_ARPABET_STRESS = r"(?<=^[A-Z]{2})[012]$"  # such as AH0
_MARKS: dict[Mark, re.Pattern[str]] = {
    "stress": re.compile(f"[ˈˌ]|{_ARPABET_STRESS}"),
    "length": re.compile("[ːˑ]"),
    "tone": re.compile(r"[˥˦˧˨˩]+|[⁰¹²³⁴⁵⁶⁷⁸⁹]+$|(?<=[^\sA-Z0-9])[0-9]+$"),
}

_SAME = str.maketrans({"g": "ɡ", ":": "ː", "'": "ˈ", "͡": "", "͜": "", "ʦ": "ts", "ʣ": "dz", "ʧ": "tʃ", "ʤ": "dʒ"})

# Where espeak-ng's voices have no IPA, it writes what is left of its own mnemonics.
_WHOLE = {
    **{"oe": "ø", "onɡ": "ʊŋ", "i[": "ɹ̩", "i̪": "ɹ̩", "i.": "ɻ̩", "ər": "ɚ", "ŋ-": "ŋ̍"},
    **{'u"': "ʉ", "sx": "ɧ", "ss": "sː", "X": "χ"},
}
_RETROFLEX = {"s": "ʂ", "z": "ʐ", "t": "ʈ", "d": "ɖ", "n": "ɳ", "l": "ɭ", "r": "ɽ"}
_LEFT = str.maketrans({"S": "ʃ", "Z": "ʒ", "N": "ŋ", "T": "θ", "D": "ð", "[": "̪", "-": "", ".": "", "#": "", "!": ""})

_SWITCH = re.compile(r"\([a-z-]+\)")  # espeak-ng's note that a word is of another language


def without(phone: str, marks: Collection[Mark]) -> str:
    """A phone without some kinds of marks; "" if it is nothing else."""
    for mark in marks:
        phone = _MARKS[mark].sub("", phone)
    return phone


def marks_in(phones: Collection[str]) -> set[Mark]:
    """The kinds of marks that occur in phones."""
    return {mark for mark, pattern in _MARKS.items() if any(map(pattern.search, phones))}


def ipa(phone: str) -> str:
    """One of several ways to write a phone in IPA: no ligatures or tie bars, NFC."""
    return unicodedata.normalize("NFC", phone.translate(_SAME))


def from_espeak(transcription: str, mnemonics: str) -> tuple[tuple[str, ...], ...]:
    """Phones of each word, from espeak-ng's IPA and its own mnemonics of the same text, "_" between phonemes.

    Tones are only whole in the mnemonics ("i51", a falling tone), which IPA cuts to one digit or to ɜ.
    """
    words = []
    theirs = mnemonics.split() if mnemonics.count(" ") == transcription.count(" ") else []
    for number, word in enumerate(transcription.split()):
        parts = [part for part in _SWITCH.sub("", word).split("_") if part]
        tones: list[str] = []
        if theirs and re.search(r"[0-9ɜ]", word):
            named = [part for part in theirs[number].split("_") if re.search(r"[\w@]", part)]
            tones = [re.sub(r"^\D+", "", part) for part in named] if len(named) == len(parts) else []
        phones = [_from_mnemonic(part, tone) for part, tone in zip(parts, tones or [""] * len(parts), strict=True)]
        words.append(tuple(phone for phone in phones if phone))
    return tuple(word for word in words if word)


def _from_mnemonic(part: str, tone: str) -> str:
    """One of espeak-ng's phonemes in IPA; `tone` is what digits its mnemonic ends in, some of which are a tone."""
    stress = "".join(mark for mark in part if mark in "ˈˌ")
    bare = part.strip("ˈˌ")
    shown = re.search(r"(?<=.)(?:[0-9]|ɜ(?=$))", bare)
    if shown is None or not tone:
        return ipa(stress + _in_ipa(bare))
    return ipa(stress + _in_ipa(bare[: shown.start()] + bare[shown.end() :]) + tone)


def _in_ipa(bare: str) -> str:
    bare = unicodedata.normalize("NFC", bare)
    if bare in _WHOLE:
        return _WHOLE[bare]
    bare = re.sub(r"([sztdnlr])\.", lambda match: _RETROFLEX[match[1]], bare)
    bare = bare.replace("tʂ", "ʈʂ").replace("dʐ", "ɖʐ")
    bare = re.sub(r"(?<=[ptkcqsʂɕʃ])h$", "ʰ", bare)
    return bare.translate(_LEFT)
