"""Pre-train an encoder on unlabelled speech by masked prediction of clusters.

The recipe's stages are training runs one after another: each has its own targets, head and learning-rate schedule, and
the encoder goes on. T frames, D features.
"""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parp_cli.config.finetune import Training
from parp_cli.config.load import recipe_to_dict
from parp_cli.config.pretrain import PretrainRecipe, Source
from parp_cli.data.audio import SAMPLE_RATE
from parp_cli.data.corpora import find_audio, generated_speech
from parp_cli.data.manifest import read_manifest
from parp_cli.data.streams import FRAME, Crops, read_streams, seconds_of
from parp_cli.data.utterances import Utterance
from parp_cli.errors import CheckpointError, Interrupted, RecipeError
from parp_cli.models.sources.load import load_encoder
from parp_cli.models.sources.names import Encoder
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, build
from parp_cli.models.speech.prunable import is_head
from parp_cli.pruning.methods import Schedule, Settings, spec_of
from parp_cli.pruning.pruner import Pruner
from parp_cli.runtime.device import tensor_cores, versions, with_resolved_precision
from parp_cli.runtime.interrupts import stopping
from parp_cli.runtime.processes import SINGLE, World
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage import checkpoint
from parp_cli.storage.atomic import require_writable
from parp_cli.storage.checkpoint import Checkpoint, Metadata, Parent
from parp_cli.storage.lock import only_one
from parp_cli.storage.run_folder import PRETRAINED, STATE, set_run_aside
from parp_cli.tasks.masked_prediction.objective import Predictor, check_can_learn
from parp_cli.tasks.masked_prediction.targets import stage_targets
from parp_cli.tasks.masked_prediction.task import MaskedPredictionTask
from parp_cli.training.optimizer import linear
from parp_cli.training.run import TrainingRun
from parp_cli.training.setup import RunSetup
from parp_cli.training.state import RunFiles, check_not_lost, check_same_run, read_finished, read_position


@dataclass(frozen=True, kw_only=True)
class PretrainResult:
    """What `parp pretrain` wrote: the encoder's checkpoint, float16.

    The history has an entry every `log_every` updates (stage, update, loss, accuracy on masked frames). It learned from
    so many hours of speech, and took so many seconds of wall time in this process.
    """

    path: Path
    sha256: str
    history: tuple[dict[str, Any], ...]
    hours: float
    seconds: float


def pretrain(
    recipe: PretrainRecipe,
    *,
    run: Path,
    out: Path,
    device: torch.device | None = None,
    resume: bool = False,
    world: World = SINGLE,
    notify: Notify = silent,
) -> PretrainResult:
    """Train an encoder, from random weights or those of a model, to predict the clusters of frames it cannot see.

    Args:
        run: the run folder, for the log, and for the state that `resume` needs.
        out: where the encoder goes.
        resume: go on from what the run folder holds: nothing, the state of a stopped run, or a finished one.
        world: processes that train together, on machines that all see the run folder. Each calls with the same; the
            main one writes and notifies, and all return the same.

    Raises:
        RecipeError: there is no such architecture, or it cannot do what the stages ask for.
        CheckpointError: what there is to resume is of a run with another recipe; or there is no such model.
        UsageError: this very run was stopped or has finished, and `resume` is not set.
        DataError: the speech cannot be read, or is too short.
        Interrupted: by the user; the state is saved.
        ResourceError: the disk is full, and the last files written are whole; or memory does not suffice.
    """
    require_writable(run / "pretrain-stage1.jsonl", "--run")
    require_writable(out, "--out")
    began = time.monotonic()
    device = device or torch.device("cpu")
    recipe = with_resolved_precision(recipe, device)
    start = None if recipe.model is None else _read_model(recipe.model, notify)
    architecture = _architecture(recipe, start)
    with world.main_first():
        # Each source by itself: speakers of two corpora may have the same number.
        streams = [stream for source in recipe.data for stream in read_streams(_utterances(source, notify), notify)]
    metadata = _metadata(recipe, architecture, () if start is None else start.parents)
    crops = Crops(streams, _crop_frames(recipe))
    stages = _Stages(recipe, architecture, metadata, crops, run, out, device, world, notify)
    encoder = None if start is None else start.weights
    history: list[dict[str, Any]] = []
    held: AbstractContextManager[None] = only_one(run, "pre-training") if world.is_main else nullcontext()
    with held, tensor_cores(recipe.precision), stopping() as stop:
        stages.check(resume=resume)
        for index in range(len(recipe.stages)):
            noted = world.from_main(read_finished(stages.files(index).finished))
            if noted is None:
                training = stages.training(index, encoder)
                training.train(stop, resume=world.from_main(stages.in_progress(index)), keeps=False)
                noted = world.from_main(read_finished(stages.files(index).finished))
                del training
                if any(world.any(stop.requested)):
                    raise Interrupted(
                        f"stopped in stage {index + 1} after its last update; the state is saved",
                        hint="go on with the same command and --resume",
                    )
            for one in noted["validations"]:
                metrics = {"loss": one["train_loss"], "accuracy": one["metrics"]["accuracy"]}
                history.append({"stage": index + 1, "update": one["update"], **metrics})
            encoder = stages.encoder(index)
    assert encoder is not None, "a recipe has a stage"
    hours = seconds_of(stages.crops.streams) / 3600
    metadata = replace(metadata, metrics={"history": history, "hours": hours})
    weights = {name: weight.half() for name, weight in encoder.items()}
    if world.is_main:
        checkpoint.write(out, Checkpoint(weights=weights, masks={}, metadata=metadata))
    world.wait()
    return PretrainResult(
        path=out,
        sha256=checkpoint.file_hash(out),
        history=tuple(history),
        hours=hours,
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True)
class _Stages:
    """The training runs of a recipe, and their files in the run folder."""

    recipe: PretrainRecipe
    architecture: Architecture
    metadata: Metadata
    crops: Crops
    run: Path
    out: Path
    device: torch.device
    world: World
    notify: Notify

    @property
    def _folder(self) -> Path:
        return self.run / STATE

    def files(self, index: int) -> RunFiles:
        """Of one stage. They share the state: only one of them is in progress."""
        stage = f"pretrain-stage{index + 1}"
        return RunFiles(
            best=None,
            last=self._folder / f"{stage}.safetensors",
            state=self._folder / PRETRAINED,
            finished=self._folder / f"{stage}.json",
            journal=self.run / f"{stage}.jsonl",
            scratch=self._folder / "scratch",
        )

    def check(self, *, resume: bool) -> None:
        """Refuse what cannot be resumed, or must not be overwritten; keep elsewhere what another run left."""
        all_files = [self.files(index) for index in range(len(self.recipe.stages))]
        if not resume:
            for index, files in enumerate(all_files):
                check_not_lost(files, self._identity(index))
            self.world.wait()  # all have looked
            if self.world.is_main:
                left = [*self._folder.glob("pretrain*"), *self.run.glob("pretrain-stage*.jsonl"), self.out]
                if kept := ", ".join(map(str, set_run_aside(self.run, left))):
                    news = f"another run's files were here, and are now in {kept}"
                    self.notify(Progress("pre-training", 0, 1, news=news))
            self.world.wait()
            return
        finished = [read_finished(files.finished) for files in all_files]
        for index, noted in enumerate(finished):
            if noted is not None:
                check_same_run(noted, self._identity(index), all_files[index].finished)
        state = all_files[0].state
        if state.exists():
            read_position(state)
        elif not any(finished):
            warning = f"nothing to resume in {self.run}: beginning"
            self.notify(Progress("pre-training", 0, 1, warning=warning))

    def training(self, index: int, encoder: Mapping[str, Tensor] | None) -> TrainingRun:
        """The training run of a stage, whose encoder is as the stage before left it; of the first one the model's, if
        any."""
        recipe, stage = self.recipe, self.recipe.stages[index]
        with self.world.main_first():  # computed once per stage, and kept
            targets = stage_targets(
                self._folder / f"pretrain-targets{index + 1}.safetensors",
                stage.targets,
                stage.clusters,
                self.crops.streams,
                self.architecture,
                encoder,
                seed=recipe.seed,
                device=self.device,
                precision=recipe.precision,
                notify=self.notify,
            )
        task = MaskedPredictionTask(
            recipe=recipe, stage=index, architecture=self.architecture, crops=self.crops, targets=targets
        )
        never = Schedule(interval=stage.updates, updates=stage.updates, final=False)
        torch.manual_seed(recipe.seed + index)
        setup = RunSetup(
            name=f"stage {index + 1}",
            doing=f"pre-training, stage {index + 1}",
            where=f" in stage {index + 1}",
            seed=recipe.seed * 1_000_003 + index,
            training=_training(recipe, stage.updates),
            schedule=partial(linear, updates=stage.updates, warmup=recipe.warmup),
            save_every=recipe.save_every,
            task=task,
            network=task.network(encoder),
            masks=lambda _: {},
            pruner=lambda *_: Pruner({}, {}, method=spec_of("dense").build(Settings(sparsity=0.0, schedule=never))),
            metadata=self.metadata,
            exported=Predictor.encoder_weights,
            identity=self._identity(index),
            micro_batch_key="batch_seconds",
        )
        return TrainingRun(setup, self.files(index), device=self.device, world=self.world, notify=self.notify)

    def encoder(self, index: int) -> dict[str, Tensor]:
        """Weights of the encoder and its mask embedding after a stage."""
        path = self.files(index).last
        try:
            return dict(checkpoint.read(path).weights)
        except CheckpointError as error:
            raise CheckpointError(error.message, details=error.details, hint="start over without --resume") from error

    def in_progress(self, index: int) -> bool:
        """Whether the state is of this stage."""
        state = self.files(index).state
        return state.exists() and (read_position(state).get("stage") == index or index == 0)

    def _identity(self, index: int) -> dict[str, Any]:
        streams = [[stream.name, stream.frames] for stream in self.crops.streams]
        parents = [parent.sha256 for parent in self.metadata.parents]
        identity = {"recipe": recipe_to_dict(self.recipe), "data": streams, "stage": index}
        return {**identity, "parents": parents} if parents else identity


def _training(recipe: PretrainRecipe, updates: int) -> Training:
    """How a stage trains, in the terms of the training run."""
    optimizer = ("learning_rate", "adam_betas", "adam_epsilon", "weight_decay", "gradient_clip")
    return Training(
        updates=updates,
        micro_batch_seconds=max(recipe.batch_seconds, recipe.crop_seconds),
        validate_every=recipe.log_every,
        **{key: getattr(recipe, key) for key in (*optimizer, "batch_seconds", "precision")},
    )


def _metadata(recipe: PretrainRecipe, architecture: Architecture, parents: tuple[Parent, ...]) -> Metadata:
    return Metadata(
        stage="pretrain",
        architecture=architecture.to_json(),
        prunable=tuple(build(architecture).prunable()),
        recipe=recipe_to_dict(recipe),
        seed=recipe.seed,
        parents=parents,
        versions=versions(),
    )


def _read_model(model: str, notify: Notify) -> Encoder:
    """The encoder of a model, without what pre-training has no use for, of which the user is told."""
    encoder = load_encoder(model, notify=notify)
    unused = ["its head" if encoder.task else "", "its mask, so that all weights train" if encoder.masks else ""]
    if told := " and ".join(filter(None, unused)):
        notify(Progress("reading", 1, 1, warning=f"of {model} pre-training does not use {told}"))
    weights = {name: w.float() for name, w in encoder.weights.items() if not is_head(name)}
    return encoder._replace(weights=weights)


def _architecture(recipe: PretrainRecipe, start: Encoder | None) -> Architecture:
    """The model's architecture or else the recipe's; a RecipeError where there is none, or it does not suit the recipe:
    now rather than hours into the run."""
    if start is None and recipe.architecture not in ARCHITECTURES:
        raise RecipeError(
            f"there is no architecture {recipe.architecture}", hint="it is one of " + ", ".join(ARCHITECTURES)
        )
    architecture = ARCHITECTURES[recipe.architecture] if start is None else start.architecture
    if not isinstance(architecture, Architecture):
        raise RecipeError(f"{recipe.model} is no encoder of speech", hint="parp finetune has task: masked-lm for texts")
    check_can_learn(architecture)
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
    return int(recipe.crop_seconds * SAMPLE_RATE) // FRAME


def _utterances(source: Source, notify: Notify) -> list[Utterance]:
    """The speech of one of the recipe's sources."""
    path = None if source.path is None else Path(source.path)
    if source.kind == "generated":
        assert source.split is not None, "the recipe's rules ask for one"
        return generated_speech(
            source.split,
            source.language or ("en",),
            root=path,
            minutes=None if source.hours is None else source.hours * 60,
            progress=lambda done, total: notify(Progress(f"generating {source.split}", done, total)),
        )
    assert path is not None, "the recipe's rules ask for one"
    if source.kind == "folder":
        return find_audio(path)
    return read_manifest(path, split=source.split)
