"""A checkpoint without the heads, units, blocks and channels that its mask has emptied, which every stage takes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from parp_cli.errors import MaskError
from parp_cli.exporters.check import refuse_different
from parp_cli.exporters.target import ExportResult, Job, Target, size_of
from parp_cli.models.network import Architecture
from parp_cli.models.small import Small
from parp_cli.pruning.masks import count_pruned
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Checkpoint, Metadata, Sparsity


def shrink(
    architecture: Architecture, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], *, source: str
) -> Small:
    """The encoder without what is empty, as `Architecture.without_empty_groups`.

    Raises:
        MaskError: nothing is; the `source` is named.
    """
    small = architecture.without_empty_groups(weights, masks)
    if not small.removed:
        zeros = sum(mask.numel() - int(mask.count_nonzero()) for mask in masks.values())
        what = f"its {zeros:,} pruned weights are spread over all of them" if zeros else "nothing in it is pruned"
        raise MaskError(
            f"no attention head, feed-forward unit or channel of {source} is empty: {what}",
            hint="prune whole: `parp mask --pattern structures`, or `parp finetune --set pruning.pattern=structures`",
        )
    return small


def export_small(small: Small, metadata: Metadata, path: Path) -> None:
    """Write it as a checkpoint, with the `metadata` except for what has changed. Masks that prune nothing are left out.

    Raises:
        ResourceError: no space is left on the disk.
        UsageError: the folder cannot be written to.
    """
    total = sum(mask.numel() for mask in small.masks.values())
    pruned = total - sum(int(mask.count_nonzero()) for mask in small.masks.values())
    metadata = replace(
        metadata,
        stage="export",
        architecture=small.architecture.to_json(),
        prunable=tuple(name for name in metadata.prunable if name in small.weights),
        sparsity=Sparsity(target=pruned / total, pruned=pruned, total=total) if total else None,
        metrics={key: list(getattr(small, key)) for key in ("heads", "units", "channels", "blocks")},
    )
    checkpoint.write(path, Checkpoint(weights=small.weights, masks=small.masks, metadata=metadata))


def _write(job: Job) -> ExportResult:
    architecture, weights = job.encoder.architecture, job.encoder.weights
    small = shrink(architecture, weights, job.encoder.masks, source=str(job.source))
    trial = job.trial()
    masked, made = trial.network(architecture, weights), trial.network(small.architecture, small.weights)
    check = trial.compared(masked, made, exact=True)
    refuse_different(check.largest_difference, str(job.source), exact=True)
    export_small(small, job.descended, job.out)
    return job.result(
        zeros=count_pruned(small.masks),
        before=size_of(architecture, weights, job.source),
        after=size_of(small.architecture, small.weights, job.out),
        check=check,
    )


SMALL = Target(name="small", title="without what its mask emptied", write=_write, of_texts=True)
