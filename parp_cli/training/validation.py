"""Judging a model while it trains."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from parp_cli.data.labels import Vocabulary
from parp_cli.data.utterances import Utterance
from parp_cli.decoding.metrics import character_errors, word_errors
from parp_cli.decoding.transcribe import transcribe
from parp_cli.processes import Processes
from parp_cli.training.features import FrontEndFeatures
from parp_cli.training.records import Validation

if TYPE_CHECKING:
    from torchaudio.models import Wav2Vec2Model

_BATCH_SECONDS = 60.0
"""Padded sound in one forward pass."""


def validate(
    model: "Wav2Vec2Model",
    features: FrontEndFeatures,
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    *,
    update: int,
    train_loss: float | None,
    sample: int,
    encoder: Callable[[Tensor, Tensor], Tensor],
    processes: Processes,
) -> tuple[Validation, dict[str, str]]:
    """Recognise the validation split with the weights as they are.

    Args:
        update, train_loss: recorded with the error rates.
        sample: the number of the utterance to give an example of; beyond the last one it begins anew.
        encoder, processes: as for `transcribe`.

    Returns:
        The error rates; and an utterance's reference and hypothesis.
    """
    transcripts = transcribe(
        model,
        features,
        utterances,
        vocabulary,
        batch_seconds=_BATCH_SECONDS,
        encoder=encoder,
        processes=processes,
    )
    references = [vocabulary.reference(utterance) for utterance in utterances]
    hypotheses = [transcript.text for transcript in transcripts]
    validation = Validation(
        update=update,
        train_loss=train_loss,
        word=word_errors(references, hypotheses).rate,
        character=character_errors(references, hypotheses).rate if vocabulary.labels == "letters" else None,
        blank_rate=sum(t.blank_frames for t in transcripts) / max(1, sum(t.frames for t in transcripts)),
    )
    shown = sample % len(utterances)
    return validation, {"reference": references[shown], "hypothesis": hypotheses[shown]}
