"""Movement pruning: weights that training moves away from zero are kept, whatever their magnitude."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from parp_cli.pruning.methods.parp import Parp
from parp_cli.pruning.methods.spec import TIMES, MethodSpec, Settings, Snapshot
from parp_cli.pruning.patterns import WHOLE

if TYPE_CHECKING:
    from torch import Tensor


def in_order(scores: Tensor) -> Tensor:
    """Non-negative numbers in the order of signed scores (float32), to be ranked by magnitude.

    The bits of a float are ordered like its magnitude; negative ones are turned around, and all moved above zero. One
    bit is lost: neighbours in the last place may become equal.
    """
    import torch

    bits = (scores.detach() + 0.0).view(torch.int32)  # no negative zeros
    ordered = bits ^ (bits >> 31 & 0x7FFFFFFF)
    return ((ordered >> 1) + (1 << 30)).clamp(max=0x7F7FFFFF).view(torch.float32)


class Movement(Parp):
    """Scores S ← S - lr · w · ∂L/∂w at every update; the largest are kept (Sanh et al. 2020, section 4, hard).

    Every weight trains, as in PARP, so that pruned ones may come back. The sparsity grows cubically, as published.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(replace(settings, growth="cubic"))

    def observe(self, snapshot: Snapshot) -> None:
        for name, gradient in snapshot.gradients.items():
            change = snapshot.weights[name] * gradient * snapshot.learning_rate
            self.observed[name] = self.observed[name] - change if name in self.observed else -change

    def scores(self, snapshot: Snapshot) -> Mapping[str, Tensor]:
        return {n: in_order(self.observed[n] if n in self.observed else w * 0) for n, w in snapshot.weights.items()}


MOVEMENT = MethodSpec(
    name="movement",
    description="as parp-p, keeping the weights that training moved away from zero most",
    build=Movement,
    reads=("sparsity", "initial", "found_on", *TIMES, "final", "start_sparsity"),
    start_share=0.0,
    patterns=(*WHOLE, "row"),
)
