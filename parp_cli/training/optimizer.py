"""The optimizer of a training run, its learning rate, and what trains at all."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from parp_cli.config.classification import TextTraining
from parp_cli.config.finetune import Optimization, Training
from parp_cli.tasks.task import Objective

_INITIAL_SCALE = 0.01
"""Share of the peak at which the warm-up begins."""


def adam(training: Optimization, objective: Objective[Any]) -> torch.optim.Optimizer:
    """AdamW over what trains, with a group of its own for the head, whose peak learning rate may differ."""
    trained = [(n, p) for n, p in objective.network.named_parameters() if objective.trains(n)]
    peaks = (training.learning_rate, training.head_learning_rate or training.learning_rate)
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in trained if objective.is_head(n) == head], "peak": peaks[head]}
        for head in (False, True)
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=training.learning_rate,
        betas=training.adam_betas,
        eps=training.adam_epsilon,
        weight_decay=training.weight_decay,
        fused=True,
    )


def freeze(objective: Objective[Any], *, only_head: bool) -> None:
    """Choose what trains: what the objective says, or of that the head alone."""
    for name, parameter in objective.network.named_parameters():
        parameter.requires_grad_(objective.trains(name) and (objective.is_head(name) or not only_head))


def learning_rate_schedule(training: Optimization) -> Callable[[int], float]:
    """The schedule of a fine-tuning run: the share of the peak in an update, counted from 0."""
    if isinstance(training, TextTraining):
        return partial(linear, updates=training.updates, warmup=training.warmup)
    assert isinstance(training, Training), "each kind of settings has its schedule here"
    shape = {key: getattr(training, key) for key in ("updates", "warmup", "hold", "decay", "final_scale")}
    return partial(tri_stage, **shape)


def tri_stage(update: int, updates: int, *, warmup: float, hold: float, decay: float, final_scale: float) -> float:
    """Share of the peak learning rate at `update`, counted from 0: the schedule of wav2vec 2.0's fine-tuning.

    Linear from 0.01 to 1 over `warmup` of the updates, 1 over `hold`, then exponentially down to `final_scale` over
    `decay`, where it stays.
    """
    rising, holding, falling = (round(share * updates) for share in (warmup, hold, decay))
    if update < rising:
        return _INITIAL_SCALE + (1 - _INITIAL_SCALE) * update / rising
    if update < rising + holding:
        return 1.0
    progress = min(1.0, (update - rising - holding) / max(1, falling))
    return float(final_scale**progress)


def linear(update: int, updates: int, *, warmup: float) -> float:
    """Share of the peak learning rate at `update`, counted from 0: the schedule of masked prediction.

    Linear up over `warmup` of the updates, then linear down to 0.
    """
    rising = max(1, round(warmup * updates))
    return min((update + 1) / rising, (updates - update) / max(1, updates - rising))
