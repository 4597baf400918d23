"""The forward and backward passes of one update, in micro-batches that fit into memory.

B items in a forward pass, N in an update.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parp_cli.runtime.processes import SINGLE, World
from parp_cli.tasks.task import Objective, Task, UpdateLoss
from parp_cli.training.distributed import gradients_exchanged


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Computes the loss of an update and its gradients.

    The module is the objective's, or what distributes it, and `micro_batch_size` the padded size of one forward pass in
    the task's unit. The processes of the `world` compute the loss together.
    """

    task: Task[Any]
    objective: Objective[Any]
    module: nn.Module
    micro_batch_size: float
    seed: int
    world: World = SINGLE

    def backward(self, items: Sequence[Any], update: int) -> "PendingLoss":
        """Accumulate the gradients of the update's mean loss, as of all processes together.

        All that is random follows from the numbers of the update and of the micro-batch: a resumed run needs no random
        states, and it makes no difference which process computes a micro-batch. All processes give the same items, and
        the update's number, from 0.
        """
        torch.manual_seed(_seed(self.seed, update, -1))
        # The same in all micro-batches and processes, or they would wait for each other's gradients forever.
        skip = self.objective.skipped_layers()
        total = self.objective.total(items, update)
        micro_batches = self.micro_batches(items)
        shares = self.world.share(len(micro_batches))
        numbers: list[int] = []
        values: list[Tensor] = []
        for place, (part, counts) in enumerate(shares):
            batch = micro_batches[part]
            torch.manual_seed(_seed(self.seed, update, part))
            # Gradients become the mean over processes, and their sum is what is wanted.
            weight = self.world.world_size if counts else 0
            with gradients_exchanged(self.module, last=place == len(shares) - 1):
                found = self.objective.losses(self.module, [items[index] for index in batch], update, skip)
                (found[:, 0].sum() * weight / total).backward()  # type: ignore[no-untyped-call]
            if counts:
                numbers += batch
                values.append(found.detach())
        if not values:  # as many columns as in the processes that have some
            values.append(torch.zeros(0, 1 + len(self.objective.metric_names)))
        return PendingLoss(items=items, total=total, numbers=numbers, values=values, world=self.world)

    def prefetch(self, items: Sequence[Any]) -> None:
        """Begin to read, in the background, what this process computes of an update."""
        micro_batches = self.micro_batches(items)
        shares = self.world.share(len(micro_batches))
        self.objective.prefetch([items[index] for part, _ in shares for index in micro_batches[part]])

    def micro_batches(self, items: Sequence[Any]) -> list[list[int]]:
        """Indices of the items of each forward pass, the largest first.

        As for one process, unless there would be fewer than processes: then they are made smaller, 5 % at a time.
        """
        batches = self.task.grouped(items, self.micro_batch_size)
        wanted = min(self.world.world_size, len(items))
        size = max(len(batch) * max(self.task.size(items[index]) for index in batch) for batch in batches)
        while len(batches) < wanted:
            size *= 0.95
            batches = self.task.grouped(items, size)
        return batches

    def spreads(self, items: Sequence[Any]) -> bool:
        """Whether each process has a forward pass without making any smaller."""
        return len(self.task.grouped(items, self.micro_batch_size)) >= self.world.world_size


@dataclass(frozen=True, kw_only=True)
class PendingLoss:
    """The loss of an update, still on the device: waiting for it is put off until all has been submitted.

    `numbers` are the indices of those of the update's items that this process computed, and `values` their losses and
    metrics (B, 1 + metrics), by micro-batch.
    """

    items: Sequence[Any]
    total: float
    numbers: list[int]
    values: list[Tensor]
    world: World

    def get(self, *more: Tensor) -> tuple[UpdateLoss[Any], tuple[float, ...]]:
        """Wait for the device, once: the loss, and further numbers of one element each."""
        found = torch.cat(self.values)
        extra = [number.detach().reshape(1).to(found.device, found.dtype) for number in more]
        flat = torch.cat([found.flatten(), *extra]).cpu()
        columns = found.shape[1]
        ours = torch.zeros(len(self.items), columns)
        ours[self.numbers] = flat[: found.numel()].view(-1, columns)
        rows = self.world.sum(ours).tolist()
        sums = [sum(column) for column in zip(*rows, strict=True)]
        loss = UpdateLoss(
            mean=sums[0] / self.total,
            metrics=tuple(value / self.total for value in sums[1:]),
            not_finite=tuple(item for item, row in zip(self.items, rows, strict=True) if not math.isfinite(row[0])),
        )
        return loss, tuple(flat[found.numel() :].tolist())


def _seed(seed: int, update: int, part: int) -> int:
    digest = hashlib.sha256(f"{seed}/{update}/{part}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
