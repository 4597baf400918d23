"""Linear layers by oneDNN: what torch's make."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from parp_cli.models.speech.linear import Linear, linear

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT, BIAS = torch.randn(24, 48, generator=GENERATOR), torch.randn(24, generator=GENERATOR)
INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda x: x[0],
    "batch": lambda x: x,
    "heads": lambda x: x[:, None],
    "strided": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "part": lambda x: x[:, ::2],
    "empty": lambda x: x[:, :0],
    "one": lambda x: x[0, 0],
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("bias", [BIAS, None])
@pytest.mark.parametrize("then_gelu", [False, True])
def test_the_outputs_are_torchs(kind: str, bias: Tensor | None, then_gelu: bool) -> None:
    x = INPUTS[kind](torch.randn(3, 70, 48, generator=torch.Generator().manual_seed(1)))
    expected = nn.functional.linear(x.double(), WEIGHT.double(), None if bias is None else bias.double())
    expected = gelu(expected) if then_gelu else expected
    with torch.no_grad():
        made = linear(x, WEIGHT, bias, then_gelu=then_gelu)
    assert made.shape == expected.shape
    torch.testing.assert_close(made.double(), expected, atol=2e-5, rtol=0)


@pytest.fixture
def torchs(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Inputs of torch's own from here on."""
    calls: list[Tensor] = []
    own = nn.functional.linear

    def spy(x: Tensor, *rest: Any) -> Tensor:
        calls.append(x)
        return own(x, *rest)

    monkeypatch.setattr(nn.functional, "linear", spy)
    return calls


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("upstream", ["any", "expanded", "strided"])
def test_the_gradients_are_torchs(kind: str, with_bias: bool, upstream: str) -> None:
    def gradients(dtype: torch.dtype, function: Callable[..., Tensor]) -> list[Tensor]:
        x = INPUTS[kind](torch.randn(3, 70, 48, generator=torch.Generator().manual_seed(1)))
        leaves = [
            leaf.to(dtype, copy=True).requires_grad_() for leaf in ((x, WEIGHT, BIAS) if with_bias else (x, WEIGHT))
        ]
        made = function(*leaves, *(() if with_bias else (None,)))
        from_above = {
            "any": torch.randn(made.shape, generator=torch.Generator().manual_seed(2)),
            "expanded": torch.ones(()).expand(made.shape),
            "strided": torch.randn(*made.shape, 2, generator=torch.Generator().manual_seed(3))[..., 0],
        }[upstream]
        made.backward(from_above.to(dtype))
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    expected = gradients(torch.float64, nn.functional.linear)
    for made, exact in zip(gradients(torch.float32, linear), expected, strict=True):
        torch.testing.assert_close(made.double(), exact, atol=1e-4, rtol=0)


def test_only_what_trains_has_gradients() -> None:
    module, x = Linear(48, 24), torch.randn(5, 48, requires_grad=True)
    module.weight.requires_grad_(False)
    module(x).sum().backward()
    assert x.grad is not None
    assert module.bias.grad is not None
    assert module.weight.grad is None
    with torch.no_grad():
        assert not module(x).requires_grad


def test_it_is_taken_for_float32_alone(torchs: list[Tensor]) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN")
    module, x = Linear(48, 24), torch.randn(5, 48)
    with torch.inference_mode():
        module(x)
    module(x).sum().backward()
    assert module.weight.grad is not None
    assert not torchs
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
    assert module.double()(x.double()).dtype == torch.float64
    assert len(torchs) == 2


def test_without_onednn(torchs: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with torch.no_grad():
        linear(torch.randn(5, 48), WEIGHT, BIAS)
    assert len(torchs) == 1
