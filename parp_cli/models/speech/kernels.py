"""How the matrix products of a speech network are computed: dense; on a CPU from compressed rows or in 8-bit integers;
on CUDA by the sparse tensor cores, which take 2:4 matrices.

B utterances, T frames, D inputs, E outputs of a layer.
"""

import time
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from parp_cli.errors import CheckpointError
from parp_cli.models.speech.linear import linear
from parp_cli.models.speech.wavlm import PackedProjections
from parp_cli.runtime.device import autocast

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import SpeechNetwork

Product = Callable[[Tensor], Tensor]
"""From (…, D) to (…, E)."""

Timer = Callable[[Callable[[], object]], float]
"""Seconds that a call takes."""

_CPU = torch.device("cpu")

DENSE, CSR, INT8, SEMI_STRUCTURED = "dense", "csr", "int8", "2:4"

_FRAMES = {"cpu": 500, "cuda": 3000}
"""Of the input that kernels are measured on: 10 s of speech, and on CUDA, which wants larger batches, a minute."""

_CALLS = {"cpu": 1, "cuda": 20}
"""Between two looks at the clock: a call on CUDA is too short for it."""

_MULTIPLES = (32, 64)
"""Of these are the outputs and inputs of a matrix that both of torch's ways to the sparse tensor cores take."""

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


def fastest_of_rounds(call: Callable[[], object], device: torch.device = _CPU) -> float:
    """Seconds that the call takes on the device, with torch's threads: the shortest of several, after one to warm
    up."""
    calls, seconds = _CALLS[device.type], []
    for _ in range(1 + _ROUNDS):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append((time.perf_counter() - began) / calls)
    return min(seconds[1:])


@torch.no_grad()
def choose(
    model: "SpeechNetwork",
    pruned: Collection[str],
    *,
    int8: bool,
    timer: Timer | None = None,
    each: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, str]:
    """The fastest kernel for each matrix of a network, on the device where it is, by weight name.

    Args:
        pruned: names of weights with zeros, for which compressed rows are measured, and 2:4 for those that are it.
        int8: whether 8-bit integers are measured, which change the outputs.
        timer: by default `fastest_of_rounds`.
        each: is called after each matrix with the number of those measured, and of all.
    """
    chosen: dict[str, str] = {}
    places, device = _places(model), next(model.parameters()).device
    timer = timer or partial(fastest_of_rounds, device=device)
    generator = torch.Generator().manual_seed(0)
    for name, place in places.items():
        weight, bias = place.parameters()
        x = torch.randn(1, _FRAMES[device.type], weight.shape[1], generator=generator).to(device)
        kinds = [DENSE, *([CSR] if name in pruned else []), *([INT8] if int8 else [])]
        if name in pruned and is_semi_structured(weight):
            kinds.append(SEMI_STRUCTURED)
        with autocast("bfloat16" if device.type == "cuda" else "float32", device):
            products = {kind: _BUILD[kind](weight, bias) for kind in kinds if kind in available(device)}
            seconds = {kind: timer(_call(product, x)) for kind, product in products.items()}
        fastest = min(seconds, key=lambda kind: seconds[kind])
        chosen[name] = fastest if seconds[fastest] <= _GAIN * seconds[DENSE] else DENSE
        each(len(chosen), len(places))
    return chosen


def install(model: "SpeechNetwork", kernels: Mapping[str, str], *, source: str) -> None:
    """Make a network, which will not be trained, compute with these kernels, by weight name, on the device where it is.

    Its own matrices are freed. What this device has no kernel for stays dense, which is slower and never worse.

    Raises:
        CheckpointError: there is no such matrix or kernel; the `source` is named.
    """
    places, device = _places(model), next(model.parameters()).device
    for name, kind in kernels.items():
        if name not in places or kind not in _BUILD:
            what = f"the kernel {kind}" if name in places else f"a matrix {name}"
            raise CheckpointError(f"{source} wants {what}, which this parp does not have", hint="update parp to use it")
        if kind != DENSE and kind in available(device):
            place = places[name]
            module: Any = place.module
            module.forward = _BUILD[kind](*place.parameters())
            setattr(module, place.weight, None)


def available(device: torch.device = _CPU) -> tuple[str, ...]:
    """The kernels that torch has for this device."""
    if device.type == "cuda":
        return (DENSE, *([SEMI_STRUCTURED] if _has_sparse_tensor_cores(device) else []))
    rows = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return (DENSE, *([CSR] if rows else []), *([INT8] if torch.backends.quantized.engine != "none" else []))


def is_semi_structured(weight: Tensor) -> bool:
    """Whether sparse tensor cores take a matrix (E, D): at most 2 of each 4 consecutive entries of a row are not zero,
    and its sizes are suitable."""
    if any(size == 0 or size % multiple for size, multiple in zip(weight.shape, _MULTIPLES, strict=True)):
        return False
    return bool(((weight != 0).view(len(weight), -1, 4).sum(-1) <= 2).all())


@lru_cache
def _has_sparse_tensor_cores(device: torch.device) -> bool:
    """By trying them: it takes a GPU that has some, and a torch that was built with a library for them."""
    outputs, inputs = _MULTIPLES
    weight = torch.eye(inputs, device=device)[:outputs]
    bias, x = torch.ones(outputs, device=device), torch.arange(inputs, device=device)[None].float()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        try:
            made = _semi_structured(weight, bias)(x)
        except RuntimeError:
            return False
    return bool(torch.equal(made.float(), x[:, :outputs] + 1))


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


def _semi_structured(weight: Tensor, bias: Tensor) -> Product:
    """Of a 2:4 matrix, in bfloat16 and so under its autocast alone; elsewhere dense, in the precision of the inputs."""
    assert is_semi_structured(weight), "what is more would be lost"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The PyTorch API of SparseSemiStructuredTensor", UserWarning)
        compressed = torch.sparse.to_sparse_semi_structured(weight.bfloat16().contiguous())
    half_bias = bias.bfloat16()

    def product(x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cuda") or torch.get_autocast_dtype("cuda") != torch.bfloat16:
            return linear(x, weight.to(x.dtype), bias.to(x.dtype))
        with torch.autocast("cuda", enabled=False):
            made = nn.functional.linear(x.reshape(-1, x.shape[-1]).bfloat16(), compressed, half_bias)
        # They come as columns; what follows wants rows.
        return made.contiguous().view(*x.shape[:-1], len(bias))

    return product


def _in_float32(product: Product) -> Product:
    """Whatever type the input has, and under autocast."""

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return product(x.float()).to(x.dtype)

    return run


_BUILD: Mapping[str, Callable[[Tensor, Tensor], Product]] = {
    DENSE: _dense,
    CSR: _compressed_rows,
    INT8: _integers,
    SEMI_STRUCTURED: _semi_structured,
}
