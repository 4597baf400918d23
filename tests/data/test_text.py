"""Equal text is equal in whatever form it is written, and no two letters become one."""

import unicodedata
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parp_cli.data.labels import BLANK, BOUNDARY, Vocabulary, letters_vocabulary, visible
from parp_cli.data.text import Case, fold, in_case, normalize_text, without_punctuation
from parp_cli.data.utterances import Utterance
from parp_cli.scoring.metrics import character_errors, word_errors

SCRIPTS = (
    "abcxyzABCXYZ'-",
    "àâçéèêëîïôöùûüÿœæßÀÂÇÉÈÊËÎÏÔÖÙÛÜŸŒÆẞ",
    "ıiIİğĞşŞ",
    "αβγσςωάέήΑΒΓΣΩΆΈΉ",
    "абвгдежзийёАБВГДЕЖЗИЙЁ",
    "აბგდევზთიკᲐᲑᲒᲓ",
    "աբգդեԱԲԳԴԵ",
    "אבגדהוזחטיךם",
    "ابتثجحخدذرزژسش",
    "कखगघचछजझािीुू",
    "กขคงจฉชซเแโใไ",
    "你好世界人大小",
    "가각간나다라마바사아",
    "あいうえおがぎぐアイウエオガギグ",
    "ɔ̃ẽŋʃʒɲɛ̀ɛ́",
)
texts = st.one_of(*(st.text([*script, " "], min_size=1) for script in SCRIPTS), st.text(min_size=1)).map(normalize_text)


def test_text_keeps_its_case_and_has_single_spaces() -> None:
    assert normalize_text("\ufeff  it's\ta  \n Test ") == "it's a Test"


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("Hé, wat ’n (half-open) deur!", "Hé wat n half open deur"),
        ("“L’eau”… it's 'quoted' dogs' — z'n", "L'eau it's quoted dogs z'n"),
        ("किताब। 你好，世界？", "किताब 你好 世界"),
        ("a_b 3.5 €", "a b 3 5"),
        ("?!", ""),
    ],
)
def test_signs_are_not_spoken(text: str, spoken: str) -> None:
    assert without_punctuation(normalize_text(text)) == spoken


@given(texts)
def test_letters_stay_without_punctuation(text: str) -> None:
    spoken = without_punctuation(text)
    letters = [each for each in text if unicodedata.category(each)[0] not in "PSZ"]
    assert [each for each in spoken if each not in " '"] == letters
    assert without_punctuation(spoken) == spoken == normalize_text(spoken)


@given(texts, st.sampled_from(["NFC", "NFD"]))
def test_both_forms_of_a_text_are_one(text: str, form: str) -> None:
    assert normalize_text(unicodedata.normalize(form, text)) == text


@pytest.mark.parametrize(
    ("text", "upper", "lower"),
    [
        ("Straße", "STRAßE", "straße"),
        ("ılık İl", "ıLıK İL", "ılık İl"),
        ("οδός ΟΔΟΣ", "ΟΔΌΣ ΟΔΟΣ", "οδός οδος"),
        ("Σ ΣΑΣ", "Σ ΣΑΣ", "σ σας"),
        ("დედა", "დედა", "დედა"),
        ("Ёлка", "ЁЛКА", "ёлка"),
    ],
)
def test_only_letters_that_have_a_capital_of_their_own_change(text: str, upper: str, lower: str) -> None:
    assert in_case(text, "upper") == upper
    assert in_case(text, "lower") == lower


@given(texts)
def test_case_never_makes_one_letter_of_two(text: str) -> None:
    for case in ("upper", "lower"):
        changed = in_case(text, case)  # type: ignore[arg-type]
        assert "".join(map(fold, changed)) == "".join(map(fold, text))
        assert in_case(changed, case) == changed  # type: ignore[arg-type]


def letters(symbols: str) -> Vocabulary:
    return Vocabulary((BLANK, BOUNDARY, *symbols), "letters")


@pytest.mark.parametrize(
    ("symbols", "case", "text", "reference"),
    [
        ("ABC", "upper", "abc Cab é", "ABC CAB É"),
        ("abc", "lower", "ABC cAB É", "abc cab é"),
        ("abcA", None, "ABC", "ABC"),
        ("你好", "upper", "你 好 a", "你 好 A"),
        ("აბ", "upper", "აბ ᲐᲑ", "აბ აბ"),
        ("აბaç", "lower", "ᲐᲑ Aç", "აბ aç"),
        ("STRAßE", "upper", "Straße STRAẞE Strasse", "STRAßE STRAßE STRASSE"),
        ("straße", "lower", "STRAẞE ß", "straße ß"),
        ("ΑΔΟΣ", "upper", "οδος ΟΔΟΣ", "ΟΔΟΣ ΟΔΟΣ"),
        ("αδοσς", "lower", "ΟΔΟΣ ΣΑ οδος", "οδος σα οδος"),
        ("αδοσ", "lower", "ΟΔΟΣ οδος", "οδοσ οδοσ"),
        ("ıikl", "lower", "KILIK İL", "kılık il"),
        ("IİKL", "upper", "kılık il", "KILIK İL"),
        ("IKL", "upper", "kilık", "KILıK"),
    ],
)
def test_text_takes_the_case_of_the_vocabulary(symbols: str, case: str | None, text: str, reference: str) -> None:
    vocabulary = letters(symbols)
    assert vocabulary.case == case
    spelled = vocabulary.spelling(normalize_text(text))
    assert "".join(spelled).replace(BOUNDARY, " ") == reference


def test_decomposed_symbols_spell_composed_letters() -> None:
    vocabulary = letters("E\u0301A\u0303")
    assert vocabulary.spelling("éÃ") == ["E", "\u0301", "A", "\u0303"]
    assert vocabulary.decode([2, 3, 1, 4, 5]) == "É Ã"
    joined = Vocabulary((BLANK, BOUNDARY, "e\u0301", "ch", "c", "h", "i"), "letters")
    assert joined.spelling("Éch ci") == ["e\u0301", "ch", BOUNDARY, "c", "i"]
    assert joined.decode([2, 3]) == "éch"


@given(texts)
def test_an_alphabet_from_a_text_spells_it_in_any_form_and_case(text: str) -> None:
    if not set(text) - {" ", BOUNDARY} or ("İ" in text and "ı" not in text):  # Turkish, to all appearance
        return

    def utterance(text: str) -> Utterance:
        return Utterance(id="u", audio=None, split="", seconds=1, text=text)  # type: ignore[arg-type]

    text = text.replace(BOUNDARY, "")
    vocabulary = letters_vocabulary([utterance(text)])
    assert not vocabulary.outside(utterance(text))
    same = normalize_text(unicodedata.normalize("NFD", text))
    assert vocabulary.reference(utterance(same)) == vocabulary.reference(utterance(text))
    assert vocabulary.decode(vocabulary.encode(utterance(text))) == vocabulary.reference(utterance(text))
    # Texts that differ in more than case have different references.
    assert [*map(fold, vocabulary.reference(utterance(text)))] == [*map(fold, normalize_text(text))]


def vocabularies(text: str) -> st.SearchStrategy[Vocabulary]:
    """Vocabularies that spell a text, of every kind: either case or both, composed or not, with letters of two
    characters, with special symbols, with another delimiter, with transcripts in lower case."""
    either = {case: sorted(set(in_case(text, case)) - {" "}) for case in get_args(Case)}
    symbols = {
        **either,
        "both": sorted(set(text) - {" "}),
        "decomposed": sorted(set(unicodedata.normalize("NFD", either["lower"] and "".join(either["lower"])))),
        "longer": sorted({*either["upper"], *(in_case(word[:2], "upper") for word in text.split())}),
    }
    special = {"<unk>": "unk", "[UNK]": "extra"}

    def vocabulary(kind: str, delimiter: str, lower_case: bool) -> Vocabulary:
        own = [symbol for symbol in symbols[kind] if symbol != delimiter]
        outputs = (BLANK, *special, delimiter, *dict.fromkeys(own))
        return Vocabulary(outputs, "letters", delimiter=delimiter, special=special, lower_case=lower_case)

    delimiters = st.sampled_from(["|", "#", "<space>"])
    return st.builds(vocabulary, st.sampled_from(sorted(symbols)), delimiters, st.booleans())


def canonical(text: str, vocabulary: Vocabulary) -> str:
    """A text as a vocabulary tells it from others: in one form, and in one case unless it has letters of both."""
    text = unicodedata.normalize("NFC", " ".join(text.removeprefix("\ufeff").split()))
    ignores_case = vocabulary.case is not None or vocabulary.lower_case
    if vocabulary.case is not None and vocabulary.letters & set("ıiIİ") in ({"ı", "i"}, {"I", "İ"}):  # as Turkish does
        text = text.replace("I", "ı")
    return unicodedata.normalize("NFC", "".join(map(fold, text))) if ignores_case else text


@settings(max_examples=400)
@given(st.data(), texts, texts)
def test_equal_text_is_no_error_and_different_text_is_never_equal(data: st.DataObject, one: str, other: str) -> None:
    if "İ" in one + other or not one or not other:  # what its other case is depends on the language
        return
    vocabulary = data.draw(vocabularies(f"{one} {other}"))
    forms = data.draw(st.lists(st.sampled_from(["NFC", "NFD"]), min_size=2, max_size=2))
    if vocabulary.case is not None:
        other = data.draw(st.sampled_from([other, one, in_case(one, "upper"), in_case(one, "lower")]))
    said, read = (
        Utterance(id="u", audio=Path("u"), split="", seconds=1, text=normalize_text(unicodedata.normalize(form, text)))
        for text, form in zip((one, other), forms, strict=True)
    )
    if vocabulary.outside(said) or vocabulary.outside(read):  # a delimiter's own character
        return
    heard, reference = vocabulary.decode(vocabulary.encode(said)), vocabulary.reference(read)
    equal = canonical(one, vocabulary) == canonical(other, vocabulary)
    assert (character_errors([reference], [heard]).errors == 0) == equal
    assert (word_errors([reference], [heard]).errors == 0) == equal


def test_a_capital_and_a_final_sigma_are_one_letter_in_two_cases() -> None:
    assert letters("Σς").case is None
    assert letters("σς").case == "lower"
    assert letters("Σς").spelling("ΣΣ Σς") == ["Σ", "Σ", BOUNDARY, "Σ", "ς"]
    assert letters("σς").spelling("ΣΣ Σς") == ["σ", "ς", BOUNDARY, "σ", "ς"]
    assert letters("σς").spelling("ςσ") == letters("σς").spelling("ΣΣ") == ["σ", "ς"]
    assert letters("ςα").spelling("ΣΑΣ") == ["ς", "α", "ς"]


def test_combining_marks_are_seen_in_messages() -> None:
    assert visible("\u0301") == "◌\u0301"
    assert visible("é") == "é"
