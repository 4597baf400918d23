"""Masks by the names of the weights they are for: what can be counted on them, sets made of them, and files with them.

True = kept, False = pruned. A set of masks is read as the set of the weights it keeps.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from parp_cli.errors import MaskError, UsageError, first_few
from parp_cli.storage import checkpoint
from parp_cli.storage.atomic import set_aside
from parp_cli.storage.bits import pack
from parp_cli.storage.checkpoint import Checkpoint, Metadata, Sparsity

Masks = Mapping[str, Tensor]

_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by the bytes of a number

OPERATIONS: Final[Mapping[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "union": torch.logical_or,
    "intersect": torch.logical_and,
    "minus": torch.gt,  # of booleans: True and not True
}
"""How two masks make one, in the order in which `parp mask` does it."""


def count_pruned(masks: Masks) -> int:
    """How many weights the masks prune."""
    return count_all(masks) - _count(masks.values())


def count_all(masks: Masks) -> int:
    """How many weights the masks cover."""
    return sum(mask.numel() for mask in masks.values())


def count_zeros(weights: Mapping[str, Tensor], masks: Masks) -> int:
    """How many of the weights that the masks cover are zero, pruned or not."""
    return count_all(masks) - _count(weights[name] for name in masks)


def sparsity(masks: Masks) -> float:
    """Share of the covered weights that is pruned; 0 without any masks."""
    return Sparsity(target=0.0, pruned=count_pruned(masks), total=count_all(masks)).exact


def masks_hash(masks: Masks) -> str:
    """Names masks by their content: the SHA-256 of their names, shapes and bits."""
    digest = hashlib.sha256()
    for name, mask in masks.items():
        digest.update(f"{name} {tuple(mask.shape)}\n".encode())
        digest.update(pack(mask).numpy().data)
    return digest.hexdigest()


def check_fit(masks: Masks, weights: Mapping[str, Tensor], *, what: str) -> None:
    """Raises MaskError where `weights`, which `what` names, lack a masked name or have another shape there."""
    wrong = []
    for name, mask in masks.items():
        found = f"weight {tuple(weights[name].shape)}" if name in weights else "no such weight"
        if name not in weights or weights[name].shape != mask.shape:
            wrong.append(f"{name}: mask {tuple(mask.shape)}, {found}")
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


def under(masks: Masks, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, zero where they are pruned; the given ones stay as they are."""
    pruned = {**weights, **{name: weights[name].clone() for name in masks}}
    apply_(masks, pruned)
    return pruned


def both(masks: Masks, others: Masks) -> dict[str, Tensor]:
    """All that is pruned by one or the other, whatever weights each is for."""
    return {**others, **{name: keep & others[name] if name in others else keep for name, keep in masks.items()}}


def backbone_hash(masks: Masks, weights: Mapping[str, Tensor]) -> str:
    """Names the weights that masks are for, by what is left of them under the masks: dense or pruned ones alike."""
    masked = {name: torch.where(keep, weights[name].float(), 0.0) for name, keep in masks.items()}
    return checkpoint.content_hash(masked)


def check_meant_for(path: Path, masks: Masks, weights: Mapping[str, Tensor], *, what: str) -> None:
    """Raise MaskError where the masks of a file do not fit the `weights`, which `what` names, or are alone in it, and
    were exported for other weights."""
    check_fit(masks, weights, what=what)
    backbone = checkpoint.backbone_of(path) if checkpoint.is_checkpoint(path) else None
    if backbone not in (None, backbone_hash(masks, weights)):
        parent = checkpoint.read_metadata(path).parents[-1]
        raise MaskError(
            f"the mask {path} was exported for other weights than those of {what}",
            details=[f"it is that of {parent.file}, SHA-256 {parent.sha256[:16]}…"],
            hint=f"evaluate it with those, or lay it over others on purpose: `parp mask --from {path} --apply {what}`",
        )


def write_pruned(
    path: Path, weights: Mapping[str, Tensor], masks: Masks, *, target: float | None, metadata: Metadata
) -> Sparsity:
    """Write a checkpoint of the weights, pruned in place, and their masks, which complete the `metadata`.

    The sparsity that was asked for is the `target`, None for what the masks come to, which is returned.

    Raises UsageError where they keep no weight.
    """
    check_some_kept(count_pruned(masks), count_all(masks))
    if checkpoint.is_checkpoint(path) and checkpoint.read_metadata(path).stage in ("finetune", "pretrain"):
        set_aside(path)  # what took hours to train
    apply_(masks, weights)
    pruned, total = count_pruned(masks), count_all(masks)
    amount = Sparsity(target=pruned / total if target is None else target, pruned=pruned, total=total)
    metadata = replace(metadata, prunable=tuple(masks), sparsity=amount)
    checkpoint.write(path, Checkpoint(weights=weights, masks=masks, metadata=metadata))
    return amount


def check_some_kept(pruned: int, total: int) -> None:
    """Raise a UsageError where a sparsity below 1 is so high that it rounds to all weights."""
    if pruned == total > 0:
        raise UsageError(
            f"this sparsity leaves none of the {total:,} prunable weights",
            hint="lower it, or let all weights compete with each other (pattern global)",
        )


def revived_and_dropped(before: Masks, after: Masks) -> tuple[int, int]:
    """How many weights `after` keeps that `before` pruned, and how many it prunes that `before` kept."""
    return _count(after[name] > before[name] for name in after), _count(before[name] > after[name] for name in after)


def recorded_setting(recipe: Mapping[str, Any] | None, key: str, default: Any = None) -> Any:
    """A setting of a file's masks by the recipe in its metadata: that of `parp mask`, or of fine-tuning."""
    recorded = recipe or {}
    value = recorded[key] if key in recorded else recorded.get("pruning", {}).get(key)
    return default if value is None else value


def combined(a: Masks, b: Masks, operation: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """Masks that one of the `OPERATIONS` makes of two. Raises MaskError where the two are not for the same weights."""
    check_same_weights(a, b)
    return {name: operation(mask, b[name]) for name, mask in a.items()}


def check_same_weights(a: Masks, b: Masks) -> None:
    """Refuse two sets of masks that are not for weights of the same names and shapes (MaskError, with the first)."""
    for name in (*a, *b):
        ours, theirs = (tuple(masks[name].shape) if name in masks else None for masks in (a, b))
        if ours != theirs:
            raise MaskError(
                "mask of another model, or of other parts of it",
                details=[f"{name}: {ours or 'not masked'} in the first, {theirs or 'not masked'} in the second"],
                hint="masks of the same weights can be combined",
            )


def _count(masks: Iterable[Tensor]) -> int:
    """How many entries are True: several times faster than their sum, and read from the device once."""
    return int(sum(map(torch.count_nonzero, masks)))
