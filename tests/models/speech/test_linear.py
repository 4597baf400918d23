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


def test_it_is_taken_where_nothing_trains(torchs: list[Tensor]) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN")
    module, x = Linear(48, 24), torch.randn(5, 48)
    with torch.inference_mode():
        module(x)
    assert not torchs
    module(x).sum().backward()
    assert module.weight.grad is not None
    with torch.no_grad():
        assert module.double()(x.double()).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16):
            assert module.float()(x).dtype == torch.bfloat16
        assert len(torchs) == 3


def test_without_onednn(torchs: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with torch.no_grad():
        linear(torch.randn(5, 48), WEIGHT, BIAS)
    assert len(torchs) == 1
