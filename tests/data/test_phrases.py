"""Needs Babel (extra `demo`)."""

import random
import re
import sys
from itertools import islice
from pathlib import Path
from typing import get_args

import pytest

from parp_cli.data.labels import letters_vocabulary
from parp_cli.data.phrases import Grammar, Part, languages, part_of
from parp_cli.data.text import in_case, normalize_text
from parp_cli.data.utterances import Utterance
from parp_cli.errors import DataError, UsageError


@pytest.fixture(scope="module")
def grammar() -> Grammar:
    pytest.importorskip("babel", reason="the words come with the extra demo")
    return Grammar()


def sentences(grammar: Grammar, part: Part, count: int = 400, seed: int = 0) -> list[str]:
    return list(islice(grammar.sentences(part, random.Random(seed)), count))


def test_several_hundred_words(grammar: Grammar) -> None:
    assert 250 <= len(grammar.vocabulary) <= 600
    assert all(len(words) == len(set(words)) for words in grammar.words.values())
    assert all(re.fullmatch("[A-Z]+", word) for word in grammar.vocabulary)


@pytest.mark.parametrize("part", get_args(Part))
def test_sentences_are_of_the_vocabulary_and_can_be_spelt(grammar: Grammar, part: Part) -> None:
    letters = letters_vocabulary()
    for sentence in sentences(grammar, part):
        assert sentence == in_case(normalize_text(sentence), "upper")
        assert set(sentence.split()) <= grammar.vocabulary
        utterance = Utterance(id="u", audio=Path("u"), split=part, seconds=1.0, text=sentence)
        assert letters.decode(letters.encode(utterance)) == sentence


def test_nearly_all_words_come_up(grammar: Grammar) -> None:
    said = {word for sentence in sentences(grammar, "train", 5_000) for word in sentence.split()}
    assert len(said) > 0.98 * len(grammar.vocabulary)


def test_the_parts_share_no_sentence(grammar: Grammar) -> None:
    found = {part: sentences(grammar, part) for part in get_args(Part)}
    for part, those in found.items():
        assert {part_of(sentence) for sentence in those} == {part}
    assert len(set(found["train"])) > 390  # hardly any twice


def test_most_sentences_are_to_train_on(grammar: Grammar) -> None:
    names = [f"{left} AND {right}" for left in grammar.vocabulary for right in ("CHAD", "PERU", "CUBA")]
    share = sum(part_of(name) == "train" for name in names) / len(names)
    assert 0.7 < share < 0.9


@pytest.mark.parametrize("language", languages())
def test_each_language_has_some_hundred_words_in_its_script(language: str) -> None:
    pytest.importorskip("babel", reason="the words come with the extra demo")
    grammar = Grammar(language)
    assert 250 <= len(grammar.vocabulary) <= 400
    assert all(len(words) == len(set(words)) for words in grammar.words.values())
    scripts = {"en": "[A-Z]", "ky": "[а-яёүөңһ]", "ru": "[а-яё]", "tt": "[а-яёәөүҗңһ]", "zh": "[一-鿿]"}
    found = sentences(grammar, "train", 2_000)
    assert all(re.fullmatch(f"({scripts.get(language, '[a-zß-ÿğışœ]')}| |-)+", word) for word in found)
    assert len({name for names in grammar.words.values() for name in names if any(name in s for s in found)}) > 200
    assert ("i̇" in "".join(found)) is False  # İ in lower case by the rules of other languages


def test_a_language_without_patterns() -> None:
    with pytest.raises(DataError, match="xx"):
        Grammar("xx")


def test_the_same_from_the_same_seed(grammar: Grammar) -> None:
    assert sentences(grammar, "dev", 20) == sentences(Grammar(), "dev", 20)
    assert sentences(grammar, "dev", 20) != sentences(grammar, "dev", 20, seed=1)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "babel", None)
    with pytest.raises(UsageError, match="Babel") as caught:
        Grammar()
    assert "demo" in (caught.value.hint or "")
