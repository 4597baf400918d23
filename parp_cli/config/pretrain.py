"""Recipes of pre-training runs; read by `recipe.load_recipe` as those of fine-tuning are."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from parp_cli.config.values import (
    Count,
    CountAboveOne,
    FilePath,
    Positive,
    PositiveOrZero,
    Section,
    Seed,
    Share,
    ShareBelowOne,
    ShareBetween,
)


@dataclass(frozen=True, kw_only=True)
class Source(Section):
    """Sound for pre-training; transcripts are not read."""

    kind: Literal["generated", "folder", "manifest"]
    """Synthetic speech, all sound files under a folder, or a list of them."""

    path: FilePath | None = None
    """The folder or the manifest. For generated speech, where it is kept; null is the user's cache."""

    split: str | None = None
    """The split to take; null is all of a manifest. Folders have none, generated speech needs one."""

    hours: Positive | None = None
    """How much to generate, in hours; null is the whole split."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Values that do not go together."""
        if self.kind != "generated" and self.path is None:
            yield "path", f"kind {self.kind} needs one"
        if self.kind != "generated" and self.hours is not None:
            yield "hours", "is for generated speech alone"
        if self.kind == "folder" and self.split is not None:
            yield "split", "a folder has no splits"
        if self.kind == "generated" and self.split is None:
            yield "split", "generated speech needs one, such as pretrain-clean"


@dataclass(frozen=True, kw_only=True)
class Stage(Section):
    """One round of masked prediction, on targets of its own."""

    targets: str
    """What is clustered: `mfcc`, or `layer-N`, the output of Transformer layer N (from 1) as the last stage left it."""

    updates: Count
    """Length of the stage, in updates."""

    clusters: CountAboveOne = 100
    """How many targets there are."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Values that do not go together."""
        if not re.fullmatch(r"mfcc|layer-[1-9][0-9]*", self.targets):
            yield "targets", f"{self.targets} is neither mfcc nor layer-N"


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe(Section):
    """A pre-training run: HuBERT's masked prediction of clusters."""

    architecture: str = "mini"
    """The encoder to build, by name; it starts from random weights."""

    seed: Seed = 0
    """Of everything random: weights, clusters, crops, masking."""

    data: tuple[Source, ...] = (
        Source(kind="generated", split="pretrain-clean"),
        Source(kind="generated", split="pretrain-other"),
    )
    """All that is learnt from, together."""

    crop_seconds: Positive = 4.0
    """Length of the crops that a batch is made of, in seconds."""

    batch_seconds: Positive = 32.0
    """Sound in one update, in seconds."""

    mask_probability: ShareBetween = 0.65
    """Share of masked frames, before spans overlap."""

    mask_length: Count = 10
    """Length of a masked span, in frames of 20 ms."""

    unmasked_loss_weight: PositiveOrZero = 0.5
    """Weight of the frames that were not masked, those that were having 1."""

    learning_rate: Positive = 2e-3
    """Peak of the schedule: a linear rise, then a linear fall to zero, in each stage."""

    warmup: Share = 0.08
    """Share of a stage's updates in which the rate rises."""

    adam_betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.98)
    """Decay of Adam's two moments."""

    adam_epsilon: Positive = 1e-6
    """Adam's epsilon."""

    weight_decay: PositiveOrZero = 0.01
    """Decoupled weight decay, per unit of learning rate."""

    gradient_clip: Positive | None = 1.0
    """Largest norm of the whole gradient; null does not clip."""

    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """What the encoder computes in; weights and the loss are float32 always."""

    stages: tuple[Stage, ...] = (
        Stage(targets="mfcc", clusters=100, updates=3000),
        Stage(targets="layer-4", clusters=200, updates=3100),
    )
    """Rounds of prediction, one after another."""

    log_every: Count = 50
    """Updates between two lines of the log."""

    save_every: Count = 250
    """Updates between two checkpoints."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Values that do not go together."""
        if not self.data:
            yield "data", "has no source"
        if not self.stages:
            yield "stages", "there is none"
        elif self.stages[0].targets != "mfcc":
            yield "stages", f"the first cannot be {self.stages[0].targets}: nothing is learnt yet, start with mfcc"
        if self.crop_seconds > self.batch_seconds:
            yield "crop_seconds", f"a crop of {self.crop_seconds:g} s is more than batch_seconds"
