"""A run that is stopped or killed at any moment, and resumed, ends in the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from parp_cli.errors import CheckpointError, Interrupted
from parp_cli.stages.finetune import finetune
from parp_cli.training import loop as module
from tests.tiny import World

LONG = ("training.updates=300", "training.validate_every=20", "pruning.interval=7")
FILES = ("finetune.safetensors", "finetune-last.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(world: World, masked: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    run = tmp_path_factory.mktemp("uninterrupted")
    finetune(world.recipe(*LONG), run=run, init=masked)
    return {name: (run / name).read_bytes() for name in FILES}


def start(world: World, masked: Path, run: Path, *options: str) -> "subprocess.Popen[str]":
    return started(run, (*world.settings, *LONG), "--init", str(masked), *options)


def started(run: Path, settings: Sequence[str], *options: str) -> "subprocess.Popen[str]":
    sets = [part for value in settings for part in ("--set", value)]
    command = ["finetune", *sets, "--run", str(run), "--quiet", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "parp_cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_state(run: Path, after: int, process: "subprocess.Popen[str]") -> None:
    """Until the state is newer than `after` (nanoseconds)."""
    state = run / "state" / "finetune.safetensors"
    for _ in range(6000):
        if state.exists() and state.stat().st_mtime_ns > after:
            return
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.005)
    raise AssertionError("the run saves no state")


def test_killed_three_times(world: World, masked: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    rng = random.Random(os.getpid())
    for attempt in range(3):
        before = time.time_ns()
        process = start(world, masked, tmp_path, *(["--resume"] if attempt else []))
        wait_for_state(tmp_path, before, process)
        delay = rng.uniform(0, 0.15)
        time.sleep(delay)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"over before it was killed, {delay:.3f} s after its first state"
    finetune(world.recipe(*LONG), run=tmp_path, init=masked, resume=True)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == uninterrupted
    assert not (tmp_path / "state" / "finetune.safetensors").exists()


def test_interrupted(world: World, masked: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    process = start(world, masked, tmp_path)
    wait_for_state(tmp_path, 0, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    lines = err.splitlines()
    assert lines[0].startswith("parp: error: stopped after update ")
    assert lines[1:] == ["  hint: go on with the same command and --resume"]
    finetune(world.recipe(*LONG), run=tmp_path, init=masked, resume=True)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == uninterrupted


def stopped(world: World, masked: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that broke off after its first validation."""
    save = module.TrainingRun._save_state

    def save_and_break(self: module.TrainingRun) -> None:
        save(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.TrainingRun, "_save_state", save_and_break)
        with pytest.raises(KeyboardInterrupt):
            finetune(world.recipe(), run=run, init=masked)


def test_another_recipe(world: World, masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(world, masked, tmp_path, monkeypatch)
    other = world.recipe("training.learning_rate=1e-3", "seed=3")
    with pytest.raises(CheckpointError, match="another recipe") as caught:
        finetune(other, run=tmp_path, init=masked, resume=True)
    assert caught.value.details == ("seed: 0 before, 3 now", "training.learning_rate: 0.01 before, 0.001 now")


def test_another_beginning(world: World, masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(world, masked, tmp_path, monkeypatch)
    with pytest.raises(CheckpointError, match="another parent"):
        finetune(world.recipe(), run=tmp_path, resume=True)


def test_nothing_to_resume(world: World, masked: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    """A run that was killed before it saved anything begins anew."""
    warnings: list[str] = []
    finetune(
        world.recipe(*LONG), run=tmp_path, init=masked, resume=True, notify=lambda step: warnings.append(step.warning)
    )
    assert f"nothing to resume in {tmp_path}: beginning" in warnings
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == uninterrupted


def test_a_finished_run_is_not_run_again(
    world: World, masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = world.recipe(), tmp_path / "elsewhere.safetensors"
    first = finetune(recipe, run=tmp_path, init=masked, out=out)
    spy = Spy(monkeypatch)
    again = finetune(recipe, run=tmp_path, init=masked, out=out, resume=True)
    assert again == first
    assert not spy.updates
    with pytest.raises(CheckpointError, match="another recipe"):
        finetune(world.recipe("seed=3"), run=tmp_path, init=masked, out=out, resume=True)


def test_a_state_that_is_none(world: World, masked: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "finetune.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is not the state of a run"):
        finetune(world.recipe(), run=tmp_path, init=masked, resume=True)


def test_a_new_run_forgets_the_old_state(
    world: World, masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(world, masked, tmp_path, monkeypatch)
    state = tmp_path / "state" / "finetune.safetensors"
    assert state.exists()
    finetune(world.recipe("training.updates=2"), run=tmp_path, init=masked)
    assert not state.exists()


# -------------------------------------------------------------------------------------- methods of several runs


IMP = (
    "pruning.method=imp",
    "pruning.sparsity=0.3",
    "pruning.rounds.updates=40",
    "training.updates=8",
    "training.validate_every=10",
)


class Spy:
    """The updates that each training run made, in order, by the run's name; and an interruption after one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.updates: dict[str, list[int]] = {}
        self.interrupt_after: tuple[str, int] | None = None
        step = module.TrainingRun._step

        def spying(run: Any) -> None:
            step(run)
            self.updates.setdefault(run._name, []).append(run._update)
            if (run._name, run._update) == self.interrupt_after:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(module.TrainingRun, "_step", spying)


@pytest.fixture(scope="module")
def imp(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run of four ends in."""
    run = tmp_path_factory.mktemp("imp")
    finetune(world.recipe(*IMP), run=run)
    return {name: (run / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("resume", [True, False])
def test_interrupted_in_a_middle_round(
    world: World, tmp_path: Path, imp: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    """Rounds go on by themselves; the run proper, only when asked to."""
    spy = Spy(monkeypatch)
    recipe = world.recipe(*IMP)
    for place in (("round 2 of 3", 17), ("imp", 6)):
        spy.interrupt_after = place
        with pytest.raises(Interrupted, match=f"stopped after update {place[1]} of ") as caught:
            finetune(recipe, run=tmp_path, resume=resume and place[0] == "imp")
        assert "--resume" in (caught.value.hint or "")
    spy.interrupt_after = None
    result = finetune(recipe, run=tmp_path, resume=resume)
    assert spy.updates == {
        **{f"round {number} of 3": list(range(1, 41)) for number in (1, 2, 3)},
        "imp": list(range(1, 9)) if resume else [*range(1, 7), *range(1, 9)],
    }
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == imp
    assert result.cost.updates == 3 * 40 + 8
    assert not list(tmp_path.rglob("state/finetune.safetensors"))


def test_killed_in_a_middle_round(
    world: World, tmp_path: Path, imp: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    process = started(tmp_path, (*world.settings, *IMP))
    for _ in range(6000):
        finished = len(list(tmp_path.glob("rounds/*/finetune-finished.json")))
        if finished == 1 and len(list(tmp_path.glob("rounds/*"))) == 2:
            break
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.005)
    time.sleep(random.Random(os.getpid()).uniform(0, 0.1))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "over before it was killed"
    finished = len(list(tmp_path.glob("rounds/*/finetune-finished.json")))
    assert finished in (1, 2)
    spy = Spy(monkeypatch)
    finetune(world.recipe(*IMP), run=tmp_path, resume=True)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == imp
    assert list(spy.updates)[-1] == "imp"
    assert "round 1 of 3" not in spy.updates, "what is finished is not done again"
    assert "round 3 of 3" in spy.updates


def test_what_is_resumed_reports_what_was_done_before(world: World, masked: Path, tmp_path: Path) -> None:
    recipe = world.recipe("training.learning_rate=0.1")
    whole = finetune(recipe, run=tmp_path / "whole", init=masked)
    with pytest.MonkeyPatch.context() as patch:
        Spy(patch).interrupt_after = ("parp", 7)
        with pytest.raises(Interrupted):
            finetune(recipe, run=tmp_path / "broken", init=masked)
    resumed = finetune(recipe, run=tmp_path / "broken", init=masked, resume=True)
    assert resumed.reprunings == whole.reprunings
    assert resumed.validations == whole.validations
    assert (resumed.cost.updates, resumed.cost.audio_seconds) == (whole.cost.updates, whole.cost.audio_seconds)
