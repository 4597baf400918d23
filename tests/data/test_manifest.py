import json
import unicodedata
from pathlib import Path

import pytest

from parp_cli.data.manifest import read_manifest
from parp_cli.errors import DataError


@pytest.fixture
def folder(tmp_path, write_tone):
    write_tone(tmp_path / "sounds" / "a.flac")
    write_tone(tmp_path / "sounds" / "b.mp3", rate=44_100)
    return tmp_path


def write(folder: Path, text: str, name: str = "manifest.tsv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_a_tsv_with_all_columns_in_any_order(folder):
    path = write(
        folder,
        "seconds\tid\taudio\tsplit\tspeaker\ttext\tphones\tignored\n"
        '0.5\tu1\tsounds/a.flac\ttrain\ts1\thello "my"  world\tHH AH0 | M AY1\tx\n',
    )
    (utterance,) = read_manifest(path)
    assert utterance.audio == folder / "sounds/a.flac"
    assert (utterance.id, utterance.split, utterance.speaker, utterance.seconds) == ("u1", "train", "s1", 0.5)
    assert utterance.text == 'hello "my" world'
    assert utterance.phones == (("HH", "AH0"), ("M", "AY1"))


def test_seconds_come_from_the_header_where_they_are_missing(folder):
    path = write(folder, "id\taudio\tsplit\tseconds\na\tsounds/a.flac\ttrain\t\nb\tsounds/b.mp3\ttrain\t2\n")
    first, second = read_manifest(path)
    assert (first.seconds, second.seconds) == (0.5, 2.0)
    assert first.text is first.phones is first.speaker is None


def test_json_lines(folder):
    rows = [
        {"id": "a", "audio": "sounds/a.flac", "split": "train", "text": "naïve\u2028one", "seconds": 0.5},
        {"id": "b", "audio": str(folder / "sounds/b.mp3"), "split": "test", "text": None, "phones": "A B | C"},
    ]
    path = write(folder, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "m.jsonl")
    first, second = read_manifest(path)
    assert (first.text, first.seconds) == ("naïve one", 0.5)
    assert (second.text, second.phones, second.split) == (None, (("A", "B"), ("C",)), "test")


def test_byte_order_mark_windows_line_ends_and_blank_lines(folder):
    path = write(folder, "\ufeffid\taudio\tsplit\ttext\r\n\r\na\tsounds/a.flac\ttrain\tyes\r\n\r\n")
    (utterance,) = read_manifest(path)
    assert (utterance.id, utterance.text) == ("a", "yes")


@pytest.mark.parametrize(("written", "named"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_file_names_may_be_in_another_form(folder, write_tone, written, named):
    write_tone(folder / unicodedata.normalize(written, "é.flac"))
    path = write(folder, f"id\taudio\tsplit\na\t{unicodedata.normalize(named, 'é.flac')}\ttrain\n")
    (utterance,) = read_manifest(path)
    assert utterance.audio.is_file()


def test_all_problems_at_once_with_their_lines(folder):
    write(folder, "noise", "sounds/broken.flac")
    path = write(
        folder,
        "id\taudio\tsplit\tseconds\n"
        "a\tsounds/a.flac\ttrain\t1\n"
        "a\tsounds/a.flac\ttrain\t1\n"
        "\n"
        "c\tsounds/none.flac\ttrain\t1\n"
        "d\tsounds/a.flac\ttrain\tlong\n"
        "e\tsounds/a.flac\ttrain\t-1\n"
        "f\tsounds/a.flac\ttrain\tnan\n"
        "\tsounds/a.flac\t\t1\n"
        "h\tsounds/a.flac\n"
        "i\tsounds/broken.flac\ttrain\t\n",
    )
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    assert str(path) in caught.value.message
    assert "9 problems" in caught.value.message
    details = caught.value.details
    assert details[0] == "line 3: id a is that of line 2"
    assert details[1] == f"line 5: no audio file {folder / 'sounds/none.flac'}"
    assert details[2] == "line 6: seconds is 'long', not a number above 0"
    assert [detail.split(":")[0] for detail in details[3:]] == [f"line {n}" for n in (7, 8, 9, 9, 10, 11)]


def test_what_is_wrong_with_single_utterances_can_be_left_to_the_caller(folder):
    write(folder, "noise", "sounds/broken.flac")
    rows = [
        "a\tsounds/a.flac\ttrain\t1",
        "a\tsounds/a.flac\ttrain\t1",
        "b\tnone.flac\ttrain\t2",
        "c\tnone.flac\ttrain\t",
    ]
    rows.append("d\tsounds/broken.flac\ttrain\t")
    head = "id\taudio\tsplit\tseconds\n"
    utterances = read_manifest(write(folder, head + "\n".join(rows)), lenient=True)
    assert [(utterance.id, utterance.seconds) for utterance in utterances] == [
        ("a", 1.0),
        ("a", 1.0),
        ("b", 2.0),
        ("c", 0.0),
        ("d", 0.0),
    ]
    with pytest.raises(DataError) as caught:
        read_manifest(write(folder, head + "\n".join([*rows, "e\tsounds/a.flac\ttrain\tlong", "f"])), lenient=True)
    assert [detail.split(":")[0] for detail in caught.value.details] == ["line 7", "line 8"], "no use without a length"


def test_json_problems(folder):
    good = {"id": "a", "audio": "sounds/a.flac", "split": "train"}
    lines = [
        json.dumps(good),
        "{not json",
        "[1]",
        json.dumps({**good, "id": 7}),
        json.dumps({"id": "b", "audio": "sounds/a.flac"}),
        json.dumps({**good, "id": "c", "seconds": True}),
        json.dumps({**good, "id": "d", "phones": ["A"]}),
    ]
    with pytest.raises(DataError) as caught:
        read_manifest(write(folder, "\n".join(lines)))
    assert caught.value.details[0].startswith("line 2: not JSON")
    assert caught.value.details[1:] == (
        "line 3: not a JSON object",
        "line 4: id is 7, not a string",
        "line 5: no split",
        "line 6: seconds is True, not a number above 0",
        "line 7: phones is ['A'], not a string",
    )


def test_missing_and_repeated_columns(folder):
    with pytest.raises(DataError) as caught:
        read_manifest(write(folder, "id\tsound\ttext\ttext\nx\ty\tz\tz\n"))
    assert caught.value.details == (
        "line 1: no column audio",
        "line 1: column text is repeated",
        "columns: id, sound, text, text",
    )


@pytest.mark.parametrize("text", ["", "\n", "id\taudio\tsplit\n"])
def test_an_empty_manifest(folder, text):
    with pytest.raises(DataError, match="lists no utterances"):
        read_manifest(write(folder, text))


def test_unreadable_manifests(folder):
    with pytest.raises(DataError, match="cannot read manifest"):
        read_manifest(folder / "none.tsv")
    (folder / "latin.tsv").write_bytes("id\taudio\tsplit\nä".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_manifest(folder / "latin.tsv")


def test_many_problems_are_counted(folder):
    rows = "".join(f"u{index}\tnone.flac\ttrain\n" for index in range(1234))
    with pytest.raises(DataError) as caught:
        read_manifest(write(folder, "id\taudio\tsplit\n" + rows))
    assert "1,234 problems" in caught.value.message
    assert caught.value.details[-1] == "… and 1,184 more"


SPEECHOCEAN = Path(__file__).parents[3] / "shared/speech/speechocean762/manifest.tsv"


@pytest.mark.skipif(not SPEECHOCEAN.is_file(), reason="speechocean762 is not beside the project")
def test_real_speech():
    utterances = read_manifest(SPEECHOCEAN)
    minutes = {
        split: sum(utterance.seconds for utterance in utterances if utterance.split == split) / 60
        for split in ("train", "test")
    }
    assert minutes == pytest.approx({"train": 76.2, "test": 16.3}, abs=0.05)
    assert all(utterance.text and utterance.phones and utterance.speaker for utterance in utterances)
    assert all(len(utterance.phones or ()) == len((utterance.text or "").split()) for utterance in utterances)
