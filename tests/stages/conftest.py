"""Spies on training runs."""

import copy
from collections.abc import Iterator

import pytest
from torch import Tensor

from parp_cli.training.observe import Observer, observing
from parp_cli.training.run import TrainingRun
from tests.stages.spies import Beginning, Change


@pytest.fixture
def beginnings() -> Iterator[list[Beginning]]:
    """Of all training runs from here on."""
    runs: list[Beginning] = []

    class Spy(Observer):
        def begins(self, run: TrainingRun) -> None:
            runs.append(Beginning(run.name, copy.deepcopy(run.network.state_dict()), dict(run.pruner.masks)))

    with observing(Spy()):
        yield runs


@pytest.fixture
def changes() -> Iterator[list[Change]]:
    """All re-prunings from here on."""
    found: list[Change] = []

    class Spy(Observer):
        masks: dict[str, Tensor]
        gradients_: dict[str, Tensor]

        def update_begins(self, run: TrainingRun) -> None:
            self.masks = run.pruner.masks

        def gradients(self, run: TrainingRun) -> None:
            weights = run.pruner.weights
            self.gradients_ = {name: w.grad.clone() for name, w in weights.items() if w.grad is not None}

        def update_ends(self, run: TrainingRun) -> None:
            if run.pruner.history and run.pruner.history[-1].update == run.update:
                weights = {name: weight.detach().clone() for name, weight in run.pruner.weights.items()}
                moments = {
                    name: [run.optimizer.state[weight][key].clone() for key in ("exp_avg", "exp_avg_sq")]
                    for name, weight in run.pruner.weights.items()
                }
                record = run.pruner.history[-1]
                found.append(Change(record, self.masks, run.pruner.masks, self.gradients_, weights, moments))

    with observing(Spy()):
        yield found
