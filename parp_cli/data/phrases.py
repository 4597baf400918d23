"""Sentences of the generated corpora: names from CLDR (Babel, extra `demo`) in patterns of each language.

phrases.yaml has the patterns. Around 300 words per language: enough for real recognition, few enough to be learned from
ten minutes of speech.
"""

import random
import re
import zlib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml

from parp_cli.data.text import lower
from parp_cli.errors import DataError, UsageError

Part = Literal["train", "dev", "test"]

_COUNTS = {"territory": 90, "language": 60, "currency": 40}  # how many names of CLDR's the corpus uses
_WORD = r"[^\W\d_]{3,}"
_SLOT = re.compile(r"{(\w+)}")


@cache
def _data() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "phrases.yaml").read_text(encoding="utf-8"))
    return content


def languages() -> list[str]:
    """Codes of the languages that speech can be generated in."""
    return list(_data()["languages"])


class Grammar:
    """The patterns of a language and their words.

    Attributes:
        language: its code.
        voice: the name of the language's voice in espeak-ng.
        words: by slot of the patterns.
        versions: of the packages that determine them.

    Raises:
        DataError: there are no patterns for the language.
        UsageError: Babel is not installed.
    """

    def __init__(self, language: str = "en") -> None:
        if language not in languages():
            raise DataError(f"no speech can be generated in {language}", hint="name one of " + ", ".join(languages()))
        try:
            from babel import Locale
        except ImportError:
            raise UsageError("generated speech needs the package Babel", hint="pip install 'parp-cli[demo]'") from None
        self.versions = {"Babel": version("Babel")}
        own = _data()["languages"][language]
        self.voice: str = own["voice"]
        self._upper = own.get("case") == "upper"
        self.language = language
        self._patterns: list[str] = own["patterns"].splitlines()
        locale, word = Locale(language), own.get("names", _WORD)
        words = {
            "territory": self._names(locale.territories, word, 2, _COUNTS["territory"]),
            "language": self._names(locale.languages, word, 2, _COUNTS["language"]),
            "currency": self._names(locale.currencies, f"{_WORD}( {_WORD})?|{word}", 3, _COUNTS["currency"]),
            "month": [self._cased(name) for name in locale.months["format"]["wide"].values()],
            "day": [self._cased(name) for name in locale.days["format"]["wide"].values()],
            "unit": self._units(locale, own.get("plural", 2), own.get("more_units", "").split()),
            "number": own["numbers"].split(),
        }
        used = set(_SLOT.findall(own["patterns"]))
        self.words: dict[str, list[str]] = {slot: names for slot, names in words.items() if slot in used}

    @property
    def vocabulary(self) -> set[str]:
        """Every word that can occur."""
        fixed = {word for pattern in self._patterns for word in _SLOT.sub(" ", pattern).split()}
        return fixed.union(word for names in self.words.values() for name in names for word in name.split())

    def sentences(self, part: Part, rng: random.Random) -> Iterator[str]:
        """Infinitely many random sentences of one part of the corpus; no sentence belongs to two parts."""
        while True:
            pattern = rng.choice(self._patterns)
            sentence = _SLOT.sub(lambda slot: rng.choice(self.words[slot[1]]), pattern)
            if part_of(sentence) == part:
                yield sentence

    def _cased(self, name: str) -> str:
        return name.upper() if self._upper else lower(name, self.language)

    def _names(self, names: Any, shape: str, code_length: int, count: int) -> list[str]:
        """`count` names (or all) that have a shape, spread evenly over the sorted codes of a length."""
        fit = [name for code, name in sorted(names.items()) if len(code) == code_length and re.fullmatch(shape, name)]
        fit = list(dict.fromkeys(map(self._cased, fit)))
        step = max(1.0, len(fit) / count)
        return [fit[int(index * step)] for index in range(min(count, len(fit)))]

    def _units(self, locale: Any, number: int, more: list[str]) -> list[str]:
        """CLDR's names of units as they follow a number, if they are one word, and more of them."""
        from babel.units import format_unit

        names = [format_unit(number, unit, "long", locale=locale) for unit in _data()["units"].split()]
        names = [name.removeprefix(str(number)).strip() for name in names]
        fit = [self._cased(name) for name in names if re.fullmatch(r"[^\W\d_]+", name)]
        return list(dict.fromkeys([*fit, *more]))


def part_of(sentence: str) -> Part:
    """The part of the corpus that a sentence belongs to, by its checksum: 80 % train, 10 % dev, 10 % test."""
    digit = zlib.crc32(sentence.encode()) % 10
    return "dev" if digit == 8 else "test" if digit == 9 else "train"
