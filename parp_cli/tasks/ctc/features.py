"""Features of utterances, computed once where the feature encoder is frozen, and read ahead of their use.

The convolutional feature encoder ("front end") does not train in PARP's protocol, so its output is a constant of the
data. S samples, T frames, C channels.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from parp_cli.data.audio import SAMPLE_RATE, decode_audio, resample
from parp_cli.data.utterances import Utterance
from parp_cli.errors import DataError, ParpError
from parp_cli.models.speech.config import Architecture, frames
from parp_cli.models.speech.forward import front_end
from parp_cli.storage.atomic import replacing
from parp_cli.storage.checkpoint import file_hash

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import SpeechNetwork

_DEVICE_SHARE = 8
"""Features may stay in one part in so many of a GPU's free memory: 10 GB of 80 hold 27 hours for 512 channels."""

MEMORY_BYTES = 4 << 30
"""Memory for features: 11 hours."""

DISK_BYTES = 64 << 30
"""Disk for features that no memory is left for: 180 hours."""

_RESERVE_BYTES = 2 << 30  # disk that is left free for what matters more

Augment = Callable[[Utterance, Tensor, int], Tensor]
"""Alters an utterance's waveform (S,) at 16 kHz for an update, given its number."""

_Key = tuple[str, str]  # split and id


@dataclass(frozen=True, kw_only=True)
class Kept:
    """How many features of the utterances that were asked for so far are kept where, or computed each time because no
    budget is left; and the problem why nothing more can be written to the disk."""

    device: int = 0
    memory: int = 0
    disk: int = 0
    anew: int = 0
    problem: str = ""

    def __str__(self) -> str:
        places = ("on the GPU", "in memory", "on disk", "computed each time")
        counts = zip((self.device, self.memory, self.disk, self.anew), places, strict=True)
        parts = ", ".join(f"{count:,} {place}" for count, place in counts if count)
        return f"front-end features: {parts or 'none kept'}{self.problem and f' ({self.problem})'}"


class _Reading(NamedTuple):
    """What was read of an utterance: its features, or else its samples at their own rate."""

    path: Path | None  # of its features, there or not; None where none are kept on disk
    features: Tensor | None = None
    samples: Tensor | None = None
    rate: int = 0


class FrontEndFeatures(AbstractContextManager["FrontEndFeatures"]):
    """Features (T, C) of utterances; kept where the front end is frozen: first in memory, then on disk.

    The numbers are the same wherever they come from. Calling it raises DataError where audio cannot be read, or is too
    short for a single frame. It is a context manager that ends its threads; otherwise they end with it.

    Args:
        model: its front end is used as it is at the time of the call.
        frozen: whether the front end never changes; otherwise features carry gradients and nothing is kept.
        device_bytes: memory of a GPU for what is kept; by default a share of what is free. None on the CPU.
        memory_bytes: memory for what is kept beyond that.
        disk_bytes: disk that is filled in `folder` or `scratch`; beyond it features are computed again each time.
        folder: where all features are kept for other runs too, in files named by content; None for nowhere.
        scratch: without `folder`, where those are kept that do not fit into memory; the caller deletes it.
        augment: alters waveforms of updates; features of those are never kept.
    """

    def __init__(
        self,
        model: "SpeechNetwork",
        architecture: Architecture,
        *,
        frozen: bool,
        device_bytes: int | None = None,
        memory_bytes: int = MEMORY_BYTES,
        disk_bytes: int = DISK_BYTES,
        folder: Path | None = None,
        scratch: Path | None = None,
        augment: Augment | None = None,
    ) -> None:
        self._model, self._architecture, self._frozen, self._augment = model, architecture, frozen, augment
        self._device_left, self._memory_left = device_bytes or 0, memory_bytes
        if device_bytes is None and self._device.type == "cuda":
            self._device_left = torch.cuda.mem_get_info(self._device)[0] // _DEVICE_SHARE
        self._kept: dict[_Key, Tensor] = {}
        self._places: dict[_Key, str] = {}  # as in `Kept`
        self._shares = folder is not None
        on_disk = folder or scratch
        self._files = _Files(on_disk, model, architecture, disk_bytes) if frozen and on_disk is not None else None
        self._readers: ThreadPoolExecutor | None = None
        self._ahead: dict[tuple[_Key, bool], Future[_Reading]] = {}

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, utterances: Sequence[Utterance], *, update: int | None = None) -> list[Tensor]:
        """Features of each utterance, (T_i, C), on the model's device, altered for the update with this number."""
        altered = None if self._augment is None else update
        for utterance in utterances:
            self._start(utterance, raw=altered is not None)
        device = self._device
        return [self._features(utterance, altered).to(device, non_blocking=True) for utterance in utterances]

    def prefetch(self, utterances: Sequence[Utterance], *, for_update: bool = False) -> None:
        """Begin to read what will be asked for (by an update), in the background; what goes wrong is raised then."""
        for utterance in utterances:
            self._start(utterance, raw=for_update and self._augment is not None)

    def device_room(self, utterances: Sequence[Utterance]) -> int:
        """Bytes of GPU memory that the features of these utterances may come to take."""
        if not self._frozen or self._device.type != "cuda":
            return 0
        count = sum(frames(self._architecture, round(utterance.seconds * SAMPLE_RATE)) for utterance in utterances)
        return min(self._device_left, 4 * self._architecture.conv_layers[-1][0] * count)

    def report(self) -> Kept:
        """Where features are kept by now."""
        return Kept(problem=self._files.problem if self._files else "", **Counter(self._places.values()))

    def close(self) -> None:
        """Forget what was read ahead, and end the threads; another call would start new ones."""
        if self._readers is not None:
            self._readers.shutdown(cancel_futures=True)
            self._readers = None
        self._ahead.clear()

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self._model.parameters()).device
        return device

    def _start(self, utterance: Utterance, *, raw: bool) -> None:
        """Have an utterance read (its samples if `raw`), unless it is about to be, or its features are in memory."""
        key = (utterance.split, utterance.id)
        if (key, raw) in self._ahead or (key in self._kept and not raw):
            return
        if self._readers is None:
            self._readers = ThreadPoolExecutor(min(4, max(1, (os.cpu_count() or 1) // 4)))
        files = None if raw else self._files
        if files is not None:
            files.settle()
        self._ahead[key, raw] = self._readers.submit(_read, utterance.audio, files, self._device)

    def _features(self, utterance: Utterance, update: int | None) -> Tensor:
        key, raw = (utterance.split, utterance.id), update is not None
        if key in self._kept and not raw:
            self._ahead.pop((key, raw), None)  # read ahead before it was kept
            return self._kept[key]
        self._start(utterance, raw=raw)  # once more, where it is there twice
        reading = self._ahead.pop((key, raw)).result()
        features = reading.features
        if features is None:
            features = self._computed(utterance, reading, update)
            if raw or not self._frozen:
                return features
        self._keep(key, features, reading)
        return self._kept.get(key, features)

    def _computed(self, utterance: Utterance, reading: _Reading, update: int | None) -> Tensor:
        assert reading.samples is not None
        waveform = resample(reading.samples.to(self._device, non_blocking=True), reading.rate)
        if self._augment is not None and update is not None:
            waveform = self._augment(utterance, waveform, update)
        if frames(self._architecture, len(waveform)) == 0:
            raise DataError(
                f"utterance {utterance.id} is too short to recognise",
                details=[f"{utterance.audio}: {len(waveform)} samples"],
                hint="leave it out of the split",
            )
        if not self._frozen:
            return front_end(self._model, self._architecture, waveform)
        # What is first computed for a validation may be trained on later, which inference mode would not allow.
        with torch.inference_mode(False), torch.no_grad():
            return front_end(self._model, self._architecture, waveform)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _keep(self, key: _Key, features: Tensor, reading: _Reading) -> None:
        """Keep features in the first place that has room."""
        on_gpu = self._device.type == "cuda"
        size = _pinned_bytes(features) if on_gpu else features.nbytes
        if on_gpu and features.nbytes <= self._device_left:
            self._device_left -= features.nbytes
            self._kept[key] = features.to(self._device)
            self._places[key] = "device"
        elif size <= self._memory_left:
            self._memory_left -= size
            self._kept[key] = _pinned(features.cpu(), self._device)
            self._places[key] = "memory"
        else:
            self._places[key] = "anew"
        in_memory = key in self._kept
        if self._files is None or reading.path is None or (in_memory and not self._shares):
            return
        on_disk = reading.features is not None or self._files.add(reading.path, features)
        if on_disk and not in_memory:
            self._places[key] = "disk"


def same_feature_encoder(one: "SpeechNetwork", other: "SpeechNetwork") -> bool:
    """Whether two networks have equal features."""
    ours, theirs = one.feature_extractor.state_dict(), other.feature_extractor.state_dict()
    kinds = [(each.architecture.normalize_waveform, _layers(each.architecture)) for each in (one, other)]
    alike = kinds[0] == kinds[1] and ours.keys() == theirs.keys()
    return alike and all(torch.equal(ours[name].cpu(), theirs[name].cpu()) for name in ours)


def _layers(architecture: Architecture) -> list[Any]:
    """What of a feature encoder is not in its weights."""
    return [architecture.conv_layers, architecture.conv_norm, architecture.norm_channels]


class _Files:
    """Features in files named by what they were computed from, in a folder that several processes may share.

    It is only a cache: where it cannot grow by `left` bytes, it does not, and says why in `problem`; nothing in it is
    flushed, and a file that a loss of power damaged is computed again.
    """

    def __init__(self, folder: Path, model: "SpeechNetwork", architecture: Architecture, left: int) -> None:
        self._folder, self._model, self._architecture, self._left = folder, model, architecture, left
        self._own_folder: Path | None = None
        self._paths: dict[Path, Path] = {}
        self.problem = ""

    def settle(self) -> None:
        """Choose the folder of this front end by its weights as they are now, which threads should not read from their
        device; to be called before `path_of`."""
        if self._own_folder is None:
            self._own_folder = self._folder / self._digest()

    def path_of(self, audio: Path) -> Path | None:
        """Where the features of an audio file are, or would be; None where it cannot be read."""
        assert self._own_folder is not None
        try:
            if audio not in self._paths:
                self._paths[audio] = self._own_folder / f"{file_hash(audio)}.safetensors"
        except OSError:
            return None
        return self._paths[audio]

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
            content = save({"features": whole, "crc32": torch.tensor(_checksum(whole))})
            with replacing(path, flush=False) as temporary:
                temporary.write_bytes(content)
        except ParpError as error:
            self.problem = error.message
        except OSError as error:
            self.problem = f"cannot write {path.parent}: {error.strerror or error}"
        else:
            self._left -= features.nbytes
        return not self.problem

    def _digest(self) -> str:
        """Of everything but the audio that decides the features' bits."""
        weights = self._model.feature_extractor.state_dict()
        settings = {
            "normalize_waveform": self._architecture.normalize_waveform,
            "layers": _layers(self._architecture),
            "device": next(iter(weights.values())).device.type,
            "torch": torch.__version__,
            "weights": {name: [str(weight.dtype), list(weight.shape)] for name, weight in weights.items()},
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for weight in weights.values():
            digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:32]


def _read(audio: Path, files: _Files | None, device: torch.device) -> _Reading:
    """Features of an audio file if they are on disk, else its samples, for a device; runs in the background."""
    path = None if files is None else files.path_of(audio)
    features = None if path is None else _read_features(path)
    if features is not None:
        return _Reading(path, features=_pinned(features, device))
    samples, rate = decode_audio(audio)
    return _Reading(path, samples=_pinned(samples, device), rate=rate)


def _read_features(path: Path) -> Tensor | None:
    """Features (T, C) that were written before; None where there are none, or the file is damaged."""
    try:
        tensors = load(path.read_bytes())  # were they mapped, the disk would be read when they are used
        features = tensors["features"]
        return features if _checksum(features) == int(tensors["crc32"]) else None
    except (OSError, SafetensorError, KeyError):
        return None


def _checksum(features: Tensor) -> int:
    return zlib.crc32(features.numpy().data)


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU in memory that a GPU can read directly; as it is where there is no GPU."""
    if device.type != "cuda" or tensor.is_pinned():
        return tensor
    with torch.cuda.device(device):
        held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    np.copyto(held.numpy(), tensor.numpy())  # torch would copy with many threads
    return held


def _pinned_bytes(tensor: Tensor) -> int:
    """Memory that a tensor takes where a GPU can fetch it: torch rounds it up to a power of two."""
    return 1 << max(0, tensor.nbytes - 1).bit_length()
