"""Wanda: the weights of one output compete by their magnitude times the norm of the input that they multiply."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from parp_cli.errors import UsageError
from parp_cli.pruning.methods.spec import Method, MethodSpec, Snapshot

if TYPE_CHECKING:
    from torch import Tensor

    from parp_cli.pruning.masks import Masks


class Wanda(Method):
    """Scores |w| · ‖x‖₂ (Sun et al. 2023, equation 1), ‖x‖₂ of one input feature over all calibration frames.

    The pre-trained network is pruned before its first update, and what is pruned stays zero. Biases multiply no input
    and are not pruned, as published. N:M keeps the N largest scores of each M (section 3).
    """

    def begin(self, snapshot: Snapshot, forward: Callable[[], None]) -> Masks:
        squares: dict[str, Tensor] = {}

        def add(name: str, _: Any, inputs: tuple[Tensor, ...]) -> None:
            frames = inputs[0].detach().flatten(0, -2).float()
            squares[name] = frames.square().sum(0) + squares.get(name, 0.0)

        hooks = [module.register_forward_pre_hook(partial(add, name)) for name, module in self.settings.modules.items()]
        try:
            forward()
        finally:
            for hook in hooks:
                hook.remove()
        if unseen := [name for name in snapshot.weights if name not in squares]:
            raise UsageError(f"wanda saw no input of {unseen[0]}", hint="leave it out with pruning.scope")
        scores = {name: weight.abs() * squares[name].sqrt() for name, weight in snapshot.weights.items()}
        return self.settings.keep_largest(scores, self.settings.sparsity)


WANDA = MethodSpec(
    name="wanda",
    description="weights of linear layers with the smallest |w|·‖x‖ of each output, by a calibration pass, stay zero",
    build=Wanda,
    reads=("sparsity",),
    starts_from="nothing",
    start_share=0.0,
    pattern="row",
    only_matrices=True,
    calibration_examples=128,
)
