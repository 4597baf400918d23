"""Front-end features of utterances, computed once where the front end is frozen.

The convolutional front end does not train in PARP's protocol, so its output is a constant of the data. T frames, C
channels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from parp_cli.data.audio import read_audio
from parp_cli.data.utterances import Utterance
from parp_cli.errors import DataError
from parp_cli.models.architectures import Architecture, frames
from parp_cli.models.forward import front_end

if TYPE_CHECKING:
    from torchaudio.models import Wav2Vec2Model

CACHE_BYTES = 4 << 30
"""Memory for kept features: 10 hours of speech for base's 512 channels."""


class FrontEndFeatures:
    """Features (T, C) of utterances, kept in memory up to `cache_bytes` when the front end is frozen.

    Args:
        model: its front end is used as it is at the time of the call.
        architecture: of the model.
        frozen: whether the front end never changes; otherwise features carry gradients and nothing is kept.
        cache_bytes: memory for what is kept; beyond it features are computed anew each time.

    Calling it raises DataError where audio cannot be read, or is too short for a single frame.
    """

    def __init__(
        self, model: "Wav2Vec2Model", architecture: Architecture, *, frozen: bool, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._model = model
        self._architecture = architecture
        self._frozen = frozen
        self._left = cache_bytes
        self._kept: dict[tuple[str, str], Tensor] = {}

    def __call__(self, utterances: Sequence[Utterance]) -> list[Tensor]:
        """Features of each utterance, (T_i, C), on the model's device."""
        device = next(self._model.parameters()).device
        return [self._features(utterance).to(device) for utterance in utterances]

    def _features(self, utterance: Utterance) -> Tensor:
        if not self._frozen:
            return front_end(self._model, self._architecture, self._waveform(utterance))
        key = (utterance.split, utterance.id)
        if key in self._kept:
            return self._kept[key]
        with torch.no_grad():
            features = front_end(self._model, self._architecture, self._waveform(utterance)).cpu()
        size = features.numel() * features.element_size()
        if size <= self._left:
            self._left -= size
            self._kept[key] = features
        return features

    def _waveform(self, utterance: Utterance) -> Tensor:
        waveform = read_audio(utterance.audio)
        if frames(self._architecture, len(waveform)) == 0:
            raise DataError(
                f"utterance {utterance.id} is too short to recognise",
                details=[f"{utterance.audio}: {len(waveform)} samples"],
                hint="leave it out of the split",
            )
        return waveform
