"""A run that is killed at any moment, and resumed, ends in the same bytes, with the same log and nothing left over."""

import hashlib
import math
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from parp_cli.config.finetune import Recipe
from parp_cli.stages.finetune import finetune
from parp_cli.training.observe import Observer, observing
from parp_cli.training.run import TrainingRun
from tests.stages.processes import FILES, outcome, started
from tests.tiny import World

# States are saved between validations too, every some updates.
SETTINGS = ("training.updates=40", "training.validate_every=10", "pruning.interval=7", "training.save_minutes=0.0005")


# ------------------------------------------------------------------------------------------- at random moments


@pytest.mark.parametrize("kills", [3, pytest.param(24, marks=pytest.mark.slow)])
def test_killed_at_random_moments(world: World, masked: Path, tmp_path: Path, kills: int) -> None:
    """From the start of the process to its end: while it imports, prepares, trains, writes, or has just finished."""
    recipe, settings = world.recipe(*SETTINGS), (*world.settings, *SETTINGS)
    began = time.monotonic()
    finetune(recipe, run=tmp_path / "whole", init=masked)
    training_seconds = time.monotonic() - began
    whole = outcome(tmp_path / "whole")

    seed = os.getpid()
    rng = random.Random(seed)
    story = [f"seed {seed}"]
    killed = attempt = 0
    while killed < kills:
        attempt += 1
        run = tmp_path / f"attempt {attempt}"
        over = False
        while not over and killed < kills:
            process = started(run, settings, "--init", str(masked), *(["--resume"] if run.exists() else []))
            if rng.random() < 0.7:
                (run / ".lock").unlink(missing_ok=True)  # it comes back when training begins
                while not (run / ".lock").exists() and process.poll() is None:
                    time.sleep(0.002)
            delay = rng.uniform(0, training_seconds)
            time.sleep(delay)
            process.kill()
            _, err = process.communicate()
            over = process.returncode == 0
            assert over or process.returncode == -signal.SIGKILL, (story, err)
            killed += not over
            story.append(f"{run.name}: {'over' if over else 'killed'} after {delay:.3f} s")
        finetune(recipe, run=run, init=masked, resume=True)
        assert outcome(run) == whole, story


# ---------------------------------------------------------------------------------- before each file operation


class Watch:
    """Copies a run folder right before each operation of this process on a file in it.

    A kill leaves a folder as such a copy is, with what was written and not yet flushed gone; so there is no need to
    kill anything. There is one copy before operations between which nothing changed.

    Args:
        run: the folder.
        copies: where the copies go, numbered.

    Attributes:
        copies: in order.
        operations: that each copy was made before.
    """

    def __init__(self, run: Path, copies: Path) -> None:
        self._run, self._to = run, copies
        self._last: dict[str, str] | None = None
        self.copies: list[Path] = []
        self.operations: list[list[str]] = []

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit event of Python's."""
        if event == "open":
            path, _, flags = arguments
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.utime", "os.chmod", "os.truncate"):
            path = arguments[event == "os.rename"]  # where it goes
        else:
            return
        if isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(self._run):
            self.copy(f"{event} {Path(path).relative_to(self._run)}")

    def copy(self, operation: str) -> None:
        """Keep the folder as it is now."""
        now = _content(self._run)
        if now != self._last:
            self._last = now
            self.copies.append(self._to / str(len(self.copies)))
            self.operations.append([])
            if self._run.exists():
                shutil.copytree(self._run, self.copies[-1])
        self.operations[-1].append(operation)


def _content(folder: Path) -> dict[str, str]:
    """Hashes by name, without what is random in names."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        re.sub(r"-\w{8}\.tmp$", "", str(path.relative_to(folder))): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


_watch: Watch | None = None


@contextmanager
def watched(run: Path, copies: Path) -> Iterator[Watch]:
    """Watch a run folder, and copy it once more in the end."""
    global _watch
    _watch = watch = Watch(run, copies)
    try:
        yield watch
    finally:
        _watch = None
    watch.copy("end")


@pytest.fixture(scope="module", autouse=True)
def _ear() -> None:
    """Audit hooks stay for good: this one does nothing unless a folder is watched."""

    listening = threading.local()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if _watch is not None and not getattr(listening, "now", False):
            listening.now = True  # copying is no operation of the run
            try:
                _watch.hear(event, arguments)
            finally:
                listening.now = False

    sys.addaudithook(hook)


@pytest.fixture
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes most of the time, and makes a difference only when the power fails."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def short(world: World, method: str, updates: int = 4, seed: int = 0) -> Recipe:
    """A run that re-prunes, and saves its state after each update."""
    return world.recipe(
        f"seed={seed}",
        f"training.updates={updates}",
        "training.validate_every=2",
        "training.save_minutes=1e-9",
        f"pruning.method={method}",
        "pruning.sparsity=0.3",
        "pruning.interval=3",
        "pruning.rounds.updates=3",
    )


SLOW = [pytest.param(method, 4, marks=pytest.mark.slow) for method in ("parp", "omp", "imp")]


@pytest.mark.usefixtures("_no_flushing")
@pytest.mark.parametrize(("method", "updates"), [("omp", 2), *SLOW])
def test_killed_before_each_file_operation(world: World, tmp_path: Path, method: str, updates: int) -> None:
    recipe, run = short(world, method, updates), tmp_path / "whole"
    with watched(run, tmp_path / "copies") as watch:
        finetune(recipe, run=run)
    whole = outcome(run)
    done = {operation for operations in watch.operations for operation in operations}
    assert {f"os.rename {name}" for name in (*FILES, "state/finetune.safetensors", "finetune-finished.json")} <= done
    for copy, operations in zip(watch.copies, watch.operations, strict=True):
        before, steps = updates_logged(copy), []
        finetune(recipe, run=copy, resume=True, notify=steps.append)
        assert outcome(copy) == whole, f"killed before: {operations}"
        made = sum(step.note.startswith("loss") for step in steps)
        assert before + made - updates_logged(run) <= 1, f"killed before: {operations}, which loses more than an update"


def updates_logged(run: Path) -> int:
    """Of all its training runs."""
    return sum('"update", ' in line for log in run.rglob("finetune.jsonl") for line in log.read_text().splitlines())


@pytest.mark.slow
@pytest.mark.usefixtures("_no_flushing")
def test_killed_when_an_update_was_skipped(world: World, tmp_path: Path) -> None:
    class Poison(Observer):
        def gradients(self, run: TrainingRun) -> None:
            if run.update == 2:
                next(w.grad for w in run.network.parameters() if w.grad is not None).fill_(math.nan)

    recipe, run = short(world, "parp"), tmp_path / "whole"
    with observing(Poison()):
        with watched(run, tmp_path / "copies") as watch:
            finetune(recipe, run=run)
        whole = outcome(run)
        assert [line["update"] for line in whole["finetune.jsonl"] if line["event"] == "skipped"] == [3]
        for copy, operations in zip(watch.copies, watch.operations, strict=True):
            finetune(recipe, run=copy, resume=True)
            assert outcome(copy) == whole, f"killed before: {operations}"


@pytest.mark.slow
@pytest.mark.usefixtures("_no_flushing")
@pytest.mark.parametrize("method", ["parp", "omp"])
def test_killed_twice_before_file_operations(world: World, tmp_path: Path, method: str) -> None:
    """The second time while it resumes, before an operation that is drawn."""
    seed = os.getpid()
    rng = random.Random(seed)
    recipe = short(world, method)
    with watched(tmp_path / "whole", tmp_path / "copies") as first:
        finetune(recipe, run=tmp_path / "whole")
    whole = outcome(tmp_path / "whole")
    for number, (copy, operations) in enumerate(zip(first.copies, first.operations, strict=True)):
        with watched(copy, tmp_path / f"copies of {number}") as second:
            finetune(recipe, run=copy, resume=True)
        again, later = rng.choice(list(zip(second.copies, second.operations, strict=True)))
        finetune(recipe, run=again, resume=True)
        assert outcome(again) == whole, f"seed {seed}, killed before: {operations}, {later}"
        shutil.rmtree(tmp_path / f"copies of {number}")


@pytest.mark.usefixtures("_no_flushing")
def test_begun_anew_and_killed_before_each_file_operation(world: World, tmp_path: Path) -> None:
    """In the folder of an earlier run of another recipe that was killed when it was just finished."""
    with watched(tmp_path / "run", tmp_path / "earlier") as watch:
        finetune(short(world, "parp", updates=2), run=tmp_path / "run")
    run = watch.copies[-2]
    assert {"finetune-finished.json", "state/finetune.safetensors"} <= set(_content(run))
    recipe = short(world, "parp", updates=2, seed=1)
    with watched(run, tmp_path / "copies") as watch:
        finetune(recipe, run=run)
    whole = outcome(run)
    resume = False  # what another recipe left is not gone on with
    for copy, operations in zip(watch.copies, watch.operations, strict=True):
        resume = resume or not {"finetune-finished.json", "state/finetune.safetensors"} & set(_content(copy))
        finetune(recipe, run=copy, resume=resume)
        assert outcome(copy) == whole, f"killed before: {operations}"
    assert resume
