"""Masks by the names of the weights they are for: what can be counted on them, and sets made of them.

True = kept, False = pruned. A set of masks is read as the set of the weights it keeps.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from parp_cli.errors import MaskError, first_few
from parp_cli.storage.bits import pack

Masks = Mapping[str, Tensor]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of a number."""


def count_pruned(masks: Masks) -> int:
    """How many weights the masks prune."""
    return sum(mask.numel() - _count(mask) for mask in masks.values())


def count_all(masks: Masks) -> int:
    """How many weights the masks cover."""
    return sum(mask.numel() for mask in masks.values())


def sparsity(masks: Masks) -> float:
    """Share of the covered weights that is pruned; 0 without any masks."""
    total = count_all(masks)
    return count_pruned(masks) / total if total else 0.0


def masks_hash(masks: Masks) -> str:
    """Names masks by their content: the SHA-256 of their names, shapes and bits."""
    digest = hashlib.sha256()
    for name, mask in masks.items():
        digest.update(f"{name} {tuple(mask.shape)}\n".encode())
        digest.update(pack(mask).numpy().data)
    return digest.hexdigest()


def check_fit(masks: Masks, weights: Mapping[str, Tensor], *, what: str) -> None:
    """Refuse masks that are not for these weights.

    Args:
        masks: by the weights' names.
        weights: what the masks are to be laid over; may hold more than the masks name.
        what: names the weights in the error.

    Raises:
        MaskError: a masked name is absent or has another shape.
    """
    wrong = []
    for name, mask in masks.items():
        if name not in weights:
            wrong.append(f"{name}: mask {tuple(mask.shape)}, no such weight")
        elif weights[name].shape != mask.shape:
            wrong.append(f"{name}: mask {tuple(mask.shape)}, weight {tuple(weights[name].shape)}")
    if wrong:
        raise MaskError(
            f"mask does not fit {what}",
            details=first_few(wrong, 10),
            hint="the mask is from another model; make one for this model with `parp mask --model NAME`",
        )


@torch.no_grad()
def apply_(masks: Masks, weights: Mapping[str, Tensor]) -> None:
    """Set the pruned entries of `weights`, of any dtype, to zero, in place.

    Their bits are multiplied, as integers: zero times NaN or infinity would be no zero, and to fill them takes ten
    times as long.
    """
    for name, mask in masks.items():
        weight = weights[name].detach()
        weight.view(_INTEGERS[weight.element_size()]).mul_(mask.to(weight.device))


def revived_and_dropped(before: Masks, after: Masks) -> tuple[int, int]:
    """How many weights `after` keeps that `before` pruned, and how many it prunes that `before` kept."""
    revived = sum(_count(after[name] > before[name]) for name in after)
    dropped = sum(_count(before[name] > after[name]) for name in after)
    return revived, dropped


def recorded_setting(recipe: Mapping[str, Any] | None, key: str) -> Any:
    """A setting of a file's masks by the recipe in its metadata: that of `parp mask`, or of fine-tuning; else None."""
    recorded = recipe or {}
    return recorded[key] if key in recorded else recorded.get("pruning", {}).get(key)


def pattern_of(recipe: Mapping[str, Any] | None) -> str:
    """The pattern that a file's masks have."""
    return str(recorded_setting(recipe, "pattern") or "global")


def union(a: Masks, b: Masks) -> dict[str, Tensor]:
    """Keeps what either keeps.

    Raises:
        MaskError: the two are not for the same weights. So with all three.
    """
    return _combined(a, b, torch.logical_or)


def intersection(a: Masks, b: Masks) -> dict[str, Tensor]:
    """Keeps what both keep."""
    return _combined(a, b, torch.logical_and)


def difference(a: Masks, b: Masks) -> dict[str, Tensor]:
    """Keeps what `a` keeps and `b` does not."""
    return _combined(a, b, torch.gt)  # of booleans: True and not True


def check_same_weights(a: Masks, b: Masks) -> None:
    """Refuse two sets of masks that are not for weights of the same names and shapes.

    Raises:
        MaskError: names the first weight in which they differ.
    """
    for name in (*a, *b):
        ours, theirs = (tuple(masks[name].shape) if name in masks else None for masks in (a, b))
        if ours != theirs:
            raise MaskError(
                "mask of another model, or of other parts of it",
                details=[f"{name}: {ours or 'not masked'} in the first, {theirs or 'not masked'} in the second"],
                hint="masks of the same weights can be combined",
            )


def _combined(a: Masks, b: Masks, operation: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    check_same_weights(a, b)
    return {name: operation(mask, b[name]) for name, mask in a.items()}


def _count(mask: Tensor) -> int:
    """How many entries are True; several times faster than their sum."""
    return int(torch.count_nonzero(mask))
