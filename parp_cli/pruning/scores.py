"""What weights are ranked by, where it is not their own magnitudes."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from parp_cli.pruning.methods.spec import FirstMask


def random_scores(shapes: Mapping[str, tuple[int, ...]], *, seed: int) -> dict[str, Tensor]:
    """Uniform random numbers in [0, 1), float32: to prune at random, in whatever pattern."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def first_scores(
    chosen_by: FirstMask | str,
    weights: Mapping[str, Tensor],
    *,
    seed: int,
    untrained: Callable[[int], Mapping[str, Tensor]],
) -> Mapping[str, Tensor]:
    """What a first mask ranks the prunable weights by, by their names.

    Args:
        chosen_by: a `FirstMask`.
        weights: the prunable ones.
        seed: of the random scores, or of the untrained network.
        untrained: the weights of a network of the same architecture that has learnt nothing, for a seed.
    """
    if chosen_by == "random":
        return random_scores({name: tuple(weight.shape) for name, weight in weights.items()}, seed=seed)
    if chosen_by == "random-weights":
        fresh = untrained(seed)
        return {name: fresh[name] for name in weights}
    return weights


def in_order(scores: Tensor) -> Tensor:
    """Non-negative numbers in the order of signed scores (float32), to be ranked by magnitude.

    The bits of a float are ordered like its magnitude; negative ones are turned around, and all moved above zero. One
    bit is lost: neighbours in the last place may become equal.
    """
    bits = (scores.detach() + 0.0).view(torch.int32)  # no negative zeros
    ordered = bits ^ (bits >> 31 & 0x7FFFFFFF)
    return ((ordered >> 1) + (1 << 30)).clamp(max=0x7F7FFFFF).view(torch.float32)
