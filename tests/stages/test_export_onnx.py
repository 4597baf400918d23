"""Exports to ONNX of what a run made: compared in onnxruntime, and written only if they do the same."""

from pathlib import Path
from typing import Any

import pytest
import torch

from parp_cli.data.audio import read_audio
from parp_cli.data.labels import vocabulary_of
from parp_cli.errors import CheckpointError, ResourceError, UsageError
from parp_cli.exporters import onnx as exporter
from parp_cli.exporters.onnx import OnnxNetwork
from parp_cli.stages import export as exporting
from parp_cli.stages.export import export
from parp_cli.stages.transcribe import transcribe
from parp_cli.storage import checkpoint
from tests.tiny import World

onnx = pytest.importorskip("onnx", reason="the extra `onnx`")


def test_it_recognises_what_the_checkpoint_does(world: World, trained: Path, tmp_path: Path) -> None:
    result = export(trained, to="onnx", out=tmp_path / "new" / "model.onnx")
    before, after, check = result.before, result.after, result.check
    assert before is not None
    assert after is not None
    assert check is not None
    assert check.largest_difference < 1e-4
    assert (before.bytes, after.bytes) == (trained.stat().st_size, result.path.stat().st_size)
    assert result.integer_products is None
    assert result.zeros >= 8416
    properties = {item.key: item.value for item in onnx.load(result.path).metadata_props}
    assert properties["source_sha256"] == checkpoint.file_hash(trained)
    file = world.folder / "test-0.wav"
    logits = OnnxNetwork(result.path)([read_audio(file)])[0]
    vocabulary = vocabulary_of(trained, checkpoint.read_metadata(trained).task)
    text = vocabulary.decode(torch.unique_consecutive(logits.argmax(-1)).tolist())
    (made,) = transcribe(trained, [str(file)]).transcriptions
    assert text == made.rendered("text").strip()
    assert text
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.onnx"]


def test_int8_tells_how_many_transcripts_change(trained: Path, tmp_path: Path) -> None:
    result = export(trained, to="onnx", int8=True, out=tmp_path / "model.onnx")
    assert result.check is not None
    assert result.check.transcripts == 3
    assert result.check.transcripts_changed in range(4)
    assert result.integer_products == 2 * 6 + 2 + 2, "blocks, features and head, two convolutions"
    assert result.after is not None
    kinds = [node.op_type for node in onnx.load(result.path).graph.node]
    assert kinds.count("MatMulInteger") + kinds.count("DynamicQuantizeMatMul") == 16


@pytest.mark.parametrize("int8", [False, True])
def test_a_failed_check_leaves_nothing_behind(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, int8: bool
) -> None:
    class Off(OnnxNetwork):
        def __call__(self, waveforms: Any) -> Any:
            return [one + (torch.nan if int8 else 1e-3) for one in super().__call__(waveforms)]

    monkeypatch.setattr(exporting, "OnnxNetwork", Off)
    out = tmp_path / "model.onnx"
    out.write_text("an earlier one")
    with pytest.raises(CheckpointError, match="gives other logits, and is not written"):
        export(trained, to="onnx", int8=int8, out=out)
    assert out.read_text() == "an earlier one"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_full_disk(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "export_onnx", full)
    with pytest.raises(ResourceError, match=r"model\.onnx"):
        export(trained, to="onnx", out=tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("int8", [False, True])
def test_weights_that_one_file_cannot_hold(
    world: World, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, int8: bool
) -> None:
    whole = export(trained, to="onnx", int8=int8, out=tmp_path / "whole.onnx").path
    monkeypatch.setattr(exporter, "_MOST_BYTES", 1_000)
    result = export(trained, to="onnx", int8=int8, out=tmp_path / "large" / "a.onnx")
    files = sorted(result.path.parent.iterdir())
    assert [file.name for file in files] == ["a.onnx", "a.onnx.data"]
    assert result.after is not None
    assert result.after.bytes == result.size == sum(file.stat().st_size for file in files)
    audio = [read_audio(world.folder / f"test-{number}.wav") for number in range(2)]
    moved = result.path.parent.rename(tmp_path / "moved") / "a.onnx"
    for one, other in zip(OnnxNetwork(moved)(audio), OnnxNetwork(whole)(audio), strict=True):
        torch.testing.assert_close(one, other)
    files[1] = moved.with_name("a.onnx.data").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"a\.onnx cannot be read by onnxruntime"):
        OnnxNetwork(moved)


def test_int8_goes_with_onnx_alone(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--int8 goes with --to onnx"):
        export(trained, to="hf", int8=True, out=tmp_path / "hf")
