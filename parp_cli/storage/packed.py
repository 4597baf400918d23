"""Packed weights: of a weight with a mask only the values that it keeps, in a number type of fewer bytes if wanted."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Values = Literal["float32", "float16", "bfloat16", "int8"]
"""Number types of kept values. With int8 each row of a matrix has a scale; a vector has one."""

KEPT, SCALE = "kept/", "scale/"
"""Before a weight's name: its kept values (K,) in row-major order, and bfloat16 scales of its rows."""

_LARGEST = 127  # of int8, so that negative and positive values have the same range


def pack(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], values: Values) -> dict[str, Tensor]:
    """Tensors to store for weights by name, of which those with a mask (True = kept) are packed.

    Other floats become float16 unless the values are float32: norms, and a feature encoder that is sensitive to more.
    """
    stored: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name not in masks:
            smaller = weight.dtype == torch.float32 and values != "float32"
            stored[name] = weight.half() if smaller else weight
            continue
        keep = masks[name]
        if values == "int8":
            scales = _scales(weight, keep)
            stored[SCALE + name] = scales
            weight = (weight / _by_row(scales, weight)).round().clamp(-_LARGEST, _LARGEST)
        stored[KEPT + name] = weight[keep].to(getattr(torch, values))
    return stored


def unpack(stored: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that `pack` stored, packed ones in float32 and zero where they are pruned."""
    weights = {name: tensor for name, tensor in stored.items() if not name.startswith((KEPT, SCALE))}
    for key in stored:
        if key.startswith(KEPT):
            name = key.removeprefix(KEPT)
            weight = torch.zeros(masks[name].shape)
            weight[masks[name]] = stored[key].float()
            scales = stored.get(SCALE + name)
            weights[name] = weight if scales is None else weight * _by_row(scales, weight)
    return weights


def _scales(weight: Tensor, keep: Tensor) -> Tensor:
    """The step between two integers for each row; rounded up, so that the largest value is within their range."""
    kept = torch.where(keep, weight.float(), 0.0)
    rows = kept.reshape(len(kept), -1) if kept.dim() > 1 else kept.reshape(1, -1)
    scales = rows.abs().amax(1) / _LARGEST
    rounded = (scales * (1 + 2**-8)).bfloat16()
    return torch.where(rounded > 0, rounded, torch.ones_like(rounded))


def _by_row(scales: Tensor, weight: Tensor) -> Tensor:
    """Scales in the shape that multiplies a weight's rows."""
    return scales.float().reshape(-1, *[1] * (weight.dim() - 1))
