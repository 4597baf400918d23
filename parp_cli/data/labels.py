"""Vocabularies of letters or phones: what a CTC head spells."""

import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

from parp_cli.data.utterances import Utterance
from parp_cli.errors import CheckpointError, DataError

BLANK = "<blank>"
"""CTC's blank."""

BLANK_ID = 0
"""Its label id, always."""

BOUNDARY = "|"
"""Stands between the words of a vocabulary of letters."""

Labels = Literal["letters", "phones"]

_LETTERS = (*string.ascii_uppercase, "'")
_STRESSED = re.compile(r"([A-Z]{2})[012]")  # ARPAbet's vowels, such as AH0
_SPECIAL = re.compile(r"<.+>")  # symbols of imported models that stand for no sound, such as <unk>


@dataclass(frozen=True)
class Vocabulary:
    """What a CTC head tells apart: `symbols[id]` is spelt by label `id`.

    Raises:
        DataError: `symbols` does not begin with "<blank>", repeats a symbol, or is of letters without "|".
    """

    symbols: tuple[str, ...]
    labels: Labels

    def __post_init__(self) -> None:
        problems = []
        if self.symbols[:1] != (BLANK,):
            problems.append(f"symbol 0 is not {BLANK}")
        problems += sorted({f"{symbol!r} is repeated" for symbol in self.symbols if self.symbols.count(symbol) > 1})
        if self.labels == "letters" and BOUNDARY not in self.symbols:
            problems.append(f'"{BOUNDARY}", which divides words, is missing')
        if problems:
            raise DataError(f"not a vocabulary of {self.labels}", details=problems)

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def strips_stress(self) -> bool:
        """Whether AH0, AH1 and AH2 are all AH: so it is where no symbol carries a stress digit."""
        return self.labels == "phones" and not any(map(_STRESSED.fullmatch, self.symbols))

    def encode(self, utterance: Utterance) -> list[int]:
        """Label ids of an utterance, without blanks; letters have `BOUNDARY` between words, phones nothing.

        Raises:
            DataError: the utterance has no such labels, or they are outside the vocabulary.
        """
        wanted = self._spell(utterance)
        if not wanted:
            column = "text" if self.labels == "letters" else "phones"
            raise DataError(
                f"utterance {utterance.id} has no {self.labels}",
                hint=f"give it {column}, or leave it out of the split",
            )
        foreign = self.outside(utterance)
        if foreign:
            raise DataError(
                f"utterance {utterance.id} has {self.labels} outside the vocabulary",
                details=[" ".join(foreign)],
                hint="correct or leave out the utterance, or take the letters found: --set data.alphabet=found",
            )
        return [self._ids[symbol] for symbol in wanted]

    def outside(self, utterance: Utterance) -> list[str]:
        """The letters or phones of an utterance that the vocabulary lacks, sorted."""
        return sorted({symbol for symbol in self._spell(utterance) if symbol not in self._ids})

    def decode(self, ids: Iterable[int]) -> str:
        """Words divided by spaces from letters, phones divided by spaces from phones.

        Takes ids as they are: repeats are kept, since collapsing CTC's output is for decoders to do. Blanks and
        symbols in angle brackets say nothing.
        """
        spoken = [self.symbols[index] for index in ids if not _SPECIAL.fullmatch(self.symbols[index])]
        if self.labels == "phones":
            return " ".join(spoken)
        return " ".join("".join(spoken).replace(BOUNDARY, " ").split())

    def reference(self, utterance: Utterance) -> str:
        """What a perfect hypothesis would read, in the vocabulary or not; "" where the utterance has no labels."""
        if self.labels == "phones":
            return " ".join(self._spell(utterance))
        return utterance.text or ""

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: index for index, symbol in enumerate(self.symbols) if not _SPECIAL.fullmatch(symbol)}

    def _spell(self, utterance: Utterance) -> list[str]:
        """Symbols of an utterance, whether they are in the vocabulary or not."""
        if self.labels == "letters":
            # A "|" in a transcript is no word boundary: spelt so that no symbol matches.
            spelling = {" ": BOUNDARY, BOUNDARY: f"{BOUNDARY} in the text"}
            return [spelling.get(character, character) for character in utterance.text or ""]
        phones = [phone for word in utterance.phones or () for phone in word]
        return [_strip_stress(phone) for phone in phones] if self.strips_stress else phones


def recorded_vocabulary(symbols: Sequence[str] | None, labels: str | None) -> Vocabulary | None:
    """The vocabulary that a checkpoint records, or None where it has none, or one of neither letters nor phones."""
    kinds: dict[str | None, Labels] = {"letters": "letters", "phones": "phones"}
    if symbols is None or labels not in kinds:
        return None
    return Vocabulary(tuple(symbols), kinds[labels])


def vocabulary_of(source: Path, symbols: Sequence[str] | None, labels: str | None) -> Vocabulary:
    """The vocabulary that the checkpoint `source` records.

    Raises:
        CheckpointError: it has none, or one of neither letters nor phones.
    """
    vocabulary = recorded_vocabulary(symbols, labels)
    if vocabulary is None:
        raise CheckpointError(f"{source} tells apart {labels or 'nothing'}, not letters or phones")
    return vocabulary


def letters_vocabulary(utterances: Iterable[Utterance] | None = None) -> Vocabulary:
    """Blank, "|", and the letters: those of English with the apostrophe, or those found in transcripts, sorted."""
    letters: Iterable[str] = _LETTERS
    if utterances is not None:
        letters = sorted({letter for utterance in utterances for letter in utterance.text or ""} - {" ", BOUNDARY})
        if not letters:
            raise DataError("no letters to build a vocabulary from", hint="the training utterances have no text")
    return Vocabulary((BLANK, BOUNDARY, *letters), "letters")


def phones_vocabulary(utterances: Iterable[Utterance], *, strip_stress: bool = False) -> Vocabulary:
    """Blank and the phones found, sorted.

    Args:
        utterances: those to train on.
        strip_stress: take AH0, AH1 and AH2 for one phone AH.

    Raises:
        DataError: no utterance has phones.
    """
    found = {phone for utterance in utterances for word in utterance.phones or () for phone in word}
    phones = sorted({_strip_stress(phone) for phone in found} if strip_stress else found)
    if not phones:
        raise DataError("no phones to build a vocabulary from", hint="the training utterances have none: use letters")
    return Vocabulary((BLANK, *phones), "phones")


def frames_needed(ids: Sequence[int]) -> int:
    """The fewest frames that CTC can spell `ids` in: one a label, and a blank between equal neighbours."""
    return len(ids) + sum(left == right for left, right in pairwise(ids))


def _strip_stress(phone: str) -> str:
    stressed = _STRESSED.fullmatch(phone)
    return stressed[1] if stressed else phone
