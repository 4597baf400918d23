"""Short sounds of different lengths, and a small model to hear them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import nn

from parp_cli.config.finetune import Recipe
from parp_cli.data.labels import Vocabulary
from parp_cli.data.utterances import Utterance
from parp_cli.models.speech.config import build
from parp_cli.tasks.ctc.data import CtcData
from parp_cli.tasks.ctc.objective import CtcObjective
from parp_cli.tasks.ctc.task import CtcTask
from parp_cli.training.passes import Passes
from tests.models.small import SMALL, randomise

ARCHITECTURE = SMALL["hubert-large"]  # 20 samples a frame
TEXTS = ("AB", "A", "BA AB", "B", "ABBA")
VOCABULARY = Vocabulary(("<blank>", "|", "A", "B"), "letters")


def task_of(utterances: Sequence[Utterance]) -> CtcTask:
    """Recognition of these, which are to learn from too."""
    both = {"train": tuple(utterances), "valid": tuple(utterances)}
    data = CtcData(**both, vocabulary=VOCABULARY, skipped=(), notes=(), key="")
    return CtcTask(recipe=Recipe(), data=data, architecture=ARCHITECTURE)


def passes_of(
    objective: CtcObjective, micro_batch_seconds: float = 100.0, utterances: Sequence[Utterance] = ()
) -> Passes:
    """The passes of an update."""
    return Passes(
        task=task_of(utterances),
        objective=objective,
        module=objective.module,
        micro_batch_size=micro_batch_seconds,
        seed=0,
    )


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    """Five of 50 to 90 ms of noise."""
    made = []
    for number, text in enumerate(TEXTS):
        samples = 800 + 160 * number
        noise = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(number))
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, noise.numpy(), 16_000)
        made.append(Utterance(id=f"u{number}", audio=path, split="train", seconds=samples / 16_000, text=text))
    return made


@pytest.fixture
def make_model() -> Callable[..., Any]:
    """The same small recogniser each time, in evaluation mode, with the vector that stands for masked frames."""

    def make(seed: int = 0, **regularisers: float) -> Any:
        model = randomise(build(ARCHITECTURE, vocabulary_size=4, **regularisers), seed)
        generator = torch.Generator().manual_seed(seed)
        model.register_parameter("mask_embedding", nn.Parameter(torch.rand(32, generator=generator)))
        return model

    return make
