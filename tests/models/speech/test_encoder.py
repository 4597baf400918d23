from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parp_cli.models.speech.attention import attend
from parp_cli.models.speech.config import Architecture, build
from parp_cli.models.speech.dropout import Dropout
from parp_cli.models.speech.encoder import FeedForward, SelfAttention
from parp_cli.models.speech.prunable import prunable_parameters
from tests.models.oracle import ours, torchaudios
from tests.models.small import OF_TORCHAUDIO, SMALL, randomise, waveform

SMALLS = pytest.mark.parametrize("architecture", SMALL.values(), ids=SMALL.keys())
OF_THEIRS = pytest.mark.parametrize("architecture", OF_TORCHAUDIO.values(), ids=OF_TORCHAUDIO.keys())


@OF_THEIRS
@pytest.mark.parametrize("vocabulary_size", [5, None])
def test_names_and_first_weights_are_torchaudios(architecture: Architecture, vocabulary_size: int | None) -> None:
    mine, theirs = (make(architecture, vocabulary_size).state_dict() for make in (ours, torchaudios))
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@OF_THEIRS
def test_outputs_are_torchaudios(architecture: Architecture) -> None:
    theirs = randomise(torchaudios(architecture, 5))
    mine = ours(architecture, 5)
    mine.load_state_dict(theirs.state_dict())
    with torch.inference_mode():
        for samples in (260, 1_500, 8_000):
            torch.testing.assert_close(mine(waveform(samples))[0], theirs(waveform(samples))[0], atol=1e-5, rtol=1e-5)
        if architecture.family == "wavlm":
            return  # theirs hands no padding mask to WavLM's attention
        waves, lengths = torch.cat([waveform(), waveform(seed=1)]), torch.tensor([4_000, 1_777])
        found, expected = mine(waves, lengths), theirs(waves, lengths)
        assert torch.equal(found[1], expected[1])
        for mine_, theirs_, length in zip(found[0], expected[0], expected[1], strict=True):
            torch.testing.assert_close(mine_[:length], theirs_[:length], atol=1e-5, rtol=1e-5)


@OF_THEIRS
def test_gradients_are_torchaudios(architecture: Architecture) -> None:
    theirs = randomise(torchaudios(architecture, 5)).train()
    mine = ours(architecture, 5).train()
    mine.load_state_dict(theirs.state_dict())
    gradients = []
    for model in (mine, theirs):
        model(waveform(8_000))[0].square().mean().backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    assert list(gradients[0]) == list(gradients[1])
    for name, gradient in gradients[1].items():
        limit = 1e-4 * float(gradient.abs().max()) + 1e-6
        torch.testing.assert_close(gradients[0][name], gradient, atol=limit, rtol=1e-3)


@SMALLS
@pytest.mark.parametrize("training", [False, True])
def test_hooks_see_the_input_of_each_pruned_matrix(architecture: Architecture, training: bool) -> None:
    """The module that has a weight is called, with the weight's right operand first, in training and evaluation."""
    model = randomise(build(architecture)).train(training)
    weights = {
        name: weight
        for name, weight in prunable_parameters(model, biases=False).items()
        if name.startswith("encoder.transformer.layers.")
    }
    seen: dict[str, tuple[int, ...]] = {}
    for name in weights:
        owner = model.get_submodule(name.rpartition(".")[0])
        owner.register_forward_hook(lambda _, given, __, name=name: seen.update({name: given[0].shape}))
    with torch.set_grad_enabled(training):
        model(waveform())
    assert seen == {name: (1, 199, weight.shape[1]) for name, weight in weights.items()}


@SMALLS
def test_the_plain_pass_can_be_exported(architecture: Architecture) -> None:
    model = randomise(build(architecture, vocabulary_size=5))
    waves, lengths = torch.cat([waveform(), waveform(seed=1)]), torch.tensor([4_000, 1_777])
    exported = torch.export.export(model, (waves, lengths)).module()
    waves, lengths = waves + 0.1, torch.tensor([3_000, 4_000])
    with torch.no_grad():
        torch.testing.assert_close(exported(waves, lengths)[0], model(waves, lengths)[0], atol=1e-4, rtol=1e-4)


def heads(frames: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys and values (2, 3, T, 5), in memory as projections lay them."""
    parts = torch.randn(3, 2, frames, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    return [part.transpose(1, 2).requires_grad_() for part in parts]


@pytest.mark.parametrize("padded", [False, True])
def test_attention_with_dropout_is_the_formula(padded: bool) -> None:
    bias = None
    if padded:
        bias = torch.zeros(2, 1, 1, 7, dtype=torch.float64)
        bias[1, ..., 4:] = -1e4
    query, key, value = heads(7)
    scores = query @ key.mT / 5**0.5 + (0 if bias is None else bias)
    dropout = Dropout(0.3).train()
    # Frames whose values are the unit vectors show the attention weights. The decisions do not depend on the values.
    torch.manual_seed(1)
    unit = torch.eye(7, dtype=torch.float64).expand(2, 3, 7, 7)
    dropped = attend(query.detach(), key.detach(), unit, bias, dropout).unflatten(2, (3, 7)).transpose(1, 2)
    whole = scores.softmax(-1)
    factors = torch.where(whole > 1e-9, dropped / whole.clamp_min(1e-9), 0.0).detach()
    seen = factors[whole > 1e-9]
    scale = 65536 / (65536 - round(0.3 * 65536))
    torch.testing.assert_close(seen[seen > 0], torch.full_like(seen[seen > 0], scale))
    assert abs(float((seen == 0).double().mean()) - 0.3) < 0.12
    torch.manual_seed(1)
    found = attend(query, key, value, bias, dropout)
    expected = ((whole * factors) @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, expected)
    change = torch.linspace(-1, 2, found.numel(), dtype=torch.float64).view(found.shape)
    got = torch.autograd.grad((found * change).sum(), (query, key, value))
    wanted = torch.autograd.grad((expected * change).sum(), (query, key, value))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_attention_with_dropout_gives_half_the_precision_it_was_given() -> None:
    query, key, value = heads(9, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(query, key, value, None, Dropout(1e-6).train())
        expected = attend(query, key, value, None, Dropout(0.0))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, atol=3e-2, rtol=3e-2)


def test_attention_weights_are_dropped_in_training_only() -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(12, 3, 4, 0.5), torch.randn(2, 9, 12)
    assert not torch.equal(layer(x, None, None)[0], layer(x, None, None)[0])
    layer.eval()
    assert torch.equal(layer(x, None, None)[0], layer(x, None, None)[0])


def test_heads_may_be_fewer_than_the_features_have_room_for() -> None:
    torch.manual_seed(0)
    whole, less, x = SelfAttention(12, 3, 4, 0.0), SelfAttention(12, 2, 4, 0.0), torch.randn(2, 9, 12)
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(less, name).weight.copy_(getattr(whole, name).weight[:8])
            getattr(less, name).bias.copy_(getattr(whole, name).bias[:8])
        less.out_proj.weight.copy_(whole.out_proj.weight[:, :8])
        less.out_proj.bias.copy_(whole.out_proj.bias)
        whole.out_proj.weight[:, 8:] = 0.0
        torch.testing.assert_close(less(x, None, None)[0], whole(x, None, None)[0])


def feed_forward(layer: Any, x: Tensor, factors: Tensor | float) -> Tensor:
    result: Tensor = layer.output_dense(nn.functional.gelu(layer.intermediate_dense(x)) * factors)
    return result


@pytest.mark.parametrize("probability", [0.0, 0.4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_feed_forward_is_the_formula(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = FeedForward(6, 12, probability, 0.0).to(dtype)
    x = torch.randn(2, 5, 6, dtype=dtype, requires_grad=True)
    # With the unit matrix for the last layer the output shows what was dropped.
    seen = FeedForward(6, 12, probability, 0.0).to(dtype)
    seen.intermediate_dense = layer.intermediate_dense
    seen.output_dense = nn.Linear(12, 12, bias=False).to(dtype)
    seen.output_dense.weight.data = torch.eye(12, dtype=dtype)
    torch.manual_seed(7)
    factors = (seen(x) / nn.functional.gelu(layer.intermediate_dense(x))).detach()
    assert bool((factors == 0).any()) == (probability > 0)
    torch.manual_seed(7)
    found = layer(x)
    expected = feed_forward(layer, x, factors)
    torch.testing.assert_close(found, expected)
    change = torch.linspace(-1, 1, found.numel(), dtype=dtype).view(found.shape)
    wanted_for = (x, *layer.parameters())
    got = torch.autograd.grad((found * change).sum(), wanted_for)
    wanted = torch.autograd.grad((expected * change).sum(), wanted_for)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_frozen_feed_forward_still_hands_gradients_down() -> None:
    torch.manual_seed(0)
    layer = FeedForward(6, 12, 0.0, 0.0).requires_grad_(False)
    x = torch.randn(2, 5, 6, requires_grad=True)
    (wanted,) = torch.autograd.grad(feed_forward(layer, x, 1.0).sum(), x)
    layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, wanted)
    assert all(parameter.grad is None for parameter in layer.parameters())


class PlainFeedForward(FeedForward):
    def forward(self, x: Tensor) -> Tensor:
        return feed_forward(self, x, 1.0)


@pytest.mark.parametrize("probability", [0.0, 0.1])
def test_feed_forward_keeps_less(probability: float) -> None:
    sizes = []
    for kind in (PlainFeedForward, FeedForward):
        layer = kind(64, 256, probability, 0.0)
        parameters = {parameter.data_ptr() for parameter in layer.parameters()}
        kept: dict[int, int] = {}

        def note(tensor: Tensor, kept: dict[int, int] = kept, parameters: set[int] = parameters) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in parameters:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            layer(torch.randn(1, 100, 64))
        sizes.append(sum(kept.values()))
    plain, less = sizes
    assert plain >= 4 * 100 * (64 + 2 * 256)
    assert less <= 4 * 100 * (64 + 256)


def test_feed_forward_in_parts_is_the_whole() -> None:
    torch.manual_seed(0)
    layer, x = FeedForward(4, 8, 0.0, 0.0), torch.randn(3, 801, 4)
    expected = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
