"""`parp sweep`, from the command line."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from parp_cli.config.load import dump_yaml
from parp_cli.sweep import run as sweeping
from tests.tiny import World

GRID = "grid: {pruning.method: [dense, omp], pruning.sparsity: [0.3, 0.5]}\n"


@pytest.fixture
def sweep(world: World, tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(dump_yaml(world.recipe("training.updates=3")))
    path = tmp_path / "sweep.yaml"
    path.write_text("recipe: base.yaml\n" + GRID)
    return path


def test_dry_run_then_run_then_again(parp: Any, sweep: Path, tmp_path: Path) -> None:
    planned = parp("sweep", sweep, "--dry-run")
    assert planned.code == 0, planned.err
    assert (
        "cells: 3, 0 of them done; training runs: 3\n9 of 9 updates left (15 if cells shared nothing)\n" in planned.out
    )
    assert "after dense" in planned.out
    assert not (tmp_path / "parp-run").exists()
    done = parp("sweep", sweep)
    assert done.code == 0, done.err
    assert "WER, test" in done.out
    assert "sweep: 9/9" in done.err
    for name in ("sweep.jsonl", "sweep.md", "sweep.png", "sweep.svg"):
        assert f"wrote {tmp_path / 'parp-run' / name}" in done.out
        assert (tmp_path / "parp-run" / name).is_file()
    assert "0 of 9 updates left" in parp("sweep", sweep, "--dry-run").out
    again = parp("sweep", sweep, "--json")
    assert again.code == 0, again.err
    assert "sweep:" not in again.err
    result = json.loads(again.out)
    assert [o["updates"] for o in result["outcomes"]] == [3, 6, 6]
    plan = json.loads(parp("sweep", sweep, "--dry-run", "--json").out)
    assert (plan["updates_left"], [cell["done"] for cell in plan["cells"]]) == (0, [True] * 3)


def test_failed_cells_fail_the_command(parp: Any, sweep: Path) -> None:
    settings = ["--set", "training.learning_rate=1e30", "--json"]
    answer = parp("sweep", sweep, *settings)
    assert answer.code == 4
    assert [o["wer"] for o in json.loads(answer.out)["outcomes"]] == [None] * 3
    lines = answer.err.splitlines()
    start = lines.index("parp: error: 3 of 3 cells failed")
    assert lines[start + 1].startswith("  dense: the model produced non-finite logits for utterance ")
    assert lines[-1] == "  hint: the same command tries them again"


def test_data_that_is_missing(parp: Any, sweep: Path) -> None:
    answer = parp("sweep", sweep, "--set", "data.manifest=nowhere.tsv", "--quiet")
    assert answer.code == 3
    assert "nowhere.tsv" in answer.err


def test_a_key_of_the_grid_cannot_be_set(parp: Any, sweep: Path, tmp_path: Path) -> None:
    answer = parp("sweep", sweep, "--set", "pruning.sparsity=0.7")
    assert answer.code == 2
    problem = "the grid has values for pruning.sparsity: change them in the file, or by --grid"
    assert f"--set pruning.sparsity=0.7: {problem}" in answer.err
    assert not (tmp_path / "parp-run").exists()


def test_wrong_cells_stop_before_anything_runs(parp: Any, sweep: Path, tmp_path: Path) -> None:
    sweep.write_text("recipe: base.yaml\ngrid: {pruning.method: [parp, imq], pruning.sparcity: [0.3]}\n")
    answer = parp("sweep", sweep)
    assert answer.code == 2
    assert f"parp: error: sweep {sweep} has 2 problems" in answer.err
    assert "unknown key pruning.sparcity: did you mean pruning.sparsity?" in answer.err
    assert not (tmp_path / "parp-run").exists()


def test_without_matplotlib_there_is_a_note(parp: Any, sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep.write_text("recipe: base.yaml\ngrid: {pruning.method: [dense]}\n")
    for name in ["matplotlib", "matplotlib.figure"]:
        monkeypatch.setitem(sys.modules, name, None)
    answer = parp("sweep", sweep)
    assert answer.code == 0, answer.err
    assert "no figure: matplotlib is not installed" in answer.err
    assert "sweep.md" in answer.out
    assert "sweep.png" not in answer.out


def test_without_ray_there_is_a_hint(parp: Any, sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    answer = parp("sweep", sweep, "--cluster")
    assert answer.code == 2
    assert answer.err.splitlines() == [
        "parp: error: a cluster needs Ray",
        "  hint: pip install 'parp-cli[cluster]'",
    ]


def test_the_smoke_sweep(parp: Any, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "_figures", lambda *_: ())  # other tests draw
    shipped = (Path(__file__).parents[2] / "recipes" / "sweeps" / "smoke.yaml").read_text()
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "smoke.yaml").write_text(dump_yaml(world.recipe("training.updates=2")))
    (tmp_path / "sweeps").mkdir()
    copy = tmp_path / "sweeps" / "smoke.yaml"
    copy.write_text(shipped.replace("dev-clean", "valid"))
    answer = parp("sweep", copy, "--json")
    assert answer.code == 0, answer.err
    methods = [outcome["method"] for outcome in json.loads(answer.out)["outcomes"]]
    assert methods == ["dense", *(name for name in ("mpi", "omp", "imp", "parp") for _ in range(2))]


def test_a_split_there_is_not_is_told_before_anything_trains(parp: Any, sweep: Path, tmp_path: Path) -> None:
    sweep.write_text(sweep.read_text() + "splits: [test, tset]\n")
    for flag in ("--dry-run", "--quiet"):
        answer = parp("sweep", sweep, flag)
        assert answer.code == 3
        assert "tset" in answer.err
    assert not list(tmp_path.rglob("finetune.jsonl"))


def test_an_empty_grid(parp: Any, sweep: Path) -> None:
    sweep.write_text("grid: {}\n")
    answer = parp("sweep", sweep)
    assert answer.code == 2
    assert "grid: names no recipe key" in answer.err


def test_sparsities_of_whole_structures(parp: Any, sweep: Path, tmp_path: Path) -> None:
    sweep.write_text(
        "recipe: base.yaml\nset: {pruning.pattern: structures}\n"
        "grid: {pruning.method: [parp, omp], pruning.sparsity: [0.3, 0.6]}\n"
    )
    done = parp("sweep", sweep, "--json")
    assert done.code == 0, done.err
    outcomes = json.loads(done.out)["outcomes"]
    assert len(outcomes) == 4
    for outcome, asked in zip(sorted(outcomes, key=lambda one: one["sparsity"]), (0.3, 0.3, 0.6, 0.6), strict=True):
        assert abs(outcome["sparsity"] - asked) < 0.07, "half of a head, of the tiny encoder's four"
