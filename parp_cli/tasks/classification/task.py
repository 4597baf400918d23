"""Classes or numbers for texts and pairs of texts, as `tasks.task.Task`."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parp_cli.config.classification import TextRecipe
from parp_cli.config.finetune import AnyRecipe
from parp_cli.data.texts import columns_of, read_texts, split_file
from parp_cli.errors import DataError, first_few
from parp_cli.models.transformers.architecture import TOKENIZER
from parp_cli.runtime.processes import World
from parp_cli.runtime.progress import Notify
from parp_cli.scoring.classes import NAMES
from parp_cli.storage.checkpoint import file_hash
from parp_cli.tasks.classification.data import TextSet, load_texts, recorded_names
from parp_cli.tasks.classification.evaluation import TextEvaluation, evaluate_texts
from parp_cli.tasks.classification.objective import ClassificationObjective
from parp_cli.tasks.distillation import Distillation
from parp_cli.tasks.task import Validation
from parp_cli.tasks.texts.items import TextItem
from parp_cli.tasks.texts.task import TextTask


@dataclass(frozen=True, kw_only=True)
class ClassificationTask(TextTask):
    """A head for texts over a text encoder."""

    recipe: TextRecipe
    data: TextSet

    kind = "classification"

    @classmethod
    def load(
        cls,
        recipe: AnyRecipe,
        architecture: Any,
        weights: Mapping[str, Tensor],
        head: Mapping[str, Any] | None,
        notify: Notify,
    ) -> "ClassificationTask":
        assert isinstance(recipe, TextRecipe), "the registry of recipes goes with that of tasks"
        encoding = cls.encoding_for(recipe, architecture, weights.get(TOKENIZER))
        data = load_texts(recipe, encoding, recorded_names(head))
        cls.check(recipe, data.left_out, data.notes, notify)
        return cls(recipe=recipe, architecture=architecture, data=data)

    @staticmethod
    def data_key(data: Any, notify: Notify) -> str:
        return " ".join(file_hash(split_file(data, split)) for split in (data.train, data.valid))

    @staticmethod
    def split_key(data: Any, split: str, notify: Notify) -> str:
        path = split_file(data, split)
        _, problems = read_texts(path, columns_of(data, path))
        if problems:
            raise DataError(f"{len(problems):,} problems with split {split}", details=first_few(problems))
        return file_hash(path)

    @classmethod
    def evaluate(cls, source: Path, **asked: Any) -> TextEvaluation:
        return evaluate_texts(source, **asked)

    @property
    def train(self) -> Sequence[TextItem]:
        return self.data.train

    @property
    def valid(self) -> Sequence[TextItem]:
        return self.data.valid

    @property
    def shown(self) -> Mapping[str, str]:
        return {NAMES[name]: name for name in self.data.metrics}

    def describe(self) -> dict[str, Any]:
        names = list(self.data.names)
        return {
            "kind": self.kind,
            "target": "class" if names else "number",
            "outputs": len(names) or 1,
            "names": names,
            "metrics": list(self.data.metrics),
            "max_length": self.data.encoding.max_length,
        }

    def same_outputs(self, head: Mapping[str, Any] | None) -> bool:
        ours = self.describe()
        return head is not None and all(head.get(key) == ours[key] for key in ("kind", "target", "names"))

    def data_hash(self) -> str:
        """Of ids, tokens and labels of all texts, in order."""
        digest = hashlib.sha256(json.dumps(self.data.names).encode())
        for item in (*self.data.train, *self.data.valid):
            digest.update(f"{item.id}\n{item.label}\n".encode() + item.tokens.tobytes())
        return digest.hexdigest()

    @property
    def notes(self) -> Sequence[str]:
        return self.data.notes

    def left_out(self) -> tuple[str, ...]:
        return self.data.left_out

    def network(self, weights: Mapping[str, Tensor], head: Mapping[str, Any] | None = None, source: str = "") -> Any:
        """The encoder with the run's dropout; the head is the one given where its classes are the same.

        Raises CheckpointError where there are too few weights, or others.
        """
        network = self.architecture.build(outputs=self.describe()["outputs"], dropout=self.recipe.training.dropout)
        own = {n: w for n, w in weights.items() if self.same_outputs(head) or not network.is_head(n)}
        self.begin_with(network, own, source)
        return network

    def objective(
        self, network: Any, *, masked: Iterable[str], sharded: bool, device: torch.device, world: World, scratch: Path
    ) -> ClassificationObjective:
        training = self.recipe.training
        return ClassificationObjective(
            network=self.prepared(network),
            encoding=self.data.encoding,
            names=self.data.names,
            metrics=self.data.metrics,
            precision=training.precision,
            valid=self.data.valid,
            pass_tokens=training.pass_size,
            distillation=Distillation.of(self.recipe.distil, self.teacher, device),
            world=world,
        )

    def brief(self, validations: Sequence[Validation]) -> str:
        best, name = min(validations, key=lambda validation: validation.score), self.data.metrics[0]
        return f"best {NAMES[name]} {best.metrics[name]:.1%}"

    def measured(self, values: Mapping[str, Any]) -> list[str]:
        metrics = (f"{NAMES[name]} {values[name]:.1%}" for name in self.data.metrics)
        return [f"loss on valid {values['loss']:.3f}", *metrics]

    def advise(self, validations: Sequence[Validation], *, sparsity: float) -> str | None:
        """A network that predicts one class for everything has learned nothing yet."""
        constant = [one for one in validations if one.metrics.get("matthews", 1.0) == 0.0]
        if len(validations) < 3 or len(constant) < len(validations) or len(validations) % 3:
            return None
        pruned = f", {sparsity:.0%} of the prunable weights are gone" if sparsity else ""
        return (
            f"the network predicts one class for all texts after {validations[-1].update} updates{pruned}: "
            "try another training.learning_rate or seed, a longer training.warmup, or less sparsity"
        )
