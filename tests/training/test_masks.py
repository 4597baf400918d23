from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from parp_cli.pruning.masks import count_pruned
from parp_cli.pruning.select import magnitude_masks
from parp_cli.training.masks import first_scores
from tests.tiny import TINY

SHAPES: dict[str, tuple[int, ...]] = {"a": (30, 20), "scalar": (), "b": (400,)}


def random_scores(shapes: dict[str, tuple[int, ...]], *, seed: int) -> Mapping[str, Tensor]:
    return first_scores("random", {name: torch.zeros(shape) for name, shape in shapes.items()}, TINY, seed=seed)


def random_masks(shapes: dict[str, tuple[int, ...]], k: int, *, seed: int) -> dict[str, Tensor]:
    return magnitude_masks(random_scores(shapes, seed=seed), k)


@pytest.mark.parametrize("k", [0, 1, 500, 1_001])
def test_exactly_k(k: int) -> None:
    masks = random_masks(SHAPES, k, seed=0)
    assert count_pruned(masks) == k
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == SHAPES


def test_the_seed_decides_and_nothing_else() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one, same, other = (random_scores(SHAPES, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in SHAPES)
    assert not torch.equal(one["a"], other["a"])


def test_every_weight_alike() -> None:
    draws = 300
    pruned = sum((~random_masks({"a": (100,)}, 30, seed=seed)["a"]).int() for seed in range(draws))
    deviation = (draws * 0.3 * 0.7) ** 0.5
    assert (pruned - draws * 0.3).abs().max() < 4.5 * deviation
    assert (pruned - draws * 0.3).float().std() > 0.5 * deviation


def test_it_does_not_go_by_magnitude() -> None:
    weights = {"a": torch.arange(1_000.0)}
    by_size, at_random = magnitude_masks(weights, 500)["a"], random_masks({"a": (1_000,)}, 500, seed=0)["a"]
    assert 400 < int((by_size == at_random).sum()) < 600
