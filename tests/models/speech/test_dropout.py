from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from parp_cli.models.speech.dropout import Dropout, drop_, on_cpu

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


@pytest.mark.parametrize("probability", [0.0, 1 / 3, 0.1, 0.5, 0.999999])
def test_as_many_are_dropped_as_asked_and_the_mean_stays(probability: float) -> None:
    count = 1 << 20
    values = drop_(torch.ones(count), probability, seed=3)
    scale = values.max().item()
    values, kept = values / scale, 1 / scale
    assert abs(kept - (1 - probability)) <= 1 / (1 << 16)
    slack = 5 * (kept * (1 - kept) / count) ** 0.5
    assert abs(values.mean().item() - kept) <= slack
    # Neighbours, and those whose bits are in the same word, are independent.
    for distance in (1, 2, 3, 4, 64):
        together = (values[distance:] * values[:-distance]).mean().item()
        assert abs(together - kept**2) <= 5 * (kept * (1 - kept) / count) ** 0.5 + slack


def test_decisions_are_those_of_earlier_versions() -> None:
    """A run that is resumed by this version goes on as it began."""
    torch.manual_seed(0)
    kept = Dropout(0.3)(torch.ones(3, 7))
    assert kept.max() == torch.tensor(65536 / (65536 - 19661))
    assert "".join(map(str, kept.flatten().bool().int().tolist())) == "101101111111000111110"


@DTYPES
@pytest.mark.parametrize("arrange", [Tensor.contiguous, lambda matrix: matrix.mT], ids=["contiguous", "transposed"])
def test_gradients_are_dropped_where_values_were(dtype: torch.dtype, arrange: Callable[[Tensor], Tensor]) -> None:
    layer = Dropout(0.25)
    values = arrange(torch.rand(30, 11, dtype=dtype) + 1).detach().requires_grad_()
    found = layer(values)
    assert found.shape == values.shape
    assert found.dtype == dtype
    found.backward(torch.full_like(found, 3.0))
    kept = found != 0
    assert 0.5 < kept.float().mean() < 0.95
    torch.testing.assert_close(found, torch.where(kept, values / 0.75, 0.0).to(dtype))
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.where(kept, 3 / 0.75, 0.0).to(dtype))


def test_in_place_is_the_same() -> None:
    values = torch.rand(6, 50, requires_grad=True)
    results = []
    for inplace in (False, True):
        torch.manual_seed(0)
        copy = values * 1
        found = Dropout(0.25, inplace=inplace)(copy)
        assert (found is copy) == inplace
        results.append((found, *torch.autograd.grad(found.square().sum(), values)))
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


def test_torchs_seed_governs() -> None:
    layer, values = Dropout(0.5), torch.ones(1000)
    torch.manual_seed(5)
    first, second = layer(values), layer(values)
    torch.manual_seed(5)
    assert torch.equal(layer(values), first)
    assert torch.equal(layer(values), second)
    assert not torch.equal(first, second)


def test_nothing_is_dropped_or_drawn_where_nothing_is_to_be() -> None:
    values = torch.ones(5)
    torch.manual_seed(0)
    assert torch.equal(Dropout(0.0)(values), values)
    assert torch.equal(Dropout(0.5).eval()(values), values)
    after = torch.rand(())
    torch.manual_seed(0)
    assert torch.rand(()) == after
    assert torch.equal(Dropout(1.0)(values), nn.Dropout(1.0)(values))


def test_a_compiler_sees_torchs_own_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_cpu(torch.ones(1))
    assert not on_cpu(torch.ones(1, device="meta"))
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    assert not on_cpu(torch.ones(1))
