"""What spies on training runs note down; `conftest.py` has the spies."""

from dataclasses import dataclass

from torch import Tensor

from parp_cli.pruning.pruner import Repruning


@dataclass(frozen=True)
class Beginning:
    """A training run before its first update."""

    name: str
    weights: dict[str, Tensor]
    masks: dict[str, Tensor]


@dataclass(frozen=True)
class Change:
    """A re-pruning with what led to it."""

    record: Repruning
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]
    moments: dict[str, list[Tensor]]
