"""Which items each update sees, where items have sizes and are seen once per epoch."""

import math
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from parp_cli.data.batching import batches_by_seconds

Item = TypeVar("Item")


class UpdateBatches(Generic[Item]):
    """The items of each update, one pass over the data after another.

    An update is made of groups of similar size, each no larger than a forward pass, and holds at most `batch_size`
    with padding, unless one item is larger. What it holds depends on the position alone, so that a resumed run goes on
    where it was.

    Args:
        items: all of them.
        sizes: of each.
        batch_size: of an update.
        micro_batch_size: of a forward pass; by default that of an update.
        seed: of the order.

    Attributes:
        epoch, group: the position: epochs finished, and groups taken from the current one.
    """

    def __init__(
        self,
        items: Sequence[Item],
        sizes: Sequence[float],
        *,
        batch_size: float,
        micro_batch_size: float = math.inf,
        seed: int,
    ) -> None:
        self.epoch = 0
        self.group = 0
        self._items = items
        self._sizes = sizes
        self._batch_size = batch_size
        self._group_size = min(batch_size, micro_batch_size)
        self._seed = seed
        self._groups: tuple[int, list[list[int]]] | None = None

    def take(self) -> list[Item]:
        """The next update's items; an update larger than an epoch holds some more than once."""
        return [self._items[index] for index in self._take()]

    def upcoming(self) -> list[Item]:
        """What `take` will return next."""
        position = self.position
        chosen = self.take()
        self.position = position
        return chosen

    @property
    def position(self) -> dict[str, int]:
        """All it takes to go on from here."""
        return {"epoch": self.epoch, "group": self.group}

    @position.setter
    def position(self, position: Mapping[str, int]) -> None:
        self.epoch, self.group = position["epoch"], position["group"]

    def mean_size(self, updates: int) -> float:
        """Of an update of the first epoch, padding not counted; over the first `updates` at most."""
        position = self.position
        self.epoch = self.group = 0
        total, count = 0.0, 0
        while self.epoch == 0 and count < updates:
            total += sum(self._sizes[index] for index in self._take())
            count += 1
        self.position = position
        return total / count

    def _take(self) -> list[int]:
        chosen: list[int] = []
        room = self._batch_size
        while True:
            group = self._next_group()
            size = max(self._sizes[index] for index in group) * len(group)
            if chosen and size > room:
                return chosen
            chosen += group
            room -= size
            self.group += 1

    def _next_group(self) -> list[int]:
        if self._groups is None or self._groups[0] != self.epoch:
            self._groups = (self.epoch, self._groups_of(self.epoch))
        if self.group == len(self._groups[1]):
            self.epoch, self.group = self.epoch + 1, 0
            self._groups = (self.epoch, self._groups_of(self.epoch))
        return self._groups[1][self.group]

    def _groups_of(self, epoch: int) -> list[list[int]]:
        return batches_by_seconds(self._sizes, seconds=self._group_size, seed=self._seed, epoch=epoch)
