"""What is left of a network without the groups that its masks have emptied, whatever its kind.

A group (an attention head, a feed-forward unit) is empty where what leads out of it is pruned, whatever comes in; or
where what leads into it is (a head's values, a unit's row): then it gives a constant, made of its biases.

G groups in a layer, D features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parp_cli.errors import CheckpointError

Part = tuple[int, int]
"""Of a tensor: the dimension that groups lie along, and how often all follow one another there."""


@dataclass(frozen=True)
class Small:
    """An encoder without what was empty.

    Attributes:
        architecture: of what is left, with sizes that may differ from layer to layer.
        masks: of the weights that are left; empty where they prune nothing.
        heads, units, channels, blocks: how many there were and are; of blocks (attention, feed-forward) those with any
            of the first two.
    """

    architecture: Any
    weights: dict[str, Tensor]
    masks: dict[str, Tensor]
    heads: tuple[int, int]
    units: tuple[int, int]
    channels: tuple[int, int]
    blocks: tuple[int, int]

    @property
    def removed(self) -> bool:
        """Whether anything was."""
        return any(before > after for before, after in (self.heads, self.units, self.channels))


def uneven_layers(name: str, sizes: Mapping[str, Any]) -> CheckpointError:
    """The refusal to write what is left of an encoder for other projects."""
    return CheckpointError(
        f"{name} has layers of sizes that other projects' models cannot have",
        details=[f"{key}: {size}" for key, size in sizes.items()],
        hint="export what it was made from, which `parp inspect` names: what was removed is zero there; or export "
        "this one with --to onnx",
    )


def kept_parts(name: str, part: Part, count: int, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Tensor:
    """Whether any weight is kept of the part that each group (G,) has of a tensor; of packed ones, of the last."""
    mask = masks.get(name, torch.ones_like(weights[name], dtype=torch.bool))
    return _last(mask, part, count).any(1)


def constants(
    out: str,
    source: tuple[str, Part],
    groups: Tensor,
    weights: Mapping[str, Tensor],
    activation: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """What groups (G,) whose input is pruned add to the output (D,), in float64.

    Args:
        out: the matrix (D, …) that leads out of all groups.
        source: the bias without which a group gives nothing, and the part that groups have of it.
        groups: True for those that are meant.
        activation: what is applied to the bias; None where it passes as it is, as the weights of a softmax sum to one.
    """
    name, part = source
    given = _last(weights[name].double(), part, len(groups))
    given = given if activation is None else activation(given)
    return weights[out].double() @ torch.where(groups[:, None], given, 0.0).flatten()


def selected(tensor: Tensor, part: Part, count: int, left: Tensor) -> Tensor:
    """The groups of a tensor with these numbers."""
    dimension, repeats = part
    groups = split(tensor, dimension, repeats, count, -1).index_select(dimension + 1, left)
    return groups.flatten(dimension, dimension + 2).contiguous()


def split(tensor: Tensor, dimension: int, *sizes: int) -> Tensor:
    """One dimension as several, of which one may be -1."""
    return tensor.reshape(*tensor.shape[:dimension], *sizes, *tensor.shape[dimension + 1 :])


def _last(tensor: Tensor, part: Part, count: int) -> Tensor:
    """The entries (G, …) of each group, of packed projections those of the last (the values')."""
    dimension, repeats = part
    groups = split(tensor, dimension, repeats, count, -1)
    return groups.movedim((dimension, dimension + 1), (0, 1))[-1].flatten(1)
