"""Taylor scores of units against their definition."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parp_cli.pruning.methods import Schedule, Settings, spec_of
from parp_cli.pruning.patterns import Pattern
from parp_cli.pruning.pruner import Pruner

LAYERS = {"0": (12, 8), "2": (8, 12)}


class Run:
    """Two layers of 12 units of 9 weights and 8 units of 13, re-pruned every second of 8 updates."""

    def __init__(self, **settings: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8))
        self.weights: dict[str, Tensor] = dict(self.model.named_parameters())
        self.input, self.target = torch.randn(16, 8), torch.randn(16, 8)
        schedule = Schedule(interval=2, updates=8, end=6, final=False)
        layers = {name: name[0] for name in self.weights}
        made = Settings(**{"sparsity": 0.5, "start_sparsity": 0.0, "schedule": schedule, "layers": layers, **settings})
        masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self.weights.items()}
        self.pruner = Pruner(self.weights, masks, method=spec_of("taylor").build(made))
        self.pruner.start()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.scores = {layer: [0.0] * rows for layer, (rows, _) in LAYERS.items()}

    def update(self, number: int) -> None:
        self.optimizer.zero_grad()
        (self.model(self.input) - self.target).square().mean().backward()
        for layer, (rows, columns) in LAYERS.items():
            weight, bias = self.model[int(layer)].weight, self.model[int(layer)].bias
            for row in range(rows):
                products = [weight[row, i].item() * weight.grad[row, i].item() for i in range(columns)]
                self.scores[layer][row] += (sum(products) + bias[row].item() * bias.grad[row].item()) ** 2
        self.pruner.before_step(number)
        self.optimizer.step()
        self.pruner.after_step(number, self.optimizer)

    def pruned(self) -> set[tuple[str, int]]:
        """Pruned units; each has to be pruned whole."""
        units = set()
        for layer, (rows, _) in LAYERS.items():
            weight, bias = self.pruner.masks[f"{layer}.weight"], self.pruner.masks[f"{layer}.bias"]
            for row in range(rows):
                assert weight[row].all() == weight[row].any() == bias[row]
                if not bias[row]:
                    units.add((layer, row))
        return units


def nearest(run: Run, before: set[tuple[str, int]], target: int) -> set[tuple[str, int]]:
    """What is to be pruned: those that were, then by score, to the count of weights that is nearest."""
    ranked = sorted(
        ((layer, row) for layer, (rows, _) in LAYERS.items() for row in range(rows)),
        key=lambda unit: -1.0 if unit in before else run.scores[unit[0]][unit[1]],
    )
    sizes = [LAYERS[layer][1] + 1 for layer, _ in ranked]
    count = min(range(len(ranked) + 1), key=lambda number: abs(sum(sizes[:number]) - target))
    return set(ranked[:count])


def test_whole_units_of_the_smallest_scores_go_for_good() -> None:
    run = Run()
    before: set[tuple[str, int]] = set()
    for number in range(1, 9):
        run.update(number)
        if number in (2, 4, 6):
            expected = nearest(run, before, round(212 * 0.5 * number / 6))
            assert run.pruned() == expected > before
            before = expected
        assert run.pruned() == before
        for layer, row in before:
            assert not run.model[int(layer)].weight[row].any()
            assert not run.model[int(layer)].bias[row].any()
    pruned, covered = run.pruner.counts(run.pruner.masks)
    assert covered == 212
    assert abs(pruned - 106) <= 6, "half of a unit"
    assert run.pruner.history[-1].sparsity == pruned / covered
    assert [record.revived for record in run.pruner.history] == [0, 0, 0]


@pytest.mark.parametrize("pattern", ["layer", "tensor"])
def test_units_compete_in_their_layer(pattern: str) -> None:
    run = Run(pattern=Pattern.parse(pattern))
    for number in range(1, 7):
        run.update(number)
    assert len([unit for unit in run.pruned() if unit[0] == "0"]) == 6
    assert len([unit for unit in run.pruned() if unit[0] == "2"]) == 4


def test_what_is_shipped_has_the_target_sparsity_as_nearly_as_units_allow() -> None:
    run = Run()
    run.update(1)
    with run.pruner.pruned_view() as (masks, changed):
        assert changed
        assert abs(run.pruner.counts(masks)[0] - 106) <= 6
    for number in range(2, 7):
        run.update(number)
    with run.pruner.pruned_view() as (_, changed):
        assert not changed


def test_a_resumed_run_ends_in_the_same_masks() -> None:
    run, resumed = Run(), Run()
    for number in range(1, 4):
        run.update(number)
    resumed.model.load_state_dict(run.model.state_dict())
    resumed.optimizer.load_state_dict(deepcopy(run.optimizer.state_dict()))
    resumed.pruner.load_state({name: value.clone() for name, value in sorted(run.pruner.state().items())})
    for number in range(4, 9):
        run.update(number)
        resumed.update(number)
    assert run.pruned() == resumed.pruned()
    assert all(torch.equal(weight, resumed.weights[name]) for name, weight in run.weights.items())
