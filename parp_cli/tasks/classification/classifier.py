"""The network of a checkpoint with a head for texts, and what it predicts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from parp_cli.data.batching import sorted_batches
from parp_cli.errors import CheckpointError
from parp_cli.models.recognizer import rebuild
from parp_cli.models.transformers.architecture import TOKENIZER
from parp_cli.runtime.device import autocast
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage.checkpoint import Checkpoint
from parp_cli.storage.run_folder import require_head
from parp_cli.tasks.texts.items import Encoding, TextItem

_PASS_TOKENS = 8192  # padded tokens in one forward pass. Changes no prediction but by rounding


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is predicted of a text: a class with its probability, or a number, as text, with None."""

    id: str
    label: str
    probability: float | None


class Classifier:
    """The network of a checkpoint, its tokenizer, and what its head is for.

    Raises CheckpointError where the checkpoint has another head, or none.
    """

    def __init__(self, content: Checkpoint, source: Path, device: torch.device, *, precision: str = "float32") -> None:
        self.task = require_head(source, content.metadata)
        if self.task["kind"] != "classification":
            raise CheckpointError(f"the output head of {source} is for {self.task['kind']}, not for texts")
        self.network = rebuild(content, device, source=str(source))[1]
        limits = (self.task.get("max_length"), self.network.positions)
        length = min(limit for limit in (*limits, 512) if limit is not None) if any(limits) else 512
        packed = content.weights.get(TOKENIZER)
        self.encoding = Encoding(self.network, packed, max_length=length, source=str(source))
        self.names: list[str] = list(self.task["names"])
        self._device, self._precision = device, precision

    def predict(self, items: Sequence[TextItem], notify: Notify = silent) -> list[Prediction]:
        """In the order of the items."""
        found: dict[int, Prediction] = {}
        for batch in sorted_batches([len(item.tokens) for item in items], _PASS_TOKENS):
            some = [items[index] for index in batch]
            found |= dict(zip(batch, self._predict(some), strict=True))
            notify(Progress("predicting", len(found), len(items)))
        return [found[index] for index in range(len(items))]

    @torch.no_grad()
    def _predict(self, items: Sequence[TextItem]) -> Iterator[Prediction]:
        with autocast(self._precision, self._device):
            outputs = self.network(self.encoding.batch(items, self._device)).float().cpu()
        if not self.names:
            for item, value in zip(items, outputs[:, 0].tolist(), strict=True):
                yield Prediction(id=item.id, label=f"{value:.6g}", probability=None)
            return
        shares, classes = outputs.softmax(-1).max(-1)
        for item, share, index in zip(items, shares.tolist(), classes.tolist(), strict=True):
            yield Prediction(id=item.id, label=self.names[index], probability=share)
