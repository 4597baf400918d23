"""Movement pruning against its definition."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from parp_cli.pruning.methods import Schedule, Settings, spec_of
from parp_cli.pruning.methods.movement import in_order
from parp_cli.pruning.pruner import Pruner

RATES = (0.01, 0.05, 0.02, 0.03, 0.04, 0.01)


class Run:
    """A small network learning a fixed target, re-pruned every second update."""

    def __init__(self, **settings: Any) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.weights: dict[str, Tensor] = dict(self.model.named_parameters())
        self.input, self.target = torch.randn(16, 8), torch.randn(16, 8)
        schedule = Schedule(interval=2, updates=6)
        made = Settings(**{"sparsity": 0.5, "start_sparsity": 0.0, "schedule": schedule, **settings})
        masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self.weights.items()}
        self.pruner = Pruner(self.weights, masks, method=spec_of("movement").build(made))
        self.pruner.start()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.scores = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}

    def update(self, number: int) -> None:
        self.optimizer.zero_grad()
        (self.model(self.input) - self.target).square().mean().backward()
        rate = RATES[number - 1]
        for name, weight in self.weights.items():
            assert weight.grad is not None
            self.scores[name] = self.scores[name] - weight.detach() * weight.grad * rate
        self.pruner.before_step(number, learning_rate=rate)
        self.optimizer.step()
        self.pruner.after_step(number, self.optimizer)


def test_the_largest_scores_are_kept_and_the_sparsity_grows_cubically() -> None:
    run = Run()
    for number in range(1, 7):
        run.update(number)
        if number % 2:
            continue
        count = round(144 * 0.5 * (1 - (1 - number / 6) ** 3))
        scores = torch.cat([score.flatten() for score in run.scores.values()])
        kept = torch.ones(144, dtype=torch.bool)
        kept[scores.argsort(stable=True)[:count]] = False
        masks = torch.cat([mask.flatten() for mask in run.pruner.masks.values()])
        assert torch.equal(masks, kept)
        weights = torch.cat([weight.detach().flatten() for weight in run.weights.values()])
        assert torch.equal(weights == 0, ~kept)
    assert [round(144 * record.sparsity) for record in run.pruner.history] == [51, 69, 72]


def test_pruned_weights_train_and_may_come_back() -> None:
    run = Run(start_sparsity=0.5)
    for number in range(1, 4):
        run.update(number)
        if number == 2:
            pruned = {name: ~mask for name, mask in run.pruner.masks.items()}
    assert sum(int((run.weights[name][where] != 0).sum()) for name, where in pruned.items()) > 36
    for number in range(4, 7):
        run.update(number)
    assert run.pruner.history[-1].revived > 0


def test_what_is_shipped_has_the_target_sparsity() -> None:
    run = Run()
    run.update(1)
    with run.pruner.pruned_view() as (masks, changed):
        assert changed
        assert run.pruner.counts(masks) == (72, 144)


def test_a_resumed_run_ends_in_the_same_bits() -> None:
    run, stopped, resumed = Run(), Run(), Run()
    for number in range(1, 7):
        run.update(number)
    for number in range(1, 4):
        stopped.update(number)
    resumed.model.load_state_dict(stopped.model.state_dict())
    resumed.pruner.load_state({name: value.clone() for name, value in stopped.pruner.state().items()})
    resumed.pruner.update = 3
    for number in range(4, 7):
        resumed.update(number)
    assert all(torch.equal(weight, resumed.weights[name]) for name, weight in run.weights.items())
    assert all(torch.equal(mask, resumed.pruner.masks[name]) for name, mask in run.pruner.masks.items())


def test_without_what_was_observed_it_would_not() -> None:
    run, resumed = Run(), Run()
    for number in range(1, 4):
        run.update(number)
    resumed.model.load_state_dict(run.model.state_dict())
    resumed.pruner.load_state({name: value for name, value in run.pruner.state().items() if "/" not in name})
    for number in range(4, 7):
        run.update(number)
        resumed.update(number)
    assert any(not torch.equal(mask, resumed.pruner.masks[name]) for name, mask in run.pruner.masks.items())


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False), min_size=2))
def test_scores_keep_their_order(values: list[float]) -> None:
    scores = torch.tensor(values)
    ranked = in_order(scores)
    assert bool(((ranked >= 0) & ranked.isfinite()).all())
    for i in range(len(values)):
        larger = scores > scores[i]
        assert bool((ranked[larger] >= ranked[i]).all())
        equal = scores == scores[i]
        assert bool((ranked[equal] == ranked[i]).all())


def test_scores_of_either_sign_are_told_apart() -> None:
    ranked = in_order(torch.tensor([-3e30, -2.0, -1e-30, -0.0, 0.0, 1e-30, 2.0, 3e30]))
    assert ranked[3] == ranked[4]
    assert bool((ranked.unique() == ranked[[0, 1, 2, 3, 5, 6, 7]]).all())
    assert len(ranked.unique()) == 7


@pytest.mark.parametrize("kind", ["n:m", "block"])
def test_patterns_that_grow_or_sum_are_left_out(kind: str) -> None:
    assert kind not in spec_of("movement").patterns
