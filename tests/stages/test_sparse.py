"""Exports with the fastest kernel for each matrix, as every stage takes them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from parp_cli.errors import CheckpointError, MaskError, UsageError
from parp_cli.exporters import sparse as exporter
from parp_cli.models.recognizer import rebuild
from parp_cli.models.speech.kernels import products
from parp_cli.stages import export as exporting
from parp_cli.stages.evaluate import evaluate
from parp_cli.stages.export import export
from parp_cli.stages.finetune import finetune
from parp_cli.stages.inspect import inspect
from parp_cli.stages.reprune import reprune
from parp_cli.stages.transcribe import transcribe
from parp_cli.storage import checkpoint
from parp_cli.tasks.evaluation import Options
from tests.fake_cuda import CUDA, fake_cuda
from tests.tiny import WIDE, World, write_encoder


def always(kind: str) -> Any:
    """A choice without measuring."""

    def choose(model: Any, pruned: Any, *, int8: bool, each: Any) -> Mapping[str, str]:
        return dict.fromkeys(sorted(pruned & set(products(model))), kind)

    return choose


@pytest.mark.parametrize("kind", ["dense", "csr", "int8"])
def test_it_is_evaluated_and_used_as_any_other(
    world: World, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(exporter, "choose", always(kind))
    result = export(trained, to="sparse", int8=kind == "int8", out=tmp_path / "sparse.safetensors")
    content = checkpoint.read(result.path)
    assert set(content.kernels.values()) == {kind}
    assert result.kernels == {kind: len(content.kernels)}
    assert result.check is not None
    assert (result.check.largest_difference < 1e-4) == (kind != "int8")
    assert result.check.transcripts == (3 if kind == "int8" else None)
    whole = checkpoint.read(trained)
    assert all((content.weights[name][~mask] == 0).all() for name, mask in whole.masks.items())
    _, model = rebuild(content, torch.device("cpu"), source="test")
    assert all(("forward" in vars(module)) == (kind != "dense") for module in kernel_modules(model, content))
    file = [str(world.folder / "test-0.wav")]
    assert transcribe(result.path, file).transcriptions[0].seconds > 0
    if kind != "int8":
        ours, theirs = (
            evaluate(path, out=tmp_path / f"{n}.jsonl").as_it_is for n, path in enumerate((trained, result.path))
        )
        assert ours.report.metrics == theirs.report.metrics
        assert transcribe(result.path, file).transcriptions[0].text == transcribe(trained, file).transcriptions[0].text


def kernel_modules(model: torch.nn.Module, content: checkpoint.Checkpoint) -> list[torch.nn.Module]:
    return [model.get_submodule(name.rpartition(".")[0]) for name in content.kernels]


def test_what_is_made_of_it_has_no_kernels(
    world: World, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "choose", always("csr"))
    sparse = export(trained, to="sparse", out=tmp_path / "sparse.safetensors").path
    assert inspect(sparse).overall == inspect(trained).overall
    packed = export(sparse, to="packed", out=tmp_path / "packed.safetensors").path
    again = reprune(sparse, sparsity=0.7, out=tmp_path / "reprune.safetensors").path
    settings = ("model=null", "training.updates=2", f"distil.teacher={sparse}")
    further = finetune(world.recipe(*settings), run=tmp_path / "run", init=sparse).path
    for path in (packed, again, further):
        assert not checkpoint.read(path).kernels
    first, second = checkpoint.read(sparse), checkpoint.read(packed)
    assert all(torch.equal(weight, second.weights[name]) for name, weight in first.weights.items())


def test_it_is_measured_and_written_as_it_was_found(trained: Path, tmp_path: Path) -> None:
    result = export(trained, to="sparse", int8=True, out=tmp_path / "sparse.safetensors")
    assert result.kernels is not None
    assert set(result.kernels) <= {"dense", "csr", "int8"}
    assert sum(result.kernels.values()) == 13, "six of each layer, and the projection of features"
    assert [path.name for path in tmp_path.iterdir()] == ["sparse.safetensors"]


def test_damage_and_kernels_of_a_newer_parp_are_told(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "choose", always("csr"))
    sparse = export(trained, to="sparse", out=tmp_path / "sparse.safetensors").path
    content = sparse.read_bytes()
    swapped = content.replace(b'\\"csr\\"', b'\\"5:8\\"')
    assert swapped != content
    sparse.write_bytes(swapped)
    with pytest.raises(CheckpointError, match="was changed or damaged"):
        checkpoint.read(sparse)
    sparse.write_bytes(content)
    read = checkpoint.read(sparse)
    newer = checkpoint.Checkpoint(
        weights=read.weights, masks=read.masks, metadata=read.metadata, kernels=dict.fromkeys(read.kernels, "5:8")
    )
    checkpoint.write_packed(sparse, newer, "float32")
    with pytest.raises(CheckpointError, match="wants the kernel 5:8") as caught:
        evaluate(sparse, out=tmp_path / "a.jsonl")
    assert "update parp" in (caught.value.hint or "")


def test_what_fails_leaves_nothing_behind(
    world: World, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MaskError, match="has no mask"):
        export(world.encoder, to="sparse", out=tmp_path / "a")
    with pytest.raises(UsageError, match="--int8 goes with --to onnx, sherpa, gguf or sparse"):
        export(trained, to="packed", int8=True, out=tmp_path / "a")

    def off(architecture: Any, weights: Any, kernels: Any = None, device: Any = None) -> Any:
        return lambda waveforms: [torch.full((3, 3), float(kernels is None)) for _ in waveforms]

    monkeypatch.setattr(exporter, "choose", always("csr"))
    monkeypatch.setattr(exporting, "network", off)
    with pytest.raises(CheckpointError, match="gives other logits, and is not written"):
        export(trained, to="sparse", out=tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def two_of_four(world: World, tmp_path: Path) -> Path:
    write_encoder(tmp_path / "wide.safetensors", WIDE)
    settings = (f"model={tmp_path / 'wide.safetensors'}", "pruning.pattern=2:4", "training.updates=1")
    return finetune(world.recipe(*settings), run=tmp_path / "wide").path


@pytest.mark.parametrize("kind", ["dense", "2:4"])
def test_sparse_tensor_cores(two_of_four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Measured on CUDA, the export's products of bfloat16 are there by them; in float32, and on a CPU, it is exact."""
    places: list[str] = []

    def choose(model: Any, pruned: Any, *, int8: bool, each: Any) -> Mapping[str, str]:
        places.append(next(model.parameters()).device.type)
        return {name: kind for name in sorted(pruned & set(products(model))) if "feature_projection" not in name}

    monkeypatch.setattr(exporter, "choose", choose)
    with fake_cuda():
        result = export(two_of_four, to="sparse", device=CUDA, out=tmp_path / "sparse.safetensors")
        assert places == ["cuda"]
        assert (result.kernels, result.measured_on) == ({kind: 12}, "cuda")
        assert result.check is not None
        assert result.check.transcripts == (3 if kind == "2:4" else None)
        assert result.check.largest_difference < (0.1 if kind == "2:4" else 1e-6)
        counted: list[Any] = []
        real = torch._cslt_sparse_mm

        def counting(*args: Any, **options: Any) -> Any:
            counted.append(args)
            return real(*args, **options)

        monkeypatch.setattr(torch, "_cslt_sparse_mm", counting)
        assert evaluated(two_of_four, CUDA) == evaluated(result.path, CUDA)
        assert not counted
        evaluated(result.path, CUDA, precision="bfloat16")
        assert bool(counted) == (kind == "2:4")
    assert evaluated(two_of_four) == evaluated(result.path)


def evaluated(path: Path, device: torch.device | None = None, **options: Any) -> Any:
    out = path.with_suffix(".jsonl")
    return evaluate(path, out=out, options=Options(**options), device=device).as_it_is.report.metrics


def test_which_device_a_sparse_export_is_for(
    trained: Path, two_of_four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "choose", always("csr"))
    out = tmp_path / "sparse.safetensors"
    with fake_cuda():
        monkeypatch.setattr(exporter, "select_device", lambda name: CUDA if name == "auto" else torch.device(name))
        assert export(trained, to="sparse", out=out).measured_on == "cpu"
        assert export(two_of_four, to="sparse", out=out).measured_on == "cuda"
        assert export(two_of_four, to="sparse", int8=True, out=out).measured_on == "cpu"
        assert export(two_of_four, to="sparse", device=torch.device("cpu"), out=out).measured_on == "cpu"
        out.unlink()
        with pytest.raises(MaskError, match="no matrix that sparse tensor cores take") as caught:
            export(trained, to="sparse", device=CUDA, out=out)
        assert "pruning.pattern=2:4" in (caught.value.hint or "")
        with pytest.raises(UsageError, match="8-bit integers are for CPUs"):
            export(two_of_four, to="sparse", int8=True, device=CUDA, out=out)
    assert not out.exists()
