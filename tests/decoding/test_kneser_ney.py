import io
import random
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest

from parp_cli.decoding.kneser_ney import FALLBACK_DISCOUNTS, MAX_ORDER, NGramModel, estimate, write_arpa
from parp_cli.errors import DataError, UsageError
from tests.decoding.arpa import Arpa, Words, read_arpa


def written(model: NGramModel, path: Path) -> Arpa:
    with path.open("w") as file:
        write_arpa(model, file)
    return read_arpa(path)


def random_text(sentences: int, seed: int, words: int = 12) -> list[str]:
    """Words as unevenly frequent as those of a language, some after each other more often than chance.

    Only `random.random` is the same in every version of Python.
    """
    rng = random.Random(seed)
    names = [f"W{number}" for number in range(words)]
    found = []
    for _ in range(sentences):
        sentence = [names[int(rng.random() * words)]]
        while rng.random() < 0.8:
            likely = names[(names.index(sentence[-1]) * 5 + 1) % words]
            sentence.append(likely if rng.random() < 0.4 else names[int(rng.random() ** 2 * words)])
        found.append(" ".join(sentence))
    return found


class Textbook:
    """Chen and Goodman's equations, word for word, with dictionaries."""

    def __init__(self, text: list[str], order: int) -> None:
        self.order = order
        raw: dict[int, Counter[Words]] = defaultdict(Counter)
        for line in text:
            words = ("<s>", *line.split(), "</s>")
            for size in range(1, order + 1):
                for start in range(len(words) - size + 1):
                    raw[size][words[start : start + size]] += 1
        self.predicted = [*sorted({word for (word,) in raw[1]} - {"<s>"}), "<unk>"]
        before: dict[Words, set[str]] = defaultdict(set)
        for size in range(2, order + 1):
            for first, *rest in raw[size]:
                before[tuple(rest)].add(first)
        self.counts: dict[int, dict[Words, int]] = {}
        for size in range(1, order + 1):
            self.counts[size] = {
                ngram: count if size == order or ngram[0] == "<s>" else len(before[ngram])
                for ngram, count in raw[size].items()
                if ngram != ("<s>",)
            }
        self.followers: dict[Words, dict[str, int]] = defaultdict(dict)
        for size in range(1, order + 1):
            for ngram, count in self.counts[size].items():
                self.followers[ngram[:-1]][ngram[-1]] = count

    @cache  # noqa: B019
    def discount(self, size: int, count: int) -> float:
        t = [sum(found == number for found in self.counts[size].values()) for number in range(5)]
        found = FALLBACK_DISCOUNTS
        if t[1] and t[2] and t[3]:
            y = t[1] / (t[1] + 2 * t[2])
            estimated = (1 - 2 * y * t[2] / t[1], 2 - 3 * y * t[3] / t[2], 3 - 4 * y * t[4] / t[3])
            if all(0 < d <= k for k, d in enumerate(estimated, start=1)):
                found = estimated
        return found[min(count, 3) - 1]

    @cache  # noqa: B019
    def probability(self, word: str, context: Words) -> float:
        lower = self.probability(word, context[1:]) if context else 1 / len(self.predicted)
        if context not in self.followers:
            return lower
        followers = self.followers[context]
        size, total = len(context) + 1, sum(followers.values())
        left = sum(self.discount(size, count) for count in followers.values()) / total
        seen = max(followers[word] - self.discount(size, followers[word]), 0) / total if word in followers else 0
        return seen + left * lower


def contexts_of(arpa: Arpa) -> list[Words]:
    return [(), *(ngram for ngram in arpa.probabilities if ngram[-1] != "</s>" and len(ngram) < arpa.order)]


@pytest.mark.parametrize("order", range(1, MAX_ORDER + 1))
@pytest.mark.parametrize(("sentences", "words"), [(3, 4), (200, 12)])
def test_probabilities_are_the_textbook_ones_and_sum_to_one(
    order: int, sentences: int, words: int, tmp_path: Path
) -> None:
    text = random_text(sentences, seed=order, words=words)
    arpa = written(estimate(text, order), tmp_path / "lm.arpa")
    textbook = Textbook(text, order)
    contexts = contexts_of(arpa)
    assert len(contexts) > order - 1
    for context in random.Random(0).sample(contexts, k=min(60, len(contexts))):
        total = 0.0
        for word in textbook.predicted:
            probability = 10 ** arpa.log10(word, context)
            assert probability == pytest.approx(textbook.probability(word, context), rel=1e-5)
            total += probability
        assert total == pytest.approx(1, abs=1e-5)


def test_discounts_of_a_large_text_are_estimated() -> None:
    model = estimate(random_text(400, seed=0, words=60), 3)
    assert [order.fallback for order in model.orders] == [True, False, False]
    assert all(
        0 < discount <= number for order in model.orders for number, discount in enumerate(order.discounts, start=1)
    )


def test_bigrams_by_hand(tmp_path: Path) -> None:
    arpa = written(estimate(["A B", "A C"], 2), tmp_path / "lm.arpa")
    # Each of A, B and C stands after one word, the end after two; 0.5 and 1 are taken, which leaves half of the mass
    # for five words in equal parts.
    expected = {"A": 0.2, "B": 0.2, "C": 0.2, "</s>": 0.3, "<unk>": 0.1}
    assert {word: round(10 ** arpa.log10(word, ()), 6) for word in expected} == expected
    assert arpa.probabilities["<s>",] == -99
    assert 10 ** arpa.log10("A", ("<s>",)) == pytest.approx((2 - 1) / 2 + 0.5 * 0.2, abs=1e-6)
    assert 10 ** arpa.log10("B", ("A",)) == pytest.approx((1 - 0.5) / 2 + 0.5 * 0.2, abs=1e-6)
    assert 10 ** arpa.log10("</s>", ("B",)) == pytest.approx((1 - 0.5) / 1 + 0.5 * 0.3, abs=1e-6)
    assert 10 ** arpa.log10("A", ("A",)) == pytest.approx(0.5 * 0.2, abs=1e-6)
    assert 10 ** arpa.log10("NEVER SEEN", ("B",)) == pytest.approx(0.5 * 0.1, abs=1e-6)


LMPLZ = {
    "<unk>": (-2.7818222, 0),
    "</s>": (-1.1801776, 0),
    "W54": (-2.0490768, -0.29006225),
    "W6": (-1.5710782, -0.45887858),
    "W33": (-2.174455, -0.26876068),
    "<s> W0": (-1.5877582, -0.10561676),
    "<s> W1": (-1.8528048, -0.19937675),
    "W6 W50": (-2.1210177, -0.05844446),
    "W29 W9": (-1.678568, -0.05844446),
    "W22 W45 W3": (-0.7996236, 0),
    "W41 W41 W26": (-0.4418016, 0),
    "W28 W18 W31": (-0.3839243, 0),
}
"""Some lines of what KenLM's `lmplz -o 3 --discount_fallback` made of `random_text(400, seed=0, words=60)`."""


def test_lmplz_writes_the_same(tmp_path: Path) -> None:
    model = estimate(random_text(400, seed=0, words=60), 3)
    assert list(map(len, model.orders)) == [63, 893, 1506]
    assert [order.discounts for order in model.orders] == [
        FALLBACK_DISCOUNTS,
        pytest.approx((0.76779, 0.959768, 0.586945), rel=1e-5),
        pytest.approx((0.874089, 0.537051, 1.81256), rel=1e-5),
    ]
    arpa = written(model, tmp_path / "lm.arpa")
    found = {text: (arpa.probabilities[*text.split()], arpa.backoffs.get(tuple(text.split()), 0)) for text in LMPLZ}
    for text, (probability, backoff) in LMPLZ.items():
        assert found[text] == pytest.approx((probability, backoff), abs=1e-6)


def test_kenlm_reads_the_file_and_agrees(tmp_path: Path) -> None:
    kenlm = pytest.importorskip("kenlm")
    arpa = written(estimate(random_text(200, seed=3), 4), tmp_path / "lm.arpa")
    model = kenlm.Model(str(tmp_path / "lm.arpa"))
    assert model.order == 4
    for text in [*random_text(50, seed=4, words=14), "", "W1", "NEVER W2 SEEN"]:
        assert model.score(text) == pytest.approx(arpa.score(text), abs=1e-4)


def test_sentences_are_read_once_and_empty_ones_do_not_count() -> None:
    model = estimate(iter(["A B", "", "  ", "C\n"]), 2)
    assert (model.sentences, model.tokens, model.words) == (2, 3, ("<unk>", "<s>", "</s>", "A", "B", "C"))


def test_the_same_text_gives_the_same_bytes_and_another_order_of_lines_the_same_probabilities(tmp_path: Path) -> None:
    text = random_text(40, seed=1)
    first, second = io.StringIO(), io.StringIO()
    write_arpa(estimate(text, 3), first)
    write_arpa(estimate(iter(text), 3), second)
    assert first.getvalue() == second.getvalue()
    forwards = written(estimate(text, 3), tmp_path / "forwards.arpa")
    backwards = written(estimate(text[::-1], 3), tmp_path / "backwards.arpa")
    assert forwards.probabilities == pytest.approx(backwards.probabilities)
    assert forwards.backoffs == pytest.approx(backwards.backoffs)


def test_orders_beyond_any_sentence_are_empty(tmp_path: Path) -> None:
    model = estimate(["A", "B"], 6)
    assert list(map(len, model.orders)) == [5, 4, 2, 0, 0, 0]
    assert written(model, tmp_path / "lm.arpa").order == 6


@pytest.mark.parametrize("order", [0, 7, -1])
def test_no_other_orders(order: int) -> None:
    with pytest.raises(UsageError, match=f"order {order}"):
        estimate(["A"], order)


@pytest.mark.parametrize("text", [[], ["", " "]])
def test_no_text(text: list[str]) -> None:
    with pytest.raises(DataError, match="no words"):
        estimate(text, 3)


@pytest.mark.parametrize("word", ["<s>", "</s>", "<unk>"])
def test_words_that_models_keep_for_themselves(word: str) -> None:
    with pytest.raises(DataError, match=word) as caught:
        estimate(["A", f"B {word} C"], 3)
    assert caught.value.details == (f"B {word} C",)
