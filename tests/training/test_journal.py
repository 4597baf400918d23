"""The log: what a kill, a full disk and TensorBoard leave of it."""

import errno
import importlib.util
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from parp_cli.errors import ResourceError, UsageError
from parp_cli.training.journal import Journal

pytest.importorskip("tensorboard")


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().decode().split("\n") if line]


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """What TensorBoard would draw."""
    return [(event.step, event.value) for event in accumulator(folder).Scalars(name)]


def accumulator(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "log.jsonl"


def test_a_line_is_on_the_disk_at_once(path: Path) -> None:
    journal = Journal(path)
    journal.begin()
    journal.log("update", 1, {"loss": 2.5})
    journal.log("skipped", 2, {"why": "Ä\u2028Ö", "utterances": ["a", "b"]})
    assert events(path) == [
        {"event": "update", "update": 1, "loss": 2.5},
        {"event": "skipped", "update": 2, "why": "Ä\u2028Ö", "utterances": ["a", "b"]},
    ]


def test_what_is_not_finite_is_null(path: Path) -> None:
    journal = Journal(path)
    journal.begin()
    journal.log("update", 1, {"loss": math.nan, "gradient_norm": -math.inf, "audio_seconds": 3.0})
    assert events(path) == [{"event": "update", "update": 1, "loss": None, "gradient_norm": None, "audio_seconds": 3.0}]


def test_a_new_run_forgets(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "board"
    for value in (1.0, 2.0):
        journal = Journal(path, tensorboard=folder)
        journal.begin()
        journal.log("update", 7, {"loss": value})
        journal.close()
    assert [event["loss"] for event in events(path)] == [2.0]
    assert scalars(folder, "update/loss") == [(7, 2.0)]
    assert len(list(folder.iterdir())) == 1


def logged(path: Path, updates: range, folder: Path | None = None) -> Journal:
    journal = Journal(path, tensorboard=folder)
    journal.begin()
    for update in updates:
        journal.log("update", update, {"loss": float(update)})
        journal.log("validation", update, {"text": "line\u2028separator, next\u0085line, Ä"})
    return journal


@pytest.mark.parametrize("torn", [b"", b'{"event": "update", "upd', b'{"event": "validation", "text": "\xc3'])
def test_what_came_after_the_saved_state_is_dropped(path: Path, torn: bytes) -> None:
    """Also where the line that was being written is torn, within a letter at worst."""
    logged(path, range(1, 8))
    before = events(path)
    with path.open("ab") as file:
        file.write(torn)
    journal = Journal(path)
    journal.go_on_after(5)
    journal.log("update", 6, {"loss": 0.5})
    assert events(path) == [*before[:10], {"event": "update", "update": 6, "loss": 0.5}]


@pytest.mark.parametrize("line", [b"\0\0\0\0\0\0", b"[]", b'"update"', b'{"event": "update"}', b"\xff\xfe"])
def test_lines_that_a_crash_of_the_machine_left_are_dropped(path: Path, line: bytes) -> None:
    logged(path, range(1, 3))
    before = events(path)
    path.write_bytes(path.read_bytes() + line + b"\n")
    Journal(path).go_on_after(2)
    assert events(path) == before


def test_going_on_without_a_log_begins_one(path: Path) -> None:
    journal = Journal(path)
    journal.go_on_after(3)
    path.parent.mkdir(exist_ok=True)
    journal.log("update", 4, {})
    assert events(path) == [{"event": "update", "update": 4}]


def test_tensorboard_survives_a_kill(path: Path, tmp_path: Path) -> None:
    """What was logged before the state was saved is there once, what came later is replaced."""
    folder = tmp_path / "board"
    journal = logged(path, range(1, 6), folder)
    journal.flush()  # as with the state; the process is killed somewhat later
    before = scalars(folder, "update/loss")
    assert before == [(update, float(update)) for update in range(1, 6)]
    for update in range(6, 9):
        journal.log("update", update, {"loss": 100.0})
    journal.close()
    assert len(scalars(folder, "update/loss")) == 8

    resumed = Journal(path, tensorboard=folder)
    resumed.go_on_after(5)
    resumed.log("update", 6, {"loss": 6.0})
    resumed.close()
    assert scalars(folder, "update/loss") == [*before, (6, 6.0)]


def test_tensorboard_has_numbers_and_texts(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "board"
    journal = Journal(path, tensorboard=folder)
    journal.begin()
    example = {"reference": "HE SAT DOWN", "hypothesis": "HE SAD DOWN"}
    values = {"word": 0.5, "revived": 3, "character": None, "done": True, "example": example, "layers": {"0": (1, 2)}}
    journal.log("validation", 4, values)
    journal.log("diagnosis", 4, {"text": "all frames are blank"})
    journal.close()
    found = accumulator(folder)
    assert set(found.Tags()["scalars"]) == {"validation/word", "validation/revived"}
    texts = {name: found.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in found.Tags()["tensors"]}
    assert texts == {
        "validation/example/text_summary": "reference: HE SAT DOWN  \nhypothesis: HE SAD DOWN",
        "diagnosis/text/text_summary": "all frames are blank",
    }


def test_tensorboard_is_optional(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="TensorBoard is not installed") as caught:
        Journal(path, tensorboard=tmp_path)
    assert "parp-cli[tensorboard]" in (caught.value.hint or "")
    Journal(path).begin()


def test_a_full_disk(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = logged(path, range(1, 3), tmp_path / "board")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(journal._tensorboard, "add_scalar", full)
        with pytest.raises(ResourceError, match=r"no space left to write .*board"):
            journal.log("update", 3, {"loss": 1.0})
        patch.setattr(Path, "open", full)
        with pytest.raises(ResourceError, match=r"no space left to write .*log\.jsonl"):
            journal.log("update", 3, {"loss": 1.0})
    journal.close()


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        Journal(tmp_path / "file" / "log.jsonl").begin()
