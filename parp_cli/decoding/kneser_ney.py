"""n-gram language models estimated from text: interpolated modified Kneser-Ney, written as ARPA.

The estimator is Chen and Goodman's ("An empirical study of smoothing techniques for language modeling", 1999), with
the boundary cases as in KenLM's lmplz (Heafield et al., "Scalable modified Kneser-Ney language model estimation",
2013): n-grams that begin with <s> keep their counts, as nothing precedes them; unigrams are interpolated with
the uniform distribution over all words, </s> and <unk> (<s> is never predicted), which is what <unk> gets.

n-grams of one order are rows of arrays. A row refers to its first n - 1 words (context) and to its last n - 1 words
(suffix) by their rows in the order below; for unigrams the row is the word's number.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from typing import NamedTuple, TextIO

import numpy
from numpy.typing import NDArray

from parp_cli.errors import DataError, UsageError

SPECIAL_WORDS = ("<unk>", "<s>", "</s>")

MAX_ORDER = 6
"""As usually compiled, KenLM (flashlight-text's copy included) reads no higher order."""

_NEVER = -99.0  # log10 of the probability of <s>, as ARPA files have it

_UNKNOWN_ID, _BEGIN_ID, _END_ID = range(3)

Discounts = tuple[float, float, float]
"""Subtracted from counts of one, of two, and of three or more."""

FALLBACK_DISCOUNTS: Discounts = (0.5, 1.0, 1.5)
"""Used where a text is too small or too regular to estimate them; the same as lmplz's `--discount_fallback`."""

Ints = NDArray[numpy.int64]
Floats = NDArray[numpy.float64]


@dataclass
class Order:
    """All n-grams of one order, with their probabilities.

    Attributes:
        contexts: rows of the first n - 1 words in the order below (zeros for unigrams).
        words: numbers of the last words.
        probabilities: of the last word after the context, interpolated with all lower orders.
        backoffs: factor of the lower order where a word was never seen after this n-gram.
        fallback: whether the discounts are `FALLBACK_DISCOUNTS`.
    """

    contexts: Ints
    words: Ints
    probabilities: Floats
    backoffs: Floats
    discounts: Discounts
    fallback: bool

    def __len__(self) -> int:
        return len(self.words)


@dataclass(frozen=True, kw_only=True)
class NGramModel:
    """An n-gram model.

    Attributes:
        words: by number; the first three are `SPECIAL_WORDS`, the others in order of first occurrence.
        orders: from unigrams upwards.
        sentences: number of non-empty sentences.
        tokens: words in these, without <s> and </s>.
    """

    words: tuple[str, ...]
    orders: tuple[Order, ...]
    sentences: int
    tokens: int


class _Counts(NamedTuple):
    """n-grams of one order and how often each occurs."""

    contexts: Ints
    suffixes: Ints
    words: Ints
    counts: Ints
    begins: NDArray[numpy.bool_]  # whether the first word is <s>


def estimate(sentences: Iterable[str], order: int) -> NGramModel:
    """Count n-grams of sentences (words separated by spaces; read once, empty ones skipped) and smooth them.

    The words are kept as numbers: at order 4 about 250 bytes per word of text in all, so that 10 million words
    (LibriSpeech's transcripts) take 2.5 GB. For more, use KenLM's lmplz.

    Raises:
        UsageError: the order is not 1 to `MAX_ORDER`.
        DataError: there is no word, or one of <s>, </s> and <unk> is a word of the text.
    """
    if not 1 <= order <= MAX_ORDER:
        raise UsageError(f"no n-gram model of order {order}", hint=f"orders are 1 to {MAX_ORDER}; 4 is usual")
    words, tokens, count = _read(sentences)
    orders = _smooth(_count(tokens, len(words), order), possible=len(words) - 1)
    return NGramModel(words=words, orders=orders, sentences=count, tokens=len(tokens) - 2 * count)


def write_arpa(model: NGramModel, file: TextIO) -> None:
    """Write a model in ARPA's format, log10 with seven decimals. The same text and order give the same bytes."""
    file.write("\\data\\\n")
    file.writelines(f"ngram {number}={len(order)}\n" for number, order in enumerate(model.orders, start=1))
    spelled: list[str] = [""]  # the n-grams of the order before
    for number, order in enumerate(model.orders, start=1):
        file.write(f"\n\\{number}-grams:\n")
        with numpy.errstate(divide="ignore"):
            probabilities = numpy.maximum(numpy.log10(order.probabilities), _NEVER)
        longest, texts = number == len(model.orders), list[str]()
        # Row by row, as lists of all columns would take several times the arrays' memory.
        for context, word, p, b in zip(
            order.contexts, order.words, probabilities, numpy.log10(order.backoffs), strict=True
        ):
            text = f"{spelled[context]} {model.words[word]}".lstrip()
            file.write(f"{p:.7f}\t{text}\n" if longest else f"{p:.7f}\t{text}\t{b:.7f}\n")
            if not longest:
                texts.append(text)
        spelled = texts
    file.write("\n\\end\\\n")


def _read(sentences: Iterable[str]) -> tuple[tuple[str, ...], Ints, int]:
    """The words by number, all sentences concatenated as word numbers with <s> and </s>, and their number."""
    numbers = {word: number for number, word in enumerate(SPECIAL_WORDS)}
    tokens, count = array("i"), 0
    for sentence in sentences:
        spoken = sentence.split()
        if reserved := sorted(set(spoken).intersection(SPECIAL_WORDS)):
            raise DataError(
                f"a sentence of the text has {' and '.join(reserved)} as a word",
                details=[sentence.strip()[:200]],
                hint="language models reserve these words: remove them from the text",
            )
        if spoken:
            ids = [numbers.setdefault(word, len(numbers)) for word in spoken]
            tokens.extend([_BEGIN_ID, *ids, _END_ID])
            count += 1
    if not count:
        raise DataError("no words to build a language model from", hint="name a text with one sentence per line")
    return tuple(numbers), numpy.frombuffer(tokens, dtype=numpy.int32).astype(numpy.int64), count


def _count(tokens: Ints, vocabulary: int, order: int) -> list[_Counts]:
    """n-grams of all orders up to `order`. Unigrams have a row for every word, whether it occurs or not."""
    numbers = numpy.arange(vocabulary)
    nothing = numpy.zeros_like(numbers)
    counts = numpy.bincount(tokens, minlength=vocabulary)
    tables = [_Counts(nothing, nothing, numbers, counts, numbers == _BEGIN_ID)]
    rows = tokens  # of the n-gram that ends at each token, -1 where it would begin before its sentence
    for _ in range(1, order):
        before = numpy.concatenate([[-1], rows[:-1]])
        ends = numpy.flatnonzero((before >= 0) & (tokens != _BEGIN_ID))
        keys, first, found, counts = numpy.unique(
            before[ends] * vocabulary + tokens[ends], return_index=True, return_inverse=True, return_counts=True
        )
        contexts = keys // vocabulary
        begins = tables[-1].begins[contexts]
        tables.append(_Counts(contexts, rows[ends[first]], keys % vocabulary, counts, begins))
        rows = numpy.full_like(tokens, -1)
        rows[ends] = found
    return tables


def _smooth(tables: list[_Counts], possible: int) -> tuple[Order, ...]:
    """Probabilities and backoffs of all orders; `possible` words can be predicted, <unk> and </s> among them."""
    orders: list[Order] = []
    lower = numpy.array([1 / possible])
    for table, longer in zip_longest(tables, tables[1:]):
        counts = table.counts
        if longer is not None:
            # Kneser-Ney's counts for all orders but the highest: how many different words precede each n-gram.
            counts = numpy.where(table.begins, counts, numpy.bincount(longer.suffixes, minlength=len(counts)))
        if not orders:  # <s> is never predicted, and <unk> never seen
            counts = numpy.where(numpy.isin(table.words, [_UNKNOWN_ID, _BEGIN_ID]), 0, counts)
        discounts, fallback = _discounts(counts)
        taken = numpy.array([0.0, *discounts])[numpy.minimum(counts, 3)]
        totals, left = (numpy.bincount(table.contexts, some, minlength=len(lower)) for some in (counts, taken))
        # A context that nothing follows (it ends with </s>) uses the order below alone.
        weights = numpy.where(totals > 0, left / numpy.maximum(totals, 1), 1.0)
        if orders:
            orders[-1].backoffs = weights
        lower = (counts - taken) / totals[table.contexts] + weights[table.contexts] * lower[table.suffixes]
        orders.append(Order(table.contexts, table.words, lower, numpy.ones(len(lower)), discounts, fallback))
    orders[0].probabilities[_BEGIN_ID] = 0.0
    return tuple(orders)


def _discounts(counts: Ints) -> tuple[Discounts, bool]:
    """Discounts of an order, and whether they could not be estimated (Chen and Goodman, eq. 17)."""
    once, twice, thrice, four_times = (int((counts == number).sum()) for number in range(1, 5))
    if once and twice and thrice:
        share = once / (once + 2 * twice)
        found = (1 - 2 * share * twice / once, 2 - 3 * share * thrice / twice, 3 - 4 * share * four_times / thrice)
        # Beyond these bounds a probability would be negative, or nothing would be left for the order below.
        if all(0 < discount <= number for number, discount in enumerate(found, start=1)):
            return found, False
    return FALLBACK_DISCOUNTS, True
