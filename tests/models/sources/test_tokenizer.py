"""A folder's labels are what its own tokenizer makes of them, here and in what is exported."""

import json
import random
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from parp_cli.data.labels import Vocabulary, recorded_vocabulary
from parp_cli.errors import CheckpointError
from parp_cli.models.sources.tokenizer import read_vocabulary, tokenizer_files

transformers = pytest.importorskip("transformers", reason="transformers is the reference for its own files")

ALPHABETS = {
    "english": "ABCDEFGHIJKLMNOPQRSTUVWXYZ'",
    "lower": "abcdefghijklmnopqrstuvwxyzäöüß",
    "both": "abcABC",
    "turkish": "abcçıiğş",
    "greek": "αβγδσςωάέ",
    "georgian": "აბგდევზ",
    "arabic": "ابتثجح",
    "hindi": "कखगािी",
    "hangul": ["ㄱ", "ㄴ", "ㅏ", "가", "나"],
    "chinese": "你好吗世界人",
    "decomposed": ["e", "a", "\u0301", "\u0303", "o"],
    "syllables": ["ka", "ki", "k", "a", "i", "sch", "s", "c", "h"],
    "ipa": ["aɪ", "t", "ʃ", "t͡ʃ", "ɔ̃", "ə", "ɜː"],
    "arpabet": ["AH0", "AH1", "B", "CH", "sil", "<sil>"],
    "signs": [".", "-", "_", "[", "]", "<", ">", "(laughs)", "é", "0", "1"],
}


class Folder:
    """A generated folder, with the token of each row of its head."""

    def __init__(self, number: int, directory: Path) -> None:
        self.random, self.directory = random.Random(number), directory
        draw = self.random
        self.kind = draw.choice(sorted(ALPHABETS))
        self.is_phones = draw.random() < (0.7 if self.kind in ("ipa", "arpabet") else 0.1)
        letters = draw.sample(list(ALPHABETS[self.kind]), k=draw.randint(3, len(ALPHABETS[self.kind])))
        pad = draw.choice(["<pad>", "[PAD]", "_", "ε", "<blank>", "<s>"])
        unk = draw.choice(["<unk>", "[UNK]", "<UNK>", "?", None])
        others = draw.choice([(None, None), ("<s>", "</s>"), ("[BOS]", "[EOS]"), ("<s>", "<s>")])
        roles = {"pad": pad, "unk": unk, "bos": others[0], "eos": others[1]}
        extra = draw.choice([[], [], ["[NOISE]"], ["<lang:de>", "[X]"]])
        special = list(dict.fromkeys(token for token in (*roles.values(), *extra) if token))
        letters = [letter for letter in letters if letter not in special]
        self.roles = {role: token for role, token in roles.items() if token}
        self.delimiter = draw.choice(["|", "|", "|", "#", " ", "<space>", None])
        spaced = [self.delimiter] if self.delimiter and draw.random() < 0.8 else []
        self.extra = extra
        beside = special if draw.random() < 0.3 else []  # tokens that are not in vocab.json
        tokens = [token for token in (*special, *letters, *spaced) if token not in beside]
        draw.shuffle(tokens)
        self.vocabulary = {token: index for index, token in enumerate(tokens)}
        self.added = {token: len(tokens) + index for index, token in enumerate(beside)}
        self.rows = [*tokens, *beside]
        self.write()

    def written(self, token: str | None) -> Any:
        is_object = token is not None and self.random.random() < 0.3
        return {"content": token, "lstrip": False, "rstrip": False, "normalized": False} if is_object else token

    def write(self) -> None:
        draw = self.random
        tokens = {f"{role}_token": self.written(self.roles.get(role)) for role in ("pad", "unk", "bos", "eos")}
        settings: dict[str, Any] = {"word_delimiter_token": self.delimiter}
        settings["tokenizer_class"] = "Wav2Vec2PhonemeCTCTokenizer" if self.is_phones else "Wav2Vec2CTCTokenizer"
        if self.is_phones:
            settings |= {"phone_delimiter_token": " ", "do_phonemize": False}
        else:
            settings |= {
                "do_lower_case": draw.random() < 0.2,
                "replace_word_delimiter_char": draw.choice([" ", " ", ""]),
            }
            if settings["do_lower_case"] is False and draw.random() < 0.5:
                del settings["do_lower_case"], settings["replace_word_delimiter_char"]
        if self.extra:
            settings["additional_special_tokens"] = self.extra
        way = draw.choice(["decoder", "files", "files"])
        if way == "decoder":
            settings["added_tokens_decoder"] = {
                str(index): {"content": token, "special": True, "normalized": False}
                for token, index in self.added.items()
            }
        elif self.added:
            self.file("added_tokens", self.added)
        if way == "files" and draw.random() < 0.5:  # as before version 5
            self.file("special_tokens_map", {key: token for key, token in tokens.items() if token})
            tokens = {key: None for key, token in tokens.items() if not token}
        typed = {
            key: token | {"__type": "AddedToken"} if isinstance(token, dict) else token for key, token in tokens.items()
        }
        self.file("tokenizer_config", settings | typed)
        self.file("vocab", self.vocabulary)
        self.file("config", {"model_type": "wav2vec2", "pad_token_id": self.rows.index(self.roles["pad"])})

    def file(self, name: str, content: Mapping[str, Any]) -> None:
        (self.directory / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    def read(self) -> tuple[Vocabulary, list[int]]:
        config = json.loads((self.directory / "config.json").read_text())
        return read_vocabulary(self.directory, config, size=len(self.rows))


def theirs(directory: Path) -> Any:
    """Their tokenizer of a folder."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    # Version 5 reads letters' delimiter from no file, but has "|" always.
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    tokenizer._word_delimiter_token = settings["word_delimiter_token"]
    return tokenizer


def heard(tokenizer: Any, rows: Sequence[int], blank: int) -> str:
    """What their tokenizer makes of a best path, without special tokens and in the form of our transcripts."""
    # They leave out special tokens before repeats are merged, so that blanks would be lost.
    merged = [row for row, _ in groupby(rows) if row != blank]
    if not merged:
        return ""
    text = tokenizer.decode(merged, skip_special_tokens=True, group_tokens=False)
    return unicodedata.normalize("NFC", " ".join(text.split()))


@pytest.mark.parametrize("number", range(240))
def test_we_decode_as_they_do_and_as_they_do_what_we_export(number: int, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    folder = Folder(number, tmp_path / "theirs")
    vocabulary, order = folder.read()
    again = recorded_vocabulary(json.loads(json.dumps(vocabulary.to_json())))
    assert again == vocabulary
    exported = tmp_path / "exported"
    exported.mkdir()
    for name, content in tokenizer_files(vocabulary).items():
        (exported / name).write_text(json.dumps(content), encoding="utf-8")
    (exported / "config.json").write_text(json.dumps({"model_type": "wav2vec2", "pad_token_id": 0}))
    original, ours_in_theirs = theirs(folder.directory), theirs(exported)
    assert type(original) is type(ours_in_theirs)
    assert len(ours_in_theirs) == len(vocabulary)  # no token was appended beyond the head's rows
    assert read_vocabulary(exported, {}, size=len(vocabulary)) == (vocabulary, list(range(len(vocabulary))))
    blank = order[0]
    assert folder.rows[blank] == folder.roles["pad"]
    for _ in range(4):
        rows = folder.random.choices([*range(len(folder.rows)), *[blank] * 3], k=folder.random.randint(1, 30))
        labels = [order.index(row) for row in rows]
        ours = vocabulary.decode(label for label, _ in groupby(labels))
        assert ours == heard(original, rows, blank)
        assert ours == heard(ours_in_theirs, labels, 0)
        silent = {*folder.extra, *folder.roles.values()}
        plain = [row for row in rows if row == blank or folder.rows[row] not in silent]
        if plain and len(set(plain)) > 1:  # then their usual way gives the same
            usual = unicodedata.normalize("NFC", " ".join(original.batch_decode([plain])[0].split()))
            assert usual == vocabulary.decode(label for label, _ in groupby(map(order.index, plain)))


def write_folder(
    directory: Path, vocabulary: Sequence[str], settings: Mapping[str, Any] | None = None, **files: Any
) -> None:
    files |= {"vocab": {token: index for index, token in enumerate(vocabulary)}}
    files |= {} if settings is None else {"tokenizer_config": settings}
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def test_a_padding_token_among_the_added_tokens_is_the_blank(tmp_path: Path) -> None:
    write_folder(
        tmp_path, ["a", "b", "|", "[UNK]"], {"pad_token": "[PAD]", "unk_token": "[UNK]"}, added_tokens={"[PAD]": 4}
    )
    vocabulary, order = read_vocabulary(tmp_path, {"pad_token_id": 0}, size=5)
    assert vocabulary.symbols == ("<blank>", "a", "b", "|", "[UNK]")
    assert order == [4, 0, 1, 2, 3]
    assert (vocabulary.padding, vocabulary.special) == ("[PAD]", {"[UNK]": "unk"})


def test_a_padding_token_that_has_no_id_is_where_their_tokenizer_appends_it(tmp_path: Path) -> None:
    settings = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": "[PAD]", "eos_token": None}
    write_folder(tmp_path, ["a", "b", "|", "<unk>"], settings, config={"model_type": "wav2vec2"})
    vocabulary, order = read_vocabulary(tmp_path, {"pad_token_id": 0}, size=6)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).pad_token_id == order[0] == 5
    assert vocabulary.symbols == ("<blank>", "a", "b", "|", "<unk>", "<unused-4>")
    assert vocabulary.decode([1, 5, 2]) == "ab"


def test_an_id_of_another_token_is_not_the_blank(tmp_path: Path) -> None:
    """The padding token would be appended at an id that a letter has, as ids have a gap."""
    write_folder(tmp_path, [])
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "-": 2, "c": 6}))
    vocabulary, order = read_vocabulary(tmp_path, {"pad_token_id": 2}, size=7)
    assert (order[0], vocabulary.padding) == (2, "-")
    with pytest.raises(CheckpointError, match="which label is the blank"):
        read_vocabulary(tmp_path, {"pad_token_id": None}, size=7)


@pytest.mark.parametrize(
    ("settings", "config", "labels"),
    [
        (None, {}, "letters"),
        ({}, {}, "letters"),
        ({"tokenizer_class": "Wav2Vec2CTCTokenizer"}, {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"}, "letters"),
        ({"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"}, {}, "phones"),
        ({}, {"tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer"}, "phones"),
    ],
)
def test_the_class_says_whether_labels_are_joined(settings: Any, config: Any, labels: str, tmp_path: Path) -> None:
    write_folder(tmp_path, ["<pad>", "|", "ts", "aɪ"], settings)
    vocabulary, _ = read_vocabulary(tmp_path, config, size=4)
    assert vocabulary.labels == labels
    assert vocabulary.delimiter == ("|" if labels == "letters" else None)
    assert vocabulary.decode([2, 3, 1, 2]) == ("tsaɪ ts" if labels == "letters" else "ts aɪ | ts")


@pytest.mark.parametrize(
    ("tokens", "delimiter", "found", "spelled"),
    [
        ("|ab", "|", "|", "a|b"),
        ("#ab", "#", "|", "a|b"),
        ("#ab|", "#", "#", "a#b|"),
        (" ab", "|", "|", "a|b"),
        (" ab|", " ", "|", None),
        ("ab", "|", None, "ab"),
        ("ab", None, None, "ab"),
    ],
)
def test_what_stands_between_words(
    tokens: str, delimiter: str | None, found: str | None, spelled: str | None, tmp_path: Path
) -> None:
    write_folder(tmp_path, ["<pad>", *tokens], {"word_delimiter_token": delimiter})
    vocabulary, _ = read_vocabulary(tmp_path, {}, size=len(tokens) + 1)
    if spelled is None:  # "|" is a letter, and the space keeps its name
        assert (vocabulary.delimiter, vocabulary.spelling("a b|")) == (" ", ["a", " ", "b", "|"])
        return
    assert vocabulary.delimiter == found
    assert "".join(vocabulary.spelling("a b" + "|" * ("|" in spelled and found == "#"))) == spelled


def test_two_labels_of_one_name(tmp_path: Path) -> None:
    write_folder(tmp_path, ["<pad>", "<blank>", "a"])
    with pytest.raises(CheckpointError, match="<blank>"):
        read_vocabulary(tmp_path, {}, size=3)
