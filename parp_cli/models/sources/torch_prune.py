"""State dicts of networks that torch.nn.utils.prune pruned: `weight_orig` and `weight_mask` instead of `weight`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from parp_cli.errors import MaskError

if TYPE_CHECKING:
    from torch import Tensor

_ORIGINAL, _MASK = "_orig", "_mask"

_QKV = re.compile(r"(.*\.(?:attention|self_attn)\.)[qkv]_proj\.(weight|bias)")


def split(state: Mapping[str, Tensor], *, source: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights by their own names, zero where they are pruned, and masks (boolean, True = kept) by the same names.

    Raises MaskError where a mask holds anything but zeros and ones; `source` names it.
    """
    masks = {
        name.removesuffix(_MASK): mask
        for name, mask in state.items()
        if name.endswith(_MASK) and {name.removesuffix(_MASK), name.removesuffix(_MASK) + _ORIGINAL} & set(state)
    }
    masks = {name: _boolean(mask, f"{name}{_MASK} of {source}") for name, mask in masks.items()}
    weights: dict[str, Tensor] = {}
    for name, tensor in state.items():
        weight = name.removesuffix(_ORIGINAL)
        if name.removesuffix(_MASK) in masks and name.endswith(_MASK):
            continue
        pruned = weight in masks and masks[weight].shape == tensor.shape
        weights[weight if weight in masks else name] = tensor.where(masks[weight], 0) if pruned else tensor
    return weights, masks


def masks_alone(state: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor] | None:
    """The masks of a state dict that holds nothing else, by the names of their weights; None where it does.

    Their names end in `_mask`, or they are those of the weights and all of them are zeros and ones.
    """
    if not all(name.endswith(_MASK) for name in state):
        prunes = any(0 < tensor.count_nonzero() < tensor.numel() for tensor in state.values())
        if not prunes or not all(map(_is_mask, state.values())):
            return None
    return {name.removesuffix(_MASK): _boolean(mask, f"{name} of {source}") for name, mask in state.items()}


def with_whole_attention(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The masks with all of q, k and v where one of them is masked: the others are kept whole."""
    whole = dict(masks)
    for name, mask in masks.items():
        if match := _QKV.fullmatch(name):
            for which in "qkv":
                whole.setdefault(f"{match[1]}{which}_proj.{match[2]}", torch.ones_like(mask))
    return whole


def _is_mask(tensor: Tensor) -> bool:
    return bool(((tensor == 0) | (tensor == 1)).all())


def _boolean(mask: Tensor, what: str) -> Tensor:
    if not _is_mask(mask):
        raise MaskError(f"{what} holds more than zeros and ones", hint="it is no mask of torch.nn.utils.prune")
    return mask.bool()
