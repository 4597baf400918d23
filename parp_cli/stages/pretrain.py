"""Pre-train an encoder on unlabelled speech by masked prediction of clusters (HuBERT)."""

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from parp_cli.config.load import recipe_to_dict
from parp_cli.config.pretrain import PretrainRecipe, Source
from parp_cli.data.audio import SAMPLE_RATE
from parp_cli.data.corpora import find_audio, load_split
from parp_cli.data.generated import ensure_split
from parp_cli.data.librispeech import load_librispeech
from parp_cli.data.manifest import read_manifest
from parp_cli.data.streams import FRAME, Crops, Stream, read_streams, seconds_of
from parp_cli.data.utterances import Utterance
from parp_cli.errors import CheckpointError, DataError, Interrupted, RecipeError
from parp_cli.models.sources.names import MASK_EMBEDDING, without
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, build
from parp_cli.models.speech.prunable import prunable_parameters
from parp_cli.models.speech.waveform import normalize
from parp_cli.runtime.device import tensor_cores, versions, with_resolved_precision
from parp_cli.runtime.interrupts import Stop, stopping
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Checkpoint, Metadata
from parp_cli.storage.tensors import write_tensors
from parp_cli.tasks.masked_prediction.objective import masked_prediction_loss, masked_prediction_model
from parp_cli.tasks.masked_prediction.targets import kmeans, mfcc_features, nearest
from parp_cli.training.state import load_state, read_position, save_state

_KMEANS_FRAMES = 150_000
"""Frames that the clusters are found on, drawn from all speech; 50 minutes settle a hundred clusters."""

_FEATURE_CROP = 1000
"""Frames (20 s) at a time when learnt features are computed for clustering."""


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """What `parp pretrain` wrote.

    Attributes:
        path: the encoder's checkpoint, float16.
        history: one entry every `log_every` updates: stage, update, loss, accuracy on masked frames.
        hours: of speech it learned from.
        seconds: of wall time in this process.
    """

    path: Path
    sha256: str
    history: tuple[dict[str, float], ...]
    hours: float
    seconds: float


def pretrain(
    recipe: PretrainRecipe,
    *,
    run: Path,
    out: Path,
    device: torch.device | None = None,
    resume: bool = False,
    notify: Notify = silent,
) -> PretrainResult:
    """Train an encoder from random weights to predict the clusters of frames it cannot see.

    Each of the recipe's stages has its own targets, head and learning-rate schedule; the encoder goes on.
    The state is saved every `save_every` updates in `run`, and `resume` goes on from there.

    Raises:
        RecipeError: there is no such architecture, or it cannot do what the stages ask for.
        CheckpointError: there is nothing to resume, or it is of a run with another recipe.
        DataError: the speech cannot be read, or is too short.
        Interrupted: by the user; the state is saved.
        ResourceError: the disk is full; the last files written are whole.
    """
    began = time.monotonic()
    device = device or torch.device("cpu")
    recipe = with_resolved_precision(recipe, device)
    architecture = _architecture(recipe)
    # Each source by itself: speakers of two corpora may have the same number.
    streams = [stream for source in recipe.data for stream in read_streams(_utterances(source, notify), notify)]
    crops = Crops(streams, _crop_frames(recipe))
    hours = seconds_of(crops.streams) / 3600
    with tensor_cores(recipe.precision), stopping() as stop:
        training = _Run(recipe, architecture, crops, run / "state", device, stop, notify)
        encoder = training.train(resume)
    metadata = Metadata(
        stage="pretrain",
        architecture=architecture.to_json(),
        prunable=tuple(prunable_parameters(build(architecture))),
        recipe=recipe_to_dict(recipe),
        seed=recipe.seed,
        metrics={"history": training.history, "hours": hours},
        versions=versions(),
    )
    weights = {name: weight.half() for name, weight in encoder.items()}
    checkpoint.write(out, Checkpoint(weights=weights, masks={}, metadata=metadata))
    return PretrainResult(
        path=out,
        sha256=checkpoint.file_hash(out),
        history=tuple(training.history),
        hours=hours,
        seconds=time.monotonic() - began,
    )


class _Run:
    """One pre-training run: what its stages share, and where it is."""

    def __init__(
        self,
        recipe: PretrainRecipe,
        architecture: Architecture,
        crops: Crops,
        folder: Path,
        device: torch.device,
        stop: Stop,
        notify: Notify,
    ) -> None:
        self._recipe, self._architecture = recipe, architecture
        self._crops, self._streams = crops, crops.streams
        self._folder, self._device, self._stop, self._notify = folder, device, stop, notify
        self._state = folder / "pretrain.safetensors"
        self.history: list[dict[str, float]] = []
        self._recent: list[tuple[float, float]] = []  # losses and accuracies since the last line of the history

    def train(self, resume: bool) -> dict[str, Tensor]:
        """All stages that are left; the weights of the encoder, and its mask embedding."""
        position = self._position() if resume else self._begin()
        self.history, self._recent = position["history"], position["recent"]
        encoder: dict[str, Tensor] = {}
        if position["stage"] > 0:
            encoder = self._read(self._stage_file(position["stage"] - 1))
        for index in range(position["stage"], len(self._recipe.stages)):
            model = self._model(index, encoder)
            targets = self._targets(index, model)
            optimizer = self._optimizer(model)
            first = 0
            if index == position["stage"] and position["update"] > 0:
                first = load_state(self._state, model, optimizer)[0]["update"]
            self._train_stage(index, first, model, optimizer, targets)
            encoder = {name: value.detach().cpu().clone() for name, value in model.wav2vec2.state_dict().items()}
            encoder[MASK_EMBEDDING] = model.mask_generator.mask_embedding.detach().cpu().clone()
            write_tensors(self._stage_file(index), encoder)
        return encoder

    def _begin(self) -> dict[str, Any]:
        """Forget what an earlier run left, the targets too: another recipe may have made them."""
        for path in self._folder.glob("pretrain*.safetensors"):
            path.unlink()
        return {"stage": 0, "update": 0, "history": [], "recent": []}

    def _position(self) -> dict[str, Any]:
        """Where the run in the folder was stopped.

        Raises:
            CheckpointError: there is none, or it had another recipe.
        """
        if not self._state.exists():
            raise CheckpointError(f"nothing to resume in {self._folder.parent}", hint="start anew without --resume")
        position = read_position(self._state)
        before, now = position["recipe"], json.loads(json.dumps(recipe_to_dict(self._recipe)))
        details = [f"{key}: {before.get(key)} before, {now[key]} now" for key in now if before.get(key) != now[key]]
        if details:
            raise CheckpointError(
                f"the state in {self._state} is of a run with another recipe",
                details=details,
                hint="resume with the recipe the run began with, or start anew without --resume",
            )
        return position

    def _save(self, index: int, update: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        position = {
            "recipe": recipe_to_dict(self._recipe),
            "stage": index,
            "update": update,
            "history": self.history,
            "recent": self._recent,
        }
        save_state(self._state, model, optimizer, position)

    def _read(self, path: Path) -> dict[str, Tensor]:
        """Tensors that this run wrote before it was stopped."""
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} cannot be read", details=[str(error)], hint="start anew without --resume"
            ) from error

    def _stage_file(self, index: int) -> Path:
        return self._folder / f"pretrain-stage{index + 1}.safetensors"

    def _model(self, index: int, encoder: Mapping[str, Tensor]) -> Any:
        """A fresh head around the encoder as the last stage left it."""
        torch.manual_seed(self._recipe.seed + index)
        model = masked_prediction_model(
            self._architecture,
            clusters=self._recipe.stages[index].clusters,
            mask_probability=self._recipe.mask_probability,
            mask_length=self._recipe.mask_length,
        )
        if encoder:
            model.wav2vec2.load_state_dict(without(encoder, [MASK_EMBEDDING]))
            model.mask_generator.mask_embedding.data.copy_(encoder[MASK_EMBEDDING])
        return model.to(self._device)

    def _optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            model.parameters(),
            lr=self._recipe.learning_rate,
            betas=self._recipe.adam_betas,
            eps=self._recipe.adam_epsilon,
            weight_decay=self._recipe.weight_decay,
        )

    def _train_stage(
        self, index: int, first: int, model: Any, optimizer: torch.optim.Optimizer, targets: Sequence[Tensor]
    ) -> None:
        recipe, updates = self._recipe, self._recipe.stages[index].updates
        count = max(1, round(recipe.batch_seconds / recipe.crop_seconds))
        model.train()
        for update in range(first, updates):
            # All randomness of an update follows from its number, so that a resumed run needs no random states.
            seed = ((recipe.seed * 1_000_003 + index) * 10_000_019 + update) % 2**63
            torch.manual_seed(seed)
            waveforms, places = self._crops.draw(count, random.Random(seed))
            labels = torch.stack([targets[stream][start : start + self._crops.frames] for stream, start in places])
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _rate(update, updates, recipe.warmup)
            with self._autocast():
                loss, accuracy = masked_prediction_loss(
                    model,
                    normalize(waveforms.to(self._device), self._architecture),
                    labels.to(self._device).long(),
                    unmasked_weight=recipe.unmasked_loss_weight,
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if recipe.gradient_clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
            optimizer.step()
            self._recent.append((float(loss.detach()), float(accuracy)))
            if (update + 1) % recipe.log_every == 0 or update + 1 == updates:
                self._log(index, update + 1)
            note = f"masked accuracy {self.history[-1]['accuracy']:.1%}" if self.history else ""
            self._notify(Progress(f"pre-training, stage {index + 1}", update + 1, updates, note))
            if (update + 1) % recipe.save_every == 0 or self._stop.requested:
                self._save(index, update + 1, model, optimizer)
            if self._stop.requested:
                raise Interrupted(
                    f"stopped in stage {index + 1} after update {update + 1}; the state is saved",
                    hint="go on with the same command and --resume",
                )

    def _log(self, index: int, update: int) -> None:
        losses, accuracies = zip(*self._recent, strict=True)
        self.history.append(
            {
                "stage": index + 1,
                "update": update,
                "loss": sum(losses) / len(losses),
                "accuracy": sum(accuracies) / len(accuracies),
            }
        )
        self._recent = []

    def _targets(self, index: int, model: Any) -> list[Tensor]:
        """Cluster numbers (T,) of every stream, computed once a stage and kept in the run folder."""
        stage, seed = self._recipe.stages[index], self._recipe.seed
        path = self._folder / f"pretrain-targets{index + 1}.safetensors"
        content = [[stream.name, stream.frames] for stream in self._streams]
        key = json.dumps([stage.targets, stage.clusters, seed, content]).encode()
        if path.exists():
            tensors = self._read(path)
            if bytes(tensors["key"].tolist()) == key:
                return [tensors[str(number)] for number in range(len(self._streams))]
        features = list(self._features(stage.targets, model))
        pool = torch.cat(features)
        if len(pool) < stage.clusters:
            raise DataError(
                f"{len(pool)} frames of speech are too few for {stage.clusters} clusters",
                hint="add speech, or ask for fewer clusters",
            )
        chosen = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[:_KMEANS_FRAMES]
        centroids = kmeans(pool[chosen].float(), stage.clusters, seed=seed)
        labels = [nearest(f.float(), centroids).to(torch.int16) for f in features]
        kept = {str(number): label for number, label in enumerate(labels)}
        write_tensors(path, {**kept, "key": torch.tensor(list(key), dtype=torch.uint8)})
        return labels

    def _features(self, targets: str, model: Any) -> Iterator[Tensor]:
        """What a stage's clusters are found in: MFCCs, or the output of a Transformer layer, (T, D) a stream."""
        for done, stream in enumerate(self._streams, start=1):
            if targets == "mfcc":
                yield mfcc_features(stream.cut(0, stream.frames), SAMPLE_RATE).half()
            else:
                yield self._learnt_features(int(targets.removeprefix("layer-")), stream, model)
            self._notify(Progress(f"{targets} features", done, len(self._streams)))

    def _learnt_features(self, layer: int, stream: Stream, model: Any) -> Tensor:
        parts = []
        model.eval()
        with torch.inference_mode(), self._autocast():
            for first in range(0, stream.frames, _FEATURE_CROP):
                waveform = stream.cut(first, min(_FEATURE_CROP, stream.frames - first)).to(self._device)
                outputs, _ = model.wav2vec2.extract_features(
                    normalize(waveform, self._architecture)[None], num_layers=layer
                )
                parts.append(outputs[-1][0].half().cpu())
        return torch.cat(parts)

    def _autocast(self) -> Any:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._recipe.precision == "bfloat16")


def _rate(update: int, updates: int, warmup: float) -> float:
    """Share of the peak learning rate: linear up over `warmup` of the updates, then linear down to 0."""
    rising = max(1, round(warmup * updates))
    return min((update + 1) / rising, (updates - update) / max(1, updates - rising))


def _architecture(recipe: PretrainRecipe) -> Architecture:
    """The recipe's architecture, if it can do what the recipe asks for: hours later would be a bad time to say no."""
    if recipe.architecture not in ARCHITECTURES:
        raise RecipeError(
            f"there is no architecture {recipe.architecture}", hint="it is one of " + ", ".join(ARCHITECTURES)
        )
    architecture = ARCHITECTURES[recipe.architecture]
    if architecture.family == "wavlm":
        raise RecipeError(f"{architecture.name} cannot be pre-trained", hint="torchaudio pre-trains HuBERT's network")
    layers = architecture.layers
    details = [
        f"stages[{index}].targets: {stage.targets}, but it has {layers} layers"
        for index, stage in enumerate(recipe.stages)
        if stage.targets != "mfcc" and int(stage.targets.removeprefix("layer-")) > layers
    ]
    if _crop_frames(recipe) < recipe.mask_length:
        details.append(
            f"crop_seconds: {recipe.crop_seconds:g} s are {_crop_frames(recipe)} frames, "
            f"fewer than the {recipe.mask_length} of mask_length"
        )
    if details:
        raise RecipeError(f"the recipe does not suit {architecture.name}", details=details)
    return architecture


def _crop_frames(recipe: PretrainRecipe) -> int:
    """Front-end frames T in a crop."""
    return int(recipe.crop_seconds * SAMPLE_RATE) // FRAME


def _utterances(source: Source, notify: Notify) -> list[Utterance]:
    """The speech of one of the recipe's sources."""
    path = None if source.path is None else Path(source.path)
    if source.kind == "generated":
        assert source.split is not None, "the recipe's rules ask for one"
        minutes = None if source.hours is None else source.hours * 60
        root = ensure_split(
            source.split,
            root=path,
            minutes=minutes,
            progress=lambda done, total: notify(Progress(f"generating {source.split}", done, total)),
        )
        return load_librispeech(root, source.split)
    assert path is not None, "the recipe's rules ask for one"
    if source.kind == "folder":
        return find_audio(path)
    return read_manifest(path) if source.split is None else load_split("manifest", source.split, manifest=path)
