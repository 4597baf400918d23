"""Re-prune: a new magnitude mask from a checkpoint's current weights (PARP, step 3, alone)."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from parp_cli import checkpoint
from parp_cli.checkpoint import Checkpoint, Sparsity, lineage
from parp_cli.environment import versions
from parp_cli.errors import CheckpointError
from parp_cli.pruning.masks import apply_, count_pruned, revived_and_dropped
from parp_cli.pruning.select import check_sparsity, magnitude_masks, prune_count


@dataclass(frozen=True, kw_only=True)
class RepruneResult:
    """What `parp reprune` wrote.

    Attributes:
        revived: weights that the old mask pruned and the new one keeps; without an old mask, 0.
        dropped: weights that the old mask (or no mask) kept and the new one prunes.
    """

    path: Path
    sha256: str
    source: Path
    sparsity: Sparsity
    revived: int
    dropped: int


def reprune(
    source: Path, *, out: Path, sparsity: float | None = None, device: torch.device | None = None
) -> RepruneResult:
    """Prune a checkpoint anew, whatever its mask was.

    Args:
        source: the checkpoint to start from; it is not changed.
        out: the checkpoint to write.
        sparsity: share to prune; by default the checkpoint's own target.
        device: to select on; by default the CPU. The result is the same.

    Raises:
        UsageError: the sparsity is outside [0, 1).
        CheckpointError: the source cannot be read, names no prunable weights, or no sparsity is known.
    """
    if sparsity is not None:
        check_sparsity(sparsity)
    old = checkpoint.read(source)
    if not old.metadata.prunable:
        raise CheckpointError(f"{source} names no prunable weights", hint="make a mask with `parp mask --model`")
    if sparsity is None:
        if old.metadata.sparsity is None:
            raise CheckpointError(f"{source} has no mask whose sparsity to keep", hint="give one with --sparsity")
        sparsity = old.metadata.sparsity.target
    weights = {name: old.weights[name].clone().to(device) for name in old.metadata.prunable}
    total = sum(weight.numel() for weight in weights.values())
    masks = magnitude_masks(weights, prune_count(sparsity, total))
    before = {n: old.masks[n].to(device) if old.masks else torch.ones_like(mask) for n, mask in masks.items()}
    revived, dropped = revived_and_dropped(before, masks)
    apply_(masks, weights)
    amount = Sparsity(target=sparsity, pruned=count_pruned(masks), total=total)
    metadata = replace(
        old.metadata,
        stage="reprune",
        sparsity=amount,
        parents=lineage(source, old.metadata),
        metrics={"revived": revived, "dropped": dropped},
        versions=versions(),
    )
    digest = checkpoint.write(out, Checkpoint(weights={**old.weights, **weights}, masks=masks, metadata=metadata))
    return RepruneResult(path=out, sha256=digest, source=source, sparsity=amount, revived=revived, dropped=dropped)
