"""How the matrix products of a speech network are computed on a CPU: dense, from compressed rows, or in 8-bit integers.

B utterances, T frames, D inputs, E outputs of a layer.
"""

import time
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from parp_cli.errors import CheckpointError
from parp_cli.models.speech.linear import linear
from parp_cli.models.speech.wavlm import PackedProjections

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import SpeechNetwork

Product = Callable[[Tensor], Tensor]
"""From (…, D) to (…, E)."""

Timer = Callable[[Callable[[], object]], float]
"""Seconds that a call takes."""

DENSE, CSR, INT8 = "dense", "csr", "int8"

_FRAMES = 500
"""Of the input that kernels are measured on: 10 s of speech."""

_GAIN = 0.9
"""A kernel is chosen where it takes at most this share of the dense one's time: less is within the noise."""

_ROUNDS = 5
_LARGEST = 127  # of 8-bit weights


@dataclass(frozen=True)
class _Place:
    """A matrix product in a network: the module that computes it, and its parameters' names there."""

    module: nn.Module
    weight: str
    bias: str

    def parameters(self) -> tuple[Tensor, Tensor]:
        weight = getattr(self.module, self.weight).detach().float()
        bias = getattr(self.module, self.bias)
        return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().float()


def products(model: "SpeechNetwork") -> tuple[str, ...]:
    """The names of the weights that kernels can be chosen for: all matrices but the head's."""
    return tuple(_places(model))


def fastest_of_rounds(call: Callable[[], object]) -> float:
    """Seconds that the call takes here, with torch's threads: the shortest of several, after one to warm up."""
    call()
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


@torch.no_grad()
def choose(
    model: "SpeechNetwork",
    pruned: Collection[str],
    *,
    int8: bool,
    timer: Timer = fastest_of_rounds,
    each: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, str]:
    """The fastest kernel for each matrix of a network on the CPU, by weight name.

    Args:
        pruned: names of weights with zeros, for which compressed rows are measured.
        int8: whether 8-bit integers are measured, which change the outputs.
        each: is called after each matrix with the number of those measured, and of all.
    """
    chosen: dict[str, str] = {}
    places = _places(model)
    generator = torch.Generator().manual_seed(0)
    for name, place in places.items():
        weight, bias = place.parameters()
        x = torch.randn(1, _FRAMES, weight.shape[1], generator=generator)
        kinds = [DENSE, *([CSR] if name in pruned else []), *([INT8] if int8 else [])]
        seconds = {kind: timer(_call(_BUILD[kind](weight, bias), x)) for kind in kinds if kind in available()}
        fastest = min(seconds, key=lambda kind: seconds[kind])
        chosen[name] = fastest if seconds[fastest] <= _GAIN * seconds[DENSE] else DENSE
        each(len(chosen), len(places))
    return chosen


def install(model: "SpeechNetwork", kernels: Mapping[str, str], *, source: str) -> None:
    """Make a network on the CPU, which will not be trained, compute with these kernels, by weight name.

    Its own matrices are freed. What this machine has no kernel for stays dense, which is slower and never worse.

    Raises:
        CheckpointError: there is no such matrix or kernel; the `source` is named.
    """
    places = _places(model)
    for name, kind in kernels.items():
        if name not in places or kind not in _BUILD:
            what = f"the kernel {kind}" if name in places else f"a matrix {name}"
            raise CheckpointError(f"{source} wants {what}, which this parp does not have", hint="update parp to use it")
        if kind != DENSE and kind in available():
            place = places[name]
            module: Any = place.module
            module.forward = _BUILD[kind](*place.parameters())
            setattr(module, place.weight, None)


def available() -> tuple[str, ...]:
    """The kernels that torch has on this machine."""
    rows = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return (DENSE, *([CSR] if rows else []), *([INT8] if torch.backends.quantized.engine != "none" else []))


def _places(model: "SpeechNetwork") -> dict[str, _Place]:
    places = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedProjections):
            place = _Place(module, "in_proj_weight", "in_proj_bias")
        elif isinstance(module, nn.Linear):
            place = _Place(module, "weight", "bias")
        else:
            continue
        if not model.is_head(full := f"{name}.{place.weight}"):
            places[full] = place
    return places


def _call(product: Product, x: Tensor) -> Callable[[], object]:
    return lambda: product(x)


def _dense(weight: Tensor, bias: Tensor) -> Product:
    return lambda x: linear(x, weight, bias)


def _compressed_rows(weight: Tensor, bias: Tensor) -> Product:
    """Only what is not zero is multiplied; the outputs are equal except for rounding."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        rows = weight.to_sparse_csr()

    def product(x: Tensor) -> Tensor:
        return torch.addmm(bias[:, None], rows, x.reshape(-1, x.shape[-1]).T).T.reshape(*x.shape[:-1], len(bias))

    return _in_float32(product)


def _integers(weight: Tensor, bias: Tensor) -> Product:
    """Weights with a scale for each output, inputs with one that is measured as it runs."""
    scales = (weight.abs().amax(1) / _LARGEST).clamp(min=torch.finfo(torch.float32).tiny).double()
    zeros = torch.zeros(len(weight), dtype=torch.long)
    packed = torch.ops.quantized.linear_prepack(
        torch.quantize_per_channel(weight.contiguous(), scales, zeros, 0, torch.qint8), bias
    )

    def product(x: Tensor) -> Tensor:
        # Inputs have 7 bits: with 8, sums overflow on processors without VNNI.
        result: Tensor = torch.ops.quantized.linear_dynamic(x.contiguous(), packed, True)
        return result

    return _in_float32(product)


def _in_float32(product: Product) -> Product:
    """Whatever type the input has, and under autocast."""

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return product(x.float()).to(x.dtype)

    return run


_BUILD: Mapping[str, Callable[[Tensor, Tensor], Product]] = {DENSE: _dense, CSR: _compressed_rows, INT8: _integers}
