"""A fine-tuning run's parts, as its recipe asks for them: model, objective, optimizer."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from parp_cli.config.finetune import Recipe
from parp_cli.config.load import recipe_to_dict
from parp_cli.data.labels import frames_needed
from parp_cli.errors import CheckpointError
from parp_cli.models.sources.names import MASK_EMBEDDING
from parp_cli.models.speech.config import build, frames
from parp_cli.runtime.device import versions
from parp_cli.runtime.processes import World
from parp_cli.storage.checkpoint import Metadata, Sparsity
from parp_cli.tasks.ctc.augmentation import Augmentation
from parp_cli.tasks.ctc.features import DISK_BYTES, MEMORY_BYTES, FrontEndFeatures
from parp_cli.tasks.ctc.masking import LatentMasking
from parp_cli.tasks.ctc.objective import CtcObjective
from parp_cli.training.preparation import Preparation


def build_model(recipe: Recipe, preparation: Preparation) -> Any:
    """The model with the run's dropouts, the start's weights, and its head where the labels are the same."""
    training, start = recipe.training, preparation.start
    model = build(
        start.architecture,
        vocabulary_size=len(preparation.vocabulary),
        layer_drop=training.layer_drop,
        dropout=training.dropout,
        attention_dropout=training.attention_dropout,
        activation_dropout=training.activation_dropout,
    )
    model.register_parameter(MASK_EMBEDDING, nn.Parameter(torch.rand(start.architecture.width)))
    fresh = model.state_dict()
    same_head = start.vocabulary == preparation.vocabulary
    weights = {n: w.float() for n, w in start.weights.items() if same_head or not n.startswith("aux.")}
    missing = [name for name in fresh if name not in weights and not name.startswith(("aux.", MASK_EMBEDDING))]
    if missing or not set(weights) <= set(fresh):
        raise CheckpointError(
            f"{start.source} does not hold the weights of a {start.architecture.name}",
            details=[f"missing: {n}" for n in missing] + [f"left over: {n}" for n in weights if n not in fresh],
        )
    model.load_state_dict({**fresh, **weights})
    return model


def front_end_features(
    recipe: Recipe,
    preparation: Preparation,
    model: Any,
    world: World,
    *,
    frozen: bool,
    folder: Path | None,
    scratch: Path,
) -> FrontEndFeatures:
    """Front-end features of the run's utterances.

    Args:
        recipe: of the run.
        preparation: of the run.
        model: that trains.
        world: that share a machine's memory and disk.
        frozen: whether its front end never changes.
        folder: where features are kept between runs; None for nowhere.
        scratch: without `folder`, where those are kept that memory cannot hold.
    """
    architecture, vocabulary = preparation.start.architecture, preparation.vocabulary
    augment = None
    if recipe.training.speed_change:
        augment = Augmentation(
            speed_change=recipe.training.speed_change,
            seed=recipe.seed,
            frames=partial(frames, architecture),
            frames_needed=lambda utterance: frames_needed(vocabulary.encode(utterance)),
        )
    return FrontEndFeatures(
        model,
        architecture,
        frozen=frozen,
        memory_bytes=MEMORY_BYTES // world.local_world_size,
        disk_bytes=DISK_BYTES // world.local_world_size,
        folder=folder,
        scratch=scratch,
        augment=augment,
    )


def objective(
    recipe: Recipe,
    preparation: Preparation,
    model: Any,
    encoder: nn.Module,
    features: FrontEndFeatures,
    world: World,
) -> CtcObjective:
    training = recipe.training
    return CtcObjective(
        model=model,
        encoder=encoder,
        features=features,
        vocabulary=preparation.vocabulary,
        masking=LatentMasking(
            time_probability=training.time_mask_probability,
            time_length=training.time_mask_length,
            channel_probability=training.channel_mask_probability,
            channel_length=training.channel_mask_length,
        ),
        micro_batch_seconds=training.micro_batch_seconds,
        precision=training.precision,
        seed=recipe.seed,
        checkpoint_activations=training.checkpoint_activations,
        world=world,
    )


def optimizer(recipe: Recipe, model: Any) -> torch.optim.Optimizer:
    """Adam, with a group of its own for the head, whose peak rate may differ."""
    training = recipe.training
    head = [parameter for name, parameter in model.named_parameters() if name.startswith("aux.")]
    rest = [
        parameter
        for name, parameter in model.named_parameters()
        if not name.startswith("aux.") and (training.train_front_end or not name.startswith("feature_extractor."))
    ]
    return torch.optim.AdamW(
        [
            {"params": rest, "peak": training.learning_rate},
            {"params": head, "peak": training.head_learning_rate or training.learning_rate},
        ],
        lr=training.learning_rate,
        betas=training.adam_betas,
        eps=training.adam_epsilon,
        weight_decay=training.weight_decay,
        fused=True,
    )


def freeze(model: Any, *, train_front_end: bool, only_head: bool) -> None:
    """Choose what trains: the head always, the rest unless `only_head`, the front end only if it is to."""
    model.feature_extractor.requires_grad_(train_front_end and not only_head)
    model.encoder.requires_grad_(not only_head)
    model.mask_embedding.requires_grad_(not only_head)


def checkpoint_metadata(
    recipe: Recipe,
    preparation: Preparation,
    *,
    prunable: tuple[str, ...],
    sparsity: Sparsity | None,
    metrics: Mapping[str, Any],
) -> Metadata:
    """What a checkpoint of the run says of itself.

    Args:
        recipe: of the run.
        preparation: of the run.
        prunable: names of the prunable weights.
        sparsity: of the checkpoint's masks; None without any.
        metrics: of the checkpoint.
    """
    start = preparation.start
    return Metadata(
        stage="finetune",
        architecture=start.architecture.to_json(),
        task=preparation.vocabulary.to_json(),
        prunable=prunable,
        sparsity=sparsity,
        recipe=recipe_to_dict(recipe),
        seed=recipe.seed,
        parents=start.parents,
        metrics=dict(metrics),
        versions=versions(),
    )
