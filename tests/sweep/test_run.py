"""A sweep runs what is left of it, once, and goes on wherever it was ended."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import torch

from parp_cli.errors import DataError, Interrupted, UsageError
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.stages.finetune import finetune
from parp_cli.storage import checkpoint
from parp_cli.storage.atomic import replacing
from parp_cli.storage.run_folder import round_folder
from parp_cli.sweep import cells
from parp_cli.sweep import run as sweeping
from parp_cli.sweep.cells import read_failure, run_cell
from parp_cli.sweep.grid import Cell, Sweep, load_sweep, with_data
from parp_cli.sweep.run import SweepResult, plan_sweep, run_cells, run_sweep
from parp_cli.sweep.workers import ProcessPool
from parp_cli.training.observe import Observer, observing
from parp_cli.training.run import TrainingRun
from tests.stages.processes import wait_for
from tests.sweep.conftest import without_times
from tests.tiny import World, write_manifest

CPU = torch.device("cpu")
METHODS = "grid: {pruning.method: [omp, dense, imp], pruning.sparsity: [0.2, 0.3]}\nsplits: [test, valid]\n"
SHORT = ("pruning.rounds.step=0.2", "pruning.rounds.updates=3", "training.updates=6")
LONG = (*SHORT, "training.updates=60", "pruning.rounds.updates=20", "training.validate_every=5")


def load(path: Path) -> Sweep:
    return with_data(load_sweep(path, device=CPU))


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "sweep.jsonl").read_text().splitlines()]


def essence(run: Path) -> tuple[Any, dict[str, str]]:
    """Results and weights, without how long they took."""
    hashes = {
        str(path.relative_to(run)): checkpoint.file_hash(path) for path in run.glob("rounds/*/finetune*.safetensors")
    }
    return without_times(rows(run)), hashes


@pytest.fixture
def figures() -> None:
    """Asked for by tests that look at figures."""


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures would take a third of the time."""
    if "figures" not in request.fixturenames:
        monkeypatch.setattr(sweeping, "_figures", lambda *_: ())


@pytest.fixture
def trained() -> Iterator[list[str]]:
    """The folders of all training runs that are made."""
    made: list[str] = []

    class Spy(Observer):
        def begins(self, run: TrainingRun) -> None:
            made.append(run.files.last.parent.name)

    with observing(Spy()):
        yield made


def test_what_cells_share_runs_once(write_sweep: Any, tmp_path: Path, trained: list[str]) -> None:
    sweep, run = load(write_sweep(METHODS, *SHORT)), tmp_path / "run"
    plan = plan_sweep(sweep, run)
    # omp: dense and 2; dense: the same; imp: rounds at 0 and 20 %, then 20 and 30 %.
    assert (len(plan.cells), plan.runs) == (5, 1 + 2 + 2 + 2)
    assert (plan.updates, plan.updates_left, plan.updates_alone) == (5 * 6 + 2 * 3, 36, 7 * 6 + 3 * 3)
    seen: list[Progress] = []
    result = run_sweep(sweep, run=run, notify=seen.append)
    assert len(trained) == len(set(trained)) == plan.runs
    assert set(trained) == {key for cell in sweep.cells for key in cell.keys}
    assert plan_sweep(sweep, run).updates_left == 0
    steps = [step for step in seen if step.task == "sweep"]
    assert {step.total for step in steps} == {36}
    assert [step.done for step in steps] == list(range(1, 37))
    check_outcomes(result, sweep, run)


def check_outcomes(result: SweepResult, sweep: Sweep, run: Path) -> None:
    assert result.failed == ()
    assert [(o.cell, o.split) for o in result.outcomes] == [(c.name, s) for c in sweep.cells for s in ("test", "valid")]
    updates = {"dense": 6, "omp": 12}
    for outcome, row in zip(result.outcomes, rows(run), strict=True):
        searched = {0.2: 3, 0.3: 2 * 3}.get(outcome.sparsity_target, 0)
        assert outcome.updates == updates.get(outcome.method, 6 + searched), outcome.cell
        assert outcome.wall_seconds is not None
        assert outcome.wall_seconds > 0
        assert outcome.sparsity == pytest.approx(outcome.sparsity_target, abs=1e-4)
        assert (row["wer"], row["values"]) == (outcome.wer, dict(outcome.values))
        figures = json.loads((run / row["checkpoint"]).with_name(f"eval-{outcome.split}.json").read_text())
        assert row["wer"] == figures["words"]["rate"]
        assert row["cer"] == figures["characters"]["rate"]
    names = ["dense", "imp-0.2-sparse", "imp-0.3-sparse", "omp-0.2-sparse", "omp-0.3-sparse"]
    check_links(run, sweep, names)


def check_links(run: Path, sweep: Sweep, names: list[str]) -> None:
    named = {link.name: link.resolve().name for link in (run / "cells" / sweep.file.stem).iterdir()}
    assert sorted(named.values()) == sorted(cell.key for cell in sweep.cells)
    assert sorted(named) == names


def test_a_cell_is_the_run_of_its_recipe(write_sweep: Any, tmp_path: Path) -> None:
    sweep = load(write_sweep("grid: {pruning.method: [omp], pruning.sparsity: [0.5]}", *SHORT))
    (outcome,) = run_sweep(sweep, run=tmp_path / "run").outcomes
    (cell,) = sweep.cells
    alone = finetune(cell.recipe, run=tmp_path / "alone")
    assert outcome.updates == alone.cost.updates
    mine = checkpoint.read(round_folder(tmp_path / "run", cell.key) / "finetune.safetensors")
    theirs = checkpoint.read(alone.path)
    assert all(torch.equal(mine.weights[name], weight) for name, weight in theirs.weights.items())
    assert all(torch.equal(mine.masks[name], mask) for name, mask in theirs.masks.items())


@pytest.mark.usefixtures("figures")
def test_done_is_not_done_again(write_sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "grid: {pruning.method: [dense, omp], seed: [0]}\n"
    first = run_sweep(load(write_sweep(text, *SHORT)), run=tmp_path / "run")
    written = {path: path.read_bytes() for path in (first.results, first.tables, *first.figures)}
    assert {path.suffix for path in written} == {".jsonl", ".md", ".png", ".svg"}
    for path in written:
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(cells, "finetune", None)
        patch.setattr(cells, "evaluate", None)
        again = run_sweep(load(write_sweep(text, *SHORT)), run=tmp_path / "run")
    assert again == first
    assert {path: path.read_bytes() for path in written} == written
    # Another split is judged, without training; another seed trains, and the old one's results stay.
    with monkeypatch.context() as patch:
        patch.setattr(cells, "finetune", None)
        run_sweep(load(write_sweep(text + "splits: [valid, test]", *SHORT)), run=tmp_path / "run")
    assert len(rows(tmp_path / "run")) == 4
    more = load(write_sweep("grid: {pruning.method: [dense, omp], seed: [0, 1]}\n", *SHORT))
    assert plan_sweep(more, tmp_path / "run").updates_left == 12


@pytest.mark.usefixtures("figures")
def test_sweeps_share_a_folder(write_sweep: Any, tmp_path: Path, trained: list[str]) -> None:
    run = tmp_path / "run"
    one = load(write_sweep("grid: {seed: [1]}\n", *SHORT))
    run_sweep(one, run=run)
    before = {path: path.read_bytes() for path in run.glob("sweep.*")}
    assert {path.suffix for path in before} == {".jsonl", ".md", ".png", ".svg"}
    other = load(write_sweep("grid: {seed: [1, 2]}\n", *SHORT, name="other.yaml"))
    result = run_sweep(other, run=run)
    assert (result.results, result.tables) == (run / "other.jsonl", run / "other.md")
    assert result.figures == (run / "other.png", run / "other.svg")
    assert {path: path.read_bytes() for path in before} == before
    assert len(trained) == 2  # seed 1 once
    check_links(run, one, ["parp-seed-1"])
    check_links(run, other, ["parp-seed-1", "parp-seed-2"])
    # A sweep whose file changed has the links of what it is now.
    changed = load(write_sweep("grid: {seed: [2]}\n", *SHORT, name="other.yaml"))
    run_sweep(changed, run=run)
    check_links(run, changed, ["parp-seed-2"])
    check_links(run, one, ["parp-seed-1"])
    assert len(trained) == 2


def test_search_rounds_may_be_deleted(write_sweep: Any, tmp_path: Path, trained: list[str]) -> None:
    run = tmp_path / "run"
    sweep = load(write_sweep("grid: {pruning.method: [imp], pruning.sparsity: [0.2, 0.3]}\n", *SHORT))
    first, second = sweep.cells
    assert first.keys[0] == second.keys[0]
    done = run_sweep(sweep, run=run)
    for key in second.keys[:-1]:
        shutil.rmtree(round_folder(run, key))
    assert plan_sweep(sweep, run).updates_left == 0
    trained.clear()
    assert run_sweep(sweep, run=run).outcomes == done.outcomes
    # Another split does not need them either; what is not finished makes them again.
    more = load(write_sweep("grid: {pruning.method: [imp], pruning.sparsity: [0.2]}\nsplits: [valid]\n", *SHORT))
    assert run_sweep(more, run=run).outcomes[0].updates == 3 + 6
    assert not trained
    folder = round_folder(run, first.key)
    (folder / "finetune.safetensors").unlink()
    (folder / "training.json").write_text('{"cost": {"updates": 77}, "sparsity": 0.7}')
    assert plan_sweep(sweep, run).updates_left == 3 + 6
    again = run_sweep(sweep, run=run).outcomes
    assert trained == list(first.keys)
    assert [(o.updates, o.sparsity, o.wer) for o in again] == [(o.updates, o.sparsity, o.wer) for o in done.outcomes]
    assert plan_sweep(sweep, run).updates_left == 0


def test_temporaries_of_the_killed_are_removed(write_sweep: Any, tmp_path: Path) -> None:
    sweep, run = load(write_sweep("grid: {seed: [0]}\n", *SHORT)), tmp_path / "run"
    (cell,) = sweep.cells
    folder = round_folder(run, cell.key)
    (folder / "state").mkdir(parents=True)
    left, kept = [], [folder / ".mine", folder / ".finetune.safetensors-short.tmp", folder / "notes.json-abcdefgh.tmp"]
    names = ("finetune-last.safetensors", "eval-test.jsonl", "failed.json", "state/finetune.safetensors")
    for path in (*(folder / name for name in names), run / "features" / "front-end" / "sound", run / "sweep.md"):
        with suppress(KeyboardInterrupt), replacing(path) as temporary:
            left.append(temporary)
            raise KeyboardInterrupt
    for path in (*left, *kept):
        path.write_text("half")
    run_sweep(sweep, run=run)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in kept)


def test_one_that_fails_leaves_the_others(write_sweep: Any, tmp_path: Path, trained: list[str]) -> None:
    text = "grid:\n  training.learning_rate: [1e30, 1e-2]\n  pruning.method: [dense, omp]\n"
    sweep, run = load(write_sweep(text, *SHORT)), tmp_path / "run"
    result = run_sweep(sweep, run=run)
    bad_dense, bad_omp, dense, omp = result.outcomes
    assert (dense.failed, omp.failed) == (None, None)
    assert (bad_dense.failed or "").startswith("the model produced non-finite logits for utterance")
    assert bad_omp.failed == f"needs what failed in {bad_dense.cell}: {bad_dense.failed}"
    assert (bad_dense.wer, bad_dense.checkpoint) == (None, None)
    assert result.failed == ((bad_dense.cell, bad_dense.failed), (bad_omp.cell, bad_omp.failed))
    assert result.exit_code == 4
    assert len(trained) == 3  # what failed was not tried for omp again
    assert f"- {bad_omp.cell}, test: needs what failed" in result.tables.read_text()
    assert run_sweep(sweep, run=run).failed == result.failed
    assert trained[3:] == [trained[0]]


@pytest.mark.parametrize("allocate", [True, False])
def test_a_cell_that_failed_for_a_while(
    write_sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allocate: bool
) -> None:
    sweep, run = load(write_sweep("grid: {pruning.method: [dense, omp]}", *SHORT)), tmp_path / "run"

    def out_of_memory(*_: Any, **__: Any) -> None:
        if allocate:
            torch.empty(1 << 52)  # for the CPU torch has no class of errors
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(cells, "evaluate", out_of_memory)
        result = run_sweep(sweep, run=run)
    assert [outcome.failed for outcome in result.outcomes] == ["out of memory"] * 2
    assert result.exit_code == 5
    with monkeypatch.context() as patch:
        patch.setattr(cells, "finetune", None)  # that part is done
        assert run_sweep(sweep, run=run).failed == ()
    assert [row["failed"] for row in rows(run)] == [None, None]


def test_what_fails_before_it_trains_is_no_other_cells_failure(write_sweep: Any, tmp_path: Path) -> None:
    text = "grid: {pruning.method: [omp, dense]}\nset: {pruning.rewind: missing.safetensors}\n"
    omp, dense = run_sweep(load(write_sweep(text, *SHORT)), run=tmp_path / "run").outcomes
    assert "missing.safetensors" in (omp.failed or "")
    assert dense.failed is None


def test_bugs_are_not_results(write_sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "finetune", None)
    with pytest.raises(TypeError):
        run_sweep(load(write_sweep("grid: {seed: [0]}", *SHORT)), run=tmp_path / "run")


def test_stopped_by_the_user(write_sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    sweep, run = load(write_sweep("grid: {seed: [0]}", *SHORT)), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(cells, "evaluate", stopped)
        with pytest.raises(Interrupted, match="what is done is kept"):
            run_sweep(sweep, run=run)
    assert plan_sweep(sweep, run).updates_left == 0
    assert run_sweep(sweep, run=run).outcomes[0].failed is None


def test_broken_off_again_and_again(
    write_sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str]
) -> None:
    path = write_sweep("grid: {pruning.method: [omp], pruning.sparsity: [0.4]}\n", *SHORT, "training.validate_every=2")
    run = tmp_path / "run"
    run_sweep(load(path), run=tmp_path / "whole")

    class Breaks(Observer):
        saves = 0

        def saved(self, run: TrainingRun) -> None:
            self.saves += 1
            if self.saves % 2 == 0:
                raise KeyboardInterrupt

    breaks = Breaks()
    before: set[str] = set()
    for sitting in range(9):
        trained.clear()
        try:
            with observing(breaks):
                run_sweep(load(path), run=run)
            break
        except Interrupted:
            assert len(saved(run)) == 1
            # What was broken off goes on; what was done before that does not begin again.
            assert len(before & set(trained)) == (sitting > 0)
            before |= set(trained)
    assert sitting in range(2, 8)
    assert essence(run) == essence(tmp_path / "whole")
    assert not saved(run)


def test_a_signal_in_the_last_update_stops_the_sweep(
    write_sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str]
) -> None:
    sweep, run = load(write_sweep("grid: {seed: [0, 1]}", *SHORT)), tmp_path / "run"

    class Signals(Observer):
        def validated(self, run: TrainingRun) -> None:
            if run.update == 6:
                signal.raise_signal(signal.SIGTERM)

    with observing(Signals()), pytest.raises(Interrupted, match="what is done is kept"):
        run_sweep(sweep, run=run)
    assert trained == [sweep.cells[0].key]
    assert plan_sweep(sweep, run).updates_left == 6
    assert run_sweep(sweep, run=run).failed == ()
    assert trained == [cell.key for cell in sweep.cells]


def test_a_signal_while_nothing_trains_stops_the_sweep(
    write_sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, run = load(write_sweep("grid: {seed: [0, 1]}", *SHORT)), tmp_path / "run"

    def evaluate(*_: Any, notify: Notify, **__: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        notify(Progress("recognising", 1, 3))
        raise AssertionError("it goes on")

    monkeypatch.setattr(cells, "evaluate", evaluate)
    with pytest.raises(Interrupted):
        run_sweep(sweep, run=run)
    assert plan_sweep(sweep, run).updates_left == 6


def with_stereo(world: World, folder: Path) -> Path:
    """The tiny corpus, in which the first utterance of each split has two channels."""
    rows = [json.loads(line) for line in world.manifest.read_text().splitlines()]
    for row in rows:
        path = world.folder / row["audio"]
        if row["id"].endswith("-0"):
            samples, rate = soundfile.read(path)
            path = folder / row["audio"]
            soundfile.write(path, numpy.stack([samples, samples], axis=1), rate)
        row["audio"] = str(path)
    return write_manifest(folder / "stereo.jsonl", rows)


def test_a_note_on_the_data_comes_once(write_sweep: Any, tmp_path: Path, world: World) -> None:
    path = write_sweep(
        "grid: {pruning.method: [dense, omp], seed: [0, 1]}", *SHORT, f"data.manifest={with_stereo(world, tmp_path)}"
    )
    seen: list[Progress] = []
    assert run_sweep(load(path), run=tmp_path / "run", notify=seen.append).failed == ()
    notes = [step.warning.partition(":")[0] for step in seen if "2 channels" in step.warning]
    assert sorted(notes) == ["test", "train", "valid"]


def test_all_that_is_wrong_with_a_split_is_said_before_anything_trains(
    write_sweep: Any, tmp_path: Path, world: World
) -> None:
    rows = [json.loads(line) for line in world.manifest.read_text().splitlines()]
    for row in rows:
        row["audio"] = f"gone-{row['id']}" if row["id"] in ("test-0", "test-2") else str(world.folder / row["audio"])
    path = write_sweep("grid: {seed: [0]}", *SHORT, f"data.manifest={write_manifest(tmp_path / 'bad.jsonl', rows)}")
    with pytest.raises(DataError, match=r"2 problems with the utterances of test \(missing audio 2\)"):
        load(path)
    path.with_name("base.yaml").write_text(path.with_name("base.yaml").read_text().replace("refuse", "skip"))
    assert run_sweep(load(path), run=tmp_path / "run").failed == ()


def test_two_sweeps_at_one_folder(write_sweep: Any, tmp_path: Path) -> None:
    sweep, run = load(write_sweep("grid: {seed: [0]}", *SHORT)), tmp_path / "run"

    def another(_: Progress) -> None:
        with pytest.raises(UsageError, match="another sweep is running in"):
            run_sweep(sweep, run=run)

    assert run_sweep(sweep, run=run, notify=another).failed == ()
    assert run_sweep(sweep, run=run).failed == ()


# ------------------------------------------------------------------------------------------- in processes


def start(path: Path, run: Path, *options: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "parp_cli", "sweep", str(path), "--run", str(run), "--device", "cpu", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def saved(run: Path) -> Sequence[Path]:
    return list(run.glob("rounds/*/state/finetune.safetensors"))


@pytest.mark.slow
def test_killed_and_stopped(write_sweep: Any, tmp_path: Path) -> None:
    path = write_sweep("grid: {pruning.method: [omp, imp], pruning.sparsity: [0.4]}\n", *LONG)
    run_sweep(load(path), run=tmp_path / "whole")
    run = tmp_path / "run"
    rng = random.Random(os.getpid())
    process = start(path, run, "--quiet")
    wait_for(lambda: saved(run), process, seconds=60)
    delay = rng.uniform(0, 0.8)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"over before it was killed, after {delay:.3f} s"
    before = plan_sweep(load(path), run)
    assert before.updates_left < before.updates
    process = start(path, run, "--quiet")
    wait_for(lambda: plan_sweep(load(path), run).updates_left < before.updates_left, process, seconds=60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[0] == "parp: error: the sweep was stopped; what is done is kept"
    run_sweep(load(path), run=run)
    assert essence(run) == essence(tmp_path / "whole")
    assert not saved(run)


@pytest.mark.parametrize("seeds", [[0], pytest.param([0, 1, 2], marks=pytest.mark.slow)])
def test_workers_come_to_the_same(write_sweep: Any, tmp_path: Path, seeds: list[int]) -> None:
    methods = "[dense, omp]" if len(seeds) > 1 else "[dense]"
    path = write_sweep(f"grid: {{pruning.method: {methods}, seed: {seeds}}}\n", *SHORT)
    run_sweep(load(path), run=tmp_path / "alone")
    seen: list[Progress] = []
    run_sweep(load(path), run=tmp_path / "two", workers=2, notify=seen.append)
    assert essence(tmp_path / "two") == essence(tmp_path / "alone")
    total = 6 * len(list((tmp_path / "two" / "rounds").iterdir()))
    assert (seen[-1].done, seen[-1].total) == (total, total)


class InOrder:
    """A pool of two whose cells run when it is asked for ended ones, the youngest first."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.cells: list[Cell] = []
        self.together: list[set[str]] = []
        self.stopped = False

    def has_room(self) -> bool:
        return len(self.cells) < 2

    def start(self, cell: Cell) -> None:
        self.cells.append(cell)

    def ended(self, _seconds: float) -> list[Cell]:
        self.together.append({cell.name for cell in self.cells})
        run_cell(self.run, self.cells[-1], "cpu")
        return [self.cells.pop()]

    def stop(self) -> None:
        self.stopped = True


def test_a_pool_never_makes_a_run_twice(write_sweep: Any, tmp_path: Path, trained: list[str]) -> None:
    path, run = write_sweep("grid: {pruning.method: [dense, omp], seed: [0, 1]}\n", *SHORT), tmp_path / "run"
    sweep, pool = load(path), InOrder(run)
    run_cells(sweep.cells, run=run, device="cpu", pool=pool, notify=silent, after_each=lambda: None)
    assert pool.together[0] == {"dense, seed 0", "dense, seed 1"}
    assert not any({f"dense, seed {seed}", f"omp, seed {seed}"} <= names for names in pool.together for seed in (0, 1))
    assert len(trained) == len(set(trained)) == 4
    assert plan_sweep(sweep, run).updates_left == 0
    assert pool.stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_pool(write_sweep: Any, tmp_path: Path, number: signal.Signals) -> None:
    class Signalled(InOrder):
        def ended(self, _seconds: float) -> list[Cell]:
            assert not self.together, "it goes on"
            self.together.append(set())
            signal.raise_signal(number)
            return []

    sweep, pool = load(write_sweep("grid: {seed: [0]}\n", *SHORT)), Signalled(tmp_path)
    with pytest.raises(Interrupted, match="what is done is kept"):
        run_cells(sweep.cells, run=tmp_path, device="cpu", pool=pool, notify=silent, after_each=lambda: None)
    assert pool.stopped


@pytest.mark.slow
def test_workers_save_when_the_sweep_is_ended(write_sweep: Any, tmp_path: Path) -> None:
    settings = (*LONG, "training.updates=100000", "training.validate_every=50000")
    path, run = write_sweep("grid: {seed: [0, 1]}\n", *settings), tmp_path / "run"
    process = start(path, run, "--workers", "2", "--quiet")
    wait_for(lambda: sum("loss" in log.read_text() for log in run.glob("rounds/*/*.jsonl")) == 2, process, seconds=60)
    process.terminate()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err.splitlines()[0] == "parp: error: the sweep was stopped; what is done is kept"
    assert len(saved(run)) == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_the_sweep(write_sweep: Any, tmp_path: Path) -> None:
    path = write_sweep("grid: {seed: [0, 1]}\n", *LONG, "training.updates=100000")
    process = start(path, tmp_path / "run", "--workers", "2", "--quiet")
    wait_for(lambda: len(saved(tmp_path / "run")) == 2, process, seconds=60)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    process.kill()
    process.communicate()
    for _ in range(1000):
        left = [child for child in children if alive(child)]
        if not left:
            return
        time.sleep(0.01)
    raise AssertionError(f"{left} are still there")


def alive(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_that_is_killed_fails_its_cell(write_sweep: Any, tmp_path: Path) -> None:
    (cell,) = load(write_sweep("grid: {seed: [3]}", *SHORT)).cells
    pool = ProcessPool(tmp_path / "run", ["cpu"])
    pool.start(cell)
    assert not pool.has_room()
    (process,) = multiprocessing.active_children()
    process.kill()
    assert pool.ended(60) == [cell]
    assert pool.has_room()
    failure = read_failure(tmp_path / "run", cell)
    assert failure is not None
    assert (failure.message, failure.exit_code) == (f"its process was killed by signal {int(signal.SIGKILL)}", 5)
    assert failure.round is None
    pool.stop()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_two_ray_workers_come_to_the_same(write_sweep: Any, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    path = write_sweep("grid: {pruning.method: [dense, omp], pruning.sparsity: [0.3, 0.4]}\n", *SHORT)
    run_sweep(load(path), run=tmp_path / "alone")
    ray.init(num_cpus=2, num_gpus=0, object_store_memory=100_000_000, include_dashboard=False)
    try:
        seen: list[Progress] = []
        run_sweep(load(path), run=tmp_path / "cluster", cluster=True, notify=seen.append)
        assert ray.is_initialized()  # it was there before
    finally:
        ray.shutdown()
    assert essence(tmp_path / "cluster") == essence(tmp_path / "alone")
    assert (seen[-1].done, seen[-1].total) == (18, 18)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_failing_cell_on_ray(write_sweep: Any, tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    path = write_sweep("grid: {training.learning_rate: [1e30, 1e-2]}\n", *SHORT)
    ray.init(num_cpus=2, num_gpus=0, object_store_memory=100_000_000, include_dashboard=False)
    try:
        bad, good = run_sweep(load(path), run=tmp_path / "cluster", cluster=True).outcomes
    finally:
        ray.shutdown()
    assert (bad.failed or "").startswith("the model produced non-finite logits for utterance")
    assert good.failed is None


@pytest.mark.parametrize("change", ["transcript", "audio", "test transcript"])
def test_what_was_made_from_other_data_is_made_again(
    write_sweep: Any, world: World, tmp_path: Path, trained: list[str], change: str
) -> None:
    """Of the same length, too; and where only what is evaluated changed, nothing is trained."""
    rows_there = [json.loads(line) for line in world.manifest.read_text().splitlines()]
    for row in rows_there:
        audio = tmp_path / Path(row["audio"]).name
        audio.write_bytes((world.manifest.parent / row["audio"]).read_bytes())
        row["audio"] = str(audio)
    manifest, run = tmp_path / "own.jsonl", tmp_path / "run"

    def swept() -> list[dict[str, Any]]:
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows_there))
        trained.clear()
        run_sweep(load(write_sweep(text, *SHORT, f"data.manifest={manifest}")), run=run)
        return rows(run)

    text = "grid: {pruning.method: [dense, omp]}\nsplits: [test]\n"
    before = swept()
    assert len(trained) == 2
    assert swept() == before
    assert trained == []
    split = "test" if change == "test transcript" else "train"
    row = next(row for row in rows_there if row["split"] == split)
    if change == "audio":
        samples, rate = soundfile.read(row["audio"])
        soundfile.write(row["audio"], samples[::-1], rate)
    else:
        row["text"] = row["text"][::-1]
    after = swept()
    assert len(trained) == (0 if split == "test" else 2)
    if split == "test":
        assert [row["key"] for row in after] == [row["key"] for row in before]
        figures = [
            json.loads((run / row["checkpoint"]).with_name("eval-test.jsonl").read_text().splitlines()[0])
            for row in after
        ]
        assert all(figure["reference"] == row["text"] for figure in figures)
        assert len(list(run.glob("rounds/*/eval-test~1.jsonl"))) == 2
    else:
        assert {row["key"] for row in after}.isdisjoint(row["key"] for row in before)
        kept = [json.loads(line) for line in (run / "sweep~1.jsonl").read_text().splitlines()]
        assert kept == before
