from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parp_cli.errors import MaskError
from parp_cli.pruning.masks import count_pruned
from parp_cli.pruning.pruner import Mode, Pruner, Repruning
from parp_cli.pruning.select import magnitude_masks, random_masks

SPARSITY, COUNT = 0.6, 86
"""round(0.6 · 144) of the two layers' weights and biases."""

Optimizers = Callable[[Any], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizers] = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.05, weight_decay=0.1),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
}


class Run:
    """A small network learning a fixed target, with a pruner at its side as a training loop has it."""

    def __init__(self, mode: Mode, *, optimizer: str = "AdamW", interval: int = 5, first: str = "magnitude") -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
        self.weights: dict[str, Tensor] = dict(self.model.named_parameters())
        if first == "magnitude":
            masks = magnitude_masks(self.weights, COUNT)
        else:
            masks = random_masks({n: tuple(w.shape) for n, w in self.weights.items()}, COUNT, seed=0)
        self.first = masks
        self.pruner = Pruner(
            self.weights, {} if mode == "dense" else masks, mode=mode, sparsity=SPARSITY, interval=interval
        )
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.input, self.target = torch.randn(16, 8), torch.randn(16, 8)
        self.pruner.start()

    def update(self, number: int) -> Repruning | None:
        self.optimizer.zero_grad()
        (self.model(self.input) - self.target).square().mean().backward()
        self.pruner.mask_gradients()
        self.optimizer.step()
        return self.pruner.after_update(number)

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
        run = Run("parp", interval=100)
        for number in range(1, 8):
            run.update(number)
        before, weights = run.pruner.masks, run.copy()
        repruning = run.pruner.reprune(7)
        expected = magnitude_masks(weights, COUNT)
        assert all(torch.equal(run.pruner.masks[name], mask) for name, mask in expected.items())
        for name, mask in expected.items():
            assert torch.equal(run.weights[name], torch.where(mask, weights[name], 0.0))
        revived = sum(int((~before[n] & expected[n]).sum()) for n in expected)
        assert repruning == Repruning(update=7, revived=revived, dropped=revived)  # as many go as come
        assert revived > 0
        assert run.pruner.history == [repruning]

    def test_from_a_random_mask_the_first_repruning_revives_what_the_sizes_say(self) -> None:
        run = Run("parp", interval=1, first="random")
        assert all(torch.equal(run.pruner.masks[name], mask) for name, mask in run.first.items())
        repruning = run.update(1)
        assert repruning is not None
        assert run.zeros() == COUNT

    def test_the_last_repruning_leaves_a_sparse_model_whatever_the_interval(self) -> None:
        run = Run("parp", interval=7)
        for number in range(1, 11):
            run.update(number)
        assert run.zeros() < COUNT
        run.pruner.reprune(10)
        assert run.zeros() == COUNT
        again = run.copy()
        assert run.pruner.reprune(10) == Repruning(update=10, revived=0, dropped=0)
        assert all(torch.equal(run.weights[name], weight) for name, weight in again.items())


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
        run.pruner.after_update(1)
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
        with run.pruner.pruned_view() as masks:
            assert masks == {}
            assert all(torch.equal(run.weights[name], weight) for name, weight in free.named_parameters())


class TestPrunedView:
    def test_exactly_k_are_zero_inside_and_all_is_as_it_was_after(self) -> None:
        run = Run("parp", interval=100)
        for number in range(1, 5):
            run.update(number)
        before, masks = run.copy(), dict(run.pruner.masks)
        with run.pruner.pruned_view() as view:
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
        run = Run("parp", interval=100)
        run.update(1)
        with run.pruner.pruned_view() as view:
            inside = run.copy()
        run.pruner.reprune(1)
        assert all(torch.equal(run.weights[name], weight) for name, weight in inside.items())
        assert all(torch.equal(run.pruner.masks[name], mask) for name, mask in view.items())

    def test_under_a_fixed_mask_it_is_the_model_itself(self) -> None:
        run = Run("fixed")
        run.update(1)
        before = run.copy()
        with run.pruner.pruned_view() as view:
            assert all(torch.equal(view[name], mask) for name, mask in run.first.items())
            assert all(torch.equal(run.weights[name], weight) for name, weight in before.items())

    def assert_untouched(self, run: Run, before: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
        for name, weight in before.items():
            assert torch.equal(run.weights[name].detach().view(torch.int32), weight.view(torch.int32)), name
            assert run.pruner.masks[name] is masks[name]
        assert run.pruner.history == []


@pytest.mark.parametrize("mode", ["parp", "fixed"])
def test_masks_of_another_model_are_refused(mode: Mode) -> None:
    with pytest.raises(MaskError, match="mask does not fit the model to fine-tune"):
        Pruner({"a": torch.ones(3)}, {"a": torch.ones(4).bool()}, mode=mode, sparsity=0.5, interval=1)


@pytest.mark.parametrize("mode", ["parp", "fixed"])
def test_masks_that_leave_a_weight_out_are_refused(mode: Mode) -> None:
    with pytest.raises(MaskError, match="mask does not fit the model to fine-tune") as caught:
        Pruner(
            {"a": torch.ones(3), "b": torch.ones(3)}, {"a": torch.ones(3).bool()}, mode=mode, sparsity=0.5, interval=1
        )
    assert caught.value.details == ("b: no mask",)
