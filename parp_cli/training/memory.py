"""Whether memory suffices for training, found out before the first update instead of hours later."""

import gc
from collections.abc import Sequence

import torch
from torch import Tensor

from parp_cli.data.batching import sorted_batches
from parp_cli.data.utterances import Utterance
from parp_cli.errors import ResourceError
from parp_cli.pruning.sharded import is_sharded
from parp_cli.runtime.device import is_out_of_memory
from parp_cli.tasks.ctc.objective import CtcObjective


def try_largest(
    objective: CtcObjective,
    optimizer: torch.optim.Optimizer,
    utterances: Sequence[Utterance],
    *,
    batch_seconds: float,
    update: int,
) -> None:
    """Forward and backward over the largest micro-batches there can be; weights, moments and results stay as they are.

    Args:
        objective: its model must be set to train all that will ever train.
        optimizer: of the run; what it will keep is accounted for.
        utterances: to train on.
        batch_seconds: sound in an update.
        update: any number of one.

    Raises:
        ResourceError: memory gives out; the hint says what would fit.
    """
    seconds = fits = min(objective.micro_batch_seconds, batch_seconds)
    several = batch_seconds > objective.micro_batch_seconds
    longest = max(utterances, key=lambda utterance: utterance.seconds)
    reason = _what_gives_out(
        objective, optimizer, largest_batches(utterances, fits), utterances, update, several=several
    )
    if reason is None:
        return
    while fits > longest.seconds:
        fits = max(fits / 2, longest.seconds)
        batches = largest_batches(utterances, fits)
        if _what_gives_out(objective, optimizer, batches, utterances, update, several=True) is None:
            raise ResourceError(
                f"training on {seconds:g} s of sound in one forward pass takes more than memory holds",
                details=[reason],
                hint=f"{fits:g} s fit: --set training.micro_batch_seconds={fits:g}",
            )
    raise ResourceError(
        f"training on utterance {longest.id}, which is {longest.seconds:g} s long, takes more than memory holds",
        details=[reason],
        hint="try --set training.checkpoint_activations=true, leave long utterances out, or take a smaller model",
    )


def largest_batches(utterances: Sequence[Utterance], seconds: float) -> list[list[Utterance]]:
    """The batch of the longest utterance, and the one with most sound and padding where it is another.

    Most of the memory grows with the sound in a batch, but attention's with the square of the length.
    """
    lengths = [utterance.seconds for utterance in utterances]
    batches = sorted_batches(lengths, seconds)
    fullest = max(batches, key=lambda batch: len(batch) * lengths[batch[0]])
    chosen = [batches[0]] if fullest is batches[0] else [batches[0], fullest]
    return [[utterances[index] for index in batch] for batch in chosen]


def _what_gives_out(
    objective: CtcObjective,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[list[Utterance]],
    utterances: Sequence[Utterance],
    update: int,
    *,
    several: bool,
) -> str | None:
    """Torch's words where a batch is too large for any process; with `several`, after other passes of the update."""
    trained = [weight for group in optimizer.param_groups for weight in group["params"] if weight.requires_grad]
    alone = objective.in_this_process()
    # Adam's, which are not there before a weight's first update.
    moments: list[Tensor] = []
    reason = held = None
    try:
        moments = [torch.zeros_like(weight) for weight in trained if weight not in optimizer.state for _ in range(2)]
        if objective.world.world_size > 1 and not any(map(is_sharded, trained)):
            moments += [torch.zeros_like(weight) for weight in trained]  # what DDP exchanges gradients in
        room = objective.features.device_room(utterances)
        held = torch.empty(room, dtype=torch.uint8, device=trained[0].device)
        for batch in batches:
            if several:
                for weight in trained:
                    weight.grad = torch.zeros_like(weight)
            alone.backward(batch, update)
            optimizer.zero_grad(set_to_none=True)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().split("\n")[0]
        if any(map(is_sharded, trained)):  # the others wait for this one's rows: nothing smaller can be tried
            raise ResourceError(
                f"training on {sum(u.seconds for u in batches[0]):g} s of sound in one forward pass takes more than "
                "memory holds",
                details=[reason],
                hint="make training.micro_batch_seconds smaller, or start more processes",
            ) from error
    finally:
        del moments, held
        gc.collect()  # a model that DDP or a compiler held is part of a reference cycle
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    return next((found for found in objective.world.gather(reason) if found is not None), None)
