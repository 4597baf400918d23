"""The masks of a network while it trains: what is done to weights, gradients and the optimizer at each update."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from parp_cli.errors import MaskError
from parp_cli.pruning.masks import Masks, apply_, check_fit, count_all, count_pruned, revived_and_dropped
from parp_cli.pruning.methods import Method, Snapshot
from parp_cli.pruning.sharded import from_all_ranks, full_tensor_like, joined, local_shard, shard_like
from parp_cli.pruning.structures import closed


@dataclass(frozen=True, kw_only=True)
class Repruning:
    """One re-pruning, after an update: the sparsity of all masks together, how many weights came back (revived) and
    how many were pruned (dropped), and both by the label of the layer."""

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

    Raises MaskError where the masks do not fit the weights.

    Attributes:
        weights: the prunable parameters by name; changed in place. Where they are sharded (FSDP2), the settings of the
            method have the group.
        masks: of the last pruning, at first those given, on the weights' device; empty when dense. Where weights are
            sharded, of this process's shards.
        update: the last one that was done.
        history: all re-prunings so far.
    """

    def __init__(self, weights: Mapping[str, Tensor], masks: Masks, *, method: Method) -> None:
        self.history: list[Repruning] = []
        self.update = 0
        self._method = method
        self.weights = dict(weights)
        self.masks: dict[str, Tensor] = {}
        if masks:
            check_fit(masks, self.weights, what="the model to fine-tune")
            if unmasked := [f"{name}: no mask" for name in self.weights if name not in masks]:
                raise MaskError("mask does not fit the model to fine-tune", details=unmasked[:10])
            self._take(masks)

    def _take(self, masks: Masks) -> None:
        """Go on with these masks, of whole weights, and leave the weights as they are."""
        # Files have names in another order; that of the weights decides between equal scores.
        self.masks = {n: local_shard(shard_like(masks[n], weight)) for n, weight in self.weights.items() if n in masks}

    def whole(self, masks: Masks) -> dict[str, Tensor]:
        """The full masks, on the CPU, of this process's shards. All processes must ask at once."""
        return {name: full_tensor_like(mask, self.weights[name]) for name, mask in masks.items()}

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs: the full masks, and what the method observed. All processes must ask at once."""
        whole, observed = self._method.observes_whole, self._method.observed.items()
        return self.whole(self.masks) | {
            f"observed/{key}": value.cpu() if whole else full_tensor_like(value, self._weight(key))
            for key, value in observed
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave, and leave the weights as they are."""
        self._take(state)
        observed = {key: value for name, value in state.items() if (key := name.partition("/")[2])}
        whole = self._method.observes_whole
        self._method.observed = {
            key: value if whole else local_shard(shard_like(value, self._weight(key)))
            for key, value in observed.items()
        }

    def _weight(self, key: str) -> Tensor:
        """Of a key of `Method.observed`."""
        return self.weights[key.rpartition("/")[2]]

    def counts(self, masks: Masks) -> tuple[int, int]:
        """How many weights such masks prune, and how many they cover, in all processes."""
        pruned, covered = self._sum([count_pruned(masks), count_all(masks)])
        return pruned, covered

    def start(self, forward: Callable[[], None] | None = None) -> None:
        """Set what the first mask prunes to zero; a method may choose it, by `forward` as of `Method.begin`."""
        if self.masks and forward is not None:
            self.masks = dict(self._method.begin(self._snapshot(), forward) or self.masks)
        self._zero_pruned()

    def gradients_left(self) -> Iterator[tuple[str, Tensor]]:
        """By the weights' names, what `before_step` will leave of their gradients; nothing where it changes none."""
        if self.masks and not self._method.adjusts(self.update):
            for name, weight in self.weights.items():
                if weight.grad is not None:
                    yield name, joined(local_shard(weight.grad) * self.masks[name], weight.grad)

    def before_step(self, update: int, *, learning_rate: float = 0.0) -> None:
        """Between the backward pass and the optimizer's step of the update with this number, from 1.

        Where pruned weights are to stay zero their gradients are zeroed, so that their moments stay zero too. The
        learning rate is that of the encoder's weights in this update.
        """
        if not self.masks:
            return
        # Weights that are frozen for now have no gradient.
        gradients = {name: local_shard(w.grad) for name, w in self.weights.items() if w.grad is not None}
        self._method.observe(self._snapshot(update=update, gradients=gradients, learning_rate=learning_rate))
        if not self._method.adjusts(self.update):
            apply_({name: self.masks[name] for name in gradients}, gradients)

    def after_step(self, update: int, optimizer: torch.optim.Optimizer | None = None) -> Repruning | None:
        """After the optimizer's step of the update with this number. Re-prunes when it is time, and says so.

        The optimizer forgets its moments of weights that are pruned from now on and are to stay zero.
        """
        self.update = update
        if not self.masks:
            return None
        if not self._method.adjusts(update - 1):
            apply_(self.masks, self._shards())  # weight decay and the like must not move them either
        masks = self._method.masks(self._snapshot()) if self._method.settings.schedule.due(update) else None
        if masks is None:
            return None
        self.history.append(self.compare(masks))
        self.masks = dict(masks)
        self._zero_pruned()
        if optimizer is not None and not self._method.adjusts(update):
            self._forget_moments(optimizer)
        return self.history[-1]

    @contextmanager
    def pruned_view(self) -> Iterator[tuple[Masks, bool]]:
        """The weights as they would be shipped now, pruned to the target; afterwards all is as it was.

        Between two re-prunings the weights of a PARP run are dense: to validate or save those would be to judge a
        model that nobody will have. Yields their masks, and whether these are other than the current ones.
        """
        masks = self._method.final_masks(self._snapshot()) if self.masks else None
        if masks is None:
            yield self.masks, False
            return
        unpruned = {name: shard.clone() for name, shard in self._shards().items()}
        apply_(masks, self._shards())
        try:
            yield masks, True
        finally:
            for name, shard in self._shards().items():
                shard.copy_(unpruned[name])

    def compare(self, masks: Masks) -> Repruning:
        """What a re-pruning from the current masks to these does, after the last update."""
        changed: dict[str, list[str]] = {}
        for name in masks:
            changed.setdefault(self._method.settings.layers.get(name, "other"), []).append(name)
        pairs = [
            revived_and_dropped({n: self.masks[n] for n in names}, {n: masks[n] for n in names})
            for names in changed.values()
        ]
        summed = self._sum([number for pair in pairs for number in pair])
        pruned, covered = self.counts(masks)
        return Repruning(
            update=self.update,
            sparsity=pruned / covered,
            revived=sum(summed[::2]),
            dropped=sum(summed[1::2]),
            layers=dict(zip(changed, zip(summed[::2], summed[1::2], strict=True), strict=True)),
        )

    def _snapshot(self, **changes: Any) -> Snapshot:
        return Snapshot(**{"update": self.update, "weights": self._shards(), "masks": self.masks, **changes})

    def _shards(self) -> dict[str, Tensor]:
        """What this process holds of the weights, to be changed in place."""
        return {name: local_shard(weight) for name, weight in self.weights.items()}

    def _sum(self, numbers: list[int]) -> list[int]:
        """Over all processes that the weights are sharded over."""
        return [sum(column) for column in zip(*from_all_ranks(numbers, self._method.settings.group)[0], strict=True)]

    def _zero_pruned(self) -> None:
        """Set pruned weights to zero; of structures that may still come back, no more than it takes."""
        masks, settings = self.masks, self._method.settings
        structures = settings.pattern.chosen(settings.structures)
        if structures and self._method.adjusts(self.update) and self.update < settings.schedule.updates:
            masks = closed(masks, structures)
        apply_(masks, self._shards())

    def _forget_moments(self, optimizer: torch.optim.Optimizer) -> None:
        for name, mask in self.masks.items():
            for moment in optimizer.state.get(self.weights[name], {}).values():
                if isinstance(moment, Tensor) and moment.shape == self.weights[name].shape:
                    local_shard(moment).masked_fill_(~mask, 0.0)
