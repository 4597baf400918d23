"""Hypotheses for a list of utterances: front end, encoder, decoder, in batches."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from parp_cli.data.batching import sorted_batches
from parp_cli.data.labels import BLANK_ID, Vocabulary
from parp_cli.data.utterances import Utterance
from parp_cli.decoding.greedy import best_paths, collapse
from parp_cli.errors import CheckpointError
from parp_cli.models.forward import encode, pad
from parp_cli.processes import ALONE, Processes
from parp_cli.progress import Notify, Progress, silent

if TYPE_CHECKING:
    from torchaudio.models import Wav2Vec2Model


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """What was recognised.

    Attributes:
        text: words, or phones divided by spaces.
        frames: of 20 ms.
        blank_frames: those whose likeliest label is CTC's blank.
    """

    text: str
    frames: int
    blank_frames: int


def transcribe(
    model: "Wav2Vec2Model",
    features: Callable[[Sequence[Utterance]], list[Tensor]],
    utterances: Sequence[Utterance],
    vocabulary: Vocabulary,
    *,
    batch_seconds: float,
    encoder: Callable[[Tensor, Tensor], Tensor] | None = None,
    processes: Processes = ALONE,
    notify: Notify = silent,
) -> list[Transcript]:
    """Greedy transcripts in the order of `utterances`, in all processes that make them together.

    Args:
        model: with a CTC head of the vocabulary's size; put into evaluation mode and back.
        features: front-end features of utterances, each (T, C).
        batch_seconds: padded audio in one forward pass.
        encoder: from features (B, T, C) and lengths (B,) to logits; by default the model's.
        processes: among which the batches are dealt out. Each calls with the same utterances.

    Raises:
        CheckpointError: the model's output is no number.
    """
    encoder = encoder or partial(encode, model)
    transcripts: dict[int, Transcript] = {}
    batches = sorted_batches([utterance.seconds for utterance in utterances], batch_seconds)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for number, _ in processes.share(len(batches)):
            batch = batches[number]
            padded, lengths = pad(features([utterances[index] for index in batch]))
            logits = encoder(padded, lengths)
            _check_finite(logits, [utterances[index] for index in batch])
            for index, path in zip(batch, best_paths(logits, lengths), strict=True):
                transcripts[index] = Transcript(
                    text=vocabulary.decode(collapse(path)),
                    frames=len(path),
                    blank_frames=int((path == BLANK_ID).sum()),
                )
            done = min(len(transcripts) * processes.count, len(utterances))
            notify(Progress("transcribing", done, len(utterances)))
    model.train(was_training)
    for rows in processes.gather([[index, asdict(transcript)] for index, transcript in transcripts.items()]):
        transcripts |= {index: Transcript(**values) for index, values in rows}
    return [transcripts[index] for index in range(len(utterances))]


def _check_finite(logits: Tensor, utterances: Sequence[Utterance]) -> None:
    """Refuse logits (B, T, V) of a model whose training diverged."""
    broken = ~torch.isfinite(logits).flatten(1).all(1)
    if bool(broken.any()):
        raise CheckpointError(
            f"the model's output for utterance {utterances[int(broken.nonzero()[0])].id} is no finite number",
            hint="its training diverged: lower training.learning_rate, or set training.gradient_clip",
        )
