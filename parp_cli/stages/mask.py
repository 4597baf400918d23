"""Prune: lay a first mask over a pre-trained model (PARP, step 1)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from parp_cli import checkpoint
from parp_cli.checkpoint import Checkpoint, Metadata, Sparsity
from parp_cli.environment import versions
from parp_cli.models.architectures import build
from parp_cli.models.prunable import prunable_parameters
from parp_cli.models.sources import load_encoder
from parp_cli.models.weights import WORD_BOUNDARY
from parp_cli.progress import Notify, silent
from parp_cli.pruning.masks import apply_, count_pruned
from parp_cli.pruning.select import check_sparsity, magnitude_masks, prune_count, random_masks

Method = Literal["magnitude", "random"]


@dataclass(frozen=True, kw_only=True)
class MaskResult:
    """What `parp mask` wrote."""

    path: Path
    sha256: str
    model: str
    method: str
    sparsity: Sparsity


def mask(
    model: str,
    *,
    sparsity: float,
    out: Path,
    method: Method = "magnitude",
    biases: bool = True,
    seed: int = 0,
    architecture: str | None = None,
    device: torch.device | None = None,
    notify: Notify = silent,
) -> MaskResult:
    """Prune `sparsity` of a model's prunable weights and write weights (zero where pruned) and mask.

    Args:
        model: as `models.sources.load_encoder` takes it.
        sparsity: share to prune in [0, 1); exactly round(sparsity · n) of n weights are.
        out: the checkpoint to write.
        method: the smallest magnitudes over all prunable parameters at once, or a uniform random choice.
        biases: whether biases count as prunable.
        seed: of the random choice.
        architecture: where `model` does not tell what it is.
        device: to select on; by default the CPU. The result is the same.

    Raises:
        UsageError: the sparsity is outside [0, 1).
        CheckpointError: the model cannot be read.
    """
    check_sparsity(sparsity)
    encoder = load_encoder(model, architecture=architecture, notify=notify)
    size = None if encoder.vocabulary is None else len(encoder.vocabulary)
    network = build(encoder.architecture, vocabulary_size=size)
    weights = {name: encoder.weights[name].clone().to(device) for name in prunable_parameters(network, biases=biases)}
    total = sum(weight.numel() for weight in weights.values())
    count = prune_count(sparsity, total)
    if method == "magnitude":
        masks = magnitude_masks(weights, count)
    else:
        masks = random_masks({name: tuple(weight.shape) for name, weight in weights.items()}, count, seed=seed)
    apply_(masks, weights)
    amount = Sparsity(target=sparsity, pruned=count_pruned(masks), total=total)
    metadata = Metadata(
        stage="mask",
        architecture=encoder.architecture.to_json(),
        vocabulary=None if encoder.vocabulary is None else tuple(encoder.vocabulary),
        labels=None if encoder.vocabulary is None else "letters" if WORD_BOUNDARY in encoder.vocabulary else "phones",
        prunable=tuple(weights),
        sparsity=amount,
        recipe={"model": model, "method": method, "sparsity": sparsity, "biases": biases},
        seed=seed,
        parents=encoder.parents,
        versions=versions(),
    )
    digest = checkpoint.write(out, Checkpoint(weights={**encoder.weights, **weights}, masks=masks, metadata=metadata))
    return MaskResult(path=out, sha256=digest, model=model, method=method, sparsity=amount)
