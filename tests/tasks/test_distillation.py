"""What a student's loss has of a teacher, against sums by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor

from parp_cli.config import finetune
from parp_cli.tasks.distillation import Distillation


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_hand(outputs: Tensor, states: Any, targets: Tensor, others: Any, lengths: list[int]) -> list[float]:
    found = []
    for item, frames in enumerate(lengths):
        total = 0.0
        for t in range(frames):
            p, q = targets[item, t].softmax(0).double(), outputs[item, t].softmax(0).double()
            total += 0.5 * float(sum(a * torch.log(a / b) for a, b in zip(p, q, strict=True)))
            for layer, state in states.items():
                one, other = state[item, t].double(), others[layer][item, t].double()
                one, other = ((x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() for x in (one, other))
                cosine = float(one @ other / (one.norm() * other.norm()))
                total += 2.0 / len(states) * (float((one - other).abs().mean()) + 1 - cosine)
        found.append(total / frames)
    return found


@pytest.mark.parametrize("layers", [[0, 1, 2], [2]])
def test_frames_are_compared_one_by_one_and_padding_is_not(layers: list[int]) -> None:
    lengths = [5, 3]
    valid = torch.arange(5) < torch.tensor(lengths)[:, None]
    outputs, targets = numbers(2, 5, 4, seed=0), numbers(2, 5, 4, seed=1)
    states = {layer: 3 * numbers(2, 5, 8, seed=2 + layer) for layer in layers}
    others = {layer: numbers(2, 5, 8, seed=9 + layer) for layer in (0, 1, 2)}
    distillation = Distillation(teacher=None, outputs=0.5, layers=2.0)
    found = distillation.losses(outputs, states, targets, others, valid)
    assert found.tolist() == pytest.approx(by_hand(outputs, states, targets, others, lengths), rel=1e-4)
    outputs[1, 3:], states[2][1, 3:] = 1e4, torch.inf
    assert torch.equal(distillation.losses(outputs, states, targets, others, valid), found)


def test_an_equal_network_has_nothing_to_learn() -> None:
    outputs, states = numbers(2, 5, 4, seed=0), {0: numbers(2, 5, 8, seed=1)}
    valid = torch.ones(2, 5, dtype=torch.bool)
    found = Distillation(teacher=None, outputs=1.0, layers=1.0).losses(outputs, states, outputs, states, valid)
    assert found.abs().max() < 1e-6


def test_outputs_of_whole_items_and_numbers() -> None:
    valid = torch.ones(2, 5, dtype=torch.bool)
    alone = Distillation(teacher=None, outputs=1.0, layers=0.0)
    outputs, targets = torch.tensor([[0.5], [2.0]]), torch.tensor([[1.5], [2.5]])
    assert alone.losses(outputs, {}, targets, {}, valid).tolist() == [1.0, 0.25]
    classes = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[100.0, 0.0], [3.0, 3.0]])
    found = alone.losses(classes[0], {}, classes[1], {}, valid).tolist()
    assert found == pytest.approx([0.693147, 0.0], abs=1e-5)


def test_a_teacher_does_not_train() -> None:
    teacher = torch.nn.Linear(2, 2)
    made = Distillation.of(finetune.Distillation(), teacher, torch.device("cpu"))
    assert made is not None
    assert not any(parameter.requires_grad for parameter in made.teacher.parameters())
    assert Distillation.of(finetune.Distillation(), None, torch.device("cpu")) is None
