"""Judging a model while it trains."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from parp_cli.data.labels import BLANK_ID, Vocabulary
from parp_cli.data.utterances import Utterance
from parp_cli.decoding.logits import Encoder, logits_of
from parp_cli.decoding.search import collapse
from parp_cli.runtime.device import autocast, validation_precision
from parp_cli.runtime.processes import World
from parp_cli.scoring.metrics import character_errors, word_errors
from parp_cli.tasks.ctc.features import FrontEndFeatures
from parp_cli.training.records import Validation

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import SpeechNetwork

_BATCH_SECONDS = 60.0
"""Padded sound in one forward pass."""


def validate(
    model: "SpeechNetwork",
    features: FrontEndFeatures,
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    *,
    update: int,
    train_loss: float | None,
    sample: int,
    encoder: Encoder,
    precision: str,
    world: World,
) -> tuple[Validation, dict[str, str]]:
    """Recognise the validation split with the weights as they are.

    Args:
        update, train_loss: recorded with the error rates.
        sample: the number of the utterance to give an example of; beyond the last one it begins anew.
        encoder, world: as for `logits_of`.
        precision: of the run, in which the encoder computes here too on CUDA; on CPUs it is float32 here.

    Returns:
        The error rates; and an utterance's reference and hypothesis.
    """

    def computed(padded: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        with autocast(validation_precision(precision, padded.device), padded.device):
            return encoder(padded, lengths)

    paths = {
        index: logits.argmax(-1).tolist()
        for index, logits in logits_of(
            model, features, utterances, batch_seconds=_BATCH_SECONDS, encoder=computed, world=world
        )
    }
    for found in world.gather(list(paths.items())):
        paths |= dict(found)
    references = [vocabulary.reference(utterance) for utterance in utterances]
    hypotheses = [vocabulary.decode(collapse(torch.tensor(paths[index]))) for index in range(len(utterances))]
    blank_frames = sum(path.count(BLANK_ID) for path in paths.values())
    validation = Validation(
        update=update,
        train_loss=train_loss,
        word=word_errors(references, hypotheses).rate,
        character=character_errors(references, hypotheses).rate if vocabulary.labels == "letters" else None,
        blank_rate=blank_frames / max(1, sum(map(len, paths.values()))),
    )
    shown = sample % len(utterances)
    return validation, {"reference": references[shown], "hypothesis": hypotheses[shown]}
