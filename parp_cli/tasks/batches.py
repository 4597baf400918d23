"""Which items each update sees, where items have sizes and are seen once per epoch."""

import math
import random
from collections.abc import Mapping, Sequence

from parp_cli.data.batching import batches_by_seconds
from parp_cli.tasks.task import Item, SizedBatches


class UpdateBatches(SizedBatches[Item]):
    """The items of each update, one pass over the data after another.

    An update is made of groups of similar size, each no larger than a forward pass, and holds at most `batch_size`
    with padding, unless one item is larger. What it holds depends on the position alone, so that a resumed run goes on
    where it was.
    The position is epochs finished, and groups taken from the current one.

    With `repeats` an item is in an epoch so many times instead of once: a fraction is the probability of one more.
    """

    def __init__(
        self,
        items: Sequence[Item],
        sizes: Sequence[float],
        *,
        batch_size: float,
        micro_batch_size: float = math.inf,
        seed: int,
        repeats: Sequence[float] | None = None,
    ) -> None:
        self.epoch = self.group = 0
        self._repeats = repeats
        self._items, self._sizes, self._seed, self._batch_size = items, sizes, seed, batch_size
        self._group_size = min(batch_size, micro_batch_size)
        self._of_epoch: tuple[int, list[list[int]]] | None = None

    def take(self) -> list[Item]:
        """The next update's items; an update larger than an epoch holds some more than once."""
        return [self._items[index] for index in self._take()]

    @property
    def position(self) -> dict[str, int]:
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
        groups = self._groups()
        if self.group == len(groups):
            self.epoch, self.group = self.epoch + 1, 0
            groups = self._groups()
        return groups[self.group]

    def _groups(self) -> list[list[int]]:
        """Of the current epoch."""
        if self._of_epoch is None or self._of_epoch[0] != self.epoch:
            self._of_epoch = self.epoch, self._groups_of(self.epoch)
        return self._of_epoch[1]

    def _groups_of(self, epoch: int) -> list[list[int]]:
        drawn = self._drawn(epoch)
        sizes = [self._sizes[index] for index in drawn]
        groups = batches_by_seconds(sizes, seconds=self._group_size, seed=self._seed, epoch=epoch)
        return [[drawn[place] for place in group] for group in groups]

    def _drawn(self, epoch: int) -> Sequence[int]:
        """The items of an epoch."""
        if self._repeats is None:
            return range(len(self._items))
        rng = random.Random(f"{self._seed}/{epoch}/repeats")
        return [i for i, times in enumerate(self._repeats) for _ in range(int(times + rng.random()))]


_POOL = 8  # updates whose items are sorted together: little padding, and still drawn at random


class CountBatches(UpdateBatches[Item]):
    """The same number of items in each update but the last of an epoch, of similar size.

    Each update is one group, so that the position is epochs finished and updates of the current one.
    """

    def __init__(self, items: Sequence[Item], sizes: Sequence[float], *, count: int, seed: int) -> None:
        super().__init__(items, sizes, batch_size=math.inf, seed=seed)
        self._count = count

    def _take(self) -> list[int]:
        group = self._next_group()
        self.group += 1
        return group

    def _groups_of(self, epoch: int) -> list[list[int]]:
        # Of all generators only random() gives the same numbers in every version of Python.
        rng = random.Random(f"{self._seed}/{epoch}")
        keys = [rng.random() for _ in self._items]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        groups = []
        for start in range(0, len(order), _POOL * self._count):
            pool = sorted(order[start : start + _POOL * self._count], key=self._sizes.__getitem__)
            groups += [pool[first : first + self._count] for first in range(0, len(pool), self._count)]
        keys = [rng.random() for _ in groups]
        return [groups[index] for index in sorted(range(len(groups)), key=keys.__getitem__)]
