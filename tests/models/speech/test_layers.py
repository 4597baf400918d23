from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchaudio.models.wav2vec2 import components

from parp_cli.models.speech import dropout, layers
from parp_cli.models.speech.config import build
from parp_cli.models.speech.dropout import by_hand
from parp_cli.models.speech.layers import FeedForward, Linear, product
from tests.models.small import SMALL


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 6), (2, 7, 6), (6,), (0, 6)])
def test_linear_is_torchs(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    theirs = nn.Linear(6, 4, bias=bias)
    ours = Linear(6, 4, bias=bias)
    ours.load_state_dict(theirs.state_dict())
    results = []
    for layer in (ours, theirs):
        torch.manual_seed(1)
        x = torch.randn(shape, requires_grad=True)
        found = layer(x)
        found.backward(torch.linspace(-1, 1, found.numel()).view(found.shape))
        results.append([found, x.grad, *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_linear_computes_only_the_gradients_that_are_asked_for() -> None:
    layer = Linear(6, 4).requires_grad_(False)
    x = torch.randn(5, 6, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


def test_frozen_feed_forward_still_hands_gradients_down() -> None:
    torch.manual_seed(0)
    layer = FeedForward(6, 12, 0.0, 0.0).requires_grad_(False)
    x = torch.randn(2, 5, 6, requires_grad=True)
    (wanted,) = torch.autograd.grad(feed_forward_naively(layer, x, torch.tensor(True), 1.0).sum(), x)
    layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, wanted)
    assert all(parameter.grad is None for parameter in layer.parameters())


def feed_forward_naively(layer: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
    hidden = nn.functional.gelu(nn.functional.linear(x, layer.intermediate_dense.weight, layer.intermediate_dense.bias))
    hidden = torch.where(kept, hidden * scale, 0.0)
    return nn.functional.linear(hidden, layer.output_dense.weight, layer.output_dense.bias)


@pytest.mark.parametrize("probability", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_feed_forward_is_the_formula(probability: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dropout, layers):
        monkeypatch.setattr(module, "PIECE", 50)  # 2 × 5 × 12 in three pieces
    torch.manual_seed(0)
    layer = FeedForward(6, 12, probability, 0.0).to(dtype)
    x = torch.randn(2, 5, 6, dtype=dtype, requires_grad=True)
    # With the unit matrix for the last layer the output shows what was dropped.
    seen = FeedForward(6, 12, probability, 0.0).to(dtype)
    seen.intermediate_dense = layer.intermediate_dense
    seen.output_dense = Linear(12, 12, bias=False).to(dtype)
    seen.output_dense.weight.data = torch.eye(12, dtype=dtype)
    torch.manual_seed(7)
    kept = seen(x) != 0
    assert bool(kept.all()) == (probability == 0)
    scale = 65536 / (65536 - round(probability * 65536))
    torch.manual_seed(7)
    found = layer(x)
    expected = feed_forward_naively(layer, x, kept, scale)
    torch.testing.assert_close(found, expected)
    change = torch.linspace(-1, 1, found.numel(), dtype=dtype).view(found.shape)
    wanted_for = (x, *layer.parameters())
    got = torch.autograd.grad((found * change).sum(), wanted_for)
    wanted = torch.autograd.grad((expected * change).sum(), wanted_for)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("at_once", [1, 3, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_feed_forward_without_gradients_is_the_formula(
    at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "_FRAMES_AT_ONCE", at_once)
    torch.manual_seed(0)
    layer = FeedForward(6, 12, 0.3, 0.3).to(dtype).eval()
    # Not contiguous, and not all of GELU's bends are at small values.
    x = (3 * torch.randn(5, 2, 6)).to(dtype).transpose(0, 1)
    exact = feed_forward_naively(layer.double(), x.double(), torch.tensor(True), 1.0)
    layer.to(dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    with torch.no_grad():
        found = layer(x)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=tolerance)
        if dtype == torch.float32:
            with torch.autocast("cpu", torch.bfloat16):
                lower = layer(x)
            assert lower.dtype == torch.bfloat16
            torch.testing.assert_close(lower.double(), exact, rtol=0, atol=3e-2)


def test_dropout_is_heeded_without_gradients() -> None:
    torch.manual_seed(0)
    layer, x = FeedForward(6, 12, 0.5, 0.0).train(), torch.randn(2, 5, 6)
    with torch.no_grad():
        assert not torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_product(activate: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # Rows that overlap in memory, as those under the kernel of a convolution.
    left = torch.randn(40).to(dtype).unfold(0, 12, 4)
    right, bias = torch.randn(7, 12).to(dtype), torch.randn(7).to(dtype)
    for added in (bias, None):
        expected = left.double() @ right.double().t() + (0 if added is None else added.double())
        if activate:
            expected = nn.functional.gelu(expected)
        found = product(left, right, added, activate=activate)
        assert found.dtype == dtype
        limit = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=limit)
    assert product(left[:0], right, bias, activate=activate).shape == (0, 7)


def test_feed_forward_keeps_less() -> None:
    sizes = []
    for kind in (components.FeedForward, FeedForward):
        layer = kind(64, 256, 0.1, 0.0)
        parameters = {parameter.data_ptr() for parameter in layer.parameters()}
        kept: dict[int, int] = {}

        def note(tensor: Tensor, kept: dict[int, int] = kept, parameters: set[int] = parameters) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in parameters:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            layer(torch.randn(1, 100, 64))
        sizes.append(sum(kept.values()))
    theirs, ours = sizes
    assert ours <= 4 * 100 * (64 + 256) < theirs / 2


@pytest.mark.parametrize("architecture", SMALL.values(), ids=SMALL.keys())
def test_names_and_first_weights_are_torchaudios(architecture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    ours = build(architecture, vocabulary_size=5)
    monkeypatch.setattr(layers, "quicken", lambda _: None)
    torch.manual_seed(0)
    theirs = build(architecture, vocabulary_size=5)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True))
    changed = {
        type(one).__name__
        for one, other in zip(ours.modules(), theirs.modules(), strict=True)
        if type(one).__module__ != type(other).__module__
    }
    of_attention = set() if architecture.family == "wavlm" else {"SelfAttention"}
    assert changed == {"ConvolutionalPositionalEmbedding", "Dropout", "FeedForward", "Linear"} | of_attention


def test_who_compiles_sees_torchs_own_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_hand(torch.ones(1))
    assert not by_hand(torch.ones(1, device="meta"))
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    assert not by_hand(torch.ones(1))
