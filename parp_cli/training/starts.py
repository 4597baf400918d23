"""What a fine-tuning run begins from, and whether the recipe can begin from it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parp_cli.config.finetune import Recipe
from parp_cli.data.labels import Vocabulary, recorded_vocabulary
from parp_cli.errors import CheckpointError, UsageError
from parp_cli.models.sources.load import load_encoder, random_encoder
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, build
from parp_cli.models.speech.prunable import prunable_parameters
from parp_cli.pruning.scores import random_scores
from parp_cli.runtime.progress import Notify
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Metadata, Parent, lineage
from parp_cli.training.rounds import FIRST_MASKS, pattern_in, target_sparsity


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run begins from.

    Attributes:
        weights: of the encoder, with a CTC head if there is a vocabulary.
        masks: of the checkpoint; empty if it has none, or if the run begins from a model.
        target: sparsity the masks were made for, or None.
        chosen_by: how the masks were chosen, where a `parp mask` says it; or None.
        parents: the checkpoint and what it descends from.
        source: names it for people.
    """

    architecture: Architecture
    weights: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    target: float | None
    chosen_by: str | None
    vocabulary: Vocabulary | None
    parents: tuple[Parent, ...]
    source: str


def read_start(recipe: Recipe, init: Path | None, notify: Notify) -> Start:
    if init is None:
        encoder = load_encoder(recipe.model or "mini", notify=notify)
        start = Start(
            architecture=encoder.architecture,
            weights={name: w for name, w in encoder.weights.items() if not name.startswith("aux.")},
            masks={},
            target=None,
            chosen_by=None,
            vocabulary=None,
            parents=encoder.parents,
            source=recipe.model or "mini",
        )
        return _with_mask_of(recipe.pruning.initial, start)
    content = checkpoint.read(init)
    metadata = content.metadata
    architecture = Architecture.from_json(metadata.architecture)
    if not _made_from(recipe.model, metadata):
        raise CheckpointError(
            f"{init} is a {architecture.name}, the recipe wants {recipe.model}",
            hint="name another checkpoint with --init, another --run folder, or --set model=null",
        )
    start = Start(
        architecture=architecture,
        weights=content.weights,
        masks=content.masks,
        target=None if metadata.sparsity is None else metadata.sparsity.target,
        chosen_by=(metadata.recipe or {}).get("method"),
        vocabulary=recorded_vocabulary(metadata.task),
        parents=lineage(init, metadata),
        source=str(init),
    )
    if start.masks and recipe.pruning.initial is not None:
        raise UsageError(
            f"the recipe's first mask is {recipe.pruning.initial}, but {init} has one of its own",
            hint="set pruning.initial to null to keep that, or name another checkpoint with --init",
        )
    return _with_mask_of(recipe.pruning.initial, start)


def _with_mask_of(initial: str | None, start: Start) -> Start:
    """The start under another checkpoint's mask, where the recipe's first mask is one."""
    if initial in (None, *FIRST_MASKS):
        return start
    path = Path(str(initial))
    if not path.is_file():
        raise UsageError(
            f"there is no first mask {initial}",
            hint="pruning.initial is magnitude, random, random-weights, or the path of a checkpoint",
        )
    metadata = checkpoint.read_metadata(path)
    if metadata.sparsity is None:
        raise CheckpointError(f"{path} has no mask to start from", hint="make one with `parp mask`")
    return replace(
        start,
        masks=checkpoint.read_masks(path),
        target=metadata.sparsity.target,
        chosen_by=(metadata.recipe or {}).get("method"),
        source=f"{start.source} under the mask of {path}",
        parents=(*start.parents, *lineage(path, metadata)),
    )


def _made_from(model: str | None, metadata: Metadata) -> bool:
    """Whether a checkpoint may descend from the model that a recipe names."""
    if model is None:
        return True
    if model in ARCHITECTURES:
        return bool(model == metadata.architecture["name"])
    recorded = (metadata.recipe or {}).get("model")
    # What was made from another checkpoint may descend from anything.
    return recorded in (None, model) or str(recorded).endswith(".safetensors")


def sparsities(recipe: Recipe, start: Start) -> tuple[float, float]:
    """The sparsity a run ends with, and that of its first mask.

    Raises:
        UsageError: the start has a mask that does not go with the recipe.
    """
    pruning = recipe.pruning
    _check_start(recipe, start)
    if pruning.method == "dense":
        return 0.0, 0.0
    if start.target is None:
        target = target_sparsity(pruning)
        if pruning.method != "parp-p":
            return target, target
        if pruning.start_sparsity is not None and pruning.start_sparsity > target:
            raise UsageError(
                f"the recipe's sparsity starts at {pruning.start_sparsity:g}, above the {target:g} it is to grow to",
                hint="set pruning.sparsity, or a smaller pruning.start_sparsity",
            )
        return target, target / 2 if pruning.start_sparsity is None else pruning.start_sparsity
    if pruning.method == "parp-p":
        target = target_sparsity(pruning) if pruning.sparsity is None else pruning.sparsity
        if pruning.start_sparsity not in (None, start.target) or start.target > target:
            raise UsageError(
                f"the recipe's sparsity grows from {pruning.start_sparsity or start.target:g} to {target:g}, but "
                f"{start.source} is pruned to {start.target:g}",
                hint="set pruning.start_sparsity to null, and pruning.sparsity to more than that of the mask",
            )
        return target, start.target
    if pruning.sparsity not in (None, start.target):
        raise UsageError(
            f"the recipe asks for sparsity {pruning.sparsity:g}, but {start.source} is pruned to {start.target:g}",
            hint=f"prune it anew (`parp reprune {start.source} --sparsity {pruning.sparsity:g}`), or --set "
            f"pruning.sparsity={start.target:g}",
        )
    fixed_by_pattern = pattern_in(pruning).sparsity
    if pruning.method == "parp" and fixed_by_pattern not in (None, start.target):
        raise UsageError(
            f"pattern {pruning.pattern} prunes {fixed_by_pattern:g} of the weights, but {start.source} is pruned to "
            f"{start.target:g}",
            hint=f"make its mask with `parp mask --pattern {pruning.pattern}`, or take another pattern",
        )
    return start.target, start.target


def _check_start(recipe: Recipe, start: Start) -> None:
    """Refuse a mask that the method would not use, or that is not what the method's name says."""
    method = recipe.pruning.method
    if not start.masks:
        return
    if method in ("dense", "omp", "imp", "pap"):
        why = "is dense" if method == "dense" else f"({method}) finds its own mask"
        raise UsageError(
            f"the recipe {why}, but {start.source} is pruned",
            hint="name another checkpoint with --init, or another --run folder",
        )
    wanted = {"mpi": "magnitude", "rp": "random"}.get(method)
    if wanted and not (start.chosen_by or "").startswith(wanted):
        raise UsageError(
            f"method {method} has a {wanted} mask, but that of {start.source} is of another kind",
            hint="--set pruning.method=fixed keeps any mask, or name another --run folder",
        )


def check_weights(recipe: Recipe, start: Start) -> None:
    """Refuse masks of other weights than the recipe prunes, and a recipe that prunes none.

    Raises:
        CheckpointError: the start's masks are of other weights.
        UsageError: no weight is in the recipe's scope, or none can hold its pattern.
    """
    with torch.device("meta"):  # only names and shapes are needed
        weights = prunable_weights(recipe, build(start.architecture))
    if start.masks and set(start.masks) != set(weights):
        raise CheckpointError(
            f"{start.source} masks other weights than the recipe prunes",
            details=sorted(set(start.masks) ^ set(weights))[:6],
            hint="give pruning.scope, pruning.biases and pruning.pattern as they were given to `parp mask`",
        )


def rewound(start: Start, path: Path) -> Start:
    """The start with the weights of an earlier checkpoint.

    Raises:
        CheckpointError: it cannot be read, or is of another architecture.
    """
    content = checkpoint.read(path)
    if Architecture.from_json(content.metadata.architecture) != start.architecture:
        raise CheckpointError(
            f"{path} is not a {start.architecture.name}", hint="pruning.rewind is a checkpoint of the model itself"
        )
    return replace(
        start,
        weights=content.weights,
        vocabulary=recorded_vocabulary(content.metadata.task),
        parents=(*start.parents, *lineage(path, content.metadata)),
    )


def first_scores(
    chosen_by: str, weights: Mapping[str, Tensor], architecture: Architecture, *, seed: int
) -> Mapping[str, Tensor]:
    """What a first mask ranks the prunable weights by, by their names.

    Args:
        chosen_by: one of `rounds.FIRST_MASKS`.
        weights: the prunable ones.
        architecture: of the model they are of.
        seed: of the random scores, or of the random network.
    """
    if chosen_by == "random":
        return random_scores({name: tuple(weight.shape) for name, weight in weights.items()}, seed=seed)
    if chosen_by == "random-weights":
        untrained = random_encoder(architecture, seed=seed).weights
        return {name: untrained[name] for name in weights}
    return weights


def prunable_weights(recipe: Recipe, model: Any) -> dict[str, Tensor]:
    """The parameters the recipe's scope names, less what cannot hold its pattern."""
    pruning = recipe.pruning
    pattern = pattern_in(pruning)
    scoped = prunable_parameters(model, biases=pruning.biases is not False, scope=pruning.scope or "transformer")
    weights: dict[str, Tensor] = {n: w for n, w in scoped.items() if pattern.carries(tuple(w.shape))}
    if not weights:
        raise UsageError(
            f"no weight of scope {pruning.scope} can hold pattern {pattern}",
            details=[f"{name}: {tuple(weight.shape)}" for name, weight in list(scoped.items())[:3]],
            hint="its sides must be multiples of the pattern's; choose another pruning.pattern or pruning.scope",
        )
    return weights
