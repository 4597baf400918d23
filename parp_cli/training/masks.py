"""The masks of a training run, over the prunable weights of its network."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from parp_cli.config.finetune import Recipe
from parp_cli.errors import CheckpointError
from parp_cli.models.sources.load import random_encoder
from parp_cli.models.speech.config import build
from parp_cli.models.speech.prunable import layers_of, prunable_parameters
from parp_cli.pruning.limits import DEFAULT_SCOPE
from parp_cli.pruning.masks import Masks
from parp_cli.pruning.methods import Settings, spec_of
from parp_cli.pruning.pruner import Pruner
from parp_cli.pruning.scores import first_scores
from parp_cli.training.plan import Start, pattern_in

T = TypeVar("T")


def prunable_weights(recipe: Recipe, model: nn.Module) -> dict[str, Tensor]:
    """The parameters the recipe's scope names, less what cannot hold its pattern, or what its method leaves alone.

    Raises:
        UsageError: none is left.
    """
    pruning, spec = recipe.pruning, spec_of(recipe.pruning.method)
    scope = pruning.scope or DEFAULT_SCOPE
    scoped = prunable_parameters(model, biases=pruning.biases is not False, scope=scope)
    matrices = {name: weight for name, weight in scoped.items() if weight.dim() == 2 or not spec.only_matrices}
    return pattern_in(pruning).among(matrices, where=f"scope {scope}")


def first_masks(recipe: Recipe, start: Start, settings: Settings, model: nn.Module) -> Masks:
    """The start's masks; without any, new ones, as `parp mask` makes them from the model's weights, which are whole."""
    spec = spec_of(recipe.pruning.method)
    if not spec.prunes or start.masks:
        return start.masks
    weights = prunable_weights(recipe, model)
    if settings.sparsity_at_start == 0:
        return {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}
    scores = first_scores(
        recipe.pruning.initial or spec.first_mask,
        weights,
        seed=recipe.seed,
        untrained=lambda seed: random_encoder(start.architecture, seed=seed).weights,
    )
    settings = replace(settings, layers=layers_of(weights))
    return settings.keep_largest(scores, settings.sparsity_at_start)


def calibration_examples(recipe: Recipe, items: Sequence[T]) -> list[T]:
    """Training items, drawn by the recipe's seed, that the method may pass through the network before it is pruned."""
    drawn = torch.randperm(len(items), generator=torch.Generator().manual_seed(recipe.seed)).tolist()
    return [items[index] for index in drawn[: spec_of(recipe.pruning.method).calibration_examples]]


def pruner(
    recipe: Recipe, settings: Settings, model: nn.Module, masks: Masks, group: ProcessGroup | None = None
) -> Pruner:
    """The run's masks and method, over the model's prunable weights.

    Args:
        recipe: of the run.
        settings: of its method.
        model: that trains.
        masks: from `first_masks`.
        group: processes among which the model's weights are sharded; None where they are whole.

    Raises:
        MaskError: the masks are of other weights than the recipe prunes.
    """
    weights = prunable_weights(recipe, model)
    modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in weights}
    settings = replace(settings, layers=layers_of(weights), modules=modules, group=group)
    method = spec_of(recipe.pruning.method).build(settings)
    return Pruner(weights, masks, method=method)


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
