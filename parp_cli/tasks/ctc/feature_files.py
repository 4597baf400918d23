"""Front-end features on disk, in files named by what they were computed from. T frames, C channels."""

import hashlib
import json
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from parp_cli.errors import ParpError
from parp_cli.models.speech.config import Architecture
from parp_cli.storage.atomic import replacing
from parp_cli.storage.checkpoint import file_hash

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import SpeechNetwork

_RESERVE_BYTES = 2 << 30
"""Disk that is left free for what matters more."""

_CHECKSUM = "crc32"


class FeatureFiles:
    """A folder of features, which several processes may share. It is only a cache: where it cannot grow, it does not;
    nothing in it is flushed, and a file that a loss of power damaged is computed again.

    Args:
        folder: made when it is needed.
        model: its front end makes the features, and does not change.
        architecture: of the model.
        max_bytes: that this process adds.

    Attributes:
        problem: why nothing is added any more; "" as long as only `max_bytes` may be the reason.
    """

    def __init__(self, folder: Path, model: "SpeechNetwork", architecture: Architecture, *, max_bytes: int) -> None:
        self._folder = folder
        self._model = model
        self._architecture = architecture
        self._left = max_bytes
        self._own: Path | None = None
        self.problem = ""

    @property
    def own_folder(self) -> Path:
        """That of this front end: its name tells everything but the audio that decides the features' bits."""
        if self._own is None:
            self._own = self._folder / self._front_end_key()
        return self._own

    def add(self, path: Path, features: Tensor) -> bool:
        """Write features (T, C) unless the disk or the budget does not allow it; whether they were written."""
        if self.problem or features.nbytes > self._left:
            return False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < features.nbytes + _RESERVE_BYTES:
                self.problem = f"the disk of {self._folder} is nearly full"
                return False
            whole = features.cpu().contiguous()
            content = save({"features": whole, _CHECKSUM: torch.tensor(_checksum(whole))})
            with replacing(path, flush=False) as temporary:
                temporary.write_bytes(content)
        except ParpError as error:
            self.problem = error.message
        except OSError as error:
            self.problem = f"cannot write {path.parent}: {error.strerror or error}"
        else:
            self._left -= features.nbytes
        return not self.problem

    def _front_end_key(self) -> str:
        weights = self._model.feature_extractor.state_dict()
        first = next(iter(weights.values()))
        settings = {
            "normalize_waveform": self._architecture.normalize_waveform,
            "layers": [self._architecture.conv_layers, self._architecture.conv_norm],
            "device": first.device.type,
            "torch": torch.__version__,
            "weights": {name: [str(weight.dtype), list(weight.shape)] for name, weight in weights.items()},
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for weight in weights.values():
            digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:32]


def feature_path(own_folder: Path, audio: Path) -> Path | None:
    """Where the features of a sound file are, or would be; None where it cannot be read.

    Args:
        own_folder: of a `FeatureFiles`.
        audio: the sound file.
    """
    try:
        return own_folder / f"{file_hash(audio)}.safetensors"
    except OSError:
        return None


def read_features(path: Path) -> Tensor | None:
    """Features (T, C) that were written before; None where there are none, or the file is damaged."""
    try:
        tensors = load(path.read_bytes())  # were they mapped, the disk would be read when they are used
        features = tensors["features"]
        return features if _checksum(features) == int(tensors[_CHECKSUM]) else None
    except (OSError, SafetensorError, KeyError):
        return None


def _checksum(features: Tensor) -> int:
    return zlib.crc32(features.numpy().data)
