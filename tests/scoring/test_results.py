"""Results read back as they were written, and lines that are none are told."""

import json
from pathlib import Path

import pytest

from parp_cli.errors import DataError
from parp_cli.scoring.results import Recognition, read_results, to_lines


def test_round_trip(tmp_path: Path) -> None:
    every = [
        Recognition(id="1", reference="ÉTÉ", hypothesis="", speaker="s", seconds=1.5, split="test"),
        Recognition(id="2", reference="A", hypothesis="B\u2028C"),
    ]
    path = tmp_path / "results.jsonl"
    path.write_text(to_lines(every), encoding="utf-8")
    assert read_results(path) == every
    assert json.loads(path.read_text().split("\n")[1]) == {"id": "2", "reference": "A", "hypothesis": "B\u2028C"}


def test_files_that_know_less_or_more(tmp_path: Path) -> None:
    path = tmp_path / "old.jsonl"
    path.write_text(
        '{"id": "1", "reference": "A", "hypothesis": "B", "confidence": 0.5, "speaker": 7, "seconds": 2}\n\n'
    )
    assert read_results(path) == [Recognition(id="1", reference="A", hypothesis="B", speaker="7", seconds=2.0)]


def test_every_bad_line_is_told(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "1", "reference": "A", "hypothesis": "B"}\n{"id": 2, "reference": "A"}\n[]\n{\n')
    with pytest.raises(DataError, match="no file of results") as caught:
        read_results(path)
    assert caught.value.details == ("line 2: no text for id, hypothesis", "line 3: not an object", "line 4: not JSON")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no results"),
        (b"\n \n", "holds no results"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"id": "1", "reference": "A", "hypothesis": "B"}\n' * 2, "no file of results"),
    ],
)
def test_files_of_nothing(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_results(path)
    with pytest.raises(DataError, match="cannot read the results"):
        read_results(tmp_path / "nowhere.jsonl")


def test_a_checkpoint_in_place_of_results_is_told_what_was_meant(tmp_path: Path) -> None:
    path = tmp_path / "finetune.safetensors"
    path.write_bytes(b"\xb8\x00\x00")
    with pytest.raises(DataError, match="is not UTF-8 text") as caught:
        read_results(path)
    assert "eval-test-clean.jsonl" in (caught.value.hint or "")
