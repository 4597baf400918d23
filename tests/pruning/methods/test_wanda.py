"""Wanda against its definition, on a network whose inputs are known."""

import pytest
import torch
from torch import Tensor, nn

from parp_cli.errors import UsageError
from parp_cli.pruning.methods import Schedule, Settings, spec_of
from parp_cli.pruning.patterns import Pattern
from parp_cli.pruning.pruner import Pruner

SCHEDULE = Schedule(interval=1, updates=10, final=False)


class Run:
    """Two layers, and ten sequences of 5 frames to calibrate on."""

    def __init__(self, pattern: str, sparsity: float) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        self.sequences = torch.randn(10, 1, 5, 8) * torch.arange(1.0, 9.0)
        self.weights: dict[str, Tensor] = {
            name: weight for name, weight in self.model.named_parameters() if weight.dim() == 2
        }
        modules = {name: self.model.get_submodule(name.rpartition(".")[0]) for name in self.weights}
        settings = Settings(sparsity=sparsity, schedule=SCHEDULE, pattern=Pattern.parse(pattern), modules=modules)
        self.before = {name: weight.detach().clone() for name, weight in self.weights.items()}
        masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self.weights.items()}
        self.pruner = Pruner(self.weights, masks, method=spec_of("wanda").build(settings))

    def forward(self) -> None:
        with torch.no_grad():
            for sequence in self.sequences:
                self.model(sequence)

    def inputs(self) -> dict[str, Tensor]:
        """Of each layer, (frames, features), by the unpruned weights."""
        frames = self.sequences.reshape(-1, 8)
        return {"0.weight": frames, "2.weight": torch.relu(self.model[0](frames)).detach()}


def test_of_each_output_the_smallest_products_are_pruned() -> None:
    run = Run("row", 0.5)
    inputs = run.inputs()
    run.pruner.start(run.forward)
    for name, weight in run.before.items():
        for row, kept, after in zip(weight, run.pruner.masks[name], run.weights[name], strict=True):
            scores = [abs(float(w)) * float(inputs[name][:, i].double().norm()) for i, w in enumerate(row)]
            expected = sorted(range(len(scores)), key=lambda i: scores[i])[: len(scores) // 2]
            assert sorted((~kept).nonzero().flatten().tolist()) == sorted(expected)
            assert torch.equal(after, torch.where(kept, row, 0.0))
    by_magnitude = Pattern.parse("row").masks(run.before, 0.5, {})
    assert any(not torch.equal(mask, by_magnitude[name]) for name, mask in run.pruner.masks.items()), "inputs matter"


def test_n_of_m_keeps_the_largest_products_of_each_group() -> None:
    run = Run("2:4", 0.5)
    norms = {name: frames.norm(dim=0) for name, frames in run.inputs().items()}
    run.pruner.start(run.forward)
    for name, weight in run.before.items():
        scores = (weight.abs() * norms[name]).reshape(-1, 4)
        kept = run.pruner.masks[name].reshape(-1, 4)
        assert (kept.sum(1) == 2).all()
        assert (torch.where(kept, scores, torch.inf).amin(1) >= torch.where(kept, 0.0, scores).amax(1)).all()


@pytest.mark.parametrize(("pattern", "sparsity"), [("row", 0.3), ("global", 0.3), ("tensor", 0.6), ("2x4", 0.25)])
def test_counts_are_exact(pattern: str, sparsity: float) -> None:
    run, again = Run(pattern, sparsity), Run(pattern, sparsity)
    for each in (run, again):
        each.pruner.start(each.forward)
    pruned, covered = run.pruner.counts(run.pruner.masks)
    assert covered == 8 * 16 + 16 * 4
    rows = 16 * round(8 * sparsity) + 4 * round(16 * sparsity)
    blocks = 8 * round(covered / 8 * sparsity)
    whole = round(128 * sparsity) + round(64 * sparsity) if pattern == "tensor" else round(covered * sparsity)
    assert pruned == {"row": rows, "2x4": blocks}.get(pattern, whole)
    assert all(torch.equal(mask, again.pruner.masks[name]) for name, mask in run.pruner.masks.items())


def test_nothing_is_left_on_the_network() -> None:
    run = Run("row", 0.5)
    run.pruner.start(run.forward)
    assert not any(module._forward_pre_hooks for module in run.model.modules())


def test_a_layer_without_input_is_named() -> None:
    run = Run("row", 0.5)
    with pytest.raises(UsageError, match=r"wanda saw no input of 0\.weight") as caught:
        run.pruner.start(lambda: None)
    assert "pruning.scope" in (caught.value.hint or "")
