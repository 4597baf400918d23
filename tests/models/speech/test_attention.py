import pytest
import torch
from torch import Tensor
from torchaudio.models.wav2vec2 import components

from parp_cli.models.speech import attention
from parp_cli.models.speech.attention import SelfAttention, _Attention


def inputs(size: int, dtype: torch.dtype = torch.float64, frames: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (2, 3, T, d), in memory as projections lay them."""
    generator = torch.Generator().manual_seed(size)
    parts = torch.randn(3, 2, frames, 3, size, generator=generator, dtype=torch.float64).to(dtype)
    query, key, value = (part.transpose(1, 2).requires_grad_() for part in parts)
    return query, key, value


def naive(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, mask: Tensor | float) -> Tensor:
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if bias is not None:
        scores = scores + bias[:, None]
    return (scores.softmax(-1) * mask) @ value


@pytest.fixture(params=[1 << 19, 100, 1], ids=["all heads", "two heads", "a head"])
def piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "PIECE", request.param)


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_values_and_gradients_are_the_formulas(padded: bool, probability: float) -> None:
    bias = None
    if padded:
        bias = torch.zeros(2, 1, 7, dtype=torch.float64)
        bias[1, :, 4:] = -1e4
    query, key, value = inputs(5)
    mask: Tensor | float = 1.0
    if probability > 0:
        # Frames whose values are the unit vectors show each attention weight: which were dropped, and by how much the
        # others were scaled. The decisions do not depend on the values.
        unit = torch.eye(7, dtype=torch.float64).expand(2, 3, 7, 7)
        long_query, long_key = (torch.nn.functional.pad(tensor, (0, 2)) * (7 / 5) ** 0.25 for tensor in (query, key))
        torch.manual_seed(1)
        dropped = _Attention.apply(long_query.detach(), long_key.detach(), unit, bias, probability)
        whole = naive(query, key, unit, bias, 1.0)
        seen = whole > 1e-9
        mask = torch.where(seen, dropped / whole.clamp_min(1e-9), 0.0).detach()
        scale = 65536 / (65536 - round(probability * 65536))
        assert torch.allclose(mask[seen & (mask != 0)], torch.tensor(scale, dtype=torch.float64))
        assert abs((mask[seen] == 0).float().mean() - probability) < 0.12
        torch.manual_seed(1)
    found = _Attention.apply(query, key, value, bias, probability)
    expected = naive(query, key, value, bias, mask)
    torch.testing.assert_close(found, expected)
    weights = torch.linspace(-1, 2, found.numel(), dtype=torch.float64).view(found.shape)
    got = torch.autograd.grad((found * weights).sum(), (query, key, value))
    wanted = torch.autograd.grad((expected * weights).sum(), (query, key, value))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_gradients_are_the_differences(probability: float) -> None:
    bias = torch.zeros(2, 1, 4, dtype=torch.float64)
    bias[0, :, 3:] = -1e4

    def attend(*tensors: Tensor) -> Tensor:
        torch.manual_seed(2)
        result: Tensor = _Attention.apply(*tensors, bias, probability)
        return result

    assert torch.autograd.gradcheck(attend, inputs(2, frames=4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lower_precision_is_as_good_as_torchs(dtype: torch.dtype) -> None:
    gradients = []
    exact = inputs(16, frames=50)
    rounded = inputs(16, dtype, frames=50)
    again = inputs(16, dtype, frames=50)
    for tensors, way in ((exact, "torch"), (rounded, "parp"), (again, "torch")):
        if way == "parp":
            output = _Attention.apply(*tensors, None, 0.0)
        else:
            output = torch.nn.functional.scaled_dot_product_attention(*tensors)
        output.double().square().sum().backward()
        gradients.append([output, *(tensor.grad for tensor in tensors)])
    for expected, ours, theirs in zip(*gradients, strict=True):
        error, allowed = ((found.double() - expected).norm() for found in (ours, theirs))
        assert error < 2 * allowed + 1e-6 * expected.norm()


@pytest.mark.parametrize("training", [True, False])
def test_the_module_is_torchaudios(training: bool) -> None:
    torch.manual_seed(0)
    theirs = components.SelfAttention(12, 3, dropout=0.0).train(training)
    ours = SelfAttention(12, 3, dropout=0.0).train(training)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 9, 12)
    mask = torch.zeros(2, 1, 9, 9)
    mask[0, ..., 6:] = -1e4
    for precision in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            found, none = ours(x, mask)
            expected, _ = theirs(x, mask)
        assert none is None
        assert found.dtype == precision
        tolerance = 1e-5 if precision == torch.float32 else 2e-2
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


def test_attention_weights_are_dropped_in_training_only() -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(12, 3, dropout=0.5), torch.randn(2, 9, 12)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


def test_utterances_in_a_row_attend_to_themselves() -> None:
    torch.manual_seed(0)
    module = SelfAttention(12, 3, 0.2).eval()
    lengths = torch.tensor([4, 1, 6])
    utterances = [torch.randn(1, int(length), 12) for length in lengths]
    with torch.no_grad():
        found, _ = module(torch.cat(utterances, 1), lengths)
        expected = torch.cat([module(utterance)[0] for utterance in utterances], 1)
    torch.testing.assert_close(found, expected)
