"""Kernels for matrix products: what they compute, and that the fastest are chosen."""

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
from parp_cli.models.speech.kernels import available, choose, fastest_of_rounds, install, products
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
    for wrong in ({name: "2:4"}, {"aux.weight": "csr"}):
        with pytest.raises(CheckpointError, match=r"this\.file wants .* which this parp does not have"):
            install(build(architecture, vocabulary_size=6), wrong, source="this.file")
    # Another processor: as if there were no kernels.
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert "csr" not in available()
    plain, other = network(architecture, weights), network(architecture, weights, {name: "csr"})
    assert torch.equal(plain(SPEECH[:1])[0], other(SPEECH[:1])[0])
