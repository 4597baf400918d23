"""What pruning does while a network trains: when to re-prune, to what sparsity, and by which score.

A method is a small object that the training loop's `Pruner` asks; adding one takes a class that answers the questions
of `Method`, a row in `METHODS`, its name among the values of the recipe's `pruning.method`, and in `training/rounds.py`
the keys it reads (a test holds the three together).

    method         first mask         then
    dense          none               nothing is pruned
    fixed          any                pruned weights stay zero
    mpi, rp        magnitude, random  as fixed
    omp, imp, pap  of earlier runs    as fixed; `training/rounds.py` has the runs that find their masks
    parp           any                every weight trains, and is pruned anew at intervals
    parp-p         any, less sparse   as parp, and the sparsity grows
    rigl           any                pruned weights stay zero, but some are swapped at intervals
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from parp_cli.pruning.masks import Masks
from parp_cli.pruning.patterns import GLOBAL, Pattern
from parp_cli.pruning.select import magnitude_masks


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """After which updates of a run masks change. Updates count from 1.

    Attributes:
        interval: updates between two re-prunings; they fall on its multiples.
        updates: length of the run.
        start, end: the first and the last update at which an interval counts; None for the run's last.
        final: whether the run ends in a re-pruning, whatever the interval.
    """

    interval: int
    updates: int
    start: int = 0
    end: int | None = None
    final: bool = True

    def due(self, update: int) -> bool:
        """Whether masks change after this update."""
        if self.final and update == self.updates:
            return True
        return self.start <= update <= self._end and update % self.interval == 0

    @property
    def times(self) -> tuple[int, ...]:
        """All updates that are due."""
        return tuple(update for update in range(1, self.updates + 1) if self.due(update))

    @property
    def _end(self) -> int:
        return self.updates if self.end is None else self.end


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What methods are built from; each reads what it needs.

    Attributes:
        sparsity: share of the weights that is pruned in the end.
        schedule: of the re-prunings.
        pattern: which weights compete with which.
        layers: a label for each weight's name, for patterns by layer.
        start_sparsity: where growing sparsity begins.
        growth: how it grows.
        drop_fraction: RigL's share of kept weights that is swapped at first.
        group: processes over which the weights are sharded, as for `select.magnitude_masks`; None where they are whole.
    """

    sparsity: float
    schedule: Schedule
    pattern: Pattern = GLOBAL
    layers: Mapping[str, str] = field(default_factory=dict)
    start_sparsity: float = 0.0
    growth: Literal["linear", "cubic"] = "linear"
    drop_fraction: float = 0.3
    group: ProcessGroup | None = None


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A network at a moment of its training, for a method to choose new masks by.

    Attributes:
        update: how many updates are done.
        weights: the prunable ones, by name.
        gradients: of those weights, all of them, pruned or not; only for methods with `scores_gradients`.
        masks: the current ones.
    """

    update: int
    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]
    masks: Masks


class Method(Protocol):
    """The questions a `Pruner` asks.

    Attributes:
        scores_gradients: whether `masks` looks at gradients, so that they are kept when it is due.
    """

    scores_gradients: bool

    def reprunes(self, update: int) -> bool:
        """Whether masks change after this update."""

    def adjusts(self, update: int) -> bool:
        """Whether pruned weights train from here (0: the beginning) to the next re-pruning."""

    def masks(self, moment: Moment) -> Masks:
        """The masks to go on with."""

    def final_masks(self, moment: Moment) -> Masks:
        """The masks the network would have if its training ended now."""


class Fixed:
    """The first mask stays, and what it prunes stays zero: what all baselines of the paper end in.

    Also `dense`, whose masks are empty.
    """

    scores_gradients = False

    def __init__(self, settings: Settings) -> None:
        del settings  # the first mask says all

    def reprunes(self, update: int) -> bool:
        del update
        return False

    def adjusts(self, update: int) -> bool:
        del update
        return False

    def masks(self, moment: Moment) -> Masks:
        return moment.masks

    final_masks = masks


class Parp:
    """Every weight trains; masks are taken anew from the magnitudes (PARP, section 3, steps 2 and 3).

    Where the schedule has no final re-pruning, the masks stay fixed after the last one, so that the result is sparse.
    """

    scores_gradients = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        times = settings.schedule.times
        self._last = times[-1] if times else 0

    def reprunes(self, update: int) -> bool:
        return self._settings.schedule.due(update)

    def adjusts(self, update: int) -> bool:
        return self._settings.schedule.final or update < self._last

    def sparsity(self, update: int) -> float:
        """Share to prune at a re-pruning after this update."""
        del update
        return self._settings.sparsity

    def masks(self, moment: Moment) -> Masks:
        return self._by_magnitude(moment, self.sparsity(moment.update))

    def final_masks(self, moment: Moment) -> Masks:
        if not self.adjusts(moment.update):
            return moment.masks
        return self._by_magnitude(moment, self._settings.sparsity)

    def _by_magnitude(self, moment: Moment, sparsity: float) -> Masks:
        settings = self._settings
        return settings.pattern.masks(moment.weights, sparsity, settings.layers, group=settings.group)


class ProgressiveParp(Parp):
    """PARP-P: the sparsity grows from re-pruning to re-pruning, and the last one reaches the target.

    linear: by equal steps. cubic: fast at first, 1 - (1 - t)³ of the way at share t of the re-prunings (Zhu and Gupta
    2017, equation 1).
    """

    def sparsity(self, update: int) -> float:
        times = self._settings.schedule.times
        passed = sum(time <= update for time in times) / len(times) if times else 1.0
        grown = passed if self._settings.growth == "linear" else 1 - (1 - passed) ** 3
        first, last = self._settings.start_sparsity, self._settings.sparsity
        return last if passed == 1 else first + (last - first) * grown


class RigL:
    """In every tensor, drop the smallest kept weights and grow as many where gradients are largest (Evci et al. 2020).

    The share of kept weights that is swapped falls as drop_fraction / 2 · (1 + cos(π · update / end)); a tensor keeps
    its sparsity. Weights that come back start at zero; one that has just been dropped may be among those that grow, and
    then keeps its value. Without an `end`, swapping stops after three quarters of the run, as published, and there is
    none at the end: what has just grown would not have learnt anything.
    """

    scores_gradients = True

    def __init__(self, settings: Settings) -> None:
        schedule = settings.schedule
        self._end = schedule.end or max(1, schedule.updates * 3 // 4)
        self._schedule = Schedule(
            interval=schedule.interval, updates=schedule.updates, start=schedule.start, end=self._end, final=False
        )
        self._drop_fraction = settings.drop_fraction
        self._group = settings.group

    def reprunes(self, update: int) -> bool:
        return self._schedule.due(update)

    def adjusts(self, update: int) -> bool:
        del update
        return False

    def swapped(self, kept: int, update: int) -> int:
        """How many of a tensor's kept weights are dropped, and as many grown, after this update."""
        share = self._drop_fraction / 2 * (1 + math.cos(math.pi * min(1.0, update / self._end)))
        return round(share * kept)

    def masks(self, moment: Moment) -> Masks:
        return {name: self._swap(name, mask, moment) for name, mask in moment.masks.items()}

    def final_masks(self, moment: Moment) -> Masks:
        return moment.masks

    def _swap(self, name: str, mask: Tensor, moment: Moment) -> Tensor:
        if name not in moment.gradients:  # frozen for now
            return mask
        kept = _count(mask, self._group)
        count = min(self.swapped(kept, moment.update), _count(torch.ones_like(mask), self._group) - kept)
        left = mask & _largest(moment.weights[name].detach(), kept - count, mask, self._group)
        return left | _largest(moment.gradients[name], count, ~left, self._group)


def _count(mask: Tensor, group: ProcessGroup | None) -> int:
    """How many entries are True, in all processes of a group."""
    count = mask.count_nonzero()
    if group is not None:
        distributed.all_reduce(count, group=group)
    return int(count)


def _largest(scores: Tensor, count: int, among: Tensor, group: ProcessGroup | None) -> Tensor:
    """The `count` entries of largest magnitude where `among` is True, exactly."""
    candidates = _count(among, group)
    # What is no candidate ranks above them all, so the smallest to be pruned are candidates.
    ranked = scores.masked_fill(~among, math.inf)
    return magnitude_masks({"scores": ranked}, candidates - count, group=group)["scores"] & among


METHODS: Mapping[str, Callable[[Settings], Method]] = {
    "dense": Fixed,
    "fixed": Fixed,
    "mpi": Fixed,
    "rp": Fixed,
    "omp": Fixed,
    "imp": Fixed,
    "pap": Fixed,
    "parp": Parp,
    "parp-p": ProgressiveParp,
    "rigl": RigL,
}
"""By the recipe's `pruning.method`."""
