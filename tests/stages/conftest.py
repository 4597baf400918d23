"""Spies on training runs."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from parp_cli.pruning.pruner import Pruner, Repruning
from parp_cli.training import run as module
from tests.stages.spies import Beginning, Change


@pytest.fixture
def beginnings(monkeypatch: pytest.MonkeyPatch) -> list[Beginning]:
    """Of all training runs from here on."""
    runs: list[Beginning] = []
    train = module.TrainingRun.train

    def spying(run: Any, stop: Any) -> None:
        runs.append(Beginning(run._name, copy.deepcopy(run._model.state_dict()), dict(run._pruner.masks)))
        train(run, stop)

    monkeypatch.setattr(module.TrainingRun, "train", spying)
    return runs


@pytest.fixture
def changes(monkeypatch: pytest.MonkeyPatch) -> list[Change]:
    """All re-prunings from here on."""
    found: list[Change] = []
    before_step, after_step = Pruner.before_step, Pruner.after_step
    gradients: dict[str, Tensor] = {}

    def spying_before(pruner: Pruner, update: int, **options: float) -> None:
        for name, weight in pruner.weights.items():
            if weight.grad is not None:
                gradients[name] = weight.grad.clone()
        before_step(pruner, update, **options)

    def spying_after(pruner: Pruner, update: int, optimizer: torch.optim.Optimizer) -> Repruning | None:
        masks = pruner.masks
        record = after_step(pruner, update, optimizer)
        if record is not None:
            weights = {name: weight.detach().clone() for name, weight in pruner.weights.items()}
            moments = {
                name: [optimizer.state[weight][key].clone() for key in ("exp_avg", "exp_avg_sq")]
                for name, weight in pruner.weights.items()
            }
            found.append(Change(record, masks, pruner.masks, dict(gradients), weights, moments))
        return record

    monkeypatch.setattr(Pruner, "before_step", spying_before)
    monkeypatch.setattr(Pruner, "after_step", spying_after)
    return found
