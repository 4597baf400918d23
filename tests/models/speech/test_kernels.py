"""Kernels for matrix products: what they compute, and that the fastest are chosen; those for CUDA on a fake device."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest
import torch
from torch import Tensor

from parp_cli.errors import CheckpointError
from parp_cli.exporters.check import network
from parp_cli.models.speech import kernels
from parp_cli.models.speech.config import Architecture, build
from parp_cli.models.speech.forward import encode, front_end, pad
from parp_cli.models.speech.kernels import (
    available,
    choose,
    fastest_of_rounds,
    install,
    is_semi_structured,
    products,
)
from parp_cli.pruning.patterns import Pattern
from tests.fake_cuda import CUDA, fake_cuda, value_of
from tests.models.small import SMALL, randomise, waveform

UNEVEN = {"heads": (0, 2, 3), "head_size": 8, "feed_forward": (48, 0, 7)}
CASES = SMALL | {
    "uneven hubert": replace(SMALL["hubert-large"], **UNEVEN),
    "uneven wavlm": replace(SMALL["wavlm-large"], **UNEVEN, kept_heads=((), (1, 2), (0, 2, 3))),
}
SPEECH = [waveform(samples, seed=samples)[0] for samples in (1_500, 2_603, 4_000)]


def sparse_weights(architecture: Architecture) -> dict[str, Tensor]:
    """Random ones, of which nine of ten are zero in every matrix."""
    model = randomise(build(architecture, vocabulary_size=6))
    generator = torch.Generator().manual_seed(0)
    return {
        name: weight * (torch.rand(weight.shape, generator=generator) < 0.1) if name in products(model) else weight
        for name, weight in model.state_dict().items()
    }


@pytest.mark.parametrize("kind", ["dense", "csr", "int8"])
@pytest.mark.parametrize("name", CASES)
def test_every_network_computes_the_same(name: str, kind: str) -> None:
    architecture = CASES[name]
    weights = sparse_weights(architecture)
    names = products(build(architecture, vocabulary_size=6))
    assert not any(name.startswith("aux") for name in names)
    assert {name for name in weights if name.endswith(("proj.weight", "proj_weight", "dense.weight"))} <= set(names)
    plain, other = network(architecture, weights), network(architecture, weights, dict.fromkeys(names, kind))
    expected = [plain([one])[0] for one in SPEECH]
    for found in ([other([one])[0] for one in SPEECH], other(SPEECH)):
        for one, another in zip(expected, found, strict=True):
            difference = float((one - another).abs().max())
            assert difference < (0.3 if kind == "int8" else 1e-4)
            assert kind != "int8" or difference > 1e-4


@pytest.mark.parametrize("kind", ["csr", "int8"])
def test_products_beside_torch(kind: str) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(24, 10, generator=generator) * (torch.rand(24, 10, generator=generator) < 0.4)
    weight[3] = 0  # a row without anything
    bias, x = torch.randn(24, generator=generator), torch.randn(2, 3, 5, 10, generator=generator)
    product = kernels._BUILD[kind](weight, bias)
    expected = torch.nn.functional.linear(x, weight, bias)
    # Half a step of the inputs' 7 bits, and half a step of each row's 8 bits.
    steps = (x.max() - x.min()) / 127 * weight.abs().sum(1) + weight.abs().amax(1) / 127 * x.abs().sum(-1, keepdim=True)
    bound = 1e-5 + (steps / 2 if kind == "int8" else torch.zeros_like(expected))
    assert ((product(x) - expected).abs() <= bound).all()
    assert torch.equal(product(x)[..., 3], bias[3].expand(2, 3, 5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ((product(x) - expected).abs() <= bound).all(), "in float32 all the same"
    assert product(x.bfloat16()).dtype == torch.bfloat16


class Clock:
    """Says how long each kernel of each matrix takes, in the order in which they are measured."""

    def __init__(self, *seconds: float) -> None:
        self.seconds, self.calls = seconds, count()

    def __call__(self, call: Callable[[], object]) -> float:
        assert isinstance(call(), Tensor)
        return self.seconds[next(self.calls) % len(self.seconds)]


@pytest.mark.parametrize(
    ("int8", "seconds", "expected"),
    [
        (True, (3.0, 2.0, 1.0), "int8"),
        (True, (3.0, 1.0, 2.0), "csr"),
        (True, (1.0, 2.0, 3.0), "dense"),
        (True, (1.0, 0.95, 0.92), "dense"),  # within the noise
        (False, (3.0, 2.0), "csr"),
        (False, (1.0, 2.0), "dense"),
    ],
)
def test_the_choice_follows_the_clock(int8: bool, seconds: tuple[float, ...], expected: str) -> None:
    model = build(SMALL["wavlm-base"], vocabulary_size=6)
    names, told = products(model), []
    chosen = choose(model, names, int8=int8, timer=Clock(*seconds), each=lambda *at: told.append(at))
    assert chosen == dict.fromkeys(names, expected)
    assert told == [(number, len(names)) for number in range(1, len(names) + 1)]


def test_each_matrix_has_its_own_and_dense_ones_no_rows() -> None:
    model = build(SMALL["hubert-base"], vocabulary_size=6)
    names = products(model)
    assert choose(model, names, int8=False, timer=Clock(3, 2, 2, 3)) == {
        name: ("csr", "dense")[number % 2] for number, name in enumerate(names)
    }
    chosen = choose(model, names[:1], int8=False, timer=lambda call: float(fastest_of_rounds(call) < 0))
    assert set(chosen) == set(names)
    measured = []
    choose(model, names[:1], int8=False, timer=lambda call: measured.append(call) or 1.0)
    assert len(measured) == len(names) + 1


def test_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = SMALL["hubert-base"]
    weights = sparse_weights(architecture)
    name = products(build(architecture))[0]
    for wrong in ({name: "5:8"}, {"aux.weight": "csr"}):
        with pytest.raises(CheckpointError, match=r"this\.file wants .* which this parp does not have"):
            install(build(architecture, vocabulary_size=6), wrong, source="this.file")
    # Another processor: as if there were no kernels.
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert "csr" not in available()
    for kind in ("csr", "2:4"):
        plain, other = network(architecture, weights), network(architecture, weights, {name: kind})
        assert torch.equal(plain(SPEECH[:1])[0], other(SPEECH[:1])[0])


def two_of_four(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(*shape, generator=generator)
    return weight * Pattern.parse("2:4").masks({"weight": weight}, 0.5, {})["weight"]


def test_what_sparse_tensor_cores_take() -> None:
    weight = two_of_four(64, 128)
    assert is_semi_structured(weight)
    assert is_semi_structured(torch.zeros(32, 64))
    assert not is_semi_structured(weight[:48])
    assert not is_semi_structured(weight[:, :96])
    assert not is_semi_structured(weight[:0])
    weight[63, 124:] = 1
    assert not is_semi_structured(weight)


@pytest.mark.parametrize("frames", [1, 7, 8, 40])
def test_products_by_sparse_tensor_cores(frames: int) -> None:
    """In bfloat16 under its autocast, and else in the inputs' float32; under whatever torch does about gradients."""
    weight = two_of_four(96, 64)
    generator = torch.Generator().manual_seed(1)
    bias, x = torch.randn(96, generator=generator), torch.randn(2, frames, 64, generator=generator)
    expected = torch.nn.functional.linear(x.bfloat16().float(), weight.bfloat16().float(), bias.bfloat16().float())
    with fake_cuda() as device:
        assert available(CUDA) == ("dense", "2:4")
        product, on_device = kernels._BUILD["2:4"](weight.to(CUDA), bias.to(CUDA)), x.to(CUDA)
        device.waits.clear()
        for mode in (torch.inference_mode, torch.no_grad):
            with mode(), torch.autocast("cuda", torch.bfloat16):
                for found in (product(on_device), product(on_device.bfloat16())):
                    assert found.dtype == torch.bfloat16
                    assert found.is_contiguous()
                    assert torch.equal(value_of(found), expected.bfloat16())
        assert torch.equal(value_of(product(on_device)), torch.nn.functional.linear(x, weight, bias))
        assert device.waits == []
        assert 0 < fastest_of_rounds(lambda: product(on_device), CUDA) < 1
        with pytest.raises(AssertionError, match="would be lost"):
            kernels._BUILD["2:4"](torch.ones(32, 64, device=CUDA), bias)


def test_no_sparse_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older GPU, or a torch without the library."""

    def refused(weight: Tensor) -> Tensor:
        raise RuntimeError("cuSPARSELt not supported on your machine.")

    kernels._has_sparse_tensor_cores.cache_clear()
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", refused)
    with fake_cuda():
        assert available(CUDA) == ("dense",)
    kernels._has_sparse_tensor_cores.cache_clear()


@pytest.mark.parametrize(("seconds", "expected"), [((3.0, 2.0), "2:4"), ((1.0, 0.95), "dense"), ((1.0, 2.0), "dense")])
@pytest.mark.parametrize("family", ["hubert-base", "wavlm-large"])
def test_the_choice_on_cuda_follows_the_clock(family: str, seconds: tuple[float, ...], expected: str) -> None:
    """Of those matrices that it takes; the network computes by them in bfloat16, and in float32 without them."""
    architecture = replace(SMALL[family], width=64, feed_forward=128)
    weights = dict(randomise(build(architecture, vocabulary_size=6)).state_dict())
    names = products(build(architecture, vocabulary_size=6))
    weights |= {name: two_of_four(*weights[name].shape) for name in names}
    taken = {name for name in names if is_semi_structured(weights[name])}
    assert len(taken) == len(names) - (1 if family == "hubert-base" else 4)  # of 16 channels, and of WavLM's gates
    model = build(architecture, vocabulary_size=6)
    model.load_state_dict(weights)
    with fake_cuda():
        ways = dict.fromkeys(names, "dense") | dict.fromkeys(taken, expected)
        clock = Clock(*(second for name in names for second in (seconds if name in taken else seconds[:1])))
        assert choose(model.to(CUDA), names, int8=False, timer=clock) == ways
        plain, other = (network(architecture, weights, kernels, CUDA) for kernels in (None, ways))
        found = [(plain([one])[0], other([one])[0]) for one in SPEECH]
        assert all((one - another).abs().max() < 0.2 for one, another in found)
        model.eval()
        batch = pad([front_end(model, architecture, one) for one in SPEECH])
        exact = value_of(encode(model, *batch))
        install(model, ways, source="a test")
        assert torch.equal(value_of(encode(model, *batch)), exact)
