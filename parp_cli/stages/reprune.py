"""Re-prune: a new magnitude mask from a checkpoint's current weights (PARP, step 3, on its own)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from parp_cli.errors import CheckpointError
from parp_cli.models.network import read_architecture
from parp_cli.pruning.masks import count_zeros, recorded_setting, revived_and_dropped, write_pruned
from parp_cli.pruning.patterns import DEFAULT_PATTERN, Pattern, check_setting
from parp_cli.runtime.device import versions
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Sparsity, lineage


@dataclass(frozen=True, kw_only=True)
class RepruneResult:
    """What `parp reprune` wrote.

    Attributes:
        pattern: which weights competed with which.
        revived: weights that the old mask pruned and the new one keeps; without an old mask, 0.
        dropped: weights that the old mask (or no mask) kept and the new one prunes.
        kept_zeros: weights that the new mask keeps although they are zero. In a finished file all pruned weights are,
            and which of them come back is then decided by their position alone.
    """

    path: Path
    sha256: str
    source: Path
    pattern: str
    sparsity: Sparsity
    revived: int
    dropped: int
    kept_zeros: int


def reprune(
    source: Path,
    *,
    out: Path,
    sparsity: float | None = None,
    pattern: str | None = None,
    device: torch.device | None = None,
) -> RepruneResult:
    """Prune a checkpoint again, whatever its mask was, with the same prunable weights, and write another.

    Args:
        sparsity: share to prune; by default that of the pattern where it has one, else the checkpoint's own target.
        pattern: as `Pattern.parse` takes it; by default the checkpoint's own. Tensors that cannot hold it keep all of
            their weights from then on.
        device: to select on; by default the CPU. The result is the same.

    Raises:
        UsageError: the sparsity is outside [0, 1) or not the pattern's, or no weight can hold the pattern.
        CheckpointError: the source cannot be read, names no prunable weights, or no sparsity is known.
    """
    check_setting(sparsity)
    old = checkpoint.read(source)
    if not old.metadata.prunable:
        raise CheckpointError(f"{source} names no prunable weights", hint="make a mask with `parp mask --model`")
    parsed = Pattern.parse(pattern or recorded_setting(old.metadata.recipe, "pattern", DEFAULT_PATTERN))
    if sparsity is None:
        sparsity = parsed.sparsity
    if sparsity is None:
        if old.metadata.sparsity is None:
            raise CheckpointError(f"{source} has no mask whose sparsity to keep", hint="give one with --sparsity")
        sparsity = old.metadata.sparsity.target
    architecture = read_architecture(old.metadata.architecture)
    structures = architecture.structures_of(old.metadata.prunable)
    prunable = {name: old.weights[name].to(device) for name in old.metadata.prunable}
    weights = parsed.among(prunable, where=str(source), structures=structures)
    masks = parsed.masks(weights, sparsity, architecture.layers_of(weights), structures=structures)
    before = {n: old.masks[n].to(device) if n in old.masks else torch.ones_like(mask) for n, mask in masks.items()}
    revived, dropped = revived_and_dropped(before, masks)
    metadata = replace(
        old.metadata,
        stage="reprune",
        recipe=_repruned(old.metadata.recipe, {"sparsity": sparsity, "pattern": str(parsed)}),
        parents=lineage(source, old.metadata),
        metrics={"revived": revived, "dropped": dropped},
        versions=versions(architecture.libraries),
    )
    amount = write_pruned(out, old.weights, masks, target=sparsity, metadata=metadata)
    return RepruneResult(
        path=out,
        sha256=checkpoint.file_hash(out),
        source=source,
        pattern=str(parsed),
        sparsity=amount,
        revived=revived,
        dropped=dropped,
        kept_zeros=count_zeros(old.weights, masks) - amount.pruned,
    )


def _repruned(recipe: Mapping[str, Any] | None, new: Mapping[str, Any]) -> Mapping[str, Any]:
    """The recipe with the mask's new settings, where `pruning.masks.recorded_setting` finds them."""
    if recipe is not None and "pruning" in recipe:
        return {**recipe, "pruning": {**recipe["pruning"], **new}}
    # How the first mask was chosen says nothing about this one.
    return {**{key: value for key, value in (recipe or {}).items() if key != "method"}, **new}
