"""RigL: in every tensor, drop the smallest kept weights and grow as many where gradients are largest."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from parp_cli.pruning.methods.spec import TIMES, Method, MethodSpec, Snapshot
from parp_cli.pruning.patterns import WHOLE

if TYPE_CHECKING:
    from torch import Tensor

    from parp_cli.pruning.masks import Masks


class RigL(Method):
    """Swaps weights in every tensor, whose sparsity stays (Evci et al. 2020, section 3).

    The share of kept weights that is swapped falls as drop_fraction / 2 · (1 + cos(π · update / end)). Weights that
    come back start at zero; one that has just been dropped may be among those that grow, and then keeps its value.
    Without an `end`, swapping stops after three quarters of the run, as published, and there is none at the end: what
    has just grown would not have learned anything.
    """

    def swapped(self, kept: int, update: int) -> int:
        """How many of a tensor's kept weights are dropped, and as many grown, after this update."""
        passed = min(1.0, update / self.settings.schedule.last)
        return round(self.settings.drop_fraction / 2 * (1 + math.cos(math.pi * passed)) * kept)

    def observe(self, snapshot: Snapshot) -> None:
        if self.settings.schedule.due(snapshot.update):
            self.observed = {name: gradient.clone() for name, gradient in snapshot.gradients.items()}

    def masks(self, snapshot: Snapshot) -> Masks:
        masks = {name: self._swap(name, mask, snapshot) for name, mask in snapshot.masks.items()}
        self.observed = {}
        return masks

    def _swap(self, name: str, mask: Tensor, snapshot: Snapshot) -> Tensor:
        if name not in self.observed:  # frozen for now, or the update was skipped
            return mask
        kept, size = self._count(mask), self._count(mask | ~mask)
        count = min(self.swapped(kept, snapshot.update), size - kept)
        left = mask & self._largest(snapshot.weights[name].detach(), kept - count, mask)
        return left | self._largest(self.observed[name], count, ~left)

    def _count(self, mask: Tensor) -> int:
        """How many entries are True, in all processes."""
        from parp_cli.pruning.sharded import from_all_ranks

        return sum(from_all_ranks(int(mask.count_nonzero()), self.settings.group)[0])

    def _largest(self, scores: Tensor, count: int, among: Tensor) -> Tensor:
        """The `count` entries of largest magnitude where `among` is True, exactly."""
        from parp_cli.pruning.select import magnitude_masks

        # What is no candidate ranks above them all, so the smallest to be pruned are candidates.
        ranked = {"scores": scores.masked_fill(~among, math.inf)}
        return magnitude_masks(ranked, self._count(among) - count, group=self.settings.group)["scores"] & among


RIGL = MethodSpec(
    name="rigl",
    description="pruned weights stay zero, but a share of the mask is swapped at intervals",
    build=RigL,
    reads=("sparsity", "initial", "found_on", *TIMES, "drop_fraction"),
    end_share=0.75,
    patterns=WHOLE,
)
