"""Logits of a list of utterances: feature encoder and encoder, in batches of similar length, audio read ahead."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from parp_cli.data.batching import sorted_batches
from parp_cli.data.utterances import Utterance
from parp_cli.errors import CheckpointError
from parp_cli.models.speech.forward import encode, pad
from parp_cli.runtime.processes import SINGLE, World
from parp_cli.runtime.progress import Notify, Progress, silent

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import SpeechNetwork

Encoder = Callable[[Tensor, Tensor], Tensor]
"""From features (B, T, C) and lengths (B,) to logits (B, T, V)."""


class Features(Protocol):
    """Features of utterances from the feature encoder, each (T, C)."""

    def __call__(self, utterances: Sequence[Utterance]) -> list[Tensor]: ...

    def prefetch(self, utterances: Sequence[Utterance]) -> None:
        """Begin to read what is asked for next."""


def logits_of(
    model: "SpeechNetwork",
    features: Features,
    utterances: Sequence[Utterance],
    *,
    batch_seconds: float,
    encoder: Encoder | None = None,
    world: World = SINGLE,
    notify: Notify = silent,
) -> Iterator[tuple[int, Tensor]]:
    """Logits (T, V) of each utterance by its index, float32 on the CPU, as they come; they do not depend on the batch.

    Args:
        model: with a CTC head; in evaluation mode meanwhile.
        batch_seconds: padded audio in one forward pass.
        world: among which the batches are dealt out; an utterance may come twice so that all take equally many steps.

    Raises `CheckpointError`: the model produced non-finite logits.
    """
    encoder = encoder or partial(encode, model)
    batches = sorted_batches([utterance.seconds for utterance in utterances], batch_seconds)
    own = [[utterances[index] for index in batches[number]] for number, _ in world.share(len(batches))]
    done = 0
    was_training = model.training
    model.eval()
    try:
        for place, (number, _) in enumerate(world.share(len(batches))):
            features.prefetch([utterance for batch in own[place : place + 2] for utterance in batch])
            padded, lengths = pad(features(own[place]))
            with torch.inference_mode():
                logits = encoder(padded, lengths).float().cpu()
            check_finite(logits, [f" for utterance {utterance.id}" for utterance in own[place]])
            for index, row, length in zip(batches[number], logits, lengths.tolist(), strict=True):
                yield index, row[:length]
            done += len(own[place])
            step = min(done * world.world_size, len(utterances))
            notify(Progress("recognising", step, len(utterances), kind="recognition"))
    finally:
        model.train(was_training)


def check_finite(logits: Tensor, of_what: Sequence[str]) -> None:
    """Refuse logits (B, T, V) of a model whose training diverged."""
    broken = ~torch.isfinite(logits).flatten(1).all(1)
    if bool(broken.any()):
        raise CheckpointError(
            f"the model produced non-finite logits{of_what[int(broken.nonzero()[0])]}",
            hint="its training diverged: lower training.learning_rate, or set training.gradient_clip",
        )
