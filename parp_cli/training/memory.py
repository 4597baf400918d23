"""Whether memory suffices for training, found out before the first update instead of hours later."""

import gc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from parp_cli.errors import ResourceError
from parp_cli.pruning.sharded import is_sharded
from parp_cli.runtime.device import is_out_of_memory
from parp_cli.runtime.processes import SINGLE
from parp_cli.tasks.task import Task
from parp_cli.training.passes import Passes


def try_largest(passes: Passes, optimizer: torch.optim.Optimizer, *, batch_size: float, update: int, key: str) -> None:
    """Forward and backward over the largest micro-batches there can be; weights, moments and results stay as they are.

    The network must be set to train all that will ever train. An update has the `batch_size` in the task's unit; its
    number may be any, and `key` is what a recipe calls the size of a micro-batch. Raises ResourceError where memory
    runs out; the hint says what would fit.
    """
    task = passes.task
    size = fits = min(passes.micro_batch_size, batch_size)
    several = batch_size > passes.micro_batch_size
    largest = max(task.train, key=task.size)
    reason = _what_gives_out(passes, optimizer, largest_batches(task, fits), update, several=several)
    if reason is None:
        return
    while fits > task.size(largest):
        fits = max(fits / 2, task.size(largest))
        if _what_gives_out(passes, optimizer, largest_batches(task, fits), update, several=True) is None:
            raise ResourceError(
                f"training on {size:g} {task.size_unit} in one forward pass takes more than memory holds",
                details=[reason],
                hint=f"{fits:g} {task.size_unit} fit: --set {key}={fits:g}",
            )
    raise ResourceError(
        f"training on {task.name(largest)} ({task.size(largest):g} {task.size_unit}) takes more than memory holds",
        details=[reason],
        hint="try --set training.checkpoint_activations=true, leave out items of that size, or take a smaller model",
    )


def largest_batches(task: Task[Any], size: float) -> list[list[Any]]:
    """The batch of the largest item, and the one with the largest padded size where it is another.

    Most of the memory grows with the padded size of a batch, but attention's with the square of an item's.
    """
    items = task.train
    batches = task.grouped(items, size)
    fullest = max(batches, key=lambda batch: len(batch) * task.size(items[batch[0]]))
    chosen = [batches[0]] if fullest is batches[0] else [batches[0], fullest]
    return [[items[index] for index in batch] for batch in chosen]


def _what_gives_out(
    passes: Passes, optimizer: torch.optim.Optimizer, batches: Sequence[list[Any]], update: int, *, several: bool
) -> str | None:
    """Torch's words where a batch is too large for any process; with `several`, after other passes of the update."""
    trained = [weight for group in optimizer.param_groups for weight in group["params"] if weight.requires_grad]
    sharded = any(map(is_sharded, trained))
    task, alone = passes.task, replace(passes, world=SINGLE)  # all processes compute as many
    # Adam's, which are not there before a weight's first update.
    moments: list[Tensor] = []
    reason = held = None
    try:
        moments = [torch.zeros_like(weight) for weight in trained if weight not in optimizer.state for _ in range(2)]
        if passes.world.world_size > 1 and not sharded:
            moments += [torch.zeros_like(weight) for weight in trained]  # what DDP exchanges gradients in
        room = passes.objective.device_room(task.train)
        held = torch.empty(room, dtype=torch.uint8, device=trained[0].device)
        for batch in batches:
            if several:
                for weight in trained:
                    weight.grad = torch.zeros_like(weight)
                if sharded:  # gradients of the passes before the last one are not sharded yet
                    moments += [torch.zeros(weight.shape, device=weight.device) for weight in trained]
            alone.backward(batch, update).get()
            optimizer.zero_grad(set_to_none=True)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().split("\n")[0]
        if sharded:  # the others wait for this one's shards: nothing smaller can be tried
            raise ResourceError(
                f"training on {sum(map(task.size, batches[0])):g} {task.size_unit} in one forward pass takes more than "
                "memory holds",
                details=[reason],
                hint="make micro-batches smaller, or start more processes",
            ) from error
    finally:
        del moments, held
        gc.collect()  # a model that DDP or a compiler held is part of a reference cycle
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return next((found for found in passes.world.gather(reason) if found is not None), None)
