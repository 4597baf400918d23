import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from parp_cli.errors import MaskError
from parp_cli.pruning.masks import count_pruned
from parp_cli.pruning.methods import Schedule, Settings, spec_of
from parp_cli.pruning.pruner import Pruner, Repruning
from parp_cli.pruning.select import magnitude_masks

SPARSITY, COUNT = 0.6, 86
"""round(0.6 · 144) of the two layers' weights and biases."""

LAYERS = {"0.weight": "first", "0.bias": "first", "2.weight": "second", "2.bias": "second"}

Optimizers = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizers] = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05, weight_decay=0.1),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
}


class Run:
    """A small network learning a fixed target, with a pruner at its side as a training loop has it."""

    def __init__(
        self,
        method: str,
        *,
        optimizer: str = "AdamW",
        interval: int = 5,
        updates: int = 1000,
        first: str = "magnitude",
        **schedule: Any,
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.weights: dict[str, Tensor] = dict(self.model.named_parameters())
        if first == "magnitude":
            masks = magnitude_masks(self.weights, COUNT)
        else:
            drawn = torch.Generator().manual_seed(0)
            masks = magnitude_masks({n: torch.rand(w.shape, generator=drawn) for n, w in self.weights.items()}, COUNT)
        self.first = masks
        spec = spec_of(method)
        schedule = {"final": "final" in spec.reads, "end": int(spec.end_share * updates), **schedule}
        settings = Settings(
            sparsity=SPARSITY,
            schedule=Schedule(interval=interval, updates=updates, **schedule),
            drop_fraction=0.4,
            layers=LAYERS,
        )
        self.pruner = Pruner(self.weights, masks if spec.prunes else {}, method=spec.build(settings))
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.input, self.target = torch.randn(16, 8), torch.randn(16, 8)
        self.pruner.start()

    def update(self, number: int) -> Repruning | None:
        self.optimizer.zero_grad()
        (self.model(self.input) - self.target).square().mean().backward()
        self.pruner.before_step(number)
        self.optimizer.step()
        return self.pruner.after_step(number, self.optimizer)

    def copy(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.weights.items()}

    def zeros(self) -> int:
        return sum(int((weight == 0).sum()) for weight in self.weights.values())


class TestParp:
    def test_exactly_k_are_zero_after_every_repruning_and_change_between(self) -> None:
        run = Run("parp")
        assert run.zeros() == COUNT
        for number in range(1, 21):
            pruned = run.pruner.masks
            repruning = run.update(number)
            if number % 5:
                assert repruning is None
                assert all((run.weights[name][~mask] != 0).any() for name, mask in pruned.items() if not mask.all())
                assert run.zeros() < COUNT
            else:
                assert repruning is not None
                assert repruning.update == number
                assert run.zeros() == COUNT == count_pruned(run.pruner.masks)
                assert all((run.weights[name][~mask] == 0).all() for name, mask in run.pruner.masks.items())
        assert [repruning.update for repruning in run.pruner.history] == [5, 10, 15, 20]
        assert sum(repruning.revived for repruning in run.pruner.history) > 0

    def test_a_repruning_is_the_global_magnitude_mask_of_that_moment(self) -> None:
        run = Run("parp", interval=8)
        for number in range(1, 8):
            run.update(number)
        before, weights = run.pruner.masks, run.copy()
        repruning = run.pruner.after_step(8)
        expected = magnitude_masks(weights, COUNT)
        assert all(torch.equal(run.pruner.masks[name], mask) for name, mask in expected.items())
        for name, mask in expected.items():
            assert torch.equal(run.weights[name], torch.where(mask, weights[name], 0.0))
        layers = dict.fromkeys(("first", "second"), (0, 0))
        for name, mask in expected.items():
            revived, dropped = layers[LAYERS[name]]
            layers[LAYERS[name]] = (
                revived + int((~before[name] & mask).sum()),
                dropped + int((before[name] & ~mask).sum()),
            )
        total = sum(revived for revived, _ in layers.values())
        assert repruning == Repruning(update=8, sparsity=COUNT / 144, revived=total, dropped=total, layers=layers)
        assert total > 0, "as many go as come, and some do"
        assert run.pruner.history == [repruning]

    def test_from_a_random_mask_the_first_repruning_revives_what_the_sizes_say(self) -> None:
        run = Run("parp", interval=1, first="random")
        assert all(torch.equal(run.pruner.masks[name], mask) for name, mask in run.first.items())
        repruning = run.update(1)
        assert repruning is not None
        assert run.zeros() == COUNT

    def test_the_last_repruning_leaves_a_sparse_model_whatever_the_interval(self) -> None:
        run = Run("parp", interval=7, updates=10)
        for number in range(1, 10):
            run.update(number)
        assert run.zeros() < COUNT
        last = run.update(10)
        assert last is not None
        assert run.zeros() == COUNT
        again = run.copy()
        once_more = run.pruner.after_step(10)
        assert once_more is not None
        assert (once_more.revived, once_more.dropped) == (0, 0)
        assert all(torch.equal(run.weights[name], weight) for name, weight in again.items())

    def test_without_a_final_one_the_mask_is_fixed_after_the_last(self) -> None:
        run = Run("parp", interval=4, updates=12, end=9, final=False)
        for number in range(1, 9):
            run.update(number)
        assert [repruning.update for repruning in run.pruner.history] == [4, 8]
        masks = run.pruner.masks
        kept = {name: weight[masks[name]] for name, weight in run.copy().items()}
        for number in range(9, 13):
            assert run.update(number) is None
            assert run.zeros() == COUNT
            assert moments_where_pruned(run) == 0
            with run.pruner.pruned_view() as (view, _):
                assert all(view[name] is mask for name, mask in masks.items())
        assert any((run.weights[name][masks[name]] != weight).any() for name, weight in kept.items())

    def test_while_weights_adjust_their_moments_are_kept(self) -> None:
        """Pruned weights go on where their moments take them: step 2 of PARP."""
        run = Run("parp", interval=2)
        for number in range(1, 3):
            run.update(number)
        assert moments_where_pruned(run) > COUNT, "two moments of almost each"


class TestRigL:
    def test_each_swap_is_what_the_definition_says(self) -> None:
        """Brute force, tensor by tensor: the smallest kept ones go, the largest gradients come."""
        run = Run("rigl", interval=4, updates=20, first="random")
        sparsities = {name: int((~mask).sum()) for name, mask in run.first.items()}
        swaps = 0
        for number in range(1, 21):
            before = run.pruner.masks
            run.optimizer.zero_grad()
            (run.model(run.input) - run.target).square().mean().backward()
            gradients = {name: cast(Tensor, weight.grad).clone() for name, weight in run.weights.items()}
            run.pruner.before_step(number)
            run.optimizer.step()
            trained = run.copy()
            swap = run.pruner.after_step(number, run.optimizer)
            assert moments_where_pruned(run) == 0
            assert {name: int((~mask).sum()) for name, mask in run.pruner.masks.items()} == sparsities
            assert (swap is not None) == (number in (4, 8, 12)), "it stops after three quarters, before the last update"
            if swap is None:
                assert run.pruner.masks is before
                continue
            swaps += swap.dropped
            assert swap.revived == swap.dropped
            share = 0.4 / 2 * (1 + math.cos(math.pi * number / 15))
            for name, mask in before.items():
                expected = swapped(mask, trained[name], gradients[name], round(share * int(mask.sum())))
                assert torch.equal(run.pruner.masks[name], expected), (number, name)
                grown = expected & ~mask
                assert (run.weights[name][grown] == 0).all(), "what grows starts at zero"
        assert swaps > 10

    def test_what_is_frozen_is_not_swapped(self) -> None:
        run = Run("rigl", interval=1, first="random")
        run.model[0].requires_grad_(False)
        run.update(1)
        assert torch.equal(run.pruner.masks["0.weight"], run.first["0.weight"])
        assert not torch.equal(run.pruner.masks["2.weight"], run.first["2.weight"])


def swapped(mask: Tensor, weight: Tensor, gradient: Tensor, count: int) -> Tensor:
    """One tensor's swap, by sorting."""
    flat, sizes, slopes = (tensor.flatten().tolist() for tensor in (mask, weight.abs(), gradient.abs()))
    kept = sorted((size, place) for place, size in enumerate(sizes) if flat[place])
    for _, place in kept[:count]:
        flat[place] = False
    pruned = sorted(((slope, place) for place, slope in enumerate(slopes) if not flat[place]), reverse=True)
    for _, place in pruned[:count]:
        flat[place] = True
    return torch.tensor(flat).reshape(mask.shape)


def moments_where_pruned(run: Run) -> int:
    """How many moments of pruned weights are not zero."""
    return sum(
        int((moment[~mask] != 0).sum())
        for name, mask in run.pruner.masks.items()
        for moment in run.optimizer.state[run.weights[name]].values()
        if isinstance(moment, Tensor) and moment.ndim
    )


class TestFixed:
    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_pruned_weights_and_their_moments_stay_exactly_zero(self, optimizer: str) -> None:
        run = Run("fixed", optimizer=optimizer)
        start = run.copy()
        for number in range(1, 13):
            assert run.update(number) is None
            for name, mask in run.first.items():
                assert (run.weights[name][~mask] == 0).all()
                state = run.optimizer.state[run.weights[name]]
                moments = [value for value in state.values() if isinstance(value, Tensor) and value.ndim]
                assert moments
                assert all((moment[~mask] == 0).all() for moment in moments)
        assert run.zeros() == COUNT
        assert any((run.weights[name] != weight).any() for name, weight in start.items())
        assert run.pruner.history == []
        assert all(torch.equal(run.pruner.masks[name], mask) for name, mask in run.first.items())

    def test_moments_from_before_cannot_move_them(self) -> None:
        run = Run("fixed")
        for weight in run.weights.values():  # as after a resume from a dense run
            weight.grad = torch.ones_like(weight)
        run.optimizer.step()
        run.pruner.after_step(1)
        for number in range(2, 5):
            run.update(number)
            assert run.zeros() == COUNT

    def test_parameters_without_a_gradient(self) -> None:
        run = Run("fixed")
        run.model[0].requires_grad_(False)
        run.update(1)
        assert run.zeros() == COUNT


class TestDense:
    def test_nothing_is_touched(self) -> None:
        run = Run("dense")
        torch.manual_seed(0)
        free = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        optimizer = OPTIMIZERS["AdamW"](free.parameters())
        for number in range(1, 11):
            assert run.update(number) is None
            optimizer.zero_grad()
            (free(run.input) - run.target).square().mean().backward()
            optimizer.step()
        assert all(torch.equal(run.weights[name], weight) for name, weight in free.named_parameters())
        assert run.pruner.masks == {}
        with run.pruner.pruned_view() as (masks, _):
            assert masks == {}
            assert all(torch.equal(run.weights[name], weight) for name, weight in free.named_parameters())


class TestPrunedView:
    def test_exactly_k_are_zero_inside_and_all_is_as_it_was_after(self) -> None:
        run = Run("parp", interval=100)
        for number in range(1, 5):
            run.update(number)
        before, masks = run.copy(), dict(run.pruner.masks)
        with run.pruner.pruned_view() as (view, _):
            assert run.zeros() == COUNT == count_pruned(view)
            assert all((run.weights[name][~mask] == 0).all() for name, mask in view.items())
        self.assert_untouched(run, before, masks)

    def test_after_an_error_too(self) -> None:
        run = Run("parp", interval=100)
        run.update(1)
        with torch.no_grad():
            run.weights["0.bias"][:3] = torch.tensor([-0.0, 1e-42, -1e-42])
        before, masks = run.copy(), dict(run.pruner.masks)
        with pytest.raises(KeyboardInterrupt), run.pruner.pruned_view():
            raise KeyboardInterrupt
        self.assert_untouched(run, before, masks)

    def test_it_is_what_a_repruning_would_leave(self) -> None:
        run = Run("parp", interval=1)
        run.update(1)
        before = run.pruner.masks
        with torch.no_grad():
            for weight in run.weights.values():
                weight += torch.randn(weight.shape)
        with run.pruner.pruned_view() as (view, _):
            inside = run.copy()
        run.pruner.after_step(1)
        assert all(torch.equal(run.weights[name], weight) for name, weight in inside.items())
        assert all(torch.equal(run.pruner.masks[name], mask) for name, mask in view.items())
        assert any(not torch.equal(before[name], mask) for name, mask in view.items())

    def test_under_a_fixed_mask_it_is_the_model_itself(self) -> None:
        run = Run("fixed")
        run.update(1)
        before = run.copy()
        with run.pruner.pruned_view() as (view, _):
            assert all(torch.equal(view[name], mask) for name, mask in run.first.items())
            assert all(torch.equal(run.weights[name], weight) for name, weight in before.items())

    def assert_untouched(self, run: Run, before: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
        for name, weight in before.items():
            assert torch.equal(run.weights[name].detach().view(torch.int32), weight.view(torch.int32)), name
            assert run.pruner.masks[name] is masks[name]
        assert run.pruner.history == []


METHOD = spec_of("parp").build(Settings(sparsity=0.5, schedule=Schedule(interval=1, updates=1)))


def test_masks_of_another_model_are_refused() -> None:
    with pytest.raises(MaskError, match="mask does not fit the model to fine-tune"):
        Pruner({"a": torch.ones(3)}, {"a": torch.ones(4).bool()}, method=METHOD)


def test_masks_that_leave_a_weight_out_are_refused() -> None:
    with pytest.raises(MaskError, match="mask does not fit the model to fine-tune") as caught:
        Pruner({"a": torch.ones(3), "b": torch.ones(3)}, {"a": torch.ones(3).bool()}, method=METHOD)
    assert caught.value.details == ("b: no mask",)
