import json
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parp_cli.data.labels import (
    BLANK,
    Vocabulary,
    frames_needed,
    letters_vocabulary,
    phones_vocabulary,
    recorded_vocabulary,
)
from parp_cli.data.utterances import Utterance
from parp_cli.errors import DataError
from parp_cli.storage.checkpoint import ctc_task


def test_letters_of_english():
    vocabulary = letters_vocabulary()
    assert vocabulary.symbols[:4] == (BLANK, "|", "A", "B")
    assert vocabulary.symbols[-1] == "'"
    assert len(vocabulary) == 29


def test_letters_from_transcripts(make_utterance):
    utterances = [make_utterance(text="ÇA VA"), make_utterance(text="L'EAU|X"), make_utterance()]
    assert "".join(letters_vocabulary(utterances).symbols[1:]) == "|'AELUVXÇ"
    with pytest.raises(DataError, match="no letters"):
        letters_vocabulary([make_utterance()])


def test_letters_are_spelt_with_boundaries_and_read_back(make_utterance):
    vocabulary = letters_vocabulary()
    utterance = make_utterance(text="I'M ALL IN")
    ids = vocabulary.encode(utterance)
    assert "".join(vocabulary.symbols[index] for index in ids) == "I'M|ALL|IN"
    assert vocabulary.decode(ids) == vocabulary.reference(utterance) == "I'M ALL IN"


def test_decoding_drops_blanks_and_stray_boundaries():
    vocabulary = letters_vocabulary()
    ids = [1, 0, 2, 0, 2, 1, 1, 3, 1]
    assert vocabulary.decode(ids) == "AA B"
    assert vocabulary.decode([]) == ""


@given(st.lists(st.text("ABZ'", min_size=1), min_size=1).map(" ".join))
def test_any_text_reads_back(text):
    vocabulary = letters_vocabulary()
    utterance = Utterance(id="u", audio=Path("u"), split="", seconds=1, text=text)
    assert vocabulary.decode(vocabulary.encode(utterance)) == text


def test_phones_with_and_without_stress(make_utterance):
    utterance = make_utterance(phones=(("AH0", "B"), ("AH1",)))
    stressed = phones_vocabulary([utterance])
    assert stressed.symbols == (BLANK, "AH0", "AH1", "B")
    assert stressed.decode(stressed.encode(utterance)) == stressed.reference(utterance) == "AH0 B AH1"
    plain = phones_vocabulary([utterance], strip=["stress"])
    assert plain.symbols == (BLANK, "AH", "B")
    assert plain.encode(utterance) == [1, 2, 1]
    assert plain.decode([1, 2, 1]) == plain.reference(utterance) == "AH B AH"


def test_length_and_tone_with_and_without(make_utterance):
    utterance = make_utterance(phones=(("ˈiː51", "g"), ("i", "˥˩", "ɡ")))
    whole = phones_vocabulary([utterance])
    assert whole.symbols == (BLANK, "i", "ɡ", "ˈiː51", "˥˩")
    assert whole.reference(utterance) == "ˈiː51 ɡ i ˥˩ ɡ"  # g of a keyboard is the same phone
    plain = phones_vocabulary([utterance], strip=["stress", "length", "tone"])
    assert plain.symbols == (BLANK, "i", "ɡ")
    assert plain.decode(plain.encode(utterance)) == plain.reference(utterance) == "i ɡ i ɡ"
    assert phones_vocabulary([utterance], strip=["tone"]).reference(utterance) == "ˈiː ɡ i ɡ"


def test_phones_that_are_no_arpabet_stay_as_they_are(make_utterance):
    utterance = make_utterance(phones=(("eː", "t͡s", "5"),))
    vocabulary = phones_vocabulary([utterance], strip=["stress"])
    assert vocabulary.decode(vocabulary.encode(utterance)) == "eː t͡s 5"


def test_phones_are_needed(make_utterance):
    with pytest.raises(DataError, match="no phones"):
        phones_vocabulary([make_utterance(text="A")])


def test_characters_outside_the_vocabulary_are_named(make_utterance):
    with pytest.raises(DataError) as caught:
        letters_vocabulary().encode(make_utterance(id="u7", text="CAFÉ 2 | É"))
    assert "u7" in caught.value.message
    assert caught.value.details[0].split()[0] == "2"
    assert "É" in caught.value.details[0]
    assert "| in the text" in caught.value.details[0]
    assert caught.value.hint


def test_no_label_to_encode(make_utterance):
    with pytest.raises(DataError, match="u has no letters"):
        letters_vocabulary().encode(make_utterance(phones=(("A",),)))
    with pytest.raises(DataError, match="u has no phones"):
        Vocabulary((BLANK, "A"), "phones").encode(make_utterance(text="A"))


def test_special_symbols_of_imported_models(make_utterance):
    special = {"<unk>": "unk", "[X]": "extra"}
    vocabulary = Vocabulary((BLANK, "[X]", "<unk>", "|", "A"), "letters", special=special)
    assert vocabulary.decode([1, 4, 2, 3, 4, 0]) == "A A"
    phones = Vocabulary((BLANK, "<unk>", "A"), "phones", special={"<unk>": "unk"})
    assert phones.outside(make_utterance(phones=(("<unk>", BLANK, "A"),))) == [BLANK, "<unk>"]


@pytest.mark.parametrize(
    ("symbols", "labels"),
    [((), "letters"), (("|", BLANK), "letters"), ((BLANK, "|", "A", "A"), "letters")],
)
def test_not_a_vocabulary(symbols, labels):
    with pytest.raises(DataError, match="not a vocabulary of letters"):
        Vocabulary(symbols, labels)


@given(st.lists(st.integers(1, 3), max_size=6))
def test_frames_needed_are_the_fewest_that_collapse_to_the_labels(ids):
    # The shortest path: a blank before every label that equals the one before it.
    path: list[int] = []
    for label in ids:
        path += [0, label] if path and path[-1] == label else [label]
    assert [label for label, _ in groupby(path) if label] == ids
    assert frames_needed(ids) == len(path)


def test_letters_without_a_boundary_are_one_word_whatever_the_spaces(make_utterance):
    vocabulary = Vocabulary((BLANK, "你", "好"), "letters")
    assert vocabulary.delimiter is None
    for text in ("你好", "你 好"):
        assert vocabulary.encode(make_utterance(text=text)) == [1, 2]
        assert vocabulary.reference(make_utterance(text=text)) == vocabulary.decode([1, 2]) == "你好"


def test_phones_have_a_boundary_between_words_where_the_head_has_one(make_utterance):
    vocabulary = Vocabulary((BLANK, "#", "a", "b"), "phones", delimiter="#")
    utterance = make_utterance(phones=(("a", "b"), ("a",)))
    assert vocabulary.encode(utterance) == [2, 3, 1, 2]
    assert vocabulary.decode(vocabulary.encode(utterance)) == vocabulary.reference(utterance) == "a b a"


def test_transcripts_may_be_lower_case_and_have_another_separator(make_utterance):
    vocabulary = Vocabulary((BLANK, "|", "A", "B"), "letters", lower_case=True, separator="_")
    utterance = make_utterance(text="ab B")
    assert vocabulary.encode(utterance) == [2, 3, 1, 3]
    assert vocabulary.decode([1, 2, 3, 1, 1, 3]) == vocabulary.reference(utterance) == "ab_b"


def test_a_delimiter_that_is_no_bar(make_utterance):
    vocabulary = Vocabulary((BLANK, "#", "|", "a"), "letters", delimiter="#")
    utterance = make_utterance(text="a| a")
    assert vocabulary.encode(utterance) == [3, 2, 1, 3]
    assert vocabulary.decode([3, 2, 1, 3]) == vocabulary.reference(utterance) == "a| a"
    assert vocabulary.outside(make_utterance(text="a #")) == ["# in the text"]
    assert vocabulary.reference(make_utterance(text="a #")) == "a #"


@pytest.mark.parametrize("labels", ["letters", "phones"])
def test_files_that_say_less_read_as_in_their_time(labels):
    task = ctc_task([BLANK, "<s>", "<unk>", "[UNK]", "|", "A"], labels)
    vocabulary = recorded_vocabulary(task)
    assert vocabulary is not None
    assert vocabulary.special == {"<s>": "bos", "<unk>": "unk"}
    text = vocabulary.decode([0, 1, 2, 3, 4, 5])
    assert text == ("[UNK] A" if labels == "letters" else "[UNK] | A")
    assert recorded_vocabulary(vocabulary.to_json()) == vocabulary


def test_what_is_recorded_reads_back(make_utterance):
    for vocabulary in (
        letters_vocabulary(),
        phones_vocabulary([make_utterance(phones=(("<sil>", "A"),))]),
        Vocabulary(
            (BLANK, "[U]", "#", "|"), "letters", "#", {"[U]": "unk"}, separator="", lower_case=True, padding="[P]"
        ),
    ):
        assert recorded_vocabulary(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary
        assert recorded_vocabulary({"kind": "masked_prediction"}) is recorded_vocabulary(None) is None
