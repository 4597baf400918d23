"""Sentences of the generated corpus: English names from CLDR (Babel, extra `demo`) in a few dozen patterns.

Around 300 words: enough for real recognition, few enough to be learned from ten minutes of speech.
"""

import random
import re
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, Literal

from parp_cli.errors import UsageError

Part = Literal["train", "dev", "test"]

_TERRITORIES, _LANGUAGES = 90, 60  # how many names of CLDR's the corpus uses

_UNITS = """
    mass-gram mass-kilogram mass-ounce mass-pound mass-ton mass-stone length-meter length-kilometer length-mile
    length-yard length-inch volume-liter volume-gallon volume-pint volume-cup volume-barrel duration-second
    duration-minute duration-hour duration-day duration-week duration-month duration-year area-acre energy-calorie
    power-watt temperature-kelvin angle-degree light-candela digital-byte
"""

_NUMBERS = """
    ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN ELEVEN TWELVE THIRTEEN FOURTEEN FIFTEEN SIXTEEN SEVENTEEN
    EIGHTEEN NINETEEN TWENTY THIRTY FORTY FIFTY SIXTY SEVENTY EIGHTY NINETY
"""

_PATTERNS = """
THE TRAIN TO {territory} LEAVES ON {day} AT {number}
SHE SPEAKS {language} AND {language}
HE LEARNED {language} IN {territory}
IT IS {number} {unit} FROM {territory} TO {territory}
WE FLY FROM {territory} TO {territory} IN {month}
THE SHIP CAME BACK FROM {territory} AFTER {number} {unit}
PLEASE SEND {number} {unit} OF RICE TO {territory}
MY BROTHER WENT TO {territory} LAST {month}
ON {day} THEY SOLD {number} {unit} OF SUGAR
THE BOOK WAS WRITTEN IN {language}
CAN YOU READ {language} OR {language}
THERE ARE {number} {unit} OF WATER LEFT
NOBODY IN {territory} WORKS ON {day}
HER LETTER FROM {territory} CAME IN {month}
{month} IS COLD IN {territory}
THEY WAITED {number} {unit} FOR THE BUS TO {territory}
{territory} AND {territory} SIGNED IT ON {day}
WILL YOU BE IN {territory} NEXT {day} OR {day}
THE TEACHER OF {language} LIVES IN {territory}
IN {month} AND {month} WE LIVE IN {territory}
CALL ME AT {number} {number} {number} {number}
THE BRIDGE IS {number} {unit} LONG
I NEVER HEARD {language} BEFORE {month}
HALF OF THE SONGS ARE IN {language}
""".strip().splitlines()


def _plain(names: Any, count: int) -> list[str]:
    """`count` names, spread evenly over the sorted codes, that are one word of at least four plain letters."""
    words = [
        name.upper() for code, name in sorted(names.items()) if len(code) == 2 and re.fullmatch("[A-Za-z]{4,}", name)
    ]
    step = len(words) / count
    return [words[int(index * step)] for index in range(count)]


class Grammar:
    """The patterns and their words; raises a UsageError if Babel is not installed."""

    def __init__(self) -> None:
        try:
            from babel import Locale
            from babel.units import format_unit
        except ImportError:
            raise UsageError("generated speech needs the package Babel", hint="pip install 'parp-cli[demo]'") from None
        self.versions = {"Babel": version("Babel")}
        english = Locale("en")
        units = [format_unit(2, unit, "long", locale=english).removeprefix("2 ").upper() for unit in _UNITS.split()]
        self.words: dict[str, list[str]] = {
            "territory": _plain(english.territories, _TERRITORIES),
            "language": _plain(english.languages, _LANGUAGES),
            "month": [name.upper() for name in english.months["format"]["wide"].values()],
            "day": [name.upper() for name in english.days["format"]["wide"].values()],
            "unit": [unit for unit in units if re.fullmatch("[A-Z]+", unit)],
            "number": _NUMBERS.split(),
        }

    @property
    def vocabulary(self) -> set[str]:
        """Every word that can occur."""
        fixed = {word for pattern in _PATTERNS for word in pattern.split() if not word.startswith("{")}
        return fixed.union(*self.words.values())

    def sentences(self, part: Part, rng: random.Random) -> Iterator[str]:
        """Infinitely many random sentences of one part of the corpus; no sentence belongs to two parts."""
        while True:
            pattern = rng.choice(_PATTERNS)
            sentence = re.sub(r"{(\w+)}", lambda slot: rng.choice(self.words[slot[1]]), pattern)
            if part_of(sentence) == part:
                yield sentence


def part_of(sentence: str) -> Part:
    """The part of the corpus that a sentence belongs to, by its checksum: 80 % train, 10 % dev, 10 % test."""
    digit = zlib.crc32(sentence.encode()) % 10
    return "dev" if digit == 8 else "test" if digit == 9 else "train"
