"""Precision: what torch is set to, which shows without a GPU too; and versions."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from parp_cli.runtime.device import (
    autocast,
    select_device,
    tensor_cores,
    validation_precision,
    versions,
    with_resolved_precision,
)
from parp_cli.runtime.progress import Progress
from parp_cli.stages.evaluate import Options, evaluate
from parp_cli.stages.finetune import finetune
from tests.tiny import World

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
DEFAULTS = (False, True)
"""torch's: matrix products are exact, convolutions are rounded to TF32."""


def tf32() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("precision", "rounded"), [("float32", False), ("tf32", True), ("bfloat16", True)])
def test_products_and_convolutions_are_alike(precision: str, rounded: bool) -> None:
    assert tf32() == DEFAULTS
    with tensor_cores(precision):
        assert tf32() == (rounded, rounded)
    assert tf32() == DEFAULTS
    with pytest.raises(KeyError), tensor_cores(precision):
        raise KeyError
    assert tf32() == DEFAULTS


@pytest.mark.parametrize(("precision", "rounded"), [("float32", False), ("tf32", True)])
def test_a_run_and_its_evaluation(world: World, masked: Path, tmp_path: Path, precision: str, rounded: bool) -> None:
    seen: list[tuple[bool, bool]] = []

    def notify(_: Progress) -> None:
        seen.append(tf32())

    recipe = world.recipe("training.updates=1", f"training.precision={precision}")
    trained = finetune(recipe, run=tmp_path, init=masked, notify=notify).path
    assert (rounded, rounded) in seen
    seen.clear()
    evaluate(trained, out=tmp_path / "eval.jsonl", options=Options(batch_seconds=5), notify=notify)
    assert seen[-1] == (False, False)
    assert tf32() == DEFAULTS


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_a_run_validates_in_its_precision_on_cuda_alone(precision: str) -> None:
    assert validation_precision(precision, CUDA) == precision
    assert validation_precision(precision, CPU) == "float32"


def test_bfloat16_alone_is_autocast() -> None:
    for precision in ("float32", "tf32", "bfloat16"):
        with autocast(precision, CPU):
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if precision == "bfloat16" else torch.float32)


@dataclass(frozen=True)
class Settings:
    precision: str
    other: int = 7


def test_auto_is_resolved_by_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda native=native: {"amx_bf16": native})
        for device in (CUDA, CPU):
            assert with_resolved_precision(Settings("auto"), device) == Settings("bfloat16" if native else "float32")
            assert with_resolved_precision(Settings("tf32", 8), device) == Settings("tf32", 8)


def test_versions_do_not_depend_on_what_was_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else the same run would write other bytes in another process."""
    before = versions()
    monkeypatch.setitem(sys.modules, "transformers", ModuleType("transformers"))
    assert versions() == before
    assert versions(["safetensors"]).keys() - before.keys() == {"safetensors"}


@pytest.mark.parametrize(("name", "there", "expected"), [("auto", True, ":4096:8"), ("cpu", True, None)])
def test_what_cublas_reads_once_is_there_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, name: str, there: bool, expected: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    select_device(name)
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == expected
