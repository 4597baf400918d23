"""Taylor: whole units, output rows or structures, are pruned by what the loss would change without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parp_cli.pruning.methods.spec import TIMES, Method, MethodSpec, Snapshot
from parp_cli.pruning.patterns import STRUCTURES, WHOLE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from parp_cli.pruning.masks import Masks
    from parp_cli.pruning.structures import Structure


class Taylor(Method):
    """Scores (Σ w · ∂L/∂w)² of a unit, summed over updates (Molchanov et al. 2019, equation 8 for a set of weights).

    The lowest are pruned for good: so many units that their weights come nearest to the target, exactly as recorded.
    Units are output rows with their biases; with a pattern of structures they are these, and since a head has many
    times the weights of a feed-forward unit, the change is taken per weight.
    """

    observes_whole = True

    @property
    def _structures(self) -> Sequence[Structure]:
        """Those of the pattern; none for rows."""
        return self.settings.pattern.chosen(self.settings.structures)

    def _units(self, tensors: Mapping[str, Tensor]) -> Sequence[Structure]:
        from parp_cli.pruning.structures import rows_of

        return self._structures or rows_of(tensors, self.settings.group)

    def observe(self, snapshot: Snapshot) -> None:
        from parp_cli.pruning.structures import group_sums

        if not snapshot.gradients:  # frozen for now
            return
        changes = {name: snapshot.weights[name] * g for name, g in snapshot.gradients.items()}
        sums = group_sums(changes, self._units(snapshot.weights), group=self.settings.group)
        for unit, change in sums.items():
            self.observed[unit] = change.square() + self.observed.get(unit, 0.0)

    def masks(self, snapshot: Snapshot, sparsity: float | None = None) -> Masks:
        import torch

        from parp_cli.pruning.structures import group_sizes, group_sums, keep_groups

        settings, masks, units = self.settings, snapshot.masks, self._units(snapshot.masks)
        sizes = group_sizes(masks, units, settings.group)
        scores = {}
        for unit, kept in group_sums(masks, units, group=settings.group).items():
            score = self.observed.get(unit, torch.zeros(len(kept))) / (sizes[unit] ** 2 if self._structures else 1)
            scores[unit] = torch.where(kept > 0, score, -1.0)
        share = settings.sparsity_after(snapshot.update) if sparsity is None else sparsity
        rivals = settings.pattern.rivals(scores, settings.layers)
        return keep_groups(scores, masks, units, share, rivals=rivals, group=settings.group)

    def final_masks(self, snapshot: Snapshot) -> Masks | None:
        over = snapshot.update >= max(self.settings.schedule.times, default=0)
        return None if over else self.masks(snapshot, self.settings.sparsity)


TAYLOR = MethodSpec(
    name="taylor",
    description="units (output rows) whose removal changes the loss least are pruned at intervals, for good",
    build=Taylor,
    reads=("sparsity", *TIMES),
    starts_from="nothing",
    start_share=0.0,
    end_share=0.75,
    patterns=(*WHOLE, *STRUCTURES),
)
