"""A sweep runs what is left of it, once, and goes on wherever it was ended."""

import json
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
import torch

from parp_cli import checkpoint
from parp_cli.errors import Interrupted, UsageError
from parp_cli.progress import Progress
from parp_cli.stages import finetune as finetuning
from parp_cli.sweep import tasks
from parp_cli.sweep.grid import Sweep, load_sweep
from parp_cli.sweep.run import SweepResult, plan_sweep, run_sweep
from tests.sweep.conftest import without_times

CPU = torch.device("cpu")
METHODS = "grid: {pruning.method: [omp, dense, imp, parp], pruning.sparsity: [0.3, 0.5]}\nsplits: [test, valid]\n"
SHORT = ("pruning.rounds.step=0.2", "pruning.rounds.updates=3", "training.updates=6")
LONG = (*SHORT, "training.updates=60", "pruning.rounds.updates=20", "training.validate_every=5")


def load(path: Path) -> Sweep:
    return load_sweep(path, device=CPU)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]


def essence(run: Path) -> tuple[Any, dict[str, str]]:
    """Results and weights, without how long they took."""
    hashes = {
        str(path.relative_to(run)): checkpoint.file_hash(path) for path in run.glob("rounds/*/finetune*.safetensors")
    }
    return without_times(rows(run)), hashes


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders of all training runs that are made."""
    made: list[str] = []
    train = finetuning._Run.train

    def counted(self: Any, stop: Any) -> None:
        made.append(self.last_path.parent.name)
        train(self, stop)

    monkeypatch.setattr(finetuning._Run, "train", counted)
    return made


def test_what_cells_share_runs_once(write_sweep: Any, tmp_path: Path, trained: list[str]) -> None:
    sweep, run = load(write_sweep(METHODS, *SHORT)), tmp_path / "run"
    plan = plan_sweep(sweep, run)
    # omp: dense and 2; dense: the same; imp: rounds at 0, 20 and 40 %, then 30 and 50 %; parp: 2.
    assert (len(plan.cells), plan.runs) == (7, 1 + 2 + 3 + 2 + 2)
    assert (plan.updates, plan.updates_left, plan.updates_alone) == (7 * 6 + 3 * 3, 51, 9 * 6 + 5 * 3)
    seen: list[Progress] = []
    result = run_sweep(sweep, run=run, notify=seen.append)
    assert len(trained) == len(set(trained)) == plan.runs
    assert set(trained) == {key for cell in sweep.cells for key in cell.keys}
    assert plan_sweep(sweep, run).updates_left == 0
    steps = [step for step in seen if step.task == "sweep"]
    assert {step.total for step in steps} == {51}
    assert [step.done for step in steps] == list(range(1, 52))
    check_outcomes(result, sweep, run)


def check_outcomes(result: SweepResult, sweep: Sweep, run: Path) -> None:
    assert result.failed == ()
    assert [(o.cell, o.split) for o in result.outcomes] == [(c.name, s) for c in sweep.cells for s in ("test", "valid")]
    updates = {"dense": 6, "parp": 6, "omp": 12}
    for outcome, row in zip(result.outcomes, rows(run), strict=True):
        searched = {0.3: 2 * 3, 0.5: 3 * 3}.get(outcome.sparsity_target, 0)
        assert outcome.updates == updates.get(outcome.method, 6 + searched), outcome.cell
        assert outcome.wall_seconds is not None
        assert outcome.wall_seconds > 0
        assert outcome.sparsity == pytest.approx(outcome.sparsity_target, abs=1e-4)
        assert (row["wer"], row["values"]) == (outcome.wer, dict(outcome.values))
        figures = json.loads((run / row["checkpoint"]).with_name(f"eval-{outcome.split}.json").read_text())
        assert row["wer"] == figures["words"]["rate"]
        assert row["cer"] == figures["characters"]["rate"]
    named = {link.name: link.resolve().name for link in (run / "cells").iterdir()}
    assert sorted(named.values()) == sorted(cell.key for cell in sweep.cells)
    assert {"dense", "parp-0.5-sparse"} <= set(named)


def test_a_cell_is_the_run_of_its_recipe(write_sweep: Any, tmp_path: Path) -> None:
    sweep = load(write_sweep("grid: {pruning.method: [dense, omp], pruning.sparsity: [0.5]}", *SHORT))
    run_sweep(sweep, run=tmp_path / "run")
    for cell in sweep.cells:
        alone = finetuning.finetune(cell.recipe, run=tmp_path / cell.recipe.pruning.method)
        mine = checkpoint.read(tasks.round_folder(tmp_path / "run", cell.key) / "finetune.safetensors")
        theirs = checkpoint.read(alone.path)
        assert all(torch.equal(mine.weights[name], weight) for name, weight in theirs.weights.items())
        assert all(torch.equal(mine.masks[name], mask) for name, mask in theirs.masks.items())


def test_done_is_not_done_again(write_sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "grid: {pruning.method: [dense, omp], seed: [0]}\n"
    first = run_sweep(load(write_sweep(text, *SHORT)), run=tmp_path / "run")
    written = {path: path.read_bytes() for path in (first.results, first.tables, *first.figures)}
    assert {path.suffix for path in written} == {".jsonl", ".md", ".png", ".svg"}
    for path in written:
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "finetune", None)
        patch.setattr(tasks, "evaluate", None)
        again = run_sweep(load(write_sweep(text, *SHORT)), run=tmp_path / "run")
    assert again == first
    assert {path: path.read_bytes() for path in written} == written
    # Another split is judged, without training; another seed trains, and the old one's results stay.
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "finetune", None)
        run_sweep(load(write_sweep(text + "splits: [valid, test]", *SHORT)), run=tmp_path / "run")
    assert len(rows(tmp_path / "run")) == 4
    more = load(write_sweep("grid: {pruning.method: [dense, omp], seed: [0, 1]}\n", *SHORT))
    assert plan_sweep(more, tmp_path / "run").updates_left == 12


def test_one_that_fails_leaves_the_others(write_sweep: Any, tmp_path: Path, trained: list[str]) -> None:
    text = "grid:\n  training.learning_rate: [1e30, 1e-2]\n  pruning.method: [dense, omp]\n"
    sweep, run = load(write_sweep(text, *SHORT)), tmp_path / "run"
    result = run_sweep(sweep, run=run)
    bad_dense, bad_omp, dense, omp = result.outcomes
    assert (dense.failed, omp.failed) == (None, None)
    assert (bad_dense.failed or "").startswith("the training loss is nan")
    assert bad_omp.failed == f"needs what failed in {bad_dense.cell}: {bad_dense.failed}"
    assert (bad_dense.wer, bad_dense.checkpoint) == (None, None)
    assert result.failed == ((bad_dense.cell, bad_dense.failed), (bad_omp.cell, bad_omp.failed))
    assert result.exit_code == 1
    assert len(trained) == 3  # what failed was not tried for omp again
    assert f"- {bad_omp.cell}, test: needs what failed" in result.tables.read_text()
    assert run_sweep(sweep, run=run).failed == result.failed
    assert trained[3:] == [trained[0]]


def test_a_cell_that_failed_for_a_while(write_sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, run = load(write_sweep("grid: {seed: [0, 1]}", *SHORT)), tmp_path / "run"

    def out_of_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "evaluate", out_of_memory)
        result = run_sweep(sweep, run=run)
    assert [outcome.failed for outcome in result.outcomes] == ["out of memory"] * 2
    assert result.exit_code == 5
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "finetune", None)  # that part is done
        assert run_sweep(sweep, run=run).failed == ()
    assert [row["failed"] for row in rows(run)] == [None, None]


def test_bugs_are_not_results(write_sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "finetune", None)
    with pytest.raises(TypeError):
        run_sweep(load(write_sweep("grid: {seed: [0]}", *SHORT)), run=tmp_path / "run")


def test_stopped_by_the_user(write_sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    sweep, run = load(write_sweep("grid: {seed: [0]}", *SHORT)), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "evaluate", stopped)
        with pytest.raises(Interrupted, match="what is done is kept"):
            run_sweep(sweep, run=run)
    assert plan_sweep(sweep, run).updates_left == 0
    assert run_sweep(sweep, run=run).outcomes[0].failed is None


def test_broken_off_again_and_again(
    write_sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[str]
) -> None:
    path, run = write_sweep("grid: {pruning.method: [omp, imp], pruning.sparsity: [0.4]}\n", *SHORT), tmp_path / "run"
    run_sweep(load(path), run=tmp_path / "whole")
    save, saves = finetuning._Run._save_state, 0

    def save_and_break(self: Any) -> None:
        nonlocal saves
        save(self)
        saves += 1
        if saves % 3 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(finetuning._Run, "_save_state", save_and_break)
    before: set[str] = set()
    for sitting in range(9):
        trained.clear()
        try:
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


def wait_for(done: Any, process: "subprocess.Popen[str]") -> None:
    for _ in range(12000):
        if done():
            return
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.005)
    raise AssertionError("it takes too long")


def saved(run: Path) -> Sequence[Path]:
    return list(run.glob("rounds/*/state/finetune.safetensors"))


@pytest.mark.slow
def test_killed_and_stopped(write_sweep: Any, tmp_path: Path) -> None:
    path = write_sweep("grid: {pruning.method: [omp, imp], pruning.sparsity: [0.4]}\n", *LONG)
    run_sweep(load(path), run=tmp_path / "whole")
    run = tmp_path / "run"
    rng = random.Random(os.getpid())
    process = start(path, run, "--quiet")
    wait_for(lambda: saved(run), process)
    delay = rng.uniform(0, 0.8)
    time.sleep(delay)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, f"over before it was killed, after {delay:.3f} s"
    before = plan_sweep(load(path), run)
    assert before.updates_left < before.updates
    process = start(path, run, "--quiet")
    wait_for(lambda: plan_sweep(load(path), run).updates_left < before.updates_left, process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[0] == "parp: error: the sweep was stopped; what is done is kept"
    run_sweep(load(path), run=run)
    assert essence(run) == essence(tmp_path / "whole")
    assert not saved(run)


def test_two_workers_come_to_the_same(write_sweep: Any, tmp_path: Path) -> None:
    path = write_sweep("grid: {pruning.method: [dense, omp], pruning.sparsity: [0.4]}\n", *SHORT)
    run_sweep(load(path), run=tmp_path / "alone")
    seen: list[Progress] = []
    run_sweep(load(path), run=tmp_path / "two", workers=2, notify=seen.append)
    assert essence(tmp_path / "two") == essence(tmp_path / "alone")
    assert (seen[-1].done, seen[-1].total) == (12, 12)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_with_the_sweep(write_sweep: Any, tmp_path: Path) -> None:
    path = write_sweep("grid: {seed: [0, 1]}\n", *LONG, "training.updates=100000")
    process = start(path, tmp_path / "run", "--workers", "2", "--quiet")
    wait_for(lambda: len(saved(tmp_path / "run")) == 2, process)
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
    import multiprocessing

    from parp_cli.sweep.workers import _failure, _Worker

    (cell,) = load(write_sweep("grid: {seed: [3]}", *SHORT)).cells
    task = tasks.Task(cell=cell, run=tmp_path / "run", device="cpu")
    context = multiprocessing.get_context("spawn")
    answer, sender = context.Pipe(duplex=False)
    process = context.Process(target=os.abort)
    process.start()
    sender.close()
    failure = _failure(_Worker(task, process, answer))
    assert failure is not None
    assert (failure.message, failure.exit_code) == (f"its process was killed by signal {int(signal.SIGABRT)}", 5)
    assert tasks.read_failure(tmp_path / "run", cell) == failure


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
    assert (bad.failed or "").startswith("the training loss is nan")
    assert good.failed is None
