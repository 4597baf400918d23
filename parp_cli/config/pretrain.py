"""Recipes of pre-training runs; `load.py` reads them, as those of fine-tuning."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from parp_cli.config.values import (
    Count,
    CountAboveOne,
    FilePath,
    NameOrPath,
    Names,
    Positive,
    PositiveOrZero,
    Precision,
    Section,
    Seed,
    Share,
    ShareBelowOne,
    ShareBetween,
)


@dataclass(frozen=True, kw_only=True)
class Source(Section):
    """Audio for pre-training; transcripts are not read."""

    kind: Literal["generated", "folder", "manifest"]
    """generated: synthetic speech; folder: all audio files under a folder; manifest: a list of them, or a corpus."""

    path: FilePath | None = None
    """The folder or the manifest. For generated speech, where it is stored; null is the user's cache."""

    split: str | None = None
    """The split to use; null is all of a manifest. Required for generated speech, refused for folders."""

    language: Names | None = None
    """Language of generated speech, or a list of languages; null is en."""

    hours: Positive | None = None
    """Amount of speech to generate in each language, in hours; null is the whole split."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.kind != "generated" and self.path is None:
            yield "path", f"kind {self.kind} needs a path"
        if self.kind != "generated" and self.hours is not None:
            yield "hours", "is only for generated speech"
        if self.kind != "generated" and self.language is not None:
            yield "language", "is only for generated speech"
        if self.kind == "folder" and self.split is not None:
            yield "split", "a folder has no splits"
        if self.kind == "generated" and self.split is None:
            yield "split", "generated speech needs a split, such as pretrain-clean"


@dataclass(frozen=True, kw_only=True)
class Stage(Section):
    """One stage of masked prediction, with its own targets."""

    targets: str
    """Features to cluster into targets: `mfcc`, or `layer-N`, the output of Transformer layer N (from 1) after the
    stage before."""

    updates: Count
    """Length of the stage, in updates."""

    clusters: CountAboveOne = 100
    """Number of clusters."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if not re.fullmatch(r"mfcc|layer-[1-9][0-9]*", self.targets):
            yield "targets", f"{self.targets} is neither mfcc nor layer-N"


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(Section):
    """A pre-training run: HuBERT's masked prediction of clusters."""

    architecture: str = "mini"
    """Name of the encoder to build, from random weights; of no effect with a model."""

    model: NameOrPath | None = None
    """Encoder to begin from instead, as in a recipe of fine-tuning: mini, another one's name, or a path (starting with
    `./`). Its stages may begin with its own layers as targets."""

    seed: Seed = 0
    """Seed of everything random: weights, clusters, crops, masking."""

    data: tuple[Source, ...] = (
        Source(kind="generated", split="pretrain-clean"),
        Source(kind="generated", split="pretrain-other"),
    )
    """The training audio: all of these sources together."""

    crop_seconds: Positive = 4.0
    """Length of the crops in a batch, in seconds."""

    batch_seconds: Positive = 32.0
    """Audio per update, in seconds."""

    distorted: Share = 0.0
    """Share of the crops that get reverberation, noise or a band limit, drawn again in each update; what is to be
    predicted of them comes from the clean speech."""

    mask_probability: ShareBetween = 0.65
    """Share of masked frames, before spans overlap."""

    mask_length: Count = 10
    """Length of a masked span, in frames of 20 ms."""

    unmasked_loss_weight: PositiveOrZero = 0.5
    """Weight of the loss on unmasked frames; masked frames have weight 1."""

    learning_rate: Positive = 2e-3
    """Peak learning rate; in each stage it rises linearly, then decays linearly to zero."""

    warmup: Share = 0.08
    """Share of a stage's updates in which the learning rate rises."""

    adam_betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.98)
    """Decay rates of Adam's two moments."""

    adam_epsilon: Positive = 1e-6
    """Adam's epsilon."""

    weight_decay: PositiveOrZero = 0.01
    """Decoupled weight decay, per unit of learning rate."""

    gradient_clip: Positive | None = 1.0
    """Maximum norm of the whole gradient; null does not clip."""

    precision: Precision = "bfloat16"
    """What the encoder computes in, as in a recipe of fine-tuning. Weights and the loss are always float32."""

    stages: tuple[Stage, ...] = (
        Stage(targets="mfcc", clusters=100, updates=3000),
        Stage(targets="layer-4", clusters=200, updates=3100),
    )
    """The stages, one after another."""

    log_every: Count = 50
    """Updates between lines of the log."""

    save_every: Count = 250
    """Updates between saves."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if not self.data:
            yield "data", "names no source"
        if not self.stages:
            yield "stages", "names no stage"
        elif self.model is None and self.stages[0].targets != "mfcc":
            first = self.stages[0].targets
            yield "stages", f"the first cannot be {first}: the encoder is untrained, start with mfcc or name a model"
        if self.crop_seconds > self.batch_seconds:
            yield "crop_seconds", f"a crop of {self.crop_seconds:g} s is more than batch_seconds"
