"""The masks of a network while it trains: what is done to weights, gradients and moments around each update."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from parp_cli.errors import MaskError
from parp_cli.pruning.masks import Masks, apply_, check_fit, count_all, count_pruned, revived_and_dropped
from parp_cli.pruning.methods import Method, Moment
from parp_cli.pruning.sharded import full_tensor_like, local_shard, shard_like


@dataclass(frozen=True, kw_only=True)
class Repruning:
    """One re-pruning.

    Attributes:
        update: after which one it was.
        sparsity: of all masks together, afterwards.
        revived, dropped: how many weights came back, and how many were pruned.
        layers: both, by the label of the layer.
    """

    update: int
    sparsity: float
    revived: int
    dropped: int
    layers: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Repruning":
        """Read back what `dataclasses.asdict` made of one, by way of JSON."""
        return cls(**{**values, "layers": {label: tuple(counts) for label, counts in values["layers"].items()}})


class Pruner:
    """Keeps the masks of the prunable weights through one training run.

    Args:
        weights: the prunable parameters by name; changed in place.
        masks: where the run starts, by the same names; empty for a dense run.
        method: when masks change, and how.
        layers: a label for each name, by which re-prunings are recorded.
        group: processes over which the weights are sharded, if they are (FSDP2's parameters); None where they are
            whole.

    Attributes:
        weights: as given.
        masks: of the last pruning, on the weights' device; empty when dense. Of the rows that this process holds, where
            weights are sharded.
        history: all re-prunings so far.

    Raises:
        MaskError: the masks do not fit the weights.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        masks: Masks,
        *,
        method: Method,
        layers: Mapping[str, str] | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        self.history: list[Repruning] = []
        self.update = 0
        self._method = method
        self.weights = dict(weights)
        self._layers = layers or {}
        self._group = group
        self._gradients: dict[str, Tensor] = {}
        self.masks: dict[str, Tensor] = {}
        if masks:
            check_fit(masks, self.weights, what="the model to fine-tune")
            if unmasked := [f"{name}: no mask" for name in self.weights if name not in masks]:
                raise MaskError("mask does not fit the model to fine-tune", details=unmasked[:10])
            self.take(masks)

    def take(self, masks: Masks) -> None:
        """Go on with these masks, of whole weights, and leave the weights as they are."""
        self.masks = {name: local_shard(shard_like(masks[name], self.weights[name])) for name in masks}

    def whole(self, masks: Masks) -> dict[str, Tensor]:
        """Masks such as this process has, of all rows, on the CPU. All processes must ask at once."""
        return {name: full_tensor_like(mask, self.weights[name]) for name, mask in masks.items()}

    def counts(self, masks: Masks) -> tuple[int, int]:
        """How many weights such masks prune, and how many they cover, in all processes."""
        pruned, covered = self._sum([count_pruned(masks), count_all(masks)])
        return pruned, covered

    def start(self) -> None:
        """Prune: set the weights outside the first mask to zero."""
        apply_(self.masks, self._rows())

    def before_step(self, update: int) -> None:
        """Between the backward pass and the optimizer's step of the update with this number, from 1.

        Where pruned weights are to stay zero their gradients are zeroed, so that their moments stay zero too.
        """
        # Weights that are frozen for now have no gradient.
        gradients = {name: local_shard(w.grad) for name, w in self.weights.items() if w.grad is not None}
        if self._method.scores_gradients and self._method.reprunes(update):
            self._gradients = {name: gradient.clone() for name, gradient in gradients.items()}
        if self.masks and not self._method.adjusts(self.update):
            apply_({name: self.masks[name] for name in gradients}, gradients)

    def after_step(self, update: int, optimizer: torch.optim.Optimizer | None = None) -> Repruning | None:
        """After the optimizer's step. Re-prunes when it is time, and says so.

        Args:
            update: the number of the update that was done, from 1.
            optimizer: forgets its moments of weights that are pruned from now on and are to stay zero.
        """
        self.update = update
        if not self.masks:
            return None
        if not self._method.adjusts(update - 1):
            apply_(self.masks, self._rows())  # weight decay and the like must not move them either
        if not self._method.reprunes(update):
            return None
        masks = dict(self._method.masks(self._moment()))
        self.history.append(self.compare(masks))
        self.masks, self._gradients = masks, {}
        apply_(self.masks, self._rows())
        if optimizer is not None and not self._method.adjusts(update):
            self._forget_moments(optimizer)
        return self.history[-1]

    @contextmanager
    def pruned_view(self) -> Iterator[Masks]:
        """The weights as they would be shipped now, pruned to the target, and their masks; afterwards all is as it was.

        Between two re-prunings the weights of a PARP run are dense: to validate or save those would be to judge a
        model that nobody will have.
        """
        masks = self._method.final_masks(self._moment()) if self.masks else self.masks
        if masks is self.masks:
            yield self.masks
            return
        unpruned = {name: rows.clone() for name, rows in self._rows().items()}
        apply_(masks, self._rows())
        try:
            yield masks
        finally:
            for name, rows in self._rows().items():
                rows.copy_(unpruned[name])

    def _rows(self) -> dict[str, Tensor]:
        """What this process holds of the weights, to be changed in place."""
        return {name: local_shard(weight) for name, weight in self.weights.items()}

    def _sum(self, numbers: list[int]) -> list[int]:
        if self._group is None:
            return numbers
        device = next(iter(self.weights.values())).device
        summed = torch.tensor(numbers, dtype=torch.int64, device=device)
        distributed.all_reduce(summed, group=self._group)
        return [int(number) for number in summed.tolist()]

    def _moment(self) -> Moment:
        return Moment(update=self.update, weights=self._rows(), gradients=self._gradients, masks=self.masks)

    def compare(self, masks: Masks) -> Repruning:
        """What a re-pruning from the current masks to these does, after the last update."""
        labels = list(dict.fromkeys(self._layers.get(name, "other") for name in masks))
        numbers = [0, 0] * len(labels)  # revived and dropped of each
        for name, after in masks.items():
            place = 2 * labels.index(self._layers.get(name, "other"))
            revived, dropped = revived_and_dropped({name: self.masks[name]}, {name: after})
            numbers[place] += revived
            numbers[place + 1] += dropped
        numbers = self._sum(numbers)
        layers = {label: (numbers[2 * i], numbers[2 * i + 1]) for i, label in enumerate(labels)}
        pruned, covered = self.counts(masks)
        return Repruning(
            update=self.update,
            sparsity=pruned / covered,
            revived=sum(revived for revived, _ in layers.values()),
            dropped=sum(dropped for _, dropped in layers.values()),
            layers=layers,
        )

    def _forget_moments(self, optimizer: torch.optim.Optimizer) -> None:
        for name, mask in self.masks.items():
            for moment in optimizer.state.get(self.weights[name], {}).values():
                if isinstance(moment, Tensor) and moment.shape == self.weights[name].shape:
                    local_shard(moment).masked_fill_(~mask, 0.0)
