"""How long-running work reports progress: stages call `Notify`, and `console.py` draws it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["training", "recognition", "data", "other"]


@dataclass(frozen=True)
class Progress:
    """`done` of `total` steps of `task` are done.

    Attributes:
        task: what is being done, for people.
        note: a short description of the current state, such as the loss.
        warning, news: if given, the report is this message alone, on a line that stays.
        kind: what the steps are; of "training" they are updates of a training run. A message of kind "data" is the same
            for every run on the same data.
    """

    task: str
    done: int
    total: int
    note: str = ""
    warning: str = ""
    news: str = ""
    kind: Kind = "other"

    @property
    def is_line(self) -> bool:
        """Whether it is a message, which says nothing about `done` and `total`."""
        return bool(self.warning or self.news)


Notify = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Ignore the report."""
