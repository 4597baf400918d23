"""What training runs of this process do, told to whoever asks: a public view for tests, tools and experiments."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parp_cli.training.run import TrainingRun


class Observer:
    """Override what is of interest. A run has a name, and its network, objective, module, pruner, optimizer,
    update and journal.

    What a method raises ends the run like an error of its own.
    """

    def begins(self, run: "TrainingRun") -> None:
        """Before the first update of this process."""

    def update_begins(self, run: "TrainingRun") -> None:
        """Before an update; `run.update` are done."""

    def gradients(self, run: "TrainingRun") -> None:
        """After an update's backward passes; gradients may be looked at and changed."""

    def update_ends(self, run: "TrainingRun") -> None:
        """After an update and a re-pruning that follows it; `run.update` is its number from 1."""

    def validated(self, run: "TrainingRun") -> None:
        """After a validation, before the state is saved."""

    def saved(self, run: "TrainingRun") -> None:
        """After the state was saved."""


_observers: list[Observer] = []


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Tell an observer about all training runs of this process until the block ends."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


def tell_observers(run: "TrainingRun", event: str) -> None:
    """Call the method of this name of all observers, in the order in which they came."""
    for observer in _observers:
        getattr(observer, event)(run)
