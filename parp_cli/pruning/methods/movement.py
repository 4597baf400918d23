"""Movement pruning: weights that training moves away from zero are kept, whatever their magnitude."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from parp_cli.pruning.limits import WHOLE
from parp_cli.pruning.methods.parp import Parp
from parp_cli.pruning.methods.spec import TIMES, MethodSpec, Settings, Snapshot

if TYPE_CHECKING:
    from torch import Tensor


class Movement(Parp):
    """Scores S ← S - lr · w · ∂L/∂w at every update; the largest are kept (Sanh et al. 2020, section 4, hard).

    Every weight trains, as in PARP, so that pruned ones may come back. The sparsity grows cubically, as published.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(replace(settings, growth="cubic"))
        self._scores: dict[str, Tensor] = {}

    def observe(self, snapshot: Snapshot) -> None:
        for name, gradient in snapshot.gradients.items():
            change = snapshot.weights[name] * gradient * snapshot.learning_rate
            self._scores[name] = self._scores[name] - change if name in self._scores else -change

    def scores(self, snapshot: Snapshot) -> Mapping[str, Tensor]:
        from parp_cli.pruning.scores import in_order

        return {n: in_order(self._scores[n] if n in self._scores else w * 0) for n, w in snapshot.weights.items()}

    def state(self) -> Mapping[str, Mapping[str, Tensor]]:
        return {"movement": self._scores}

    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._scores = dict(state.get("movement", {}))


MOVEMENT = MethodSpec(
    name="movement",
    description="as parp-p, keeping the weights that training moved away from zero most",
    build=Movement,
    reads=("sparsity", "initial", *TIMES, "final", "start_sparsity"),
    start_share=0.0,
    patterns=(*WHOLE, "row"),
)
