import json
from pathlib import Path

import pytest

from parp_cli.config.finetune import Data
from parp_cli.data import layouts
from parp_cli.data.corpora import load
from parp_cli.data.manifest import read_manifest
from parp_cli.errors import DataError
from tests.others import CORPORA, common_voice, common_voice_archive, fleurs, kaldi, mls, nemo, recordings
from tests.tiny import TEXTS

SPEAKERS = {"common_voice": "c1", "common_voice_archive": "c1", "mls": "17", "kaldi": "s1"}


@pytest.mark.parametrize("name", CORPORA)
def test_formats_of_others(name, tmp_path):
    corpus = CORPORA[name](tmp_path)
    for split, theirs in corpus.names.items():
        utterances = read_manifest(corpus.path, split=theirs)
        assert [utterance.text for utterance in utterances] == TEXTS[split]
        assert {utterance.split for utterance in utterances} == {theirs}
        assert len({utterance.id for utterance in utterances}) == len(utterances)
        assert all(utterance.audio.is_file() and utterance.seconds > 0.3 for utterance in utterances)
        assert utterances[1].speaker == SPEAKERS.get(name)
        assert all(utterance.seconds == 0 for utterance in read_manifest(corpus.path, split=theirs, lenient=True)) == (
            name not in ("fleurs", "nemo")
        )
    every = read_manifest(corpus.path, lenient=True)
    assert len({utterance.audio for utterance in every}) == len(every) == corpus.count
    with pytest.raises(DataError, match="no split valid") as caught:
        read_manifest(corpus.path, split="valid")
    assert {*caught.value.details[0].removeprefix("splits there: ").split(", ")} >= {*corpus.names.values()}


def test_a_file_of_a_corpus_is_a_split(tmp_path):
    corpus = common_voice(tmp_path)
    assert len(read_manifest(corpus.path / "dev.tsv", split="dev")) == len(TEXTS["valid"])
    assert read_manifest(corpus.path / "dev.tsv")[0].language == "ky"
    assert len(read_manifest(corpus.path, split="validated")) == len(TEXTS["train"]) + len(TEXTS["valid"])
    with pytest.raises(DataError, match="no split valid") as caught:
        read_manifest(corpus.path / "dev.tsv", split="valid")
    assert "one for each" in (caught.value.hint or "")
    # A release with several languages, or one: the folder above.
    assert len(read_manifest(corpus.path.parent, split="dev")) == len(TEXTS["valid"])


def test_an_archive_is_unpacked_once(tmp_path, monkeypatch):
    corpus = common_voice_archive(tmp_path)
    monkeypatch.setenv("PARP_CACHE", str(tmp_path / "cache"))
    first = read_manifest(corpus.path, split="dev")
    assert all(utterance.audio.is_relative_to(tmp_path / "cache") for utterance in first)
    monkeypatch.setattr(layouts, "unpack", None)
    assert read_manifest(corpus.path, split="dev") == first


def test_a_damaged_archive_leaves_nothing(tmp_path, monkeypatch):
    corpus = common_voice_archive(tmp_path)
    monkeypatch.setenv("PARP_CACHE", str(tmp_path / "cache"))
    corpus.path.write_bytes(corpus.path.read_bytes()[:-500])
    with pytest.raises(DataError, match="cannot unpack"):
        read_manifest(corpus.path, split="dev")
    assert not list((tmp_path / "cache" / "archives").iterdir())


def test_parts_of_mls_by_their_lists(tmp_path):
    path = mls(tmp_path).path
    counts = {split: len(read_manifest(path, split=split)) for split in ("10min", "1h", "10h", "train")}
    assert counts == {"10min": 2, "1h": 4, "10h": 6, "train": 6}


def test_fleurs_lengths_are_those_of_its_tables(tmp_path):
    utterances = read_manifest(fleurs(tmp_path).path, split="train", lenient=True)
    assert [round(one.seconds, 4) for one in utterances] == [
        round(one.seconds, 4) for one in read_manifest(_without_tables(tmp_path))
    ]


def _without_tables(folder: Path) -> Path:
    rows = [{"audio": str(path)} for path in sorted((folder / "ky_kg" / "audio" / "train").iterdir())]
    (folder / "plain.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "plain.jsonl"


def test_kaldis_commands_are_not_run(tmp_path):
    path = kaldi(tmp_path).path / "dev"
    lines = (path / "wav.scp").read_text().splitlines()
    touched = tmp_path / "touched"
    lines[0] = f"{lines[0].split()[0]} touch {touched} |"
    lines[1] = f"{lines[1].split()[0]} raw_mfcc.ark:17"
    (path / "wav.scp").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError) as caught:
        read_manifest(path, split="dev")
    assert [detail.split(":")[0] for detail in caught.value.details] == ["line 1", "line 2"]
    assert "not run" in caught.value.details[0]
    assert not touched.exists()
    (path / "segments").write_text("a b 0 1\n")
    with pytest.raises(DataError, match="segments"):
        read_manifest(path, split="dev")


def test_parts_of_recordings_are_refused(tmp_path):
    path = nemo(tmp_path).path / "dev_manifest.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["offset"], rows[1]["offset"] = 0, 0.5
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    assert caught.value.details == ("line 2: starts within a file, at 0.5 s: cut it into a file of its own",)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", 'audio,split,text\nwavs/dev-0.wav,a,"AB, C"\n'),
        ("m.json", json.dumps([{"audio": "wavs/dev-0.wav", "split": "a", "text": "AB, C"}], indent=1)),
        ("m.tsv", "audio\tsplit\ttext\n~/wavs/dev-0.wav\ta\tAB, C\n"),
        ("a-manifest.jsonl", '{"audio": "wavs/dev-0.wav", "text": "AB, C"}\n'),
    ],
)
def test_our_own_columns_in_other_files(name, text, tmp_path, monkeypatch):
    nemo(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / name).write_text(text)
    (utterance,) = read_manifest(tmp_path / name, split="a")
    assert (utterance.text, utterance.audio) == ("AB, C", tmp_path / "wavs" / "dev-0.wav")
    assert utterance.id.endswith("wavs/dev-0")


def test_a_recording_without_a_text(tmp_path):
    path = recordings(tmp_path).path
    (path / "dev" / "1.txt").unlink()
    (path / "dev" / "0.txt").write_text("AB\n  C\n")
    assert [utterance.text for utterance in read_manifest(path, split="dev")] == ["AB C", None, TEXTS["valid"][2]]
    (path / "dev" / "2.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        read_manifest(path, split="dev")
    for text in (path / "dev").glob("*.txt"):
        text.rename(text.with_suffix(".lab"))
    with pytest.raises(DataError, match="no corpus"):
        read_manifest(path / "dev")


def test_a_folder_of_recordings_is_one_split(tmp_path):
    with pytest.raises(DataError, match="no split train") as caught:
        read_manifest(recordings(tmp_path).path / "dev", split="train")
    assert caught.value.details == ("splits there: dev",)
    assert "one for each" in (caught.value.hint or "")


def test_an_array_that_is_not_one(tmp_path):
    (tmp_path / "m.json").write_text('[\n{"audio": "a.wav"},\n{]')
    with pytest.raises(DataError) as caught:
        read_manifest(tmp_path / "m.json")
    assert caught.value.details[0].startswith("line 3: not JSON")
    (tmp_path / "m.json").write_text("[1, {}]")
    with pytest.raises(DataError) as caught:
        read_manifest(tmp_path / "m.json")
    assert caught.value.details[:2] == ("entry 1: not a JSON object", "entry 2: no id")


def test_problems_name_the_file_of_a_folder(tmp_path):
    path = kaldi(tmp_path).path
    (path / "dev" / "wav.scp").write_text("s0-dev-0 none.wav\n")
    with pytest.raises(DataError) as caught:
        read_manifest(path)
    assert caught.value.details[0].startswith("dev/wav.scp, line 1: no audio file ")


def test_a_folder_without_a_corpus(tmp_path):
    (tmp_path / "notes.csv").write_text("a,b\n")
    with pytest.raises(DataError, match="no corpus in folder"):
        read_manifest(tmp_path)


def test_lists_of_ids(tmp_path):
    corpus = common_voice(tmp_path)
    ids = [utterance.id for utterance in read_manifest(corpus.path, split="train", lenient=True)]
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "few.txt").write_text(f"{ids[3]}\n\n{ids[0]}.mp3\n")
    data = Data(corpus="manifest", manifest=str(corpus.path), lists=str(lists))
    chosen = load(data, "few")
    assert [(one.id, one.split, one.text) for one in chosen] == [
        (ids[3], "few", TEXTS["train"][3]),
        (ids[0], "few", TEXTS["train"][0]),
    ]
    (lists / "few.txt").write_text(f"gone\n{ids[0]}\nlost.mp3\n")
    with pytest.raises(DataError, match="2 ids of") as caught:
        load(data, "few")
    assert caught.value.details == ("gone", "lost")
    lenient = load(data, "few", lenient=True)
    assert [one.id for one in lenient] == ["gone", ids[0], "lost"]
    with pytest.raises(DataError, match=r"none\.txt of split none") as caught:
        load(data, "none")
    assert caught.value.details == ("lists there: few",)
