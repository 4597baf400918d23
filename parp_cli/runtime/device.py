"""Device and precision selection, out-of-memory detection, library versions."""

import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import parp_cli
from parp_cli.errors import ResourceError

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "tf32", "bfloat16"]
ResolvedPrecision = Literal["float32", "tf32", "bfloat16"]

S = TypeVar("S", bound=Any)


def launched() -> bool:
    """Whether `torchrun` started this process together with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def select_device(name: str) -> "torch.device":
    """`auto` takes CUDA where there is one; a ResourceError where `cuda` was asked for and there is none."""
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ResourceError("no CUDA device can be used", hint="use --device cpu, or --device auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        _make_cublas_deterministic()  # or no later run of this process could be
    return torch.device(name)


def _make_cublas_deterministic() -> None:
    """Let cuBLAS have memory of its own for each stream, 32 MiB: torch looks once whether it has, at the first matrix
    product of a process."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def on_device(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """A tensor of the CPU copied to a device, without waiting for what the device is doing."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def resolve_precision(name: Precision, device: "torch.device") -> ResolvedPrecision:
    """`auto` is bfloat16 where the device computes it natively, else float32; other names stay as they are."""
    import torch

    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if native else "float32"


def with_resolved_precision(settings: S, device: "torch.device") -> S:
    """Settings of a recipe with their `precision` resolved for the device, as runs record it and are named by it."""
    return replace(settings, precision=resolve_precision(settings.precision, device))


@contextmanager
def tensor_cores(precision: str) -> Iterator[None]:
    """Inside, CUDA computes float32 as the precision says: exactly for float32, through TF32 for the others. This holds
    for matrix products and for cuDNN's convolutions (torch's default rounds only the latter). What bfloat16 leaves in
    float32, such as the feature encoder, need not be more exact than TF32."""
    import torch

    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = precision != "float32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def validation_precision(precision: str, device: "torch.device") -> str:
    """What a run validates in: its own precision on CUDA, float32 on CPUs."""
    return precision if device.type == "cuda" else "float32"


def autocast(precision: str, device: "torch.device") -> "torch.autocast":
    """Inside, the operations that torch considers safe compute in bfloat16, if that is the precision."""
    import torch

    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
"""Messages of torch's errors on CUDA, on CPUs, on Windows, and of cuDNN and cuBLAS."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the CPU ran out of memory; torch has no class of errors for the latter."""
    # torch's own class would have to be imported to be named.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Inside, if wanted, torch's results are the same bit for bit on CUDA as well, or it raises an error."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        _make_cublas_deterministic()
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def versions(libraries: Iterable[str] = ()) -> dict[str, str]:
    """Versions of the software that results depend on, with those of an architecture's own `libraries`."""
    import torch
    import torchaudio

    own = {"parp": parp_cli.__version__, "python": platform.python_version()}
    found = {**own, "torch": torch.__version__, "torchaudio": torchaudio.__version__}
    return found | {library: version(library) for library in libraries}
