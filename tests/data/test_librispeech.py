import pytest

from parp_cli.data.check import with_lengths
from parp_cli.data.inspection import inspect_files
from parp_cli.data.librispeech import (
    LIBRILIGHT_SPLITS,
    librispeech_splits,
    load_librilight,
    load_librispeech,
)
from parp_cli.errors import DataError


def test_a_split_is_read_from_the_folder_or_its_parent(tmp_path, write_chapter):
    base = tmp_path / "LibriSpeech"
    write_chapter(base / "dev-clean", "84", "121123", ["GO DO YOU HEAR", "BUT  in less"])
    write_chapter(base / "dev-clean", "7", "1", ["YES"])
    utterances = load_librispeech(tmp_path, "dev-clean")
    assert utterances == load_librispeech(base, "dev-clean")
    assert [u.id for u in utterances] == ["7-1-0000", "84-121123-0000", "84-121123-0001"]
    last = utterances[-1]
    assert last.audio == base / "dev-clean/84/121123/84-121123-0001.flac"
    assert (last.text, last.phones, last.speaker, last.split) == ("BUT in less", None, "84", "dev-clean")
    assert last.seconds == pytest.approx(0.5)


def test_a_tab_or_a_byte_order_mark_in_the_transcripts(tmp_path, write_chapter):
    chapter = write_chapter(tmp_path / "dev-clean", "1", "1", ["A", "B"])
    (chapter / "1-1.trans.txt").write_text("\ufeff1-1-0000\tFIRST ONE\n1-1-0001  SECOND\n", encoding="utf-8")
    assert [u.text for u in load_librispeech(tmp_path, "dev-clean")] == ["FIRST ONE", "SECOND"]


def test_phones_are_read_where_they_lie_beside_the_transcript(tmp_path, write_chapter):
    write_chapter(tmp_path / "train-10min", "1000", "1", ["HI MY", "A"], phones=["h eː | m eː", "ə"])
    first, second = load_librispeech(tmp_path, "train-10min")
    assert first.phones == (("h", "eː"), ("m", "eː"))
    assert second.phones == (("ə",),)


def test_libritts_has_a_text_for_each_file_and_other_formats(tmp_path, write_tone):
    chapter = tmp_path / "dev-clean" / "84" / "121123"
    for number, text in enumerate(["Go! Do you hear?", "But in less."]):
        write_tone(chapter / f"84_121123_00000{number}_000000.wav")
        (chapter / f"84_121123_00000{number}_000000.normalized.txt").write_text(text)
        (chapter / f"84_121123_00000{number}_000000.original.txt").write_text("as it was printed")
    assert librispeech_splits(tmp_path) == ["dev-clean"]
    first, second = load_librispeech(tmp_path, "dev-clean")
    assert (first.id, first.text, first.speaker) == ("84_121123_000000_000000", "Go! Do you hear?", "84")
    assert second.audio == chapter / "84_121123_000001_000000.wav"


def test_any_split_folder_counts_and_others_do_not(tmp_path, write_chapter):
    write_chapter(tmp_path / "train-1h", "1", "1", ["A"])
    write_chapter(tmp_path / "test-other", "2", "1", ["A"])
    write_chapter(tmp_path / ".half-made", "2", "1", ["A"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "README.TXT").write_text("about")
    assert librispeech_splits(tmp_path) == ["test-other", "train-1h"]
    with pytest.raises(DataError) as caught:
        load_librispeech(tmp_path, "test-clean")
    assert "no split test-clean" in caught.value.message
    assert caught.value.details == ("splits there: test-other, train-1h",)


@pytest.mark.parametrize("split", ["..", ".", "dev-clean/84", ""])
def test_a_split_is_a_name_and_not_a_path(tmp_path, write_chapter, split):
    write_chapter(tmp_path / "LibriSpeech" / "dev-clean", "84", "1", ["A"])
    with pytest.raises(DataError, match="no split"):
        load_librispeech(tmp_path, split)


def test_audio_without_a_transcript_is_unlabelled(tmp_path, write_chapter):
    chapter = write_chapter(tmp_path / "dev-clean", "1", "1", ["A", "B"])
    (chapter / "1-1.trans.txt").unlink()
    assert [u.text for u in load_librispeech(tmp_path, "dev-clean")] == [None, None]


def test_all_broken_and_missing_files_are_reported_at_once(tmp_path, write_chapter):
    chapter = write_chapter(tmp_path / "dev-clean", "1", "1", ["A", "B", "C"])
    (chapter / "1-1-0000.flac").unlink()
    (chapter / "1-1-0002.flac").write_bytes(b"noise")
    with pytest.raises(DataError) as caught:
        load_librispeech(tmp_path, "dev-clean")
    assert "2 broken or missing files" in caught.value.message
    assert "1-1-0000.flac: there is no such file" in caught.value.details[0]
    assert "1-1-0002.flac" in caught.value.details[1]
    kept = load_librispeech(tmp_path, "dev-clean", lenient=True)
    assert {utterance.seconds for utterance in kept} == {0.0}, "no audio is opened"
    infos = inspect_files((utterance.audio for utterance in kept), cache=tmp_path / "cache")
    assert [(u.audio.name, u.seconds > 0) for u in with_lengths(kept, infos)] == [
        ("1-1-0000.flac", False),
        ("1-1-0001.flac", True),
        ("1-1-0002.flac", False),
    ]
    assert all(u.text for u in kept)


@pytest.fixture
def librilight(tmp_path, write_chapter):
    base = tmp_path / "librispeech_finetuning"
    for fold in range(6):
        write_chapter(base / "1h" / str(fold) / "clean", f"1{fold}", "1", [f"CLEAN {fold}"])
        write_chapter(base / "1h" / str(fold) / "other", f"2{fold}", "1", [f"OTHER {fold}"])
    write_chapter(base / "9h" / "clean", "30", "1", ["NINE"])
    write_chapter(base / "9h" / "other", "31", "1", ["HOURS"])
    return tmp_path


@pytest.mark.parametrize(
    ("split", "speakers"),
    [
        ("10min", "10 20"),
        *((f"10min-{fold}", f"1{fold} 2{fold}") for fold in range(6)),
        ("1h", "10 11 12 13 14 15 20 21 22 23 24 25"),
        ("10h", "10 11 12 13 14 15 20 21 22 23 24 25 30 31"),
    ],
)
def test_libri_light_splits_are_made_of_their_folds(librilight, split, speakers):
    utterances = load_librilight(librilight, split)
    assert [u.speaker for u in utterances] == speakers.split()
    assert {u.split for u in utterances} == {split}
    assert utterances == load_librilight(librilight / "librispeech_finetuning", split)


def test_every_libri_light_split_is_tested():
    assert set(LIBRILIGHT_SPLITS) == {"10min", *(f"10min-{fold}" for fold in range(6)), "1h", "10h"}


def test_a_missing_fold_is_named(tmp_path, write_chapter):
    write_chapter(tmp_path / "librispeech_finetuning" / "1h" / "0" / "clean", "1", "1", ["A"])
    assert len(load_librilight(tmp_path, "10min")) == 1
    with pytest.raises(DataError) as caught:
        load_librilight(tmp_path, "10h")
    assert len(caught.value.details) == 6
    assert "1h/1" in caught.value.details[0]
    assert "9h" in caught.value.details[-1]
    with pytest.raises(DataError, match="no split 100h"):
        load_librilight(tmp_path, "100h")
