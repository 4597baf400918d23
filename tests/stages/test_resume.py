"""A run that is stopped, and resumed, ends in the same bytes."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from parp_cli.errors import CheckpointError, Interrupted, UsageError
from parp_cli.runtime.progress import Progress
from parp_cli.stages.finetune import finetune
from parp_cli.storage.atomic import replacing
from parp_cli.training import state
from parp_cli.training.observe import Observer, observing
from parp_cli.training.run import TrainingRun
from tests.stages.processes import FILES, outcome, started, wait_for, wait_for_state
from tests.tiny import World

LONG = ("training.updates=300", "training.validate_every=20", "pruning.interval=7")


@pytest.fixture(scope="module")
def uninterrupted(world: World, masked: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    run = tmp_path_factory.mktemp("uninterrupted")
    finetune(world.recipe(*LONG), run=run, init=masked)
    return {name: (run / name).read_bytes() for name in FILES}


def start(world: World, masked: Path, run: Path, *options: str) -> "subprocess.Popen[str]":
    return started(run, (*world.settings, *LONG), "--init", str(masked), *options)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interrupted(
    world: World, masked: Path, tmp_path: Path, uninterrupted: dict[str, bytes], number: signal.Signals
) -> None:
    process = start(world, masked, tmp_path)
    wait_for_state(tmp_path, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, "")
    lines = err.splitlines()
    assert lines[0].startswith("parp: error: stopped after update ")
    assert lines[1:] == ["  hint: go on with the same command and --resume"]
    finetune(world.recipe(*LONG), run=tmp_path, init=masked, resume=True)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == uninterrupted


def test_interrupted_again_while_it_saves(
    world: World, masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spy: "Spy"
) -> None:
    """The second signal ends it at once; the state before stays as it was."""
    recipe = world.recipe("training.updates=9", "training.validate_every=3")
    finetune(recipe, run=tmp_path / "whole", init=masked)
    run = tmp_path / "run"
    spy.updates.clear()
    spy.interrupt_after = ("parp", 5)
    save = state.write_tensors

    def interrupted(path: Path, *values: Any) -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of a state")
            signal.raise_signal(signal.SIGINT)
        save(path, *values)

    def write(path: Path, *values: Any) -> None:
        (interrupted if spy.updates["parp"][-1] == 5 else save)(path, *values)

    with monkeypatch.context() as patch:
        patch.setattr(state, "write_tensors", write)
        with pytest.raises(KeyboardInterrupt):
            finetune(recipe, run=run, init=masked)
    assert state.read_position(run / "state" / "finetune.safetensors")["update"] == 3
    assert not list(run.rglob(".*.tmp"))
    spy.interrupt_after = None
    finetune(recipe, run=run, init=masked, resume=True)
    assert spy.updates["parp"] == [*range(1, 6), *range(4, 10)]
    assert outcome(run) == outcome(tmp_path / "whole")


def test_a_checkpoint_that_went_elsewhere(world: World, masked: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "best.safetensors"
    with observing(Spy(("parp", 7))), pytest.raises(Interrupted):
        finetune(world.recipe(), run=tmp_path, init=masked, out=out)
    with pytest.raises(CheckpointError, match="is not there, where this run wrote its best checkpoint") as caught:
        finetune(world.recipe(), run=tmp_path, init=masked, resume=True)
    assert "--out" in (caught.value.hint or "")
    finetune(world.recipe(), run=tmp_path, init=masked, out=out, resume=True)
    finetune(world.recipe(), run=tmp_path / "whole", init=masked)
    assert out.read_bytes() == (tmp_path / "whole" / "finetune.safetensors").read_bytes()


def test_other_data(world: World, masked: Path, tmp_path: Path) -> None:
    with observing(Spy(("parp", 7))), pytest.raises(Interrupted):
        finetune(world.recipe(), run=tmp_path / "run", init=masked)
    lines = world.manifest.read_text().splitlines(keepends=True)
    changed = [line for line in lines if '"train-0"' not in line]
    assert len(changed) == len(lines) - 1
    before = world.manifest.read_text()
    world.manifest.write_text("".join(changed))
    try:
        with pytest.raises(CheckpointError, match="of a run with another data"):
            finetune(world.recipe(), run=tmp_path / "run", init=masked, resume=True)
    finally:
        world.manifest.write_text(before)


def test_two_runs_in_one_folder(world: World, tmp_path: Path) -> None:
    """The second one is refused before it touches anything: in the run folder, or in that of a round."""
    recipe = world.recipe("pruning.method=omp", "pruning.sparsity=0.3", "training.updates=2")
    run, other = tmp_path / "run", tmp_path / "other"
    heard = []

    def try_another(step: Progress) -> None:
        if step.task.startswith("fine-tuning") and step.done == 1:
            heard.append(step.task)
            before = contents(run)
            with pytest.raises(UsageError, match=f"another fine-tuning is running in {run}"):
                finetune(recipe, run=run, resume=True)
            if step.task == "fine-tuning (dense)":
                with pytest.raises(UsageError, match=f"another fine-tuning is running in {run / 'rounds'}"):
                    finetune(recipe, run=other, rounds_folder=run / "rounds")
            assert contents(run) == before

    finetune(recipe, run=run, notify=try_another)
    assert set(heard) == {"fine-tuning (dense)", "fine-tuning (omp)"}
    finetune(recipe, run=other, rounds_folder=run / "rounds")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stopped(world: World, masked: Path, run: Path) -> None:
    """A run that broke off after its first validation."""

    class Breaks(Observer):
        def saved(self, run: TrainingRun) -> None:
            raise KeyboardInterrupt

    with observing(Breaks()), pytest.raises(KeyboardInterrupt):
        finetune(world.recipe(), run=run, init=masked)


def test_another_recipe(world: World, masked: Path, tmp_path: Path) -> None:
    stopped(world, masked, tmp_path)
    other = world.recipe("training.learning_rate=1e-3", "seed=3")
    with pytest.raises(CheckpointError, match="another recipe") as caught:
        finetune(other, run=tmp_path, init=masked, resume=True)
    assert caught.value.details == ("seed: 0 before, 3 now", "training.learning_rate: 0.01 before, 0.001 now")


def test_another_beginning(world: World, masked: Path, tmp_path: Path) -> None:
    stopped(world, masked, tmp_path)
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


def test_a_finished_run_is_not_run_again(world: World, masked: Path, tmp_path: Path, spy: "Spy") -> None:
    recipe, out = world.recipe(), tmp_path / "elsewhere.safetensors"
    first = finetune(recipe, run=tmp_path, init=masked, out=out)
    spy.updates.clear()
    again = finetune(recipe, run=tmp_path, init=masked, out=out, resume=True)
    assert again == first
    assert not spy.updates
    with pytest.raises(CheckpointError, match="another recipe"):
        finetune(world.recipe("seed=3"), run=tmp_path, init=masked, out=out, resume=True)


def test_a_finished_run_is_not_lost_by_leaving_out_resume(world: World, masked: Path, tmp_path: Path) -> None:
    """It is refused before anything is touched, wherever its checkpoint went; before another recipe it is set aside."""
    recipe, out = world.recipe(), tmp_path / "elsewhere.safetensors"
    finetune(recipe, run=tmp_path / "run", init=masked, out=out)
    before = contents(tmp_path)
    for other in (out, None):
        with pytest.raises(UsageError, match="this run has finished, after update 12") as caught:
            finetune(recipe, run=tmp_path / "run", init=masked, out=other)
        assert "--resume" in (caught.value.hint or "")
        assert contents(tmp_path) == before
    out.with_name("elsewhere-last.safetensors").unlink()
    finetune(world.recipe("training.updates=2"), run=tmp_path / "run", init=masked, out=out)
    assert contents(tmp_path) != before


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("outside", [True, False])
def test_another_recipe_loses_nothing(
    world: World, masked: Path, tmp_path: Path, finished: bool, outside: bool
) -> None:
    """Whatever another run left, in the run folder or where --out names, is set aside, and goes on from there."""
    run, said = tmp_path / "run", list[str]()
    out = tmp_path / "best.safetensors" if outside else None
    if finished:
        finetune(world.recipe(), run=run, init=masked, out=out)
    else:
        stopped(world, masked, run)
    before = contents(tmp_path)
    recipe = world.recipe("seed=3", "training.updates=5")
    finetune(recipe, run=run, init=masked, out=out, notify=lambda step: said.append(step.news))
    after = contents(tmp_path)
    for path, content in before.items():
        kept = (
            tmp_path / "run~1" / path.relative_to(run) if path.is_relative_to(run) else path.with_stem(f"{path.stem}~1")
        )
        assert path.name == ".lock" or after[kept] == content, path
    assert any("another run's files were here" in news and "run~1" in news for news in said)
    if not outside:
        finetune(world.recipe(), run=tmp_path / "run~1", init=masked, resume=True)
        assert contents(run) == {path: content for path, content in after.items() if path.is_relative_to(run)}


def test_a_checkpoint_that_was_put_there_is_not_lost(world: World, masked: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "finetune.safetensors").write_bytes(masked.read_bytes())
    finetune(world.recipe("training.updates=2"), run=run, init=masked, resume=True)
    assert (tmp_path / "run~1" / "finetune.safetensors").read_bytes() == masked.read_bytes()


@pytest.mark.parametrize("finished", [False, True])
def test_what_another_version_noted_is_refused(world: World, masked: Path, tmp_path: Path, finished: bool) -> None:
    run = tmp_path / "run"
    if finished:
        finetune(world.recipe(), run=run, init=masked)
        path = run / "finetune-finished.json"
        noted = json.loads(path.read_text())
        del noted["version"]
        path.write_text(json.dumps(noted))
    else:
        stopped(world, masked, run)
        path = run / "state" / "finetune.safetensors"
        noted = state.read_position(path)
        del noted["version"]
        save_file(load_file(path), path, {"parp": json.dumps(noted)})
    with pytest.raises(CheckpointError, match="was written by another version of parp") as caught:
        finetune(world.recipe(), run=run, init=masked, resume=True)
    assert "--resume" in (caught.value.hint or "")


def test_a_state_that_is_none(world: World, masked: Path, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "finetune.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="is not the state of a run"):
        finetune(world.recipe(), run=tmp_path, init=masked, resume=True)


def test_a_new_run_forgets_the_old_state(world: World, masked: Path, tmp_path: Path) -> None:
    stopped(world, masked, tmp_path)
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


class Spy(Observer):
    """The updates that each training run made, in order, by the run's name; and an interruption after one of them."""

    def __init__(self, interrupt_after: tuple[str, int] | None = None) -> None:
        self.updates: dict[str, list[int]] = {}
        self.interrupt_after = interrupt_after

    def update_ends(self, run: TrainingRun) -> None:
        self.updates.setdefault(run.name, []).append(run.update)
        if (run.name, run.update) == self.interrupt_after:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def spy() -> Iterator[Spy]:
    """Of all training runs from here on."""
    with observing(spy := Spy()):
        yield spy


@pytest.fixture(scope="module")
def imp(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted run of four ends in."""
    run = tmp_path_factory.mktemp("imp")
    finetune(world.recipe(*IMP), run=run)
    return {name: (run / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("resume", [True, False])
def test_interrupted_in_a_middle_round(
    world: World, tmp_path: Path, imp: dict[str, bytes], spy: Spy, resume: bool
) -> None:
    """Rounds go on by themselves; the run proper, when asked to or, if it is to begin anew, without its state."""
    recipe = world.recipe(*IMP)
    for place in (("round 2 of 3", 17), ("imp", 6)):
        spy.interrupt_after = place
        with pytest.raises(Interrupted, match=f"stopped after update {place[1]} of ") as caught:
            finetune(recipe, run=tmp_path, resume=resume and place[0] == "imp")
        assert "--resume" in (caught.value.hint or "")
    spy.interrupt_after = None
    if not resume:
        with pytest.raises(UsageError, match="this run was stopped after update 6") as refused:
            finetune(recipe, run=tmp_path)
        assert "--resume" in (refused.value.hint or "")
        shutil.rmtree(tmp_path / "state")
    result = finetune(recipe, run=tmp_path, resume=resume)
    assert spy.updates == {
        **{f"round {number} of 3": list(range(1, 41)) for number in (1, 2, 3)},
        "imp": list(range(1, 9)) if resume else [*range(1, 7), *range(1, 9)],
    }
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == imp
    assert result.cost.updates == 3 * 40 + 8
    assert not list(tmp_path.rglob("state/finetune.safetensors"))


def test_killed_in_a_middle_round(world: World, tmp_path: Path, imp: dict[str, bytes], spy: Spy) -> None:
    process = started(tmp_path, (*world.settings, *IMP))

    def in_the_second() -> bool:
        finished = len(list(tmp_path.glob("rounds/*/finetune-finished.json")))
        return finished == 1 and len(list(tmp_path.glob("rounds/*"))) == 2

    wait_for(in_the_second, process)
    time.sleep(random.Random(os.getpid()).uniform(0, 0.1))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "over before it was killed"
    finished = len(list(tmp_path.glob("rounds/*/finetune-finished.json")))
    assert finished in (1, 2)
    finetune(world.recipe(*IMP), run=tmp_path, resume=True)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == imp
    assert list(spy.updates)[-1] == "imp"
    assert "round 1 of 3" not in spy.updates, "what is finished is not done again"
    assert "round 3 of 3" in spy.updates


def test_what_is_resumed_reports_what_was_done_before(world: World, masked: Path, tmp_path: Path) -> None:
    recipe = world.recipe("training.learning_rate=0.1")
    whole = finetune(recipe, run=tmp_path / "whole", init=masked)
    with observing(Spy(("parp", 7))), pytest.raises(Interrupted):
        finetune(recipe, run=tmp_path / "broken", init=masked)
    resumed = finetune(recipe, run=tmp_path / "broken", init=masked, resume=True)
    assert resumed.reprunings == whole.reprunings
    assert resumed.validations == whole.validations
    assert (resumed.cost.updates, resumed.cost.audio_seconds) == (whole.cost.updates, whole.cost.audio_seconds)
