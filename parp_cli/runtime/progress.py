"""How long work tells its caller where it is. Stages call it, `console.py` draws it, and nothing else need care."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`done` of `total` steps of `task` are behind us; `note` says how it goes.

    Where `news` or `warning` is given, the report is of that alone: a line that stays, and one to be looked at.
    """

    task: str
    done: int
    total: int
    note: str = ""
    warning: str = ""
    news: str = ""

    @property
    def is_line(self) -> bool:
        """Whether it is a line of its own, and says nothing of how far the work is."""
        return bool(self.warning or self.news)


Notify = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Tell nobody."""
