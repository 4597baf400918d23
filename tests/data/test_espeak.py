"""Needs espeakng-loader (extra `demo`)."""

import sys
from pathlib import Path

import pytest

from parp_cli.data import espeak
from parp_cli.data.espeak import Voice, synthesise, variants, voice_of
from parp_cli.errors import DataError, UsageError

TEXTS = ["HE LEARNED LATIN IN CHAD", "SHE SPEAKS GREEK AND DUTCH", "ON MONDAY THEY SOLD SIX TONS OF SUGAR"]


@pytest.fixture
def voice() -> Voice:
    pytest.importorskip("espeakng_loader", reason="espeak-ng comes with the extra demo")
    return Voice(language="en-us", variant="f2", pitch=50, rate=175)


def test_words_phones_and_samples(voice: Voice) -> None:
    speeches = synthesise(voice, TEXTS, seconds=60)
    assert [speech.text for speech in speeches] == TEXTS
    for speech in speeches:
        assert len(speech.phones) == len(speech.text.split())
        assert all(phone and "ˈ" not in phone for word in speech.phones for phone in word)
        assert 1 < speech.seconds == len(speech.pcm) / 2 / espeak.SAMPLE_RATE < 5
    assert speeches[0].phones[0] == ("h", "iː")


def test_the_same_call_gives_the_same_samples(voice: Voice) -> None:
    first = synthesise(voice, TEXTS, seconds=60)
    assert synthesise(voice, TEXTS, seconds=60) == first
    other = synthesise(Voice(language="en-us", variant="m3", pitch=50, rate=175), TEXTS, seconds=60)
    assert all(ours.pcm != theirs.pcm for ours, theirs in zip(first, other, strict=True))


def test_pitch_and_rate_are_heard(voice: Voice) -> None:
    slow, fast = (Voice(language="en-us", variant="f2", pitch=50, rate=rate) for rate in (130, 190))
    assert synthesise(slow, TEXTS[:1], seconds=9)[0].seconds > 1.2 * synthesise(fast, TEXTS[:1], seconds=9)[0].seconds
    high = Voice(language="en-us", variant="f2", pitch=75, rate=175)
    assert synthesise(high, TEXTS[:1], seconds=9) != synthesise(voice, TEXTS[:1], seconds=9)


def test_only_whole_sentences_that_fit(voice: Voice) -> None:
    whole = synthesise(voice, TEXTS, seconds=60)
    for count in (0, 1, 2):
        enough = sum(speech.seconds for speech in whole[: count + 1])
        assert synthesise(voice, TEXTS, seconds=enough - 0.01) == whole[:count]


def test_an_unknown_voice(voice: Voice) -> None:
    with pytest.raises(DataError, match="xx-nowhere"):
        synthesise(Voice(language="xx-nowhere", variant="", pitch=50, rate=175), TEXTS, seconds=1)


def test_variants_are_sorted_names(voice: Voice) -> None:
    assert variants() == sorted(variants())
    assert {"f1", "m1"} < set(variants())


def test_a_file_in_the_working_folder_is_not_run(voice: Voice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ctypes.py").write_text("raise SystemExit('run')")
    monkeypatch.chdir(tmp_path)
    assert len(synthesise(voice, TEXTS[:1], seconds=9)) == 1


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(UsageError, match="espeakng-loader") as caught:
        synthesise(Voice(language="en-us", variant="", pitch=50, rate=175), TEXTS, seconds=1)
    assert "demo" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("language", "hint"),
    [
        ("italian", "give its code: it"),
        ("Dutch", "give its code: nl"),
        ("roa", "did you mean ro?"),  # a family of languages, a folder of espeak-ng's
        ("qqqq", "give the phones in a column of the manifest"),
    ],
)
def test_a_language_by_its_name_is_told_its_code(language: str, hint: str) -> None:
    pytest.importorskip("espeakng_loader", reason="espeak-ng comes with the extra demo")
    with pytest.raises(DataError, match=f"no phones of language {language}") as caught:
        voice_of(language)
    assert caught.value.hint == hint
