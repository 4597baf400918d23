"""What weights are ranked by, where it is not their own magnitudes."""

from collections.abc import Mapping

import torch
from torch import Tensor


def random_scores(shapes: Mapping[str, tuple[int, ...]], *, seed: int) -> dict[str, Tensor]:
    """Uniform random numbers in [0, 1), float32: to prune at random, in whatever pattern."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}
