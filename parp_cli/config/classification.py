"""Recipes of task classification: classes or numbers for texts and pairs of texts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

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
class TextRecipe(AnyRecipe):
    """A fine-tuning run of task classification."""

    default_model: ClassVar[str] = DEFAULT_TEXT_MODEL

    task: Task = "classification"
    """What the network learns, which decides the keys of `data` and `training`. classification: classes, or numbers, of
    texts and pairs of texts."""

    data: TextData = TextData()
    training: TextTraining = TextTraining()

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Intervals in seconds are of audio."""
        if self.pruning.interval_unit == "seconds":
            yield "pruning", "interval_unit seconds is of audio; texts have updates and epochs"
