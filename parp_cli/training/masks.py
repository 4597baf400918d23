"""The masks of a training run, over the prunable weights of its network."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from parp_cli.config.finetune import AnyRecipe
from parp_cli.errors import CheckpointError, UsageError
from parp_cli.models.network import Architecture, Network
from parp_cli.models.sources.load import random_encoder
from parp_cli.pruning.masks import Masks, check_some_kept, count_all, count_pruned
from parp_cli.pruning.methods import Settings, spec_of
from parp_cli.pruning.methods.spec import FirstMask
from parp_cli.pruning.patterns import DEFAULT_SCOPE, GLOBAL, Pattern
from parp_cli.pruning.pruner import Pruner
from parp_cli.pruning.select import prune_count
from parp_cli.pruning.structures import key_of, spread
from parp_cli.training.plan import Start, pattern_in, sparsities_of

T = TypeVar("T")


def prunable_weights(recipe: AnyRecipe, model: Network) -> dict[str, Tensor]:
    """The parameters the recipe's scope names, less what cannot hold its pattern, or what its method leaves alone.

    Raises UsageError where none is left.
    """
    pruning, spec = recipe.pruning, spec_of(recipe.pruning.method)
    scope = pruning.scope or DEFAULT_SCOPE
    scoped = model.prunable(scope, biases=pruning.biases is not False, norms=pattern_in(pruning).structured)
    matrices = {name: weight for name, weight in scoped.items() if weight.dim() == 2 or not spec.only_matrices}
    structures = model.architecture.structures_of(matrices)
    return pattern_in(pruning).among(matrices, where=f"scope {scope}", structures=structures)


def first_masks(recipe: AnyRecipe, start: Start, settings: Settings, model: Network) -> Masks:
    """The start's masks; without any, new ones, as `parp mask` makes them from the model's weights, which are whole."""
    spec = spec_of(recipe.pruning.method)
    if not spec.prunes or start.masks:
        return start.masks
    weights = prunable_weights(recipe, model)
    if settings.sparsity_at_start == 0:
        return {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    chosen_by = recipe.pruning.initial or ("random" if spec.starts_from == "random" else "magnitude")
    scores = first_scores(chosen_by, weights, start.architecture, seed=recipe.seed, pattern=settings.pattern)
    layers, structures = start.architecture.layers_of(weights), start.architecture.structures_of(weights)
    masks = settings.pattern.masks(scores, settings.sparsity_at_start, layers, structures=structures)
    check_some_kept(count_pruned(masks), count_all(masks))
    return masks


def first_scores(
    chosen_by: FirstMask | str,
    weights: Mapping[str, Tensor],
    architecture: Architecture,
    *,
    seed: int,
    pattern: Pattern = GLOBAL,
) -> Mapping[str, Tensor]:
    """What a first mask that is chosen in this way ranks the prunable weights of an encoder by."""
    if chosen_by == "random":
        generator = torch.Generator().manual_seed(seed)
        if structures := pattern.chosen(architecture.structures_of(weights)):
            # Means of many random numbers would all be about the same.
            drawn = {key_of(structure): torch.rand(structure.count, generator=generator) for structure in structures}
            owners = Counter(name for structure in structures for name in structure.parts)
            # What two groups share has the product of their numbers, which is twice as small.
            spread_out = spread(drawn, weights, structures)
            return {name: value * 2 ** (owners[name] - 1) for name, value in spread_out.items()}
        return {name: torch.rand(weight.shape, generator=generator) for name, weight in weights.items()}
    if chosen_by == "random-weights":
        untrained = random_encoder(architecture, seed=seed).weights
        return {name: untrained[name] for name in weights}
    return weights


def cannot_come_back(recipe: AnyRecipe, start: Start) -> bool:
    """Whether structures are to come back that are zero in the start's weights, where no gradient reaches them."""
    spec, pattern = spec_of(recipe.pruning.method), pattern_in(recipe.pruning)
    structures = pattern.chosen(start.architecture.structures_of(start.masks))
    if not structures or not spec.reprunes or spec.starts_from == "nothing":
        return False
    return not any(bool(start.weights[name][~mask].any()) for name, mask in start.masks.items())


def calibration_examples(recipe: AnyRecipe, items: Sequence[T]) -> list[T]:
    """Training items, drawn by the recipe's seed, that the method may pass through the network before it is pruned."""
    drawn = torch.randperm(len(items), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    return [items[index] for index in drawn[: spec_of(recipe.pruning.method).calibration_examples]]


def pruner(
    recipe: AnyRecipe, settings: Settings, model: Network, masks: Masks, group: ProcessGroup | None = None
) -> Pruner:
    """What keeps the `first_masks` over the prunable weights of the model that trains, sharded over the group if any.

    Raises MaskError where the masks are of other weights than the recipe prunes.
    """
    weights = prunable_weights(recipe, model)
    modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in weights}
    layers, structures = model.architecture.layers_of(weights), model.architecture.structures_of(weights)
    settings = replace(settings, layers=layers, structures=structures, modules=modules, group=group)
    return Pruner(weights, masks, method=spec_of(recipe.pruning.method).build(settings))


def check_start(recipe: AnyRecipe, start: Start) -> None:
    """Refuse masks that the method would not use or that are not what its name says, or of another sparsity
    (UsageError) or of other weights than the recipe prunes (CheckpointError), and a recipe that prunes none or all."""
    spec, source = spec_of(recipe.pruning.method), start.source
    if start.masks and spec.starts_from == "nothing":
        why = f"({spec.name}) finds its own mask" if spec.prunes else f"is {spec.name}"
        raise UsageError(
            f"the recipe {why}, but {source} is pruned",
            hint="name another checkpoint with --init, or another --run folder",
        )
    if start.masks and not spec.accepts(start.chosen_by):
        raise UsageError(
            f"method {spec.name} has a {spec.starts_from} mask, but that of {source} is of another kind",
            hint="--set pruning.method=fixed keeps any mask, or name another --run folder",
        )
    target, _ = sparsities_of(recipe.pruning, start)
    with torch.device("meta"):  # only names and shapes are needed
        weights = prunable_weights(recipe, start.architecture.build())
    total = sum(weight.numel() for weight in weights.values())
    check_some_kept(prune_count(target, total), total)
    if start.masks and set(start.masks) != set(weights):
        raise CheckpointError(
            f"{source} masks other weights than the recipe prunes",
            details=sorted(set(start.masks) ^ set(weights))[:6],
            hint="give pruning.scope, pruning.biases and pruning.pattern as they were given to `parp mask`",
        )
