"""`parp bench`."""

import json
from pathlib import Path

from tests.cli.conftest import Parp

WORK = ("--seconds", "0.5", "--batch", "1", "--batch", "2", "--rounds", "1")


def test_tables_and_json(parp: Parp, trained: Path) -> None:
    shown = parp("bench", trained, *WORK, "--no-dense", "--split", "test")
    assert shown.code == 0, shown.err
    for part in (
        "peak memory",
        "first result",
        "WER test",
        "0.5 s × 2",
        "Seconds of work per second of audio",
        " 1.0×",
    ):
        assert part in shown.out
    made = json.loads(parp("bench", trained, *WORK, "--no-dense", "--json").out)
    (model,) = made["models"]
    assert model["bytes"] == trained.stat().st_size
    assert [speed["batch"] for speed in model["speeds"]] == [1, 2]
    assert model["loaded"]["load_seconds"] > 0
    assert made["dense"] is None


def test_an_export_is_measured_beside_its_checkpoint(parp: Parp, trained: Path) -> None:
    asked = ("export", trained, "--to", "packed", "--out", "packed.safetensors", "--split", "test")
    made = json.loads(parp(*asked, "--json").out)
    assert made["target"] == "packed"
    checkpoint, export = made["bench"]["models"]
    assert (checkpoint["model"], export["model"]) == (str(trained), "packed.safetensors")
    assert export["bytes"] < checkpoint["bytes"]
    assert export["errors"] == checkpoint["errors"]
    assert made["bench"]["dense"]["runtime"] == "transformers"
    shown = parp(*asked)
    for part in ("exported", "peak memory", "WER test", "30 s"):
        assert part in shown.out, shown.err


def test_an_export_that_cannot_be_measured_is_not_written(parp: Parp, trained: Path, tmp_path: Path) -> None:
    answer = parp("export", trained, "--to", "mask", "--out", tmp_path / "mask.safetensors", "--split", "test")
    assert answer.code == 2
    assert "--to mask writes cannot be measured" in answer.err
    assert not (tmp_path / "mask.safetensors").exists()


def test_what_is_no_model(parp: Parp) -> None:
    answer = parp("bench", "nothing.onnx")
    assert answer.code == 4
    assert "there is no model nothing.onnx" in answer.err
