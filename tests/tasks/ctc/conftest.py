"""Short sounds of different lengths, and a small model to hear them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from torch import nn

from parp_cli.data.utterances import Utterance
from parp_cli.models.speech.config import build
from tests.models.small import SMALL, randomise

ARCHITECTURE = SMALL["hubert-large"]  # 20 samples a frame
TEXTS = ("AB", "A", "BA AB", "B", "ABBA")


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
