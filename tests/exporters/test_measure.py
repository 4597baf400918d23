"""A model in a process of its own, and timing in turn. No test says how fast anything is."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from parp_cli.errors import CheckpointError, ResourceError
from parp_cli.exporters.check import least_seconds
from parp_cli.exporters.measure import Worker, open_network, runtime_of
from parp_cli.exporters.sherpa import MODEL
from parp_cli.exporters.target import bytes_of
from parp_cli.stages.export import export


def test_the_least_of_rounds_in_turn() -> None:
    calls: list[str] = []

    def timed(name: str, *seconds: float) -> Callable[[], float]:
        left = list(seconds)

        def run() -> float:
            calls.append(name)
            return left.pop(0)

        return run

    assert least_seconds([timed("a", 3, 1, 2), timed("b", 5, 6, 4)], rounds=3) == [1, 4]
    assert calls == ["a", "b"] * 3
    assert least_seconds([timed("a", 3, 1)], rounds=2, most_seconds=0) == [3]


@pytest.fixture
def worker(trained: Path) -> Iterator[Worker]:
    one = Worker(trained, 0.5)
    yield one
    one.close()


def test_a_process_of_its_own(worker: Worker) -> None:
    assert 0 < worker.loaded.load_seconds < worker.loaded.first_result_seconds
    short, long = worker.run(0.5, 1), worker.run(4.0, 3)
    assert short.seconds > 0
    assert long.seconds > 0
    assert long.processor_seconds > 0
    if short.peak_bytes is not None and long.peak_bytes is not None:
        assert 0 < short.peak_bytes <= long.peak_bytes


def test_a_killed_process(worker: Worker) -> None:
    worker._process.send_signal(signal.SIGKILL)
    with pytest.raises(ResourceError, match="was ended by signal 9"):
        worker.run(0.5, 1)


@pytest.fixture
def export_to(trained: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda to: export(trained, to=to, out=tmp_path / to).path


def test_pruned_weights_are_zero_where_it_runs(trained: Path, export_to: Callable[[str], Path]) -> None:
    pytest.importorskip("transformers", reason="what the folder is for")
    folder = export_to("hf")
    assert (runtime_of(trained), runtime_of(folder)) == ("parp", "transformers")
    audio = [0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(1)) for samples in (8_000, 12_000)]
    for ours, theirs in zip(open_network(trained)(audio), open_network(folder)(audio), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    assert bytes_of(folder) == sum(path.stat().st_size for path in folder.iterdir())


def test_gguf_is_measured(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("crispasr", reason="the extra `gguf`")
    path = export(trained, to="gguf", out=tmp_path / "model.gguf").path
    assert runtime_of(path) == "crispasr"
    one = Worker(path, 0.5)
    assert one.run(0.5, 2).seconds > 0
    one.close()
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.gguf cannot be read by crispasr"):
        open_network(path)


def test_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("x")
    with pytest.raises(CheckpointError, match="no model whose speed can be measured"):
        runtime_of(tmp_path / "model.txt")
    with pytest.raises(CheckpointError, match="there is no model"):
        runtime_of(tmp_path / "model.onnx")
    with pytest.raises(CheckpointError, match=r"model\.txt cannot be measured") as raised:
        Worker(tmp_path / "model.txt", 1.0)
    assert "no model whose speed can be measured" in " ".join(raised.value.details)


@pytest.mark.parametrize("target", ["onnx", "sherpa", "hf"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "of another kind"])
def test_damaged_exports_are_named(export_to: Callable[[str], Path], target: str, damage: str) -> None:
    pytest.importorskip("transformers" if target == "hf" else "onnxruntime", reason="what it is for")
    path = export_to(target)
    if target == "onnx":
        path = path.rename(path.with_suffix(".onnx"))
    file = {"hf": path / "model.safetensors", "sherpa": path / "model.onnx", "onnx": path}[target]
    if damage == "of another kind" and target == "hf":
        tensors = load_file(file)
        del tensors[next(name for name in tensors if name.endswith("feature_projection.projection.weight"))]
        save_file(tensors, file, metadata={"format": "pt"})
    elif damage == "of another kind":
        other = export_to("sherpa") / MODEL if target == "onnx" else export_to("onnx")
        file.write_bytes(other.read_bytes())
    else:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2 if damage == "truncated" else 0])
    words = {"hf": "lacks weights of its model"}.get(target, "takes ") if damage == "of another kind" else "cannot be"
    with pytest.raises(CheckpointError, match=words) as raised:
        open_network(path)
    assert str(path) in raised.value.message
