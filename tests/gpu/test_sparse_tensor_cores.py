"""2:4 matrices on a GPU's sparse tensor cores, where torch has them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from parp_cli.models.speech import kernels
from parp_cli.models.speech.config import ARCHITECTURES, build
from parp_cli.models.speech.kernels import SEMI_STRUCTURED, available, choose, install, products
from parp_cli.pruning.patterns import Pattern
from parp_cli.runtime.device import autocast
from parp_cli.stages.evaluate import evaluate
from parp_cli.stages.export import export
from parp_cli.stages.finetune import finetune
from parp_cli.storage import checkpoint
from parp_cli.tasks.evaluation import Options
from tests.tiny import WIDE, World, write_encoder

pytestmark = pytest.mark.gpu


@pytest.fixture
def sparse_device(device: torch.device) -> torch.device:
    if SEMI_STRUCTURED not in available(device):
        pytest.skip("there are no sparse tensor cores, or this torch has no library for them")
    return device


def two_of_four(weight: Tensor) -> Tensor:
    return weight * Pattern.parse("2:4").masks({"weight": weight}, 0.5, {})["weight"]


@pytest.mark.parametrize("frames", [1, 13, 512, 3000])
@pytest.mark.parametrize(("outputs", "inputs"), [(768, 768), (3072, 768), (1024, 4096), (96, 64)])
def test_products(sparse_device: torch.device, outputs: int, inputs: int, frames: int) -> None:
    with sparse_device:
        torch.manual_seed(0)
        weight, bias = two_of_four(torch.randn(outputs, inputs)), torch.randn(outputs)
        x = torch.randn(1, frames, inputs)
    product = kernels._BUILD[SEMI_STRUCTURED](weight, bias)
    with torch.inference_mode():
        expected = x.bfloat16().double() @ weight.bfloat16().double().T + bias.bfloat16().double()
        with autocast("bfloat16", sparse_device):
            found = product(x)
        assert found.dtype == torch.bfloat16
        assert (found.double() - expected).norm() < 5e-3 * expected.norm()
        assert torch.equal(product(x), torch.nn.functional.linear(x, weight, bias))


def test_base_of_full_size(sparse_device: torch.device) -> None:
    """Its matrices are measured, and those that are chosen change its logits by no more than rounding."""
    architecture = ARCHITECTURES["wav2vec2-base"]
    torch.manual_seed(0)
    with sparse_device:
        model = build(architecture, vocabulary_size=32).eval()
        features, lengths = torch.randn(4, 400, 512), torch.full((4,), 400)
    names = products(model)
    with torch.inference_mode(), autocast("bfloat16", sparse_device):
        parameters = dict(model.named_parameters())
        for name in names:
            parameters[name].copy_(two_of_four(parameters[name]))
        expected = model.encode(features, lengths.cpu()).float()
        chosen = choose(model, names, int8=False)
        print({kind: list(chosen.values()).count(kind) for kind in set(chosen.values())})
        install(model, dict.fromkeys(names, SEMI_STRUCTURED), source="a test")
        found = model.encode(features, lengths.cpu()).float()
    assert set(chosen) == set(names)
    assert (found - expected).norm() < 5e-2 * expected.norm()


def test_an_export_is_evaluated(sparse_device: torch.device, world: World, tmp_path: Path) -> None:
    write_encoder(tmp_path / "wide.safetensors", WIDE)
    recipe = world.recipe(f"model={tmp_path / 'wide.safetensors'}", "pruning.pattern=2:4")
    trained = finetune(recipe, run=tmp_path / "run", device=sparse_device).path
    result = export(trained, to="sparse", out=tmp_path / "sparse.safetensors", device=sparse_device)
    assert set(result.kernels or ()) <= {"dense", SEMI_STRUCTURED}
    content = checkpoint.read(result.path)
    for precision in ("float32", "bfloat16"):
        ours, theirs = (
            evaluate(path, out=tmp_path / "results.jsonl", options=Options(precision=precision), device=sparse_device)
            for path in (trained, result.path)
        )
        if precision == "float32" or not content.kernels:
            assert ours.as_it_is.report.metrics == theirs.as_it_is.report.metrics
