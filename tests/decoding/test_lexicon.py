from collections import Counter
from pathlib import Path

import pytest

from parp_cli.data.labels import BLANK, BOUNDARY, Vocabulary, letters_vocabulary
from parp_cli.decoding.lexicon import lexicon_lines, lexicon_of, outside, read_lexicon, spelling
from parp_cli.errors import DataError, UsageError

VOCABULARY = Vocabulary((BLANK, BOUNDARY, "A", "B"), "letters")


def test_lexicons_are_read_as_written(tmp_path: Path) -> None:
    vocabulary = letters_vocabulary()
    lexicon, left_out = lexicon_of(["DON'T", "ÉTÉ", "A", "A"], vocabulary)
    assert lexicon == {"A": (("A", "|"),), "DON'T": (("D", "O", "N", "'", "T", "|"),)}
    assert left_out == ["ÉTÉ"]
    path = tmp_path / "lexicon.txt"
    path.write_text(lexicon_lines(lexicon), encoding="utf-8")
    assert read_lexicon(path, vocabulary) == (lexicon, [])


def test_several_spellings_and_none_of_the_end(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("AB A B\nAB\tA B |\n\nAB B A |\nAB Z\n")
    assert read_lexicon(path, VOCABULARY) == ({"AB": (("A", "B", "|"), ("B", "A", "|"))}, [])


@pytest.mark.parametrize(
    ("content", "detail"), [("AB\n", "line 1: 'AB'"), ("A A |\nB |\n", "line 2: 'B |'"), ("ZOO Z O O |\n", "ZOO")]
)
def test_what_is_no_lexicon(content: str, detail: str, tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text(content)
    with pytest.raises(DataError, match="not a lexicon") as caught:
        read_lexicon(path, VOCABULARY)
    assert caught.value.details == (detail,)


def test_no_file_no_words_no_letters(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the lexicon"):
        read_lexicon(tmp_path / "none.txt", VOCABULARY)
    with pytest.raises(DataError, match="no word can be spelled"):
        lexicon_of(["ZOO", "A|B"], VOCABULARY)
    with pytest.raises(UsageError, match="phones"):
        lexicon_of(["A"], Vocabulary((BLANK, "A"), "phones"))


@pytest.mark.parametrize(("word", "expected"), [("AB", "AB|"), ("ab", "AB|"), ("A|B", None), ("", None), ("AC", None)])
def test_spelling(word: str, expected: str | None) -> None:
    assert spelling(word, VOCABULARY) == (None if expected is None else tuple(expected))


def test_upper_case_may_be_more_letters() -> None:
    assert spelling("straße", letters_vocabulary()) == tuple("STRASSE|")


def test_words_that_a_search_cannot_find() -> None:
    assert outside(["BA A", "BA", "AB"], lexicon_of(["A", "AB", "BB"], VOCABULARY).lexicon) == Counter({"BA": 2})
