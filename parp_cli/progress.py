"""How long work tells its caller where it is. Stages call it, `console.py` draws it, and nothing else need care."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`done` of `total` steps of `task` are behind us; `note` says how it goes."""

    task: str
    done: int
    total: int
    note: str = ""


Notify = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Tell nobody."""
