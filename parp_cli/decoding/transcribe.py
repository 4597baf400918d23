"""Hypotheses for a list of utterances: front end, encoder, decoder, in batches."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from parp_cli.data.batching import sorted_batches
from parp_cli.data.labels import Vocabulary
from parp_cli.data.utterances import Utterance
from parp_cli.decoding.greedy import greedy
from parp_cli.models.forward import encode, pad
from parp_cli.progress import Notify, Progress, silent

if TYPE_CHECKING:
    from torchaudio.models import Wav2Vec2Model


def transcribe(
    model: "Wav2Vec2Model",
    features: Callable[[Sequence[Utterance]], list[Tensor]],
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    *,
    batch_seconds: float,
    notify: Notify = silent,
) -> list[str]:
    """Greedy hypotheses in the order of `utterances`.

    Args:
        model: with a CTC head of the vocabulary's size; put into evaluation mode and back.
        features: front-end features of utterances, each (T, C).
        batch_seconds: padded audio in one forward pass.
    """
    hypotheses = [""] * len(utterances)
    was_training = model.training
    model.eval()
    done = 0
    with torch.inference_mode():
        for batch in sorted_batches([utterance.seconds for utterance in utterances], batch_seconds):
            padded, lengths = pad(features([utterances[index] for index in batch]))
            for index, ids in zip(batch, greedy(encode(model, padded, lengths), lengths), strict=True):
                hypotheses[index] = vocabulary.decode(ids)
            done += len(batch)
            notify(Progress("transcribing", done, len(utterances)))
    model.train(was_training)
    return hypotheses
