"""The device a run uses, and the versions it records."""

import platform
from typing import TYPE_CHECKING, Literal

import parp_cli
from parp_cli.errors import ResourceError

if TYPE_CHECKING:
    import torch


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
    name: Literal["auto", "float32", "bfloat16"], device: "torch.device"
) -> Literal["float32", "bfloat16"]:
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
