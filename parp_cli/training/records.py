"""What a training run has come to: its cost, its validations, and what it remembers between them."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from parp_cli.tasks.task import UpdateLoss, Validation


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What training took: updates, seconds of audio in them (or the size of their items), seconds of wall time."""

    updates: int = 0
    audio_seconds: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(**{key: value + getattr(other, key) for key, value in asdict(self).items()})


class Record:
    """What a run has come to, over all sittings.

    Attributes:
        update: how many updates are done.
        size: of all items that were trained on, in the task's unit.
        skipped, skipped_in_a_row: updates without a finite loss and gradient.
        validations: so far.
    """

    def __init__(self) -> None:
        self.update, self.size = 0, 0.0
        self.skipped = self.skipped_in_a_row = 0
        self.validations: list[Validation] = []
        self._recent: list[list[float]] = []  # loss and metrics of each update since the last validation
        self._began, self._seconds_before = time.monotonic(), 0.0

    @property
    def best(self) -> Validation:
        """The validation with the best score, the first of equal ones."""
        return min(self.validations, key=lambda validation: validation.score)

    @property
    def cost(self) -> Cost:
        """So far."""
        seconds = self._seconds_before + time.monotonic() - self._began
        return Cost(updates=self.update, audio_seconds=self.size, seconds=seconds)

    def learned(self, loss: UpdateLoss[Any]) -> None:
        """An update had a finite loss and gradient."""
        self.skipped_in_a_row = 0
        self._recent.append([loss.mean, *loss.metrics])

    def train_means(self, metrics: int) -> list[float | None]:
        """Loss and so many metrics, means over the updates since this was asked before; None where there were none."""
        means: list[float | None] = [sum(column) / len(column) for column in zip(*self._recent, strict=True)]
        self._recent.clear()
        return means or [None] * (1 + metrics)

    def to_json(self) -> dict[str, Any]:
        """All of it, in plain values."""
        return {
            "update": self.update,
            "skipped_updates": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "cost": asdict(self.cost),
            "recent": self._recent,
            "validations": [asdict(validation) for validation in self.validations],
        }

    def load_json(self, values: Mapping[str, Any]) -> None:
        """Go on from what `to_json` gave."""
        cost = Cost(**values["cost"])
        self.update, self.size, self._seconds_before = values["update"], cost.audio_seconds, cost.seconds
        self.skipped, self.skipped_in_a_row = values["skipped_updates"], values["skipped_in_a_row"]
        self._recent = [list(row) for row in values["recent"]]
        self.validations = [Validation(**{**one, "score": tuple(one["score"])}) for one in values["validations"]]
