import unicodedata

import pytest

from parp_cli.data import espeak
from parp_cli.data.phones import from_espeak, ipa, marks_in, without
from parp_cli.errors import DataError


@pytest.mark.parametrize(
    ("phone", "mark", "bare"),
    [
        ("ˈaɪ", "stress", "aɪ"),
        ("ˌiː", "stress", "iː"),
        ("AH0", "stress", "AH"),
        ("iː", "length", "i"),
        ("ˈɑ51", "tone", "ˈɑ"),
        ("a˥˩", "tone", "a"),
        ("a⁵¹", "tone", "a"),
    ],
)
def test_marks(phone, mark, bare):
    assert without(phone, [mark]) == bare
    others = {"stress", "length", "tone"} - {mark} - marks_in([bare])
    assert without(phone, others) == phone
    assert marks_in([phone]) == {mark} | marks_in([bare])


def test_digits_that_are_no_tone():
    assert marks_in(["AH1", "T", "1", "sp"]) == {"stress"}
    assert without("AH1", ["tone", "length"]) == "AH1"
    assert without("ˈɑ214", ["stress", "tone"]) == "ɑ"


def test_one_way_to_write_a_phone():
    assert [ipa(phone) for phone in ("g", "t͡ʃ", "ʧ", "i:", "ɛ̃")] == ["ɡ", "tʃ", "tʃ", "iː", "ɛ̃"]
    assert ipa(unicodedata.normalize("NFD", "ç")) == unicodedata.normalize("NFC", "ç")


def test_what_espeak_leaves_in_its_own_letters():
    assert from_espeak('dZ_ɑ oe_l_t[_ˈoe S_u"', "dZ_a O_l_t[_'O S_u\"") == (
        ("dʒ", "ɑ"),
        ("ø", "l", "t̪", "ˈø"),
        ("ʃ", "ʉ"),
    )
    assert from_espeak("ts.h_ˈi.5_ tsh_ˈonɡɜ_", "ts.h_'i.55__| tsh_'ong35__|") == (("ʈʂʰ", "ˈɻ̩55"), ("tsʰ", "ˈʊŋ35"))


def test_words_of_another_language_are_marked_in_no_phone():
    assert from_espeak("œ̃ (en)_w_ˈiː_k_(fr) a", "W~ (en)_w_'i:_k_(fr) a") == (("œ̃",), ("w", "ˈiː", "k"), ("a",))


def test_digits_of_mnemonics_that_are_no_tone():
    """In English "I2" is a reduced vowel and "3:" is ɜː."""
    assert from_espeak("b_ˈɜː_d_ɪ_ɜ", "b_'3:_d_I2_3") == (("b", "ˈɜː", "d", "ɪ", "ɜ"),)


def test_codes_of_languages():
    pytest.importorskip("espeakng_loader", reason="espeak-ng comes with the extra demo")
    codes = ("sw", "zh-TW", "zh-HK", "sv-SE", "pt_br", "en", "en-us", "en-GB")
    assert [espeak.voice_of(code) for code in codes] == ["sw", "cmn", "yue", "sv", "pt-BR", "en-US", "en-US", "en"]
    for code in codes:
        assert espeak.phonemise(code, ["one"])[0]
    with pytest.raises(DataError, match="tlh"):
        espeak.voice_of("tlh")


@pytest.mark.parametrize(
    ("language", "text", "phones"),
    [
        ("es", "tres días", (("t", "ɾ", "ˈe", "s"), ("ð", "ˈi", "a", "s"))),
        ("cmn", "妈麻马骂", (("m", "ˈɑ55"), ("m", "ˈɑ35"), ("m", "ˈɑ214"), ("m", "ˈɑ51"))),
        ("sw", "habari", (("h", "a", "b", "ˈa", "r", "i"),)),
        ("tr", "IŞIK", (("ɯ", "ʃ", "ˈɯ", "k"),)),
    ],
)
def test_phones_of_a_text(language, text, phones):
    pytest.importorskip("espeakng_loader", reason="espeak-ng comes with the extra demo")
    assert espeak.phonemise(language, [text, ""]) == [phones, ()]
