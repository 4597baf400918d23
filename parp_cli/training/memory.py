"""Whether memory suffices for training, found out before the first update instead of hours later."""

from collections.abc import Sequence

import torch
from torch import Tensor

from parp_cli.data.batching import sorted_batches
from parp_cli.data.utterances import Utterance
from parp_cli.environment import is_out_of_memory
from parp_cli.errors import ResourceError
from parp_cli.training.ctc import CtcObjective


def try_largest(
    objective: CtcObjective,
    optimizer: torch.optim.Optimizer,
    utterances: Sequence[Utterance],
    *,
    batch_seconds: float,
    update: int,
) -> None:
    """Forward and backward over the largest micro-batches there can be; afterwards all is as it was.

    Whatever an update holds besides its activations is there meanwhile: moments of all weights that train, and the
    gradients of the passes before.

    Args:
        objective: with the whole model set to train that ever will.
        optimizer: of the run.
        utterances: to train on.
        batch_seconds: sound in an update.
        update: a number for the objective.

    Raises:
        ResourceError: memory gives out; the hint says what would fit.
    """
    seconds = min(objective.micro_batch_seconds, batch_seconds)
    several = batch_seconds > objective.micro_batch_seconds
    longest = max(utterances, key=lambda utterance: utterance.seconds)
    gave_out = ""
    fits = seconds
    while True:
        error = _gives_out(objective, optimizer, _largest(utterances, fits), update, several)
        if error is None:
            break
        gave_out = gave_out or error
        if fits <= longest.seconds:
            raise ResourceError(
                f"training on utterance {longest.id} of {longest.seconds:.1f} s takes more than memory holds",
                details=[gave_out],
                hint="try --set training.checkpoint_activations=true, or leave long utterances out",
            )
        fits = max(fits / 2, longest.seconds)
    if gave_out:
        raise ResourceError(
            f"training on {seconds:g} s of sound in one forward pass takes more than memory holds",
            details=[gave_out],
            hint=f"{_rounded_down(fits)} s fit: --set training.micro_batch_seconds={_rounded_down(fits)}",
        )
