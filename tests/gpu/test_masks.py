"""A GPU selects bit for bit the masks that the CPU selects."""

import pytest
import torch
from torch import Tensor

from parp_cli.models.speech.config import ARCHITECTURES, build
from parp_cli.pruning.patterns import Pattern
from tests.models.small import SMALL, randomise

pytestmark = pytest.mark.gpu

PATTERNS = ("global", "layer", "tensor", "row", "2:4", "4:8", "1:3", "16x16", "1x8", "structures", "heads", "units")
FAMILIES = ("wav2vec2-layer-norm", "wavlm-large")


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], device: torch.device) -> None:
    assert list(found) == list(expected)
    for name, mask in expected.items():
        assert found[name].device.type == device.type
        assert torch.equal(found[name].cpu(), mask), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_pattern(device: torch.device, name: str, text: str, dtype: torch.dtype) -> None:
    """Of weights of which a third are zero, as under an earlier mask."""
    architecture, pattern = SMALL[name], Pattern.parse(text)
    drawn = torch.Generator().manual_seed(1)
    scoped = {
        weight_name: (weight.detach() * (torch.rand(weight.shape, generator=drawn) < 2 / 3)).to(dtype)
        for weight_name, weight in randomise(build(architecture), seed=3).prunable().items()
    }
    structures, layers = architecture.structures_of(scoped), architecture.layers_of(scoped)
    weights = pattern.among(scoped, where="the test", structures=structures)
    on_device = {weight_name: weight.to(device) for weight_name, weight in weights.items()}
    for sparsity in (0.3, 0.8) if pattern.sparsity is None else (pattern.sparsity,):
        expected = pattern.masks(weights, sparsity, layers, structures=structures)
        found = pattern.masks(on_device, sparsity, layers, structures=structures)
        assert 0 < sum(int((~mask).sum()) for mask in expected.values()) < sum(map(torch.numel, expected.values()))
        assert_same(found, expected, device)


@pytest.mark.parametrize("text", ["global", "2:4", "16x16", "structures"])
def test_a_layer_of_full_size(device: torch.device, text: str) -> None:
    """Seven million weights, which take more than one piece."""
    scoped, pattern = {}, Pattern.parse(text)
    architecture = ARCHITECTURES["wav2vec2-base"]
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in build(architecture).prunable().items()}
    drawn = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        if ".layers.5." in name:
            scoped[name] = torch.randn(shape, generator=drawn).half().float()  # many are alike
    structures = architecture.structures_of(scoped)
    weights = pattern.among(scoped, where="the test", structures=structures)
    on_device = {name: weight.to(device) for name, weight in weights.items()}
    expected = pattern.masks(weights, 0.5, {}, structures=structures)
    assert_same(pattern.masks(on_device, 0.5, {}, structures=structures), expected, device)
