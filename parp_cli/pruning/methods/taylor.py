"""Taylor: whole units, output rows with their biases, are pruned by what the loss would change without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from parp_cli.pruning.methods.spec import TIMES, Method, MethodSpec, Snapshot
from parp_cli.pruning.patterns import WHOLE

if TYPE_CHECKING:
    from parp_cli.pruning.masks import Masks


class Taylor(Method):
    """Scores (Σ w · ∂L/∂w)² of a unit, summed over updates (Molchanov et al. 2019, equation 8 for a set of weights).

    The lowest are pruned for good: so many units that their weights come nearest to the target, exactly as recorded.
    """

    def observe(self, snapshot: Snapshot) -> None:
        from parp_cli.pruning.units import unit_sums

        for unit, change in unit_sums({n: snapshot.weights[n] * g for n, g in snapshot.gradients.items()}).items():
            self.observed[unit] = change.square() + self.observed.get(unit, 0.0)

    def masks(self, snapshot: Snapshot, sparsity: float | None = None) -> Masks:
        from parp_cli.pruning.units import keep_units

        settings = self.settings
        rivals = settings.pattern.rivals(snapshot.masks, settings.layers)
        share = settings.sparsity_after(snapshot.update) if sparsity is None else sparsity
        return keep_units(self.observed, snapshot.masks, share, rivals=rivals, group=settings.group)

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
    patterns=WHOLE,
)
