import gzip
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from parp_cli.data.labels import letters_vocabulary
from parp_cli.decoding.lexicon import read_lexicon
from parp_cli.decoding.lm import arpa_words, open_language_model
from parp_cli.errors import DataError, UsageError
from parp_cli.runtime.progress import Progress
from parp_cli.stages.lm import STDIN, build, lines, transcripts
from tests.decoding.arpa import read_arpa
from tests.tiny import TEXTS, World


def test_from_transcripts(world: World, tmp_path: Path) -> None:
    said: list[Progress] = []
    result = build(
        transcripts(world.recipe().data, ["train"], said.append), out=tmp_path / "lm.arpa", order=2, notify=said.append
    )
    words = [word for text in TEXTS["train"] for word in text.split()]
    assert (result.sentences, result.words, result.vocabulary) == (len(TEXTS["train"]), len(words), len(set(words)))
    assert result.ngrams[0] == len(set(words)) + 3
    assert result.fallback_orders == (1, 2)
    assert not result.unusual
    assert not any(step.warning for step in said)
    arpa = read_arpa(result.path)
    assert arpa.order == 2
    assert set(arpa_words(open_language_model(str(result.path)))) == set(words)
    assert result.lexicon == tmp_path / "lm-lexicon.txt"
    assert set(read_lexicon(result.lexicon, letters_vocabulary()).lexicon) == set(words)


@pytest.mark.parametrize(("split", "purpose"), [("valid", "validates"), ("test", "tests")])
def test_a_warning_where_the_answers_are_counted(split: str, purpose: str, world: World) -> None:
    said: list[Progress] = []
    assert list(transcripts(world.recipe().data, [split], said.append)) == TEXTS[split]
    assert [purpose in step.warning for step in said if step.warning] == [True]


def test_several_splits(world: World) -> None:
    data = world.recipe().data
    assert list(transcripts(data, ["train", "valid"])) == [*TEXTS["train"], *TEXTS["valid"]]
    with pytest.raises(DataError, match="no split"):
        list(transcripts(data, ["other"]))


def test_text_is_made_as_transcripts_are(tmp_path: Path) -> None:
    result = build(["the  Cat\n", "\n", "don't été"], out=tmp_path / "lm.arpa", order=1)
    assert arpa_words(open_language_model(str(result.path))) == ["THE", "CAT", "DON'T", "ÉTÉ"]
    assert result.lexicon.read_text().splitlines()[-1] == "ÉTÉ\tÉ T É |"


def test_words_that_no_transcript_has_are_told(tmp_path: Path) -> None:
    result = build(["HELLO, 4 WELL-KNOWN O'CLOCK A|B हिन्दी"], out=tmp_path / "lm.arpa", order=1)
    assert result.unusual == ("4", "A|B", "HELLO,")
    assert "A|B" not in result.lexicon.read_text()


def test_gzipped_with_the_same_bytes_each_time(tmp_path: Path) -> None:
    first = build(["A B"], out=tmp_path / "one.arpa.gz", order=2)
    second = build(["A B"], out=tmp_path / "two.arpa.gz", lexicon=tmp_path / "words.txt", order=2)
    plain = build(["A B"], out=tmp_path / "three.arpa", order=2)
    assert first.path.read_bytes() == second.path.read_bytes()
    assert gzip.decompress(first.path.read_bytes()) == plain.path.read_bytes()
    assert (first.lexicon.name, second.lexicon.name) == ("one-lexicon.txt", "words.txt")


def test_lines_of_files_and_standard_input(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A B\nC\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"D\n"))
    found = lines([tmp_path / "a.txt", STDIN, tmp_path / "b.txt.gz"], io.BytesIO("\ufeffE\n".encode()))
    assert [line.strip() for line in found] == ["A B", "C", "E", "D"]


@pytest.mark.parametrize("zipped", [False, True])
def test_lines_of_a_pipe(zipped: bool, tmp_path: Path) -> None:
    """Which can be opened once, and read once."""
    text = b"A B\n" * 3000
    read, write = os.pipe()
    os.write(write, gzip.compress(text) if zipped else text)
    os.close(write)
    assert len(list(lines([Path(f"/dev/fd/{read}")]))) == 3000
    os.close(read)


@pytest.mark.parametrize(
    "text", ["<s> A B </s>\n<s> B </s>\n", "<s> a b </s> <s> b </s>\n", "<S>  A B </S>\n\nB\n", "A B </s> B"]
)
def test_marks_of_sentences_are_no_words(text: str, tmp_path: Path) -> None:
    result = build(text.splitlines(), out=tmp_path / "lm.arpa", order=2)
    assert (result.sentences, result.words) == (2, 3)
    assert arpa_words(open_language_model(str(result.path))) == ["A", "B"]
    with pytest.raises(DataError, match="<unk> as a word"):
        build(["A <UNK> B"], out=tmp_path / "lm.arpa")


@pytest.mark.parametrize("content", [None, b"\xff\xfe\xfa", b"\x1f\x8b\x08 broken"])
def test_text_that_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*text\.txt"):
        list(lines([path]))


def test_nothing_is_written_where_nothing_is_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no words"):
        build(["", " "], out=tmp_path / "lm.arpa")
    with pytest.raises(UsageError, match="order 7"):
        build(["A"], out=tmp_path / "lm.arpa", order=7)
    assert not list(tmp_path.iterdir())


def never_read() -> Iterator[str]:
    raise AssertionError("it was read")
    yield


def test_what_would_be_overwritten_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("A B\n")
    with pytest.raises(UsageError, match=r"--lexicon .*x would overwrite --out .*x"):
        build(never_read(), out=tmp_path / "x", lexicon=tmp_path / "." / "x")
    with pytest.raises(UsageError, match=r"--out .*a\.txt would overwrite the text .*a\.txt"):
        build(never_read(), out=tmp_path / "a.txt", sources={"the text": [tmp_path / "b.txt", tmp_path / "a.txt"]})
    with pytest.raises(UsageError, match=r"--lexicon .*a-lexicon\.txt would overwrite the text"):
        build(never_read(), out=tmp_path / "a.arpa", sources={"the text": tmp_path / "a-lexicon.txt"})
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_closed_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match="standard input is closed"):
        list(lines([STDIN]))
