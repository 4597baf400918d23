"""Front-end features of utterances, computed once where the front end is frozen.

The convolutional front end does not train in PARP's protocol, so its output is a constant of the data. T frames, C
channels.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from parp_cli.checkpoint import file_hash
from parp_cli.data.audio import read_audio
from parp_cli.data.utterances import Utterance
from parp_cli.errors import DataError
from parp_cli.models.architectures import Architecture, frames
from parp_cli.models.forward import front_end
from parp_cli.tensor_files import write_tensors

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
        folder: where features are kept for other runs too, in files named by content; None for nowhere.

    Calling it raises DataError where audio cannot be read, or is too short for a single frame, and ResourceError or
    UsageError where the folder cannot be written to.
    """

    def __init__(
        self,
        model: "Wav2Vec2Model",
        architecture: Architecture,
        *,
        frozen: bool,
        cache_bytes: int = CACHE_BYTES,
        folder: Path | None = None,
    ) -> None:
        self._model = model
        self._architecture = architecture
        self._frozen = frozen
        self._left = cache_bytes
        self._kept: dict[tuple[str, str], Tensor] = {}
        self._folder = folder
        self._front_end_key: str | None = None

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
        features = self._from_disk_or_computed(utterance)
        size = features.numel() * features.element_size()
        if size <= self._left:
            self._left -= size
            self._kept[key] = features
        return features

    def _from_disk_or_computed(self, utterance: Utterance) -> Tensor:
        path = None
        if self._folder is not None and utterance.audio.is_file():  # what is no file is for `read_audio` to refuse
            path = self._folder / self._key() / f"{file_hash(utterance.audio)}.safetensors"
            features = _read(path)
            if features is not None:
                return features
        with torch.no_grad():
            features = front_end(self._model, self._architecture, self._waveform(utterance)).cpu()
        if path is not None:
            write_tensors(path, {"features": features.contiguous()})
        return features

    def _key(self) -> str:
        """Names everything but the audio that decides the features' bits."""
        if self._front_end_key is None:
            weights = self._model.feature_extractor.state_dict()
            first = next(iter(weights.values()))
            builder = self._architecture.to_json()["builder"]
            settings = {
                "normalize_waveform": self._architecture.normalize_waveform,
                "builder": {name: value for name, value in builder.items() if name.startswith("extractor_")},
                "device": first.device.type,
                "torch": torch.__version__,
                "weights": {name: [str(weight.dtype), list(weight.shape)] for name, weight in weights.items()},
            }
            digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
            for weight in weights.values():
                digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            self._front_end_key = digest.hexdigest()[:32]
        return self._front_end_key

    def _waveform(self, utterance: Utterance) -> Tensor:
        waveform = read_audio(utterance.audio)
        if frames(self._architecture, len(waveform)) == 0:
            raise DataError(
                f"utterance {utterance.id} is too short to recognise",
                details=[f"{utterance.audio}: {len(waveform)} samples"],
                hint="leave it out of the split",
            )
        return waveform


def _read(path: Path) -> Tensor | None:
    """Features that were written before; None where there are none, or the file is broken."""
    try:
        return load_file(path)["features"]
    except (OSError, SafetensorError, KeyError):
        return None
