"""Recipes of task masked-lm: pre-training of text encoders, and PARP on it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from parp_cli.config.classification import DEFAULT_TEXT_MODEL, TextFiles, TextTraining, text_conflicts
from parp_cli.config.finetune import AnyRecipe, Task
from parp_cli.config.values import Count, Positive, ShareAboveZero


@dataclass(frozen=True, kw_only=True)
class MaskedLmData(TextFiles):
    """Texts without labels, in files, and their splits: tables, or .txt files with a text per line."""

    train: str = "pretrain"
    """Training split: a file in `root`, with or without its ending: .txt, .tsv, .csv (with quotes) or .jsonl."""


@dataclass(frozen=True, kw_only=True)
class MaskedLmTraining(TextTraining):
    """How a text encoder is pre-trained. Lengths are in updates, texts in tokens."""

    batch_size: Count = 64
    """Texts, or pairs of texts, per update."""

    learning_rate: Positive = 1e-4
    """Peak learning rate of the encoder, and of the head unless it has its own."""

    mask_share: ShareAboveZero = 0.15
    """Share of the tokens of each text that are predicted, at least one. 80 % of them are hidden, 10 % replaced at
    random, 10 % left as they are (BERT). XLNet predicts them in random order instead, each from all before it."""


@dataclass(frozen=True, kw_only=True)
class MaskedLmRecipe(AnyRecipe):
    """A run of task masked-lm."""

    default_model: ClassVar[str] = DEFAULT_TEXT_MODEL

    task: Task = "masked-lm"
    """What the network learns, which decides the keys of `data` and `training`. masked-lm: tokens hidden in texts."""

    data: MaskedLmData = MaskedLmData()
    training: MaskedLmTraining = MaskedLmTraining()

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Those of texts, and teachers are of labels."""
        yield from text_conflicts(self.pruning, self.data)
        if self.distil.teacher is not None:
            yield "distil", "task masked-lm has no teacher"
