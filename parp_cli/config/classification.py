"""Recipes of task classification: classes or numbers for texts and pairs of texts."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self, get_args

from parp_cli.config.finetune import AnyRecipe, Optimization, Task
from parp_cli.config.values import (
    Count,
    FilePath,
    Positive,
    PositiveOrZero,
    Section,
    Share,
    ShareBelowOne,
    documented,
)

GlueTask = Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]
DEFAULT_TEXT_MODEL: Final = "mini-text"
"""The encoder of a run that names none."""

GENERATED: Final = "generated"
"""What the texts are called that no folder is named for."""

_OF_TASK = ("text", "text_b", "label", "target", "metric")
"""Keys of texts that each task of GLUE has its own values for."""

Metric = Literal["accuracy", "f1", "matthews", "pearson", "spearman"]


@documented
@dataclass(frozen=True, kw_only=True)
class TextFiles(Section):
    """Files with texts, one for each split."""

    root: FilePath | None = None
    """Folder of the files; for a task of GLUE its folder as published, or the one that holds it. Null is generated
    English (extra demo), with the splits train, dev, test and, without labels, pretrain."""

    glue: GlueTask | None = None
    """The task of GLUE that the files are of, which decides their columns; null for files of your own."""

    train: str = "train"
    """Training split: a file in `root`, with or without its ending: .tsv, .csv (with quotes) or .jsonl."""

    valid: str = "dev"
    """Validation split, which decides which checkpoint is best. In GLUE the test split has no labels; mnli has
    dev_matched and dev_mismatched, of which dev is the first."""

    test: str = "dev"
    """Split that `parp eval` uses unless one is named."""

    text: str | None = None
    """Column or key of the text; null is `text`, or that of the task of GLUE."""

    text_b: str | None = None
    """Column or key of the second text of a pair; null is `text_b` where the training split has it, or that of the task
    of GLUE."""

    unusable: Literal["refuse", "skip"] = "refuse"
    """What to do with lines without text or label: stop before training, or leave them out."""

    @property
    def domain(self) -> tuple[str, ...]:
        """The task of GLUE, or the folder's name."""
        return (self.glue or (GENERATED if self.root is None else Path(self.root).name),)

    def on(self, domain: tuple[str, ...]) -> Self:
        """The texts of another task of GLUE, whose columns are its own, or of a folder of files like these."""
        (name,) = domain
        if name not in get_args(GlueTask):
            return replace(self, root=name)
        own: dict[str, Any] = {key: None for key in _OF_TASK if hasattr(self, key)}
        return replace(self, **own | {"glue": name})

    def cannot_be_on(self, domain: tuple[str, ...]) -> str | None:
        """Why there are no such texts."""
        if len(domain) > 1:
            return "texts are of one task, not of several"
        tasks = get_args(GlueTask)
        if self.glue is not None:
            return None if domain[0] in tasks else f"{domain[0]} is none of {', '.join(tasks)}"
        return None if os.path.isabs(domain[0]) else f"{domain[0]} is no folder, whose name begins with ./"


@dataclass(frozen=True, kw_only=True)
class TextData(TextFiles):
    """Texts with labels, in files, and their splits."""

    label: str | None = None
    """Column or key of the label; null is `label`, or that of the task of GLUE."""

    target: Literal["class", "number"] | None = None
    """Whether labels name classes, or are numbers to predict; null is class, for stsb number."""

    metric: Metric | None = None
    """What decides which checkpoint is best. f1 is that of the second class of two, else the mean over classes. Null is
    the first that GLUE reports for the task, else accuracy, or pearson for numbers."""


@documented
@dataclass(frozen=True, kw_only=True)
class TextTraining(Optimization):
    """How a text encoder is trained. Lengths are in updates, texts in tokens."""

    updates: Count = 1000
    """Length of the run, in updates."""

    batch_size: Count = 32
    """Texts, or pairs of texts, per update."""

    micro_batch_tokens: Count = 8192
    """Maximum number of tokens per forward pass, padding included: as much as fits in memory. An update is divided into
    as many passes as it needs."""

    max_length: Count = 128
    """Maximum length of a text or pair, in tokens; longer ones are cut at the end, and counted."""

    learning_rate: Positive = 2e-5
    """Peak learning rate of the encoder, and of the head unless it has its own."""

    warmup: Share = 0.1
    """Share of the updates in which the learning rate rises to its peak; from there it falls to 0, both linearly."""

    adam_betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999)
    """Decay rates of Adam's two moments."""

    weight_decay: PositiveOrZero = 0.0
    """Decoupled weight decay, per unit of learning rate."""

    gradient_clip: Positive | None = 1.0
    """Maximum norm of the whole gradient; null does not clip."""

    dropout: ShareBelowOne | None = None
    """Probability of everything that the model drops in training; null is what its config says."""

    @property
    def update_size(self) -> float:
        return self.batch_size * self.max_length

    @property
    def pass_size(self) -> float:
        return max(self.micro_batch_tokens, self.max_length)


@dataclass(frozen=True, kw_only=True)
class AnyTextRecipe(AnyRecipe):
    """A run over texts, whatever its task."""

    default_model: ClassVar[str] = DEFAULT_TEXT_MODEL

    data: TextFiles

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """What of pruning does not go with texts: intervals in seconds are of audio, and masks are found on other
        texts."""
        if self.pruning.interval_unit == "seconds":
            yield "pruning", "interval_unit seconds is of audio; texts have updates and epochs"
        found_on = self.pruning.found_on
        if found_on is not None and (why := self.data.cannot_be_on(found_on)) is not None:
            yield "pruning", f"found_on: {why}"


@dataclass(frozen=True, kw_only=True)
class TextRecipe(AnyTextRecipe):
    """A fine-tuning run of task classification."""

    task: Task = "classification"
    """What the network learns, which decides the keys of `data` and `training`. classification: classes, or numbers, of
    texts and pairs of texts."""

    data: TextData = TextData()
    training: TextTraining = TextTraining()
