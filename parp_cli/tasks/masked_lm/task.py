"""Tokens hidden in texts, as `tasks.task.Task`: pre-training, and PARP on its objective (BERT-Tickets' universal mask).

A checkpoint holds the encoder alone, with its mask: what `model` and `pruning.initial` of other tasks take.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parp_cli.config.finetune import AnyRecipe
from parp_cli.config.masked_lm import MaskedLmRecipe
from parp_cli.data.texts import split_file, split_texts
from parp_cli.errors import DataError, UsageError, first_few
from parp_cli.models.transformers.architecture import TOKENIZER
from parp_cli.models.transformers.prediction import TokenPredictor, build_predictor
from parp_cli.runtime.processes import World
from parp_cli.runtime.progress import Notify
from parp_cli.storage.checkpoint import file_hash
from parp_cli.tasks.masked_lm.objective import MaskedLmObjective, hiding_of
from parp_cli.tasks.task import Validation
from parp_cli.tasks.texts.items import Encoding, TextItem
from parp_cli.tasks.texts.task import TextTask


@dataclass(frozen=True, kw_only=True)
class MaskedLmTask(TextTask):
    """Prediction of tokens by a text encoder."""

    recipe: MaskedLmRecipe
    encoding: Encoding
    train_items: tuple[TextItem, ...]
    valid_items: tuple[TextItem, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    kind = "masked-lm"

    @classmethod
    def load(
        cls,
        recipe: AnyRecipe,
        architecture: Any,
        weights: Mapping[str, Tensor],
        head: Mapping[str, Any] | None,
        notify: Notify,
    ) -> "MaskedLmTask":
        assert isinstance(recipe, MaskedLmRecipe), "the registry of recipes goes with that of tasks"
        encoding = cls.encoding_for(recipe, architecture, weights.get(TOKENIZER))
        if encoding.tokenizer.mask_token_id is None:
            raise UsageError(f"the tokenizer of {architecture.name} has no token that hides others")
        special = set(encoding.tokenizer.all_special_ids)
        items: dict[str, tuple[TextItem, ...]] = {}
        problems: list[str] = []
        notes: list[str] = []
        for split in dict.fromkeys((recipe.data.train, recipe.data.valid)):
            texts, wrong = split_texts(recipe.data, split)
            made = encoding.items(texts, [None] * len(texts))
            items[split] = tuple(item for item in made.items if not special.issuperset(item.tokens))
            empty = len(made.items) - len(items[split])
            problems += [*wrong, *([f"{split}: {empty:,} texts without a token that is known"] if empty else [])]
            notes += made.notes(split, encoding.max_length)
            if not items[split]:
                raise DataError(f"no usable text in {split}", details=first_few(problems))
        cls.check(recipe, problems, notes, notify)
        return cls(
            recipe=recipe,
            architecture=architecture,
            encoding=encoding,
            train_items=items[recipe.data.train],
            valid_items=items[recipe.data.valid],
            problems=tuple(problems),
            notes=tuple(notes),
        )

    @staticmethod
    def data_key(data: Any, notify: Notify) -> str:
        return " ".join(MaskedLmTask.split_key(data, split, notify) for split in (data.train, data.valid))

    @staticmethod
    def split_key(data: Any, split: str, notify: Notify) -> str:
        return file_hash(split_file(data, split))

    @property
    def shown(self) -> Mapping[str, str]:
        return {"perplexity": "perplexity", "accuracy": "accuracy"}

    @property
    def train(self) -> Sequence[TextItem]:
        return self.train_items

    @property
    def valid(self) -> Sequence[TextItem]:
        return self.valid_items

    def describe(self) -> None:
        """A checkpoint keeps no head: no other task has a use for it."""
        return None

    def same_outputs(self, head: Mapping[str, Any] | None) -> bool:
        return False

    def kept(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: weight for name, weight in weights.items() if not self.architecture.is_head(name)}

    def data_hash(self) -> str:
        """Of ids and tokens of all texts, in order."""
        digest = hashlib.sha256()
        for item in (*self.train, *self.valid):
            digest.update(f"{item.id}\n".encode() + item.tokens.tobytes())
        return digest.hexdigest()

    def left_out(self) -> tuple[str, ...]:
        return self.problems

    def network(
        self, weights: Mapping[str, Tensor], head: Mapping[str, Any] | None = None, source: str = ""
    ) -> TokenPredictor:
        """The encoder with the run's dropout, and a new head. Raises CheckpointError where the weights are others."""
        network = build_predictor(self.architecture, dropout=self.recipe.training.dropout)
        self.begin_with(network, {n: w for n, w in weights.items() if not network.is_head(n)}, source)
        return network

    def objective(
        self, network: Any, *, masked: Iterable[str], sharded: bool, device: torch.device, world: World, scratch: Path
    ) -> MaskedLmObjective:
        training = self.recipe.training
        return MaskedLmObjective(
            network=self.prepared(network),
            hiding=hiding_of(network, self.encoding, training.mask_share),
            precision=training.precision,
            valid=self.valid,
            pass_tokens=training.pass_size,
            seed=self.recipe.seed,
            world=world,
        )

    def brief(self, validations: Sequence[Validation]) -> str:
        best = min(validations, key=lambda validation: validation.score)
        return f"best perplexity {best.metrics['perplexity']:.2f}"

    def measured(self, values: Mapping[str, Any]) -> list[str]:
        return [f"perplexity on valid {values['perplexity']:.2f}", f"accuracy {values['accuracy']:.1%}"]
