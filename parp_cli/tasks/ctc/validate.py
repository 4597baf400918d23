"""Judging a CTC network while it trains: greedy recognition of the validation split."""

from collections.abc import Sequence
from typing import Any

import torch

from parp_cli.data.labels import BLANK_ID, Vocabulary
from parp_cli.data.utterances import Utterance
from parp_cli.decoding.logits import Encoder, logits_of
from parp_cli.decoding.search import collapse
from parp_cli.runtime.device import autocast, validation_precision
from parp_cli.runtime.processes import World
from parp_cli.scoring.metrics import character_errors, word_errors
from parp_cli.tasks.ctc.features import FrontEndFeatures
from parp_cli.tasks.task import Judgement

_BATCH_SECONDS = 60.0
"""Padded audio in one forward pass."""


@torch.no_grad()  # of the front end too, where it trains: its activations would fill the memory
def recognise(
    network: Any,
    features: FrontEndFeatures,
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    *,
    encoder: Encoder,
    precision: str,
    sample: int,
    world: World,
) -> Judgement:
    """Word and character error rates (of phones the former alone), and the share of frames whose likeliest label is
    CTC's blank, of utterances with the weights as they are.

    Args:
        network, features, encoder, world: as for `logits_of`.
        precision: of the run, in which the encoder computes here too on CUDA; on CPUs it is float32 here.
        sample: number of the utterance to give as an example, modulo the number of utterances.
    """

    def computed(padded: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        with autocast(validation_precision(precision, padded.device), padded.device):
            return encoder(padded, lengths)

    batches = logits_of(network, features, utterances, batch_seconds=_BATCH_SECONDS, encoder=computed, world=world)
    paths = {index: logits.argmax(-1).tolist() for index, logits in batches}
    for found in world.gather(list(paths.items())):
        paths |= dict(found)
    references = [vocabulary.reference(utterance) for utterance in utterances]
    hypotheses = [vocabulary.decode(collapse(torch.tensor(paths[index]))) for index in range(len(utterances))]
    word = word_errors(references, hypotheses).rate
    character = character_errors(references, hypotheses).rate if vocabulary.labels == "letters" else None
    blank_frames = sum(path.count(BLANK_ID) for path in paths.values())
    blank_rate = blank_frames / max(1, sum(map(len, paths.values())))
    chosen = sample % len(utterances)
    return Judgement(
        score=(word, 0.0 if character is None else character),
        metrics={"word": word, "character": character, "blank_rate": blank_rate},
        example={"reference": references[chosen], "hypothesis": hypotheses[chosen]},
    )
