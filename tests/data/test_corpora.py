from pathlib import Path
from typing import get_args

import pytest

from parp_cli.config.finetune import Corpus, Data
from parp_cli.config.load import load_recipe
from parp_cli.data import corpora, generated
from parp_cli.data.corpora import find_audio, generated_speech, load
from parp_cli.errors import DataError, RecipeError


def test_librispeech(tmp_path, write_chapter):
    write_chapter(tmp_path / "dev-clean", "1", "1", ["A"])
    assert [u.id for u in load(Data(corpus="librispeech", root=str(tmp_path)), "dev-clean")] == ["1-1-0000"]
    with pytest.raises(DataError) as caught:
        load(Data(corpus="librispeech", root=str(tmp_path)), "dev-other")
    assert "dev-clean" in caught.value.details[0]
    with pytest.raises(DataError, match="no folder"):
        load(Data(corpus="librispeech", root=str(tmp_path / "none")), "dev-clean")


def test_librispeech_is_downloaded_only_on_request_and_only_if_absent(tmp_path, write_chapter, monkeypatch):
    asked: list[str] = []

    def download(split: str, root: Path, *, progress: object) -> None:
        asked.append(split)
        write_chapter(root / "LibriSpeech" / split, "1", "1", ["A"])

    monkeypatch.setattr(corpora, "download_librispeech", download)
    monkeypatch.setenv("PARP_CACHE", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load(Data(corpus="librispeech"), "dev-clean")
    assert "downloaded" in (caught.value.hint or "")
    for _ in range(2):
        (utterance,) = load(Data(corpus="librispeech", download=True), "dev-clean")
    assert asked == ["dev-clean"]
    assert utterance.audio.is_relative_to(tmp_path / "librispeech")


def test_librilight_is_downloaded_on_request(tmp_path, write_chapter, monkeypatch):
    def download(root: Path, *, progress: object) -> None:
        write_chapter(root / "librispeech_finetuning" / "1h" / "0" / "clean", "1", "1", ["A"])

    monkeypatch.setattr(corpora, "download_librilight", download)
    assert len(load(Data(corpus="librilight", root=str(tmp_path / "new"), download=True), "10min")) == 1
    with pytest.raises(DataError, match="no folder"):
        load(Data(corpus="librilight", root=str(tmp_path / "none")), "10min")


def test_manifest(tmp_path, write_tone):
    write_tone(tmp_path / "a.wav")
    manifest = tmp_path / "m.tsv"
    manifest.write_text("id\taudio\tsplit\na\ta.wav\ttrain\nb\ta.wav\ttest\n")
    data = Data(corpus="manifest", manifest=str(manifest))
    assert [u.id for u in load(data, "test")] == ["b"]
    with pytest.raises(DataError) as caught:
        load(data, "dev")
    assert caught.value.details == ("splits there: test, train",)


def test_generated_is_read_from_where_it_was_made(tmp_path, write_chapter, monkeypatch):
    def ensure_split(split: str, *, language: str, **_: object) -> Path:
        write_chapter(tmp_path / language / split, "1", "1", ["A"], phones=["x"])
        return tmp_path / language

    monkeypatch.setattr(generated, "ensure_split", ensure_split)
    utterances = generated_speech("train-10min", ["tr", "en"])
    assert [utterance.language for utterance in utterances] == ["tr", "en"]
    assert [u.audio.is_relative_to(tmp_path / str(u.language)) for u in utterances] == [True, True]
    assert utterances[0].phones == (("x",),)


def test_an_unknown_corpus():
    with pytest.raises(RecipeError, match="librisspeech") as caught:
        load_recipe(None, ["data.corpus=librisspeech"])
    assert all(name in caught.value.details[0] for name in get_args(Corpus))


def test_find_audio(tmp_path, write_tone):
    write_tone(tmp_path / "b" / "x.flac")
    write_tone(tmp_path / "b" / "deep" / "y.mp3")
    write_tone(tmp_path / "a.wav", seconds=0.25)
    (tmp_path / "notes.txt").write_text("no sound")
    (tmp_path / "._a.wav").write_bytes(b"what a Mac leaves behind")
    utterances = find_audio(tmp_path)
    assert [u.id for u in utterances] == ["a.wav", "b/deep/y.mp3", "b/x.flac"]
    assert utterances[0].seconds == 0.25
    assert utterances[0].text is None


def test_find_audio_refuses_what_it_cannot_read(tmp_path, write_tone):
    with pytest.raises(DataError, match="no folder"):
        find_audio(tmp_path / "none")
    with pytest.raises(DataError, match="no audio files"):
        find_audio(tmp_path)
    write_tone(tmp_path / "a.wav")
    (tmp_path / "b.wav").write_bytes(b"noise")
    (tmp_path / "c.flac").write_bytes(b"")
    with pytest.raises(DataError, match="2 audio files") as caught:
        find_audio(tmp_path)
    assert [Path(detail.split(":")[0]).name for detail in caught.value.details] == ["b.wav", "c.flac"]
