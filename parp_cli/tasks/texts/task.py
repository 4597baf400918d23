"""What tasks over texts have in common. Their items are tokenized, and their sizes are in tokens."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parp_cli.data.batching import sorted_batches
from parp_cli.errors import DataError, UsageError, first_few
from parp_cli.models.transformers.architecture import TextArchitecture
from parp_cli.runtime.progress import Notify, Progress
from parp_cli.tasks.batches import CountBatches
from parp_cli.tasks.task import RecipeTask
from parp_cli.tasks.texts.items import Encoding, TextItem


@dataclass(frozen=True, kw_only=True)
class TextTask(RecipeTask[TextItem]):
    """A task whose `train` and `valid` items are texts."""

    architecture: TextArchitecture

    size_name = "tokens"
    size_unit = "tokens"
    item_name = "texts"
    pass_key = "training.micro_batch_tokens"

    @property
    @abstractmethod
    def notes(self) -> Sequence[str]:
        """What is unusual about the items."""

    @classmethod
    def encoding_for(cls, recipe: Any, architecture: Any, packed: Tensor | None) -> Encoding:
        """From texts to items, by the packed tokenizer of a network.

        Raises UsageError where it is no text encoder, and as `Encoding`.
        """
        if not isinstance(architecture, TextArchitecture):
            raise UsageError(
                f"task {cls.kind} trains text encoders, and {architecture.name} is none",
                hint="--set model=FOLDER of a text encoder such as BERT, or another task",
            )
        with torch.device("meta"):
            network = architecture.build()
        return Encoding(network, packed, max_length=recipe.training.max_length, source=architecture.name)

    @staticmethod
    def check(recipe: Any, problems: Sequence[str], notes: Sequence[str], notify: Notify) -> None:
        """Refuse lines that cannot be used (DataError), unless the recipe skips such, and tell the notes on others."""
        if problems and recipe.data.unusable == "refuse":
            raise DataError(
                "a problem with the texts" if len(problems) == 1 else f"{len(problems):,} problems with the texts",
                details=first_few(problems),
                hint="mend the files, or leave these lines out: --set data.unusable=skip",
            )
        for note in notes:
            notify(Progress("checking texts", 1, 1, news=note))

    def findings(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for problem in self.left_out():
            yield "unusable", {"why": problem}
        for note in self.notes:
            yield "note", {"text": note}

    def warning(self) -> str | None:
        return f"{len(left_out)} lines are left out" if (left_out := self.left_out()) else None

    def name(self, item: TextItem) -> str:
        return item.id

    def size(self, item: TextItem) -> float:
        return len(item.tokens)

    def grouped(self, items: Sequence[TextItem], size: float) -> list[list[int]]:
        return sorted_batches([len(item.tokens) for item in items], size)

    def batches(self) -> CountBatches[TextItem]:
        """Texts of similar length together, each once per epoch."""
        lengths = [len(item.tokens) for item in self.train]
        return CountBatches(self.train, lengths, count=self.recipe.training.batch_size, seed=self.recipe.seed)

    def message(self, values: Mapping[str, Any]) -> str:
        loss = [] if values["train_loss"] is None else [f"loss {values['train_loss']:.3f}"]
        sparse = f"sparsity {values['sparsity']:.1%}, {values['revived']:,} revived"
        parts = [*loss, *self.measured(values), *([sparse] if values["sparsity"] else [])]
        return f"update {values['update']}: {', '.join(parts)}"

    @abstractmethod
    def measured(self, values: Mapping[str, Any]) -> list[str]:
        """What `message` says of the validation split."""

    def prepared(self, network: Any) -> Any:
        """A network whose layers are recomputed and compiled as the recipe says."""
        if self.recipe.training.checkpoint_activations:
            network.recompute_layers()
        if self.recipe.training.compile:
            for layer in network.layers:
                layer.compile(dynamic=True)
        return network
