"""The generated corpus of sentences with labels."""

from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("babel", reason="generated sentences come with the extra demo")

from parp_cli.config.classification import TextData
from parp_cli.data import sentences
from parp_cli.data.texts import columns_of, read_texts, split_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARP_CACHE", str(tmp_path_factory.mktemp("cache")))
        return sentences.ensure()


def test_labels_are_balanced_and_no_name_of_one_split_is_in_another(folder: Path) -> None:
    known = {word for pattern in sentences._PATTERNS for word in pattern.split()}
    names: dict[str, set[str]] = {}
    for split, count in (("train", 100), ("dev", 400), ("test", 1000)):
        data = TextData(root=str(folder))
        path = split_file(data, split)
        texts, problems = read_texts(path, columns_of(data, path))
        assert not problems
        assert len({text.text for text in texts}) == count
        assert set(Counter(text.label for text in texts).values()) == {count // 4}
        names[split] = {word for text in texts for word in text.text.split()} - known
    assert not names["train"] & names["dev"]
    assert not names["train"] & names["test"]
    assert not names["dev"] & names["test"]


def test_every_word_is_one_of_the_tokenizer(folder: Path) -> None:
    words = set(sentences.words())
    for path in folder.iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        texts = lines if path.suffix == ".txt" else [line.split("\t")[0] for line in lines[1:]]
        assert {word for text in texts for word in text.split()} <= words


def test_it_is_the_same_again(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PARP_CACHE", str(tmp_path))
    again = sentences.ensure()
    assert again != folder
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
