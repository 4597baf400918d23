"""Words and how they are spelt.

A lexicon is a text file with a word a line and its spelling after it, such as "HELLO H E L L O |". A search through it
(`lexicon_search`) only ever finds its words: of a word outside it, it gives the words of the lexicon that sound most
like it. `outside` says which words these are.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from parp_cli.data.labels import BOUNDARY, Vocabulary
from parp_cli.data.text import normalize_text
from parp_cli.errors import DataError, UsageError, first_few

Lexicon = Mapping[str, tuple[tuple[str, ...], ...]]
"""Spellings of each word, in symbols of a vocabulary; each ends with `BOUNDARY`."""


class Spelt(NamedTuple):
    """A lexicon, and the words that are not in it as the vocabulary lacks one of their letters."""

    lexicon: Lexicon
    left_out: list[str]


def spelling(letters: Sequence[str], vocabulary: Vocabulary) -> tuple[str, ...] | None:
    """The letters of a word (or the word itself) and the boundary after it; None where the vocabulary lacks one.

    In the vocabulary's case: published language models are often of lower case, and most models of upper case. Where
    it has no "ß", a word that has is spelt with "SS".
    """
    word = normalize_text("".join(letters))
    for same in (word, word.upper()) if vocabulary.case == "upper" else (word,):
        symbols = vocabulary.spelling(same)
        if symbols and _letters(vocabulary).issuperset(symbols):
            return (*symbols, BOUNDARY)
    return None


@lru_cache(maxsize=8)
def _letters(vocabulary: Vocabulary) -> frozenset[str]:
    return frozenset(vocabulary.symbols) - {BOUNDARY}


def lexicon_of(words: Iterable[str], vocabulary: Vocabulary) -> Spelt:
    """Words letter by letter, sorted.

    Raises:
        UsageError: the vocabulary is of phones.
        DataError: not one word can be spelt.
    """
    require_letters(vocabulary)
    spelt: dict[str, tuple[tuple[str, ...], ...]] = {}
    left_out = []
    for word in sorted(set(words)):
        found = spelling(word, vocabulary)
        if found is None:
            left_out.append(word)
        else:
            spelt[word] = (found,)
    if not spelt:
        raise DataError(
            "no word can be spelt with the vocabulary's letters",
            details=first_few(left_out),
            hint="the text is of another language or script than the model",
        )
    return Spelt(spelt, left_out)


def lexicon_lines(lexicon: Lexicon) -> str:
    """A lexicon as a file has it."""
    return "".join(f"{word}\t{' '.join(letters)}\n" for word, spellings in lexicon.items() for letters in spellings)


def read_lexicon(path: Path, vocabulary: Vocabulary) -> Spelt:
    """The words of a lexicon file with their spellings.

    Spellings may be of another case than the vocabulary, and without the boundary at their end.

    Raises:
        UsageError: the vocabulary is of phones.
        DataError: the file cannot be read, has lines that are no word with a spelling, or no word is left.
    """
    require_letters(vocabulary)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the lexicon {path}", details=[str(error)]) from error
    found: dict[str, list[tuple[str, ...]]] = {}
    left_out: dict[str, None] = {}
    problems = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        word, *letters = line.split()
        letters = letters[:-1] if letters[-1:] == [BOUNDARY] else letters
        if not letters:
            problems.append(f"line {number}: {line.strip()!r}")
            continue
        spelt = spelling(letters, vocabulary)
        if spelt is None:
            left_out[word] = None
        elif spelt not in found.setdefault(word, []):
            found[word].append(spelt)
    if problems or not found:
        raise DataError(
            f"{path} is not a lexicon of the vocabulary's letters",
            details=first_few(problems or list(left_out)),
            hint='a line is a word and its letters divided by blanks, such as "HELLO H E L L O |"',
        )
    lexicon = {word: tuple(spellings) for word, spellings in found.items()}
    return Spelt(lexicon, [word for word in left_out if word not in lexicon])


def outside(references: Iterable[str], lexicon: Lexicon) -> Counter[str]:
    """Words of references, with how often they occur, that a search through the lexicon cannot find."""
    known = {"".join(letters[:-1]) for spellings in lexicon.values() for letters in spellings}
    return Counter(word for reference in references for word in reference.split() if word not in known)


def require_letters(vocabulary: Vocabulary) -> None:
    """Refuse vocabularies that do not mark where a word ends."""
    if vocabulary.labels != "letters":
        raise UsageError(
            "words are spelt in letters, and this model writes phones",
            hint="decode phones greedily, or with --decoder beam and no language model",
        )
