"""What the outputs of a CTC head are: the one description of labels, which files hold and everything else asks."""

import re
import string
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from parp_cli.data.phones import MARKS, Mark, ipa, marks_in, without
from parp_cli.data.text import Case, final_sigmas, fold, in_case
from parp_cli.data.utterances import Utterance
from parp_cli.errors import CheckpointError, DataError
from parp_cli.storage.checkpoint import ctc_task
from parp_cli.storage.conventions import BLANK as BLANK
from parp_cli.storage.conventions import BOUNDARY as BOUNDARY

BLANK_ID = 0
"""Label id of the blank."""

PADDING = "<pad>"
"""What other projects call the blank unless they say otherwise."""

Labels = Literal["letters", "phones"]

_LETTERS = (*string.ascii_uppercase, "'")
_TURKISH = {"i": "İ", "I": "ı", "İ": "i", "ı": "I"}  # the other case where both kinds of i are letters


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a CTC head: label `id` stands for `symbols[id]`, and how a text is made of them.

    Letters of a text are converted to the vocabulary's case unless it has both: with the letters a to z, "A" is "a".
    They may be composed or not: "é" is spelled "e" and a combining accent if these are the symbols.

    Attributes:
        symbols: the blank first, under the name `BLANK`.
        labels: letters (of one character or more), which are joined to words; or phones, separated by spaces.
        delimiter: the symbol between words; None where there is none, so that spaces of a text cannot be written.
        special: symbols that stand for nothing spoken, with their roles ("unk", "bos", "eos", …; "extra" for others).
        separator: what a transcript has between words of letters.
        lower_case: whether transcripts are lower case whatever the symbols are.
        padding: name of the blank where the model comes from, for export.

    Raises DataError: `symbols` does not begin with "<blank>", or repeats a symbol.
    """

    symbols: tuple[str, ...]
    labels: Labels
    delimiter: str | None = BOUNDARY
    special: Mapping[str, str] = field(default_factory=dict, hash=False)
    separator: str = " "
    lower_case: bool = False
    padding: str = PADDING

    def __post_init__(self) -> None:
        problems = []
        if self.symbols[:1] != (BLANK,):
            problems.append(f"symbol 0 is not {BLANK}")
        problems += sorted({f"{symbol!r} is repeated" for symbol in self.symbols if self.symbols.count(symbol) > 1})
        if problems:
            raise DataError(f"not a vocabulary of {self.labels}", details=problems)
        if self.delimiter not in self.symbols:
            object.__setattr__(self, "delimiter", None)

    def __len__(self) -> int:
        return len(self.symbols)

    def to_json(self) -> dict[str, Any]:
        """`Metadata.task` of a checkpoint whose head has these outputs."""
        keys = ("delimiter", "separator", "lower_case", "padding")
        description = {key: getattr(self, key) for key in keys}
        return {**ctc_task(self.symbols, self.labels), **description, "special": dict(self.special)}

    @cached_property
    def strips(self) -> frozenset[Mark]:
        """The marks that phones are spelled without, as no symbol has them: AH0, AH1 and AH2 are all AH."""
        return frozenset(MARKS - marks_in(self.symbols) if self.labels == "phones" else ())

    def with_labels_of(self, utterances: Iterable[Utterance], *, english: bool) -> "Vocabulary | None":
        """The vocabulary with the labels of utterances that it lacks after its own; if `english`, only English ones.

        None where it lacks more than half of their labels, as one of another language does.
        """
        needed = {symbol for utterance in utterances for symbol in self._spell(utterance)} - {self._delimiter_in_text}
        new = sorted(needed - set(self._ids))
        wanted = [s for s in new if s not in self.symbols and (not english or s.upper() in _LETTERS)]
        return replace(self, symbols=(*self.symbols, *wanted)) if 2 * len(new) <= len(needed) else None

    @cached_property
    def case(self) -> Case | None:
        """The case of the letters; None if some are symbols in both cases."""
        in_both = len({symbol.lower() for symbol in self._spellings}) < len(self._spellings)
        if in_both or {"Σ", "ς"} <= set(self._spellings):  # whose small letters differ
            return None
        capitals = sum(in_case(symbol, "lower") != symbol for symbol in self._spellings)
        small = sum(in_case(symbol, "upper") != symbol for symbol in self._spellings)
        return "lower" if small > capitals else "upper"

    def encode(self, utterance: Utterance) -> list[int]:
        """Label ids of an utterance, without blanks; with the delimiter between words if there is one.

        Raises DataError: the utterance has no such labels, or they are outside the vocabulary.
        """
        symbols = self._spell(utterance)
        if not symbols:
            column = "text" if self.labels == "letters" else "phones"
            hint = f"give it {column}, or leave it out of the split"
            raise DataError(f"utterance {utterance.id} has no {self.labels}", hint=hint)
        if foreign := self.outside(utterance):
            raise DataError(
                f"utterance {utterance.id} has {self.labels} outside the vocabulary",
                details=[" ".join(map(visible, foreign))],
                hint="correct or leave out the utterance, or use all letters of the transcripts: "
                "--set data.alphabet=found",
            )
        return [self._ids[symbol] for symbol in symbols]

    def outside(self, utterance: Utterance) -> list[str]:
        """The letters or phones of an utterance that the vocabulary lacks, sorted."""
        return sorted({symbol for symbol in self._spell(utterance) if symbol not in self._ids})

    def decode(self, ids: Iterable[int]) -> str:
        """Text (NFC) of labels: words, or phones, separated by spaces.

        Repeated ids are kept, as collapsing CTC's output is up to decoders. Blanks and special symbols are dropped.
        """
        written = [self._written[index] for index in ids]
        return self._text(written if self.labels == "phones" else "".join(written).split())

    def reference(self, utterance: Utterance) -> str:
        """The reference in the case of the transcripts, with labels outside the vocabulary; "" without labels."""
        symbols = self._spell(utterance)
        if self.labels == "phones":
            return self._text(symbol for symbol in symbols if symbol != self.delimiter)
        spoken = {self.delimiter: " ", self._delimiter_in_text: self.delimiter or ""}
        return self._text("".join(spoken.get(symbol, symbol) for symbol in symbols).split(" "))

    def _text(self, parts: Iterable[str]) -> str:
        text = (" " if self.labels == "phones" else self.separator).join(filter(None, parts))
        return unicodedata.normalize("NFC", text.lower() if self.lower_case else text)

    def spelling(self, text: str) -> list[str]:
        """Symbols of a text from `normalize_text`, with the delimiter for spaces.

        A character without a symbol stands for itself, in the vocabulary's case.
        """
        if self.case is not None and "ς" in self._spellings:
            text = final_sigmas(re.sub("[σς]", "Σ", text))  # equal to the same text in capitals
        return [symbol for part in self._parts.findall(text) for symbol in self._spelling(part)]

    def _spelling(self, part: str) -> list[str]:
        """Symbols of one character, or of several that are one symbol."""
        if part == " ":
            return [] if self.delimiter is None else [self.delimiter]
        if part == self.delimiter:
            return [self._delimiter_in_text]
        for same in (part, *self._in_other_case(part)):
            if same in self._spellings:
                return [self._spellings[same]]
        decomposed = unicodedata.normalize("NFD", part)
        if len(decomposed) > len(part):
            symbols = [symbol for character in decomposed for symbol in self._spelling(character)]
            if all(symbol in self._ids for symbol in symbols):
                return symbols
        return [part if self.case is None else in_case(part, self.case)]

    def _in_other_case(self, part: str) -> list[str]:
        """Other forms of the same letter, most likely first."""
        if self.case is None:
            return []
        others = [other for other in (part.lower(), part.upper(), fold(part), "ς") if fold(other) == fold(part)]
        return [_TURKISH[part], *others] if part in _TURKISH and self._is_turkish else others

    @cached_property
    def _ids(self) -> dict[str, int]:
        silent = {BLANK, *self.special}
        return {symbol: index for index, symbol in enumerate(self.symbols) if symbol not in silent}

    @cached_property
    def letters(self) -> frozenset[str]:
        """The symbols that are spoken."""
        return frozenset(self._ids) - {self.delimiter}

    @cached_property
    def _written(self) -> tuple[str, ...]:
        """What each label adds to a transcript."""
        delimiter = " " if self.labels == "letters" else ""
        return tuple(delimiter if s == self.delimiter else s if s in self._ids else "" for s in self.symbols)

    @property
    def _delimiter_in_text(self) -> str:
        """Stands for the delimiter's own character in a transcript, which no symbol spells."""
        return f"{self.delimiter} in the text"

    @cached_property
    def _spellings(self) -> dict[str, str]:
        """Symbols of letters or phones, by their NFC."""
        return {unicodedata.normalize("NFC", symbol): symbol for symbol in self._ids if symbol != self.delimiter}

    @cached_property
    def _is_turkish(self) -> bool:
        """Whether both kinds of i are letters, in one case only."""
        return {letter for letter in _TURKISH if letter in self._spellings} in ({"ı", "i"}, {"I", "İ"})

    @cached_property
    def _parts(self) -> re.Pattern[str]:
        """Matches the longest symbol that fits, or a character."""
        longer = sorted((symbol for symbol in self._spellings if len(symbol) > 1), key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, longer), "."]), re.DOTALL)

    def _spell(self, utterance: Utterance) -> list[str]:
        """Symbols of an utterance, in the vocabulary or not."""
        if self.labels == "letters":
            return self.spelling(utterance.text or "")
        words = [[self._phone(phone) for phone in word] for word in utterance.phones or ()]
        between = [] if self.delimiter is None else [self.delimiter]
        spelled = [phone for number, word in enumerate(words) for phone in (*(between if number else ()), *word)]
        return [phone for phone in spelled if phone]

    def _phone(self, phone: str) -> str:
        """The symbol of a phone, however its IPA is written; itself if there is none, "" if nothing is left."""
        phone = without(phone, self.strips)
        return self._spellings.get(phone) or self._spellings.get(ipa(phone), phone)


def recorded_vocabulary(task: Mapping[str, Any] | None) -> Vocabulary | None:
    """The inverse of `Vocabulary.to_json`; None if the task is not CTC of letters or phones."""
    if task is None or task["kind"] != "ctc" or task["labels"] not in get_args(Labels):
        return None
    symbols, labels = tuple(task["vocabulary"]), task["labels"]
    if "special" in task:
        keys = ("delimiter", "separator", "lower_case", "padding", "special")
        return Vocabulary(symbols, labels, **{key: task[key] for key in keys})
    # Earlier files say no more than this: what stands in angle brackets was dropped, and only letters had a delimiter.
    roles = {"<unk>": "unk", "<s>": "bos", "</s>": "eos"}
    return Vocabulary(
        symbols,
        labels,
        delimiter=BOUNDARY if labels == "letters" else None,
        special={symbol: roles.get(symbol, "extra") for symbol in symbols[1:] if re.fullmatch(r"<.+>", symbol)},
    )


def vocabulary_of(source: Path, task: Mapping[str, Any] | None) -> Vocabulary:
    """As `recorded_vocabulary`; raises a CheckpointError that names the checkpoint `source` if there is none."""
    vocabulary = recorded_vocabulary(task)
    if vocabulary is None:
        outputs = "nothing" if task is None else task.get("labels") or task["kind"]
        raise CheckpointError(f"the output head of {source} is for {outputs}, not letters or phones")
    return vocabulary


def letters_vocabulary(utterances: Iterable[Utterance] | None = None) -> Vocabulary:
    """Blank, "|", and letters: of English with the apostrophe, or of the transcripts, sorted; upper case."""
    letters: Iterable[str] = _LETTERS
    if utterances is not None:
        texts = (in_case(utterance.text or "", "upper") for utterance in utterances)
        found = sorted({letter for text in texts for letter in text} - {" ", BOUNDARY}, reverse=True)
        letters = sorted({fold(letter): letter for letter in found}.values())  # ß and its rare capital are one
        if not letters:
            raise DataError("no letters to build a vocabulary from", hint="the training utterances have no text")
    return Vocabulary((BLANK, BOUNDARY, *letters), "letters")


def phones_vocabulary(utterances: Iterable[Utterance], *, strip: Collection[Mark] = ()) -> Vocabulary:
    """Blank and the phones of the utterances, sorted, without the marks to `strip`, and in one way to write IPA.

    Raises DataError: no utterance has phones.
    """
    marked = {phone for utterance in utterances for word in utterance.phones or () for phone in word}
    there = {without(phone, strip) for phone in marked} - {""}
    phones = sorted({ipa(phone) if ipa(phone) in there else phone for phone in there})
    if not phones:
        hint = "name the language of the texts, such as --set data.language=sw, and espeak-ng makes phones of them"
        raise DataError("no phones to build a vocabulary from: no training utterance has any", hint=hint)
    return Vocabulary((BLANK, *phones), "phones")


def frames_needed(ids: Sequence[int]) -> int:
    """Minimum number of frames of CTC: one per label, and a blank between equal neighbours."""
    return len(ids) + sum(left == right for left, right in pairwise(ids))


def visible(symbol: str) -> str:
    """A symbol for a message, with combining marks on a dotted circle."""
    return f"◌{symbol}" if unicodedata.category(symbol[:1])[0] == "M" else symbol
