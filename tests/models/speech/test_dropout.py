from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from parp_cli.models.speech import dropout
from parp_cli.models.speech.dropout import Decisions, Dropout, draw_seed

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


@pytest.mark.parametrize("probability", [0.0, 1 / 3, 0.1, 0.5, 0.999999])
def test_as_many_are_dropped_as_asked_and_the_mean_stays(probability: float) -> None:
    count = 1 << 20
    mask = Decisions(probability, seed=3).as_mask(torch.empty(count))
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    kept = 1 / Decisions(probability, seed=3).scale
    assert abs(kept - (1 - probability)) <= 1 / (1 << 16)
    slack = 5 * (kept * (1 - kept) / count) ** 0.5
    assert abs(mask.mean().item() - kept) <= slack
    # Neighbours, and those whose bits are in the same word, do not know of each other.
    for distance in (1, 2, 3, 4, 64):
        together = (mask[distance:] * mask[:-distance]).mean().item()
        assert abs(together - kept**2) <= 5 * (kept * (1 - kept) / count) ** 0.5 + slack


def test_decisions_are_their_seeds_in_any_precision() -> None:
    masks = [
        Decisions(0.4, seed).as_mask(torch.empty(3, 5, 7, dtype=dtype)).double()
        for seed, dtype in ((1, torch.float32), (1, torch.bfloat16), (1, torch.float64), (2, torch.float32))
    ]
    assert all(torch.equal(mask, masks[0]) for mask in masks[:3])
    assert not torch.equal(masks[0], masks[3])


@DTYPES
@pytest.mark.parametrize("arrange", [Tensor.contiguous, lambda matrix: matrix.mT], ids=["contiguous", "transposed"])
def test_gradients_are_dropped_where_values_were(
    dtype: torch.dtype, arrange: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dropout, "PIECE", 100)  # 30 × 11 is in four pieces
    layer = Dropout(0.25)
    values = arrange(torch.rand(30, 11, dtype=dtype) + 1).detach().requires_grad_()
    found = layer(values)
    assert found.shape == values.shape
    assert found.dtype == dtype
    found.backward(torch.full_like(found, 3.0))
    scale = Decisions(0.25, 0).scale
    kept = found != 0
    assert 0.5 < kept.float().mean() < 0.95
    torch.testing.assert_close(found, torch.where(kept, values * scale, 0.0).to(dtype))
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.where(kept, 3 * scale, 0.0).to(dtype))


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
    assert Dropout(0.0)(values) is values or torch.equal(Dropout(0.0)(values), values)
    assert torch.equal(Dropout(0.5).eval()(values), values)
    after = draw_seed()
    torch.manual_seed(0)
    assert draw_seed() == after
    assert torch.equal(Dropout(1.0)(values), nn.Dropout(1.0)(values))
