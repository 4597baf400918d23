"""The loss of texts over a network with a head, and its validation. B texts, K classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from parp_cli.data.batching import sorted_batches
from parp_cli.runtime.device import autocast, on_device
from parp_cli.runtime.processes import SINGLE, World
from parp_cli.scoring.classes import class_metrics, confusion, pearson, ranks
from parp_cli.tasks.distillation import Distillation
from parp_cli.tasks.task import DISTILLED, Judgement, Objective, has_all_gradients
from parp_cli.tasks.texts.items import Encoding, TextItem


@dataclass(kw_only=True)
class ClassificationObjective(Objective[TextItem]):
    """The mean cross-entropy of classes, or the mean squared error of numbers, per text.

    Attributes:
        network: with a head of K outputs, or one for a number.
        names: of the classes; empty for numbers.
        metrics: that validations report; the first decides.
        precision: "float32", or "bfloat16" for the network; the loss is always float32.
        valid: items to judge the network by, in passes of at most so many tokens.
        distillation: what is learned beside the labels; None for nothing.
        world: processes that judge it together.
    """

    network: Any
    encoding: Encoding
    names: Sequence[str]
    metrics: Sequence[str]
    precision: str
    valid: Sequence[TextItem] = ()
    pass_tokens: float = 8192
    distillation: Distillation | None = None
    world: World = SINGLE

    @property
    def metric_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return () if self.distillation is None else (DISTILLED,)

    @cached_property
    def uses_all(self) -> bool:  # type: ignore[override]
        return has_all_gradients(self, self.valid[:1])

    def total(self, items: Sequence[TextItem], update: int) -> float:
        return len(items)

    def losses(self, module: nn.Module, items: Sequence[TextItem], update: int, skip: frozenset[int]) -> Tensor:
        """Loss (B, 1) of each text; with a teacher what it adds to that of the label is a second column."""
        inputs = self.encoding.batch(items, self.device)
        if self.distillation is None:
            with autocast(self.precision, self.device):
                outputs = module(inputs)
            return self._losses(outputs.float(), items)[:, None]
        with autocast(self.precision, self.device):
            outputs, states = module(inputs, states=True)
            with torch.no_grad():
                targets, target_states = self.distillation.teacher(inputs, states=True)
        valid = inputs["attention_mask"].bool()
        added = self.distillation.losses(outputs, states, targets, target_states, valid)
        return torch.stack([self._losses(outputs.float(), items) + added, added], 1)

    def _losses(self, outputs: Tensor, items: Sequence[TextItem]) -> Tensor:
        labels = on_device(torch.tensor([item.label for item in items]), outputs.device)
        if self.names:
            return nn.functional.cross_entropy(outputs, labels.long(), reduction="none")
        return nn.functional.mse_loss(outputs[:, 0], labels, reduction="none")

    @torch.no_grad()
    def forward(self, module: nn.Module, items: Sequence[TextItem]) -> None:
        with self.evaluating():
            for item in items:
                with self.validation_autocast():
                    module(self.encoding.batch([item], self.device))

    @torch.no_grad()
    def validate(self, module: nn.Module, train_metrics: Mapping[str, float | None], number: int) -> Judgement:
        """Predict the validation split; the first metric decides, then the loss.

        In the run's precision on CUDA, and in float32 on CPUs.
        """
        batches = sorted_batches([len(item.tokens) for item in self.valid], self.pass_tokens)
        rows: dict[int, list[float]] = {}  # prediction and loss by index
        with self.evaluating():
            for place, _ in self.world.share(len(batches)):
                batch = batches[place]
                items = [self.valid[index] for index in batch]
                with self.validation_autocast():
                    outputs = module(self.encoding.batch(items, self.device)).float()
                found = outputs.argmax(-1) if self.names else outputs[:, 0]
                pairs = zip(found.tolist(), self._losses(outputs, items).tolist(), strict=True)
                rows |= dict(zip(batch, map(list, pairs), strict=True))
        gathered = {index: row for some in self.world.gather(list(rows.items())) for index, row in some}
        references = [item.label for item in self.valid]
        predictions, losses = ([gathered[index][column] for index in range(len(references))] for column in (0, 1))
        metrics = measured(references, predictions, len(self.names))
        loss = sum(losses) / len(losses)
        chosen = number % len(self.valid)
        shown = [
            str(self.names[int(value)]) if self.names else f"{value:.3g}"
            for value in (references[chosen] or 0, predictions[chosen])
        ]
        return Judgement(
            score=(-metrics[self.metrics[0]], loss),
            metrics={"loss": loss, **{name: metrics[name] for name in self.metrics}},
            example={"id": self.valid[chosen].id, "reference": shown[0], "hypothesis": shown[1]},
        )


def measured(references: Sequence[float | None], predictions: Sequence[float], classes: int) -> dict[str, float]:
    """Every metric of classes, or of numbers where there are no classes."""
    known = [0.0 if label is None else label for label in references]
    if classes:
        table = confusion([int(label) for label in known], [int(found) for found in predictions], classes)
        return {name: float(value) for name, value in class_metrics(table).items()}
    x, y = numpy.asarray(known), numpy.asarray(predictions)
    return {"pearson": float(pearson(x, y)), "spearman": float(pearson(ranks(x), ranks(y)))}
