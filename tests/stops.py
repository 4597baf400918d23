"""Runs that are stopped, and go on."""

import signal
from pathlib import Path
from typing import Any

import pytest

from parp_cli.errors import Interrupted
from parp_cli.stages.finetune import finetune
from parp_cli.training.observe import Observer, observing
from parp_cli.training.run import TrainingRun
from tests.stages.processes import outcome


class StopsAfter(Observer):
    """Asks to stop, as Ctrl-C does, after so many updates of all training runs from here on."""

    def __init__(self, updates: int) -> None:
        self._left = updates

    def update_ends(self, run: TrainingRun) -> None:
        self._left -= 1
        if not self._left:
            signal.raise_signal(signal.SIGINT)


def check_it_goes_on(recipe: Any, folder: Path, *, after: int) -> None:
    """A run that is stopped after an update and goes on leaves what one leaves that was never stopped."""
    finetune(recipe, run=folder / "whole")
    with observing(StopsAfter(after)), pytest.raises(Interrupted):
        finetune(recipe, run=folder / "stopped")
    finetune(recipe, run=folder / "stopped", resume=True)
    assert outcome(folder / "stopped") == outcome(folder / "whole")
