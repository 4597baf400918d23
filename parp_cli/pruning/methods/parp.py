"""PARP and PARP-P: every weight trains, and masks are chosen again from the magnitudes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from parp_cli.pruning.methods.spec import TIMES, Method, MethodSpec, Settings, Snapshot
from parp_cli.pruning.patterns import GROWING

if TYPE_CHECKING:
    from torch import Tensor

    from parp_cli.pruning.masks import Masks


class Parp(Method):
    """Adjust and re-prune (PARP, section 3, steps 2 and 3); the sparsity grows where the settings let it (PARP-P).

    Where the schedule has no final re-pruning, the masks stay fixed after the last one, so that the result is sparse.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._last = max(settings.schedule.times, default=0)

    def adjusts(self, update: int) -> bool:
        return self.settings.schedule.final or update < self._last

    def scores(self, snapshot: Snapshot) -> Mapping[str, Tensor]:
        """What weights are ranked by, as magnitudes."""
        return snapshot.weights

    def masks(self, snapshot: Snapshot) -> Masks:
        return self.settings.keep_largest(self.scores(snapshot), self.settings.sparsity_after(snapshot.update))

    def final_masks(self, snapshot: Snapshot) -> Masks | None:
        if not self.adjusts(snapshot.update):
            return None
        return self.settings.keep_largest(self.scores(snapshot), self.settings.sparsity)


_READS = ("sparsity", "initial", "found_on", *TIMES, "final")

PARP = MethodSpec(
    name="parp", description="pruned weights train too, and are pruned again at intervals", build=Parp, reads=_READS
)
PARP_P = MethodSpec(
    name="parp-p",
    description="as parp, while the sparsity grows",
    build=Parp,
    reads=(*_READS, "start_sparsity", "growth"),
    start_share=0.5,
    patterns=GROWING,
)
