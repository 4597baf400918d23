"""Prune a model with a first mask (PARP, step 1): a new one, or one combined from other checkpoints' masks."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parp_cli.errors import MaskError, UsageError
from parp_cli.models.network import Network, outputs_of
from parp_cli.models.sources.load import load_encoder, load_masks
from parp_cli.models.sources.names import Encoder, check_same_model, fit_masks
from parp_cli.pruning.masks import (
    OPERATIONS,
    Masks,
    check_fit,
    combined,
    count_zeros,
    recorded_setting,
    write_pruned,
)
from parp_cli.pruning.masks import sparsity as masks_sparsity
from parp_cli.pruning.methods.spec import FirstMask
from parp_cli.pruning.patterns import DEFAULT_PATTERN, DEFAULT_SCOPE, DEFAULT_SPARSITY, Pattern, check_setting
from parp_cli.runtime.device import versions
from parp_cli.runtime.progress import Notify, silent
from parp_cli.storage import checkpoint
from parp_cli.storage.atomic import require_writable
from parp_cli.storage.checkpoint import Metadata, Sparsity, file_hash
from parp_cli.training.masks import first_scores


@dataclass(frozen=True, kw_only=True)
class MaskResult:
    """What `parp mask` wrote.

    Attributes:
        model: whose weights they are.
        method: how the mask was chosen; "combined" where it was made from others.
        cannot_hold: tensors in scope that cannot hold the pattern and so are not pruned, with their numbers of weights.
        kept_zeros: weights that the mask keeps although they are zero, as those that another mask pruned are.
        replaced: share that a mask of the model pruned, which the new one replaces; None where it had none.
        completed: files that a combined mask was made from, with the tensors that others of them mask and they don't.
    """

    path: Path
    sha256: str
    model: str
    method: str
    sparsity: Sparsity
    kept_zeros: int
    replaced: float | None = None
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
        model: as `models.sources.load_encoder` takes it, with the architecture where it does not say what it is.
        sparsity: share to prune; globally exactly round(sparsity · n) of n weights are. Without one, that of the
            pattern where it has one, else 0.5.
        biases, scope: what is prunable, as for `models.network.Network.prunable`.
        pattern: as `Pattern.parse` takes it. Tensors that cannot hold it are not pruned.
        seed: of the random choice, or of the untrained network.
        device: to select on; by default the CPU. The result is the same.

    Raises:
        UsageError: the sparsity is outside [0, 1) or not the pattern's; no weight is in scope or can hold the pattern.
        CheckpointError: the model cannot be read.
    """
    parsed = Pattern.parse(pattern)
    if sparsity is None:
        sparsity = DEFAULT_SPARSITY if parsed.sparsity is None else parsed.sparsity
    check_setting(sparsity)
    require_writable(out, "--out")
    encoder = load_encoder(model, architecture=architecture, notify=notify)
    scoped = _network(encoder).prunable(scope, biases=biases, norms=parsed.structured)
    structures = encoder.architecture.structures_of(scoped)
    among = parsed.among(scoped, where=f"scope {scope}", structures=structures)
    weights = {name: encoder.weights[name] for name in among}
    scores = first_scores(method, weights, encoder.architecture, seed=seed, pattern=parsed)
    on_device = {name: score.to(device) for name, score in scores.items()}
    masks = parsed.masks(on_device, sparsity, encoder.architecture.layers_of(scores), structures=structures)
    recipe = {"model": model, "method": method, "sparsity": sparsity, "biases": biases, "scope": scope}
    metadata = _metadata(encoder, recipe={**recipe, "pattern": pattern}, seed=seed, parents=encoder.parents)
    amount = write_pruned(out, encoder.weights, masks, target=sparsity, metadata=metadata)
    unfit = {name: w.numel() for name, w in scoped.items() if name not in weights}
    return MaskResult(
        path=out,
        sha256=file_hash(out),
        model=model,
        method=method,
        sparsity=amount,
        kept_zeros=count_zeros(encoder.weights, masks) - amount.pruned,
        replaced=masks_sparsity(encoder.masks) if encoder.masks else None,
        cannot_hold=unfit,
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

    A file keeps the weights it has no mask for, so masks of different scope or pattern can be combined. Unions are made
    first, then intersections, then differences.

    Args:
        source: the checkpoint with the mask to begin from. It and the others may also be of torch.nn.utils.prune, as
            `models.sources.load.load_masks` takes them.
        unions, intersections, minuses: checkpoints whose kept weights are kept too; alone are kept; are pruned.
        apply: the model whose weights the mask is applied to, as `models.sources.load_encoder` takes it, with the
            architecture where it does not say it; by default those of `source`, which are zero where its mask prunes.

    Raises:
        CheckpointError: a file cannot be read.
        MaskError: a file has no mask, or one for another model.
    """
    steps = [(unions, "union"), (intersections, "intersect"), (minuses, "minus")]
    found = {path: load_masks(path) for path in (source, *unions, *intersections, *minuses)}
    files = {path: metadata for path, (_, metadata) in found.items()}
    metadata = files[source]
    if apply is None and not metadata.architecture:
        raise MaskError(f"{source} holds masks alone", hint="name the model whose weights they are for with --apply")
    for path, other in files.items():
        if metadata.architecture and other.architecture:
            check_same_model(str(source), metadata.architecture, str(path), other.architecture)
    model = str(source) if apply is None else apply
    encoder = load_encoder(model, architecture=architecture, notify=notify)
    if metadata.architecture:
        check_same_model(str(source), metadata.architecture, model, encoder.architecture.to_json())
    own = {
        path: masks if files[path].architecture else fit_masks(masks, encoder.weights, source=str(path))
        for path, (masks, _) in found.items()
    }
    masked = {name for masks in own.values() for name in masks}
    names = [name for name, _ in _network(encoder).named_parameters() if name in masked]
    masks = _completed(source, own[source], names, encoder.weights)
    for others, operation in steps:
        for path in others:
            masks = combined(masks, _completed(path, own[path], names, encoder.weights), OPERATIONS[operation])
    if not any(mask.any() for mask in masks.values()):
        raise MaskError("the combined mask keeps no weight", hint="name masks with more in common")
    # Those of a file that masks all that any of them does.
    scopes = [recorded_setting(file.recipe, "scope") for path, file in files.items() if masked <= set(own[path])]
    changed = any(others for others, _ in steps)
    recipe = {
        "from": str(source),
        **{operation: [str(path) for path in others] for others, operation in steps},
        "apply": apply,
        "scope": next(filter(None, scopes), None) or _scope_of(encoder, names),
        "biases": any(name.endswith("bias") for name in names),
        # A combination of masks of a pattern need not have it.
        "pattern": DEFAULT_PATTERN if changed else recorded_setting(metadata.recipe, "pattern", DEFAULT_PATTERN),
    }
    descended = [checkpoint.lineage(path, other) for path, other in files.items() if path.is_file()]
    parents = (*(parent for some in descended for parent in some), *encoder.parents)
    made = _metadata(encoder, recipe=recipe, seed=metadata.seed, parents=tuple(dict.fromkeys(parents)))
    target = None if changed or metadata.sparsity is None else metadata.sparsity.target
    amount = write_pruned(out, encoder.weights, masks, target=target, metadata=made)
    completed = {
        str(path): tuple(name for name in names if name not in masks)
        for path, masks in own.items()
        if not set(names) <= set(masks)
    }
    return MaskResult(
        path=out,
        sha256=file_hash(out),
        model=model,
        method="combined",
        sparsity=amount,
        kept_zeros=count_zeros(encoder.weights, masks) - amount.pruned,
        completed=completed,
    )


def _network(encoder: Encoder) -> Network:
    """The encoder's network, for names and shapes alone: it has no values."""
    with torch.device("meta"):
        network: Network = encoder.architecture.build(outputs=outputs_of(encoder.task))
    return network


def _scope_of(encoder: Encoder, names: Sequence[str]) -> str | None:
    """The scope of exactly these weights, for masks that do not tell; None where it has no name."""
    network, biases = _network(encoder), any(name.endswith("bias") for name in names)
    modules = dict.fromkeys(name.split(".")[-2] for name in names)
    scopes: list[str] = [DEFAULT_SCOPE, *encoder.architecture.kinds, *(f"*.{module}.*" for module in modules)]
    for scope in scopes:
        with suppress(UsageError):
            if set(network.prunable(scope, biases=biases)) == set(names):
                return scope
    return None


def _completed(path: Path, masks: Masks, names: Sequence[str], weights: Mapping[str, Tensor]) -> Masks:
    """The masks of a file for the weights with these names, all-kept where it has none."""
    check_fit(masks, weights, what=f"the model of {path}")
    return {n: masks[n] if n in masks else torch.ones(weights[n].shape, dtype=torch.bool) for n in names}


def _metadata(encoder: Encoder, **values: Any) -> Metadata:
    architecture = encoder.architecture
    return Metadata(
        stage="mask",
        architecture=architecture.to_json(),
        task=encoder.task,
        versions=versions(architecture.libraries),
        **values,
    )
