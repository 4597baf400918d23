"""Small encoders of every kind, with weights that leave no term without effect."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parp_cli.models.speech.config import Architecture, Family

_SIZES: dict[str, Any] = {
    "conv_layers": [(16, 10, 5), (16, 3, 2), (16, 2, 2)],  # 20 samples a frame
    "width": 32,
    "layers": 3,
    "heads": 4,
    "feed_forward": 48,
    "positional_kernel": 16,
    "positional_groups": 4,
}
# Few buckets, so that a short utterance reaches the logarithmic ones and the last.
_RELATIVE: dict[str, Any] = {"buckets": 32, "max_distance": 64}
_BASE: dict[str, Any] = {
    "conv_norm": "group",
    "conv_bias": False,
    "norm_first": False,
    "normalize_waveform": False,
}
_LARGE: dict[str, Any] = {
    "conv_norm": "layer",
    "conv_bias": True,
    "norm_first": True,
    "normalize_waveform": True,
}

_KINDS: tuple[tuple[str, Family, dict[str, Any]], ...] = (
    ("wav2vec2-group-norm", "wav2vec2", _BASE),
    ("wav2vec2-layer-norm", "wav2vec2", _LARGE),
    (
        "xls-r",
        "wav2vec2",
        _LARGE | {"width": 40, "layers": 5, "heads": 2, "positional_kernel": 15, "positional_groups": 8},
    ),
    ("hubert-base", "hubert", _BASE),
    ("hubert-large", "hubert", _LARGE | {"conv_bias": False}),
    ("wavlm-base", "wavlm", _BASE | _RELATIVE),
    ("wavlm-large", "wavlm", _LARGE | _RELATIVE | {"conv_bias": False}),
    (
        "data2vec",
        "data2vec-audio",
        _LARGE | {"conv_bias": False, "norm_first": False, "positional_kernel": 5, "positional_layers": 3},
    ),
)
SMALL: dict[str, Architecture] = {name: Architecture(family=family, **_SIZES | sizes) for name, family, sizes in _KINDS}

OF_TORCHAUDIO = {name: small for name, small in SMALL.items() if small.family != "data2vec-audio"}
"""Those that torchaudio, fairseq's wav2vec 2.0 and files of format 1 have too."""

SAMPLES = 4_000  # 199 frames


def waveform(samples: int = SAMPLES, seed: int = 0) -> Tensor:
    """One utterance (1, S), neither centred nor of unit variance."""
    return 0.1 + 0.3 * torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))


def randomise(model: nn.Module, seed: int = 0) -> Any:
    """Give every parameter random values, norms and biases too, of a size that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith(("original0", "weight_g", "const")) or ("norm" in name and name.endswith("weight")):
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim > 1 and "embed.weight" not in name:
                parameter.copy_(1.5 * noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(0.3 * noise)
    return model.eval()


def save_legacy(value: object, path: Path) -> None:
    """Write as torch did before its zip format."""
    torch.save(value, path, _use_new_zipfile_serialization=False)
