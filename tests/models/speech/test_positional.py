from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv1d
from torch.utils._python_dispatch import TorchDispatchMode
from torchaudio.models.wav2vec2 import components

from parp_cli.models.speech.encoder import PositionalConvolution, PositionalStack
from parp_cli.models.speech.positional import convolve


def direct(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    padding = weight.shape[-1] // 2
    return conv1d(x.mT, weight, padding=padding, groups=groups)[..., : x.shape[1]].mT


@pytest.mark.parametrize("frames", [1, 3, 8, 9, 10, 41])
@pytest.mark.parametrize(("features", "groups"), [(12, 6), (12, 1), (10, 5)])
@pytest.mark.parametrize("kernel", [1, 7, 8, 16])
def test_values_and_gradients_are_the_convolutions(frames: int, features: int, groups: int, kernel: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, frames, features, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(
        features, features // groups, kernel, generator=generator, dtype=torch.float64, requires_grad=True
    )
    with torch.no_grad():
        expected = direct(x, weight, groups)
    found = convolve(x, weight, groups)
    torch.testing.assert_close(found, expected)
    change = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    got = torch.autograd.grad((found * change).sum(), (x, weight))
    wanted = torch.autograd.grad((direct(x, weight, groups) * change).sum(), (x, weight))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_float32_loses_no_more_than_the_convolution() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 300, 32, generator=generator, dtype=torch.float64)
    weight = torch.randn(32, 16, 128, generator=generator, dtype=torch.float64)
    expected = direct(x, weight, 2)
    error = (convolve(x.float(), weight.float(), 2) - expected).abs().max()
    assert error < 3e-6 * expected.abs().max()


@pytest.mark.parametrize("frames", [10, 100], ids=["direct", "by frequencies"])
@pytest.mark.parametrize("kernel", [15, 16])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_module_is_torchaudios(frames: int, kernel: int, autocast: bool) -> None:
    torch.manual_seed(0)
    theirs = components.ConvolutionalPositionalEmbedding(8, kernel, 4)
    ours = PositionalConvolution(8, kernel, 4)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, frames, 8)
    results = []
    for module in (ours, theirs):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = module(x)
        found.float().square().sum().backward()
        results.append([found.detach().float(), *(parameter.grad for parameter in module.parameters())])
    tolerance = 5e-2 if autocast else 1e-4
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance * float(other.abs().max()), rtol=tolerance)


class Convolutions(TorchDispatchMode):
    """Notes the types of what is convolved."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[torch.dtype] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in func.name():
            self.types.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("autocast", [False, True], ids=["weights in bfloat16", "autocast"])
@pytest.mark.parametrize("make", [PositionalConvolution, partial(PositionalStack, layers=2)])
def test_no_cpu_convolves_in_bfloat16(make: Callable[..., Any], autocast: bool) -> None:
    torch.manual_seed(0)
    module = make(32, 16, 4)
    x = torch.randn(3, 20, 32)
    expected = module(x).detach()
    with Convolutions() as seen, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = module(x) if autocast else module.bfloat16()(x.bfloat16())
        found.float().square().sum().backward()
    assert len(seen.types) >= 2
    assert set(seen.types) == {torch.float32}
    assert found.dtype == (torch.float32 if autocast else torch.bfloat16)
    torch.testing.assert_close(found.float(), expected, atol=2e-2 * float(expected.abs().max()), rtol=0.0)


def test_matrices_made_in_inference_serve_training() -> None:
    weight = torch.randn(4, 2, 23, requires_grad=True)  # a length that no other test has made matrices for
    with torch.inference_mode():
        convolve(torch.ones(1, 5, 4), weight, 2)
    convolve(torch.ones(1, 5, 4), weight, 2).sum().backward()
    assert weight.grad is not None
