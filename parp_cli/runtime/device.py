"""The device a run uses, what its giving out looks like, and the versions it records."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import parp_cli
from parp_cli.errors import ResourceError

if TYPE_CHECKING:
    import torch


def launched() -> bool:
    """Whether `torchrun` started this process together with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def select_device(name: str) -> "torch.device":
    """`auto` takes CUDA where there is one.

    Raises:
        ResourceError: `cuda` was asked for and there is none.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise ResourceError("no CUDA device can be used", hint="use --device cpu, or --device auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def resolve_precision(
    name: Literal["auto", "float32", "tf32", "bfloat16"], device: "torch.device"
) -> Literal["float32", "tf32", "bfloat16"]:
    """`auto` is bfloat16 where the device computes it natively, else float32; other names stay as they are."""
    import torch

    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = any(capabilities.get(feature, False) for feature in ("avx512_bf16", "amx_bf16", "bf16"))
    return "bfloat16" if native else "float32"


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
"""How torch's errors say so on CUDA, on the CPU, on Windows, and in cuDNN and cuBLAS."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory gave out, of a device or of the CPU; for the latter torch has no class of errors."""
    # torch's own class would have to be imported to be named.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Inside, torch computes the same bits from the same input on CUDA too, or says that it cannot.

    Args:
        wanted: whether to; otherwise all stays as it is.
    """
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS when it is first used
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def versions() -> dict[str, str]:
    """Of the software that decides a result."""
    import torch
    import torchaudio

    return {
        "parp": parp_cli.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchaudio": torchaudio.__version__,
    }
