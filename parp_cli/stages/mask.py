"""Prune a model with a first mask (PARP, step 1): a new one, or one combined from other checkpoints' masks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parp_cli.errors import MaskError
from parp_cli.models.sources.load import load_encoder, random_encoder
from parp_cli.models.sources.names import Encoder, check_same_model
from parp_cli.models.speech.config import build
from parp_cli.models.speech.prunable import layers_of, prunable_parameters
from parp_cli.pruning.limits import DEFAULT_PATTERN, DEFAULT_SCOPE, DEFAULT_SPARSITY, check_sparsity
from parp_cli.pruning.masks import (
    Masks,
    apply_,
    check_fit,
    count_all,
    count_pruned,
    difference,
    intersection,
    pattern_of,
    recorded_setting,
    union,
)
from parp_cli.pruning.methods.spec import FirstMask
from parp_cli.pruning.patterns import Pattern
from parp_cli.pruning.scores import first_scores
from parp_cli.runtime.device import versions
from parp_cli.runtime.progress import Notify, silent
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Checkpoint, Metadata, Parent, Sparsity, file_hash


@dataclass(frozen=True, kw_only=True)
class MaskResult:
    """What `parp mask` wrote.

    Attributes:
        model: whose weights they are.
        method: how the mask was chosen; "combined" where it was made from others.
        cannot_hold: tensors in scope that cannot hold the pattern and so are not pruned, with their numbers of weights.
        completed: files that a combined mask was made from, with the tensors that others of them mask and they don't.
    """

    path: Path
    sha256: str
    model: str
    method: str
    sparsity: Sparsity
    cannot_hold: Mapping[str, int] = field(default_factory=dict)
    completed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def mask(
    model: str,
    *,
    sparsity: float | None = None,
    out: Path,
    method: FirstMask = "magnitude",
    biases: bool = True,
    scope: str = DEFAULT_SCOPE,
    pattern: str = DEFAULT_PATTERN,
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
        method: how the weights to prune are chosen.
        biases: whether biases count as prunable.
        scope: which layers do, as `models.prunable.prunable_parameters` takes it.
        pattern: which weights compete with which, as `pruning.patterns.Pattern.parse` takes it. Tensors that cannot
            hold it are not pruned.
        seed: of the random choice, or of the untrained network.
        architecture: where `model` does not tell what it is.
        device: to select on; by default the CPU. The result is the same.

    Raises:
        UsageError: the sparsity is outside [0, 1) or not the pattern's; no weight is in scope or can hold the pattern.
        CheckpointError: the model cannot be read.
    """
    parsed = Pattern.parse(pattern)
    if sparsity is None:
        sparsity = DEFAULT_SPARSITY if parsed.sparsity is None else parsed.sparsity
    check_sparsity(sparsity)
    encoder = load_encoder(model, architecture=architecture, notify=notify)
    scoped = prunable_parameters(_network(encoder), biases=biases, scope=scope)
    weights = {name: encoder.weights[name] for name in parsed.among(scoped, where=f"scope {scope}")}
    scores = first_scores(
        method, weights, seed=seed, untrained=lambda seed: random_encoder(encoder.architecture, seed=seed).weights
    )
    masks = parsed.masks({name: score.to(device) for name, score in scores.items()}, sparsity, layers_of(scores))
    recipe = {"model": model, "method": method, "sparsity": sparsity, "biases": biases, "scope": scope}
    result = _write(
        encoder,
        masks,
        target=sparsity,
        out=out,
        model=model,
        recipe={**recipe, "pattern": pattern},
        parents=encoder.parents,
        seed=seed,
    )
    return replace(result, cannot_hold={name: w.numel() for name, w in scoped.items() if name not in weights})


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

    A file keeps the weights it has no mask for, so masks of different scope or pattern can be combined. Unions are made
    first, then intersections, then differences.

    Args:
        source: the checkpoint with the mask to begin from.
        out: the checkpoint to write.
        unions: checkpoints whose kept weights are kept too.
        intersections: checkpoints of which only the kept weights are kept.
        minuses: checkpoints whose kept weights are pruned.
        apply: the model or checkpoint whose weights the mask is laid over, as `models.sources.load_encoder` takes it;
            by default those of `source`, which are zero where its own mask prunes.
        architecture: where `apply` does not tell what it is.

    Raises:
        CheckpointError: a file cannot be read.
        MaskError: a file has no mask, or one for another model.
    """
    files = {path: checkpoint.read_metadata(path) for path in (source, *unions, *intersections, *minuses)}
    metadata = files[source]
    for path, other in files.items():
        check_same_model(str(source), metadata.architecture, str(path), other.architecture)
    model = str(source) if apply is None else apply
    encoder = load_encoder(model, architecture=architecture, notify=notify)
    check_same_model(str(source), metadata.architecture, model, encoder.architecture.to_json())
    masked = {name for other in files.values() for name in other.prunable}
    names = [name for name, _ in _network(encoder).named_parameters() if name in masked]
    operations = ((unions, union), (intersections, intersection), (minuses, difference))
    masks = _combined(source, operations, names, encoder.weights)
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
        "scope": _widest_scope(files.values(), masked),
        "biases": any(name.endswith("bias") for name in names),
        # A combination of masks of a pattern need not have it.
        "pattern": DEFAULT_PATTERN if changed else pattern_of(metadata.recipe),
    }
    unchanged = None if changed or metadata.sparsity is None else metadata.sparsity.target
    parents = (*(p for path, other in files.items() for p in checkpoint.lineage(path, other)), *encoder.parents)
    result = _write(
        encoder,
        masks,
        target=pruned / total if unchanged is None else unchanged,
        out=out,
        model=model,
        recipe=recipe,
        parents=tuple(dict.fromkeys(parents)),
        seed=metadata.seed,
    )
    absent = {str(path): tuple(n for n in names if n not in other.prunable) for path, other in files.items()}
    return replace(result, completed={path: some for path, some in absent.items() if some})


def _network(encoder: Encoder) -> nn.Module:
    """The encoder's network, for names and shapes alone: it has no values."""
    size = None if encoder.vocabulary is None else len(encoder.vocabulary)
    with torch.device("meta"):
        network: nn.Module = build(encoder.architecture, vocabulary_size=size)
    return network


def _combined(
    source: Path,
    operations: Iterable[tuple[Sequence[Path], Callable[[Masks, Masks], Masks]]],
    names: Sequence[str],
    weights: Mapping[str, Tensor],
) -> Masks:
    """The mask of `source` after each operation with each of its files, for the weights with these names."""
    masks = _completed(source, names, weights)
    for others, operation in operations:
        for path in others:
            masks = operation(masks, _completed(path, names, weights))
    return masks


def _completed(path: Path, names: Sequence[str], weights: Mapping[str, Tensor]) -> Masks:
    """A checkpoint's masks of the weights with these names, all-kept where it has none."""
    masks = checkpoint.read_masks(path)
    if not masks:
        raise MaskError(f"{path} has no mask", hint="make one with `parp mask`")
    check_fit(masks, weights, what=f"the model of {path}")
    return {n: masks[n] if n in masks else torch.ones(weights[n].shape, dtype=torch.bool) for n in names}


def _widest_scope(files: Iterable[Metadata], masked: set[str]) -> str | None:
    """The scope of a file that masks all that any of them does, or None."""
    scopes = [recorded_setting(file.recipe, "scope") for file in files if masked <= set(file.prunable)]
    return scopes[0] if scopes else None


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
    amount = Sparsity(target=target, pruned=count_pruned(masks), total=count_all(masks))
    metadata = Metadata(
        stage="mask",
        architecture=encoder.architecture.to_json(),
        task=encoder.task,
        prunable=tuple(masks),
        sparsity=amount,
        recipe=recipe,
        seed=seed,
        parents=parents,
        versions=versions(),
    )
    checkpoint.write(out, Checkpoint(weights=encoder.weights, masks=masks, metadata=metadata))
    method = recipe.get("method", "combined")
    return MaskResult(path=out, sha256=file_hash(out), model=model, method=method, sparsity=amount)
