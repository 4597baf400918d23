"""Recipes of task masked-lm: pre-training of text encoders, and PARP on it."""

from collections.abc import Iterator
from dataclasses import dataclass

from parp_cli.config.classification import AnyTextRecipe, TextFiles, TextTraining
from parp_cli.config.finetune import Task
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
class MaskedLmRecipe(AnyTextRecipe):
    """A run of task masked-lm."""

    task: Task = "masked-lm"
    """What the network learns, which decides the keys of `data` and `training`. masked-lm: tokens hidden in texts."""

    data: MaskedLmData = MaskedLmData()
    training: MaskedLmTraining = MaskedLmTraining()

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Teachers are of labels."""
        yield from super().conflicts()
        if self.distil.teacher is not None:
            yield "distil", "task masked-lm has no teacher"
