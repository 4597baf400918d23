"""torchaudio's builders, as an oracle of our networks."""

from typing import Any

import torch
from torchaudio.models import wav2vec2_model, wavlm_model

from parp_cli.models.speech.config import Architecture, build


def torchaudios(architecture: Architecture, vocabulary_size: int | None = None, *, seed: int = 0) -> Any:
    """Their freshly initialised model."""
    builder = wavlm_model if architecture.family == "wavlm" else wav2vec2_model
    torch.manual_seed(seed)
    return builder(**architecture.builder, aux_num_out=vocabulary_size).eval()


def ours(architecture: Architecture, vocabulary_size: int | None = None, *, seed: int = 0) -> Any:
    """Ours from the same seed."""
    torch.manual_seed(seed)
    return build(architecture, vocabulary_size=vocabulary_size).eval()
