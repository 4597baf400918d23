"""Prune: lay a first mask over a model (PARP, step 1): a new one, or one made from other checkpoints' masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from parp_cli import checkpoint
from parp_cli.checkpoint import Checkpoint, Metadata, Parent, Sparsity
from parp_cli.environment import versions
from parp_cli.errors import MaskError, UsageError
from parp_cli.models.architectures import build
from parp_cli.models.prunable import layers_of, prunable_parameters
from parp_cli.models.sources import load_encoder, random_encoder
from parp_cli.models.weights import WORD_BOUNDARY, Encoder
from parp_cli.progress import Notify, silent
from parp_cli.pruning.masks import (
    apply_,
    check_fit,
    count_all,
    count_pruned,
    difference,
    intersection,
    pattern_of,
    union,
)
from parp_cli.pruning.patterns import Pattern
from parp_cli.pruning.scores import random_scores
from parp_cli.pruning.select import check_sparsity

Method = Literal["magnitude", "random", "random-weights"]


@dataclass(frozen=True, kw_only=True)
class MaskResult:
    """What `parp mask` wrote.

    Attributes:
        model: whose weights they are.
        method: how the mask was chosen; "from" where it was made from others.
    """

    path: Path
    sha256: str
    model: str
    method: str
    sparsity: Sparsity


def mask(
    model: str,
    *,
    sparsity: float | None = None,
    out: Path,
    method: Method = "magnitude",
    biases: bool = True,
    scope: str = "transformer",
    pattern: str = "global",
    seed: int = 0,
    architecture: str | None = None,
    device: torch.device | None = None,
    notify: Notify = silent,
) -> MaskResult:
    """Prune `sparsity` of a model's prunable weights and write weights (zero where pruned) and mask.

    Args:
        model: as `models.sources.load_encoder` takes it.
        sparsity: share to prune in [0, 1); globally exactly round(sparsity · n) of n weights are. Without one, that
            of the pattern where it has one, else 0.5.
        out: the checkpoint to write.
        method: the smallest magnitudes; a uniform random choice; or the smallest magnitudes of a network of the same
            architecture that has learnt nothing (as random pruning in the authors' release).
        biases: whether biases count as prunable.
        scope: which layers do, as `models.prunable.prunable_parameters` takes it.
        pattern: which weights compete with which, as `pruning.patterns.Pattern.parse` takes it. Tensors that cannot
            hold it are not pruned.
        seed: of the random choice, or of the random network.
        architecture: where `model` does not tell what it is.
        device: to select on; by default the CPU. The result is the same.

    Raises:
        UsageError: the sparsity is outside [0, 1) or not the pattern's; no weight is in scope or can hold the pattern.
        CheckpointError: the model cannot be read.
    """
    parsed = Pattern.parse(pattern)
    if sparsity is None:
        sparsity = 0.5 if parsed.sparsity is None else parsed.sparsity
    check_sparsity(sparsity)
    encoder = load_encoder(model, architecture=architecture, notify=notify)
    scores = _scores(encoder, method, parsed, biases=biases, scope=scope, seed=seed, device=device)
    masks = parsed.masks(scores, sparsity, layers_of(scores))
    recipe = {"model": model, "method": method, "sparsity": sparsity, "biases": biases, "scope": scope}
    return _write(
        encoder,
        masks,
        target=sparsity,
        out=out,
        model=model,
        recipe={**recipe, "pattern": pattern},
        parents=encoder.parents,
        seed=seed,
    )


def combine(
    source: Path,
    *,
    out: Path,
    unions: Sequence[Path] = (),
    intersections: Sequence[Path] = (),
    minuses: Sequence[Path] = (),
    apply: str | None = None,
    architecture: str | None = None,
    notify: Notify = silent,
) -> MaskResult:
    """Write a mask that is made from those of checkpoints, over the weights of `source` or of another model.

    Args:
        source: the checkpoint whose mask is begun with.
        out: the checkpoint to write.
        unions: then what one of these keeps is kept too,
        intersections: then only what these keep too is kept,
        minuses: and last what these keep is pruned.
        apply: whose weights the mask is laid over, as `models.sources.load_encoder` takes it; by default those of
            `source`, which are zero where its own mask prunes.
        architecture: where `apply` does not tell what it is.

    Raises:
        CheckpointError: a file cannot be read.
        MaskError: a file has no mask, or one for another model.
    """
    masks, parents = _read(source)
    for others, operation in ((unions, union), (intersections, intersection), (minuses, difference)):
        for other in others:
            theirs, lineage = _read(other)
            parents += lineage
            try:
                masks = operation(masks, theirs)
            except MaskError as error:
                raise MaskError(f"{other} has a {error.message}", details=error.details, hint=error.hint) from error
    model = str(source) if apply is None else apply
    encoder = load_encoder(model, architecture=architecture, notify=notify)
    metadata = checkpoint.read_metadata(source)
    _check_architecture(metadata, encoder, source=source, model=model)
    check_fit(masks, encoder.weights, what=model)
    pruned, total = count_pruned(masks), count_all(masks)
    if pruned == total:
        raise MaskError("the combined mask keeps no weight", hint="name masks with more in common")
    changed = bool(unions or intersections or minuses)
    recipe = {
        "from": str(source),
        "union": [str(path) for path in unions],
        "intersect": [str(path) for path in intersections],
        "minus": [str(path) for path in minuses],
        "apply": apply,
        # A combination of masks of a pattern need not have it.
        "pattern": "global" if changed else pattern_of(metadata.recipe),
    }
    unchanged = None if changed or metadata.sparsity is None else metadata.sparsity.target
    return _write(
        encoder,
        {name: masks[name] for name in metadata.prunable},
        target=pruned / total if unchanged is None else unchanged,
        out=out,
        model=model,
        recipe=recipe,
        parents=tuple(dict.fromkeys((*parents, *encoder.parents))),
        seed=metadata.seed,
    )


def _scores(
    encoder: Encoder,
    method: Method,
    pattern: Pattern,
    *,
    biases: bool,
    scope: str,
    seed: int,
    device: torch.device | None,
) -> dict[str, Tensor]:
    """What the prunable weights are ranked by, by their names."""
    size = None if encoder.vocabulary is None else len(encoder.vocabulary)
    with torch.device("meta"):  # only names and shapes are needed
        network = build(encoder.architecture, vocabulary_size=size)
    found = prunable_parameters(network, biases=biases, scope=scope)
    shapes = {name: tuple(weight.shape) for name, weight in found.items() if pattern.carries(tuple(weight.shape))}
    if not shapes:
        raise UsageError(
            f"no weight of scope {scope} can hold pattern {pattern}",
            details=[f"{name}: {tuple(weight.shape)}" for name, weight in list(found.items())[:3]],
            hint="its sides must be multiples of the pattern's; choose another --pattern or --scope",
        )
    if method == "random":
        scores: Mapping[str, Tensor] = random_scores(shapes, seed=seed)
    elif method == "random-weights":
        scores = random_encoder(encoder.architecture, seed=seed).weights
    else:
        scores = encoder.weights
    return {name: scores[name].to(device) for name in shapes}


def _read(path: Path) -> tuple[dict[str, Tensor], tuple[Parent, ...]]:
    """A checkpoint's masks, and the lineage of what is made from it."""
    masks = checkpoint.read_masks(path)
    if not masks:
        raise MaskError(f"{path} has no mask", hint="make one with `parp mask`")
    return masks, checkpoint.lineage(path, checkpoint.read_metadata(path))


def _check_architecture(metadata: Metadata, encoder: Encoder, *, source: Path, model: str) -> None:
    """Refuse a model that a mask fits by accident, such as a deeper one of equal width."""
    ours, theirs = metadata.architecture, encoder.architecture.to_json()
    # The builder's arguments decide which weights there are; models of several names share them.
    if ours.get("builder") != theirs["builder"]:
        raise MaskError(
            f"the mask of {source} is that of another model than {model}",
            details=[f"{source}: {ours.get('name')}", f"{model}: {theirs['name']}"],
            hint="a mask can be laid over models of its own architecture",
        )


def _write(
    encoder: Encoder,
    masks: Mapping[str, Tensor],
    *,
    target: float,
    out: Path,
    model: str,
    recipe: Mapping[str, Any],
    parents: tuple[Parent, ...],
    seed: int | None,
) -> MaskResult:
    apply_(masks, encoder.weights)
    vocabulary = encoder.vocabulary
    amount = Sparsity(target=target, pruned=count_pruned(masks), total=count_all(masks))
    metadata = Metadata(
        stage="mask",
        architecture=encoder.architecture.to_json(),
        vocabulary=None if vocabulary is None else tuple(vocabulary),
        labels=None if vocabulary is None else "letters" if WORD_BOUNDARY in vocabulary else "phones",
        prunable=tuple(masks),
        sparsity=amount,
        recipe=recipe,
        seed=seed,
        parents=parents,
        versions=versions(),
    )
    digest = checkpoint.write(out, Checkpoint(weights=encoder.weights, masks=masks, metadata=metadata))
    return MaskResult(path=out, sha256=digest, model=model, method=recipe.get("method", "from"), sparsity=amount)
