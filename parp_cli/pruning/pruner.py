"""PARP's loop around a training loop: what happens to the weights after each update.

dense    nothing.
fixed    pruned weights stay zero: their gradients are zeroed before the optimizer sees them, so that moments
         stay zero too, and so do the weights themselves.
parp     every weight trains; every `interval` updates, and at the end, a new global magnitude mask at the same
         sparsity is laid over them (PARP, section 3, steps 2 and 3).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from parp_cli.errors import MaskError
from parp_cli.pruning.masks import apply_, check_fit, revived_and_dropped
from parp_cli.pruning.select import magnitude_masks, prune_count

Mode = Literal["parp", "fixed", "dense"]


@dataclass(frozen=True, kw_only=True)
class Repruning:
    """One re-pruning: after which update, and how many weights it revived and dropped."""

    update: int
    revived: int
    dropped: int


class Pruner:
    """Keeps the mask of the prunable weights through one training run.

    Args:
        weights: the prunable parameters by name; changed in place.
        masks: where the run starts, by the same names; ignored when dense.
        mode: see the module.
        sparsity: share to prune at each re-pruning, in [0, 1).
        interval: updates between re-prunings.

    Attributes:
        masks: of the last pruning, on the weights' device; empty when dense.
        history: all re-prunings so far.

    Raises:
        MaskError: the masks do not fit the weights.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], *, mode: Mode, sparsity: float, interval: int
    ) -> None:
        self.mode = mode
        self.history: list[Repruning] = []
        self._weights = dict(weights)
        self._count = prune_count(sparsity, sum(weight.numel() for weight in weights.values()))
        self._interval = interval
        self.masks: dict[str, Tensor] = {}
        if mode != "dense":
            check_fit(masks, self._weights, what="the model to fine-tune")
            if unmasked := [f"{name}: no mask" for name in self._weights if name not in masks]:
                raise MaskError("mask does not fit the model to fine-tune", details=unmasked[:10])
            self.masks = {name: masks[name].to(self._weights[name].device) for name in self._weights}

    def start(self) -> None:
        """Prune: set the weights outside the first mask to zero."""
        apply_(self.masks, self._weights)

    def mask_gradients(self) -> None:
        """Between the backward pass and the optimizer's step."""
        if self.mode == "fixed":
            # Weights that are frozen for now have no gradient.
            gradients = {name: weight.grad for name, weight in self._weights.items() if weight.grad is not None}
            apply_({name: self.masks[name] for name in gradients}, gradients)

    def after_update(self, update: int) -> Repruning | None:
        """After the optimizer's step; `update` counts from 1. Re-prunes when it is time, and says so."""
        if self.mode == "fixed":
            apply_(self.masks, self._weights)  # weight decay and the like must not move them either
        if self.mode == "parp" and update % self._interval == 0:
            return self.reprune(update)
        return None

    def reprune(self, update: int) -> Repruning:
        """Take a new mask from the current weights and set what it prunes to zero."""
        before, self.masks = self.masks, magnitude_masks(self._weights, self._count)
        apply_(self.masks, self._weights)
        revived, dropped = revived_and_dropped(before, self.masks)
        self.history.append(Repruning(update=update, revived=revived, dropped=dropped))
        return self.history[-1]

    @contextmanager
    def pruned_view(self) -> Iterator[dict[str, Tensor]]:
        """The weights as they would be shipped now, pruned to the target, and their masks; afterwards all is as it was.

        Between two re-prunings the weights of a PARP run are dense: to validate or save those would be to judge a
        model that nobody will have.
        """
        if self.mode != "parp":
            yield self.masks
            return
        masks = magnitude_masks(self._weights, self._count)
        with torch.no_grad():
            removed = {name: self._weights[name][~mask] for name, mask in masks.items()}
        apply_(masks, self._weights)
        try:
            yield masks
        finally:
            with torch.no_grad():
                for name, mask in masks.items():
                    self._weights[name][~mask] = removed[name]
