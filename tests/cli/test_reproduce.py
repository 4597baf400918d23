"""`parp reproduce`, on a tiny encoder."""

import json
from pathlib import Path
from typing import Any

import pytest

from parp_cli.config import shipped as recipes
from parp_cli.config.shipped import shipped
from parp_cli.errors import RecipeError
from parp_cli.sweep import reproduce as stage
from parp_cli.sweep import run as sweeping
from parp_cli.sweep.budget import Pace
from parp_cli.training.observe import Observer, observing
from parp_cli.training.run import TrainingRun
from tests.sweep.conftest import without_times
from tests.tiny import TRAINING, World


@pytest.fixture
def tiny(world: World) -> list[str]:
    """A full-size experiment, but for its model, data, and length."""
    settings = [f"data.manifest={world.manifest}", "data.corpus=manifest"]
    settings += [f"data.{split}={split}" for split in ("train", "valid", "test")]
    settings += [*TRAINING, "training.updates=3", "pruning.rounds.updates=2"]
    return ["--model", str(world.encoder), *(part for each in settings for part in ("--set", each))]


SMALL = ["--grid", "seed=[0]", "--grid", "pruning.sparsity=[0.5]"]


class Stop(Observer):
    """Ctrl-C in the third training run."""

    runs = 0

    def begins(self, run: TrainingRun) -> None:
        self.runs += 1

    def update_begins(self, run: TrainingRun) -> None:
        if self.runs == 3 and run.update == 1:
            raise KeyboardInterrupt


def test_main_is_stopped_and_goes_on(parp: Any, tiny: list[str], tmp_path: Path) -> None:
    freeze = ["--grid", "training.freeze_encoder_updates=[0, 2]", "--grid", "pruning.method=[dense, parp, omp, mpi]"]
    command = ["reproduce", "main", *tiny, *SMALL, *freeze, "--json"]
    planned = parp(*command, "--dry-run")
    assert planned.code == 0, planned.err
    plans = json.loads(planned.out)["plans"]
    assert [len(plan["cells"]) for plan in plans] == [7, 7]
    titles = parp(*command[:-1], "--dry-run").out.splitlines()
    assert [line for line in titles if line.endswith(":")] == ["main:", "main-1h:"]
    with observing(Stop()):
        assert parp(*command).code == 130
    done = parp(*command)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    claims = {each["claim"] for each in result["findings"]}
    assert claims >= {"PARP is at or below the dense network", "MPI and RP degrade first"}
    assert {each["setting"].split(",")[0] for each in result["findings"]} == {"main", "main-1h"}
    assert "PARP is at or below the dense network (main, equal terms): cannot be told (50%: " in result["paragraph"]
    run = tmp_path / "parp-reproduce"
    text = (run / "main.md").read_text()
    assert "## What it says" in text
    assert "PARP is at or below OMP at a fraction of its cost" in text
    assert (run / "main-1h.png").is_file()
    whole = parp(*command, "--run", "whole")
    assert whole.code == 0, whole.err
    assert without_times(json.loads(whole.out)["findings"]) == without_times(result["findings"])


@pytest.mark.parametrize("name", ["cost", "overlap", "ablations"])
def test_each_ends_in_sentences(
    parp: Any, tiny: list[str], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeping, "_figures", lambda *_: ())  # other tests draw
    few = [*SMALL, "--grid", "pruning.method=[parp, omp, rp]"]
    if name == "ablations":
        few = ["--grid", "seed=[0]", "--grid", "pruning.initial=[omp]", "--grid", "pruning.pattern=[layer]"]
        few += ["--grid", "training.updates=[2]", "--grid", "training.freeze_encoder_updates=[1]"]
        few += ["--grid", "pruning.interval=[1]", "--grid", "training.learning_rate=[1e-3]"]
    answer = parp("reproduce", name, *tiny, *few)
    assert answer.code == 0, answer.err
    expected = {
        "cost": "PARP costs a fraction of OMP: agrees (50%: 3 updates against 6, ",
        "overlap": "A random mask overlaps with others by chance alone: ",
        "ablations": "PARP is best with training.updates 3, as in the recipe: cannot be told (against 2: ",
    }
    assert expected[name] in answer.out
    assert f"wrote {tmp_path / 'parp-reproduce' / f'{name}.md'}" in answer.out


def test_a_budget(parp: Any, tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "_figures", lambda *_: ())
    monkeypatch.setattr(stage, "find_pace", lambda *_: Pace(update=1.0, evaluation=2.0))
    answer = parp("reproduce", "cost", *tiny, "--budget", "2m")
    assert answer.code == 0, answer.err
    assert "Within 2m: 20 of 39 cells left out; nothing of seed 2" in answer.out
    short = parp("reproduce", "cost", *tiny, "--budget", "9s")
    assert short.code == 2
    assert "the budget of 0.15 minutes is too short" in short.err
    assert parp("reproduce", "cost", "--budget", "9").code == 2


def test_recipes_are_in_the_package_or_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shipped("mini/10min.yaml").is_file()
    package = tmp_path / "parp_cli"
    (package / "recipes" / "mini").mkdir(parents=True)
    (package / "recipes" / "mini" / "10min.yaml").write_text("seed: 0\n")
    monkeypatch.setattr(recipes, "PACKAGE", package)
    assert shipped("mini/10min.yaml") == package / "recipes" / "mini" / "10min.yaml"
    with pytest.raises(RecipeError, match=r"without its recipe mini/1h\.yaml"):
        shipped("mini/1h.yaml")
