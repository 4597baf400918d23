"""Runs that learn from a teacher."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from parp_cli.errors import CheckpointError
from parp_cli.models.sources.names import MASK_EMBEDDING
from parp_cli.models.speech.forward import pad
from parp_cli.stages.export import export
from parp_cli.stages.finetune import finetune, plan
from parp_cli.stages.mask import mask
from parp_cli.storage import checkpoint
from parp_cli.training.observe import Observer, observing
from parp_cli.training.run import TrainingRun
from tests.stops import check_it_goes_on
from tests.tasks.classification.world import Films, films
from tests.tiny import TINY, World, write_encoder

__all__ = ["films"]

SETTINGS = ("pruning.pattern=structures", "distil.teacher=dense")


class Spy(Observer):
    """The teacher's weights at the beginning and the end of the last run, and its objective."""

    def begins(self, run: TrainingRun) -> None:
        self.objective: Any = run.objective
        if self.objective.distillation is not None:
            self.before = {n: w.clone() for n, w in self.objective.distillation.teacher.state_dict().items()}


def journal(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "finetune.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line["event"] == "update"]


@pytest.fixture(scope="module")
def teacher(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(world.recipe("pruning.method=dense"), run=tmp_path_factory.mktemp("teacher")).path


def test_a_dense_run_is_made_first_and_is_the_teacher(world: World, teacher: Path, tmp_path: Path) -> None:
    spy = Spy()
    with observing(spy):
        result = finetune(world.recipe(*SETTINGS), run=tmp_path)
    assert result.plan.rounds == (("teacher", 12), ("parp", 12))
    assert (result.cost.updates, result.own_cost.updates) == (24, 12)
    (folder,) = (tmp_path / "rounds").iterdir()
    made = checkpoint.read(folder / "finetune.safetensors")
    assert made.metadata.sparsity is None
    alone = checkpoint.read(teacher)
    assert all(torch.equal(weight, alone.weights[name]) for name, weight in made.weights.items()), "the same run"
    own = {name: weight for name, weight in made.weights.items() if name != MASK_EMBEDDING}
    assert set(spy.before) == set(own)
    after = spy.objective.distillation.teacher.state_dict()
    assert all(torch.equal(weight, spy.before[n]) and torch.equal(weight, after[n]) for n, weight in own.items())
    metadata = checkpoint.read_metadata(result.path)
    assert checkpoint.file_hash(folder / "finetune.safetensors") in {parent.sha256 for parent in metadata.parents}
    assert spy.objective.teacher_features is spy.objective.features, "whose feature encoder is the same"
    for line in journal(tmp_path):
        assert 0 < line["distillation"] < line["loss"]


def test_what_is_learned_from_the_teacher_makes_a_difference(world: World, teacher: Path, tmp_path: Path) -> None:
    settings = ("training.updates=40", "training.learning_rate=3e-3")
    distances = {}
    for weight in (0, 3):
        own = (f"distil.teacher={teacher}", "distil.outputs=0", f"distil.layers={weight}")
        with observing(spy := Spy()):
            finetune(world.recipe(*settings, *own), run=tmp_path / str(weight))
        objective, items = spy.objective, spy.objective.valid
        objective.network.eval()
        with torch.no_grad():
            _, states = objective.module(*pad(objective.features(items)), states=True)
        _, targets = objective._targets(items, 0)
        distances[weight] = sum(float((states[layer] - targets[layer]).abs().mean()) for layer in targets)
    assert distances[3] < 0.8 * distances[0]


@pytest.mark.parametrize("settings", [SETTINGS, ("distil.teacher=dense", "pruning.method=omp")], ids=["parp", "omp"])
@pytest.mark.parametrize("at", [5, 17])
def test_it_goes_on_after_a_stop(world: World, tmp_path: Path, settings: tuple[str, ...], at: int) -> None:
    check_it_goes_on(world.recipe(*settings), tmp_path, after=at)


def test_a_feature_encoder_that_trains_is_not_the_teachers(world: World, teacher: Path, tmp_path: Path) -> None:
    with observing(spy := Spy()):
        finetune(world.recipe(f"distil.teacher={teacher}", "training.train_front_end=true"), run=tmp_path)
    assert spy.objective.teacher_features is not spy.objective.features
    assert spy.objective.teacher_features._frozen


def test_speed_changes_are_the_same_for_both(world: World, teacher: Path, tmp_path: Path) -> None:
    finetune(
        world.recipe(f"distil.teacher={teacher}", "training.train_front_end=true", "training.speed_change=0.3"),
        run=tmp_path,
    )  # else the frames would not be as many


def test_a_small_student_of_a_whole_teacher(world: World, teacher: Path, tmp_path: Path) -> None:
    masked = mask(str(teacher), out=tmp_path / "mask.safetensors", pattern="structures", sparsity=0.7).path
    small = export(masked, to="small", out=tmp_path / "small.safetensors").path
    for named in ("dense", str(teacher)):
        recipe = world.recipe("pruning.method=dense", f"distil.teacher={named}")
        result = finetune(recipe, run=tmp_path / named.replace("/", "-"), init=small)
        assert checkpoint.read_metadata(result.path).architecture["name"] == "tiny-small"


def test_rounds_that_find_a_mask_have_no_teacher(world: World) -> None:
    rounds = plan(world.recipe("distil.teacher=dense", "pruning.method=omp")).rounds
    assert [name for name, _ in rounds] == ["teacher", "dense", "omp"]


def test_teachers_that_cannot_be_learned_from(world: World, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no outputs") as caught:
        plan(world.recipe(f"distil.teacher={world.encoder}"))
    assert "distil.teacher" in (caught.value.hint or "")
    phones = finetune(world.recipe("data.labels=phones", "training.updates=2"), run=tmp_path / "phones").path
    with pytest.raises(CheckpointError, match="has other outputs than the run"):
        plan(world.recipe(f"distil.teacher={phones}"))
    write_encoder(tmp_path / "deep.safetensors", replace(TINY, name="deep", layers=3))
    deep = finetune(world.recipe(f"model={tmp_path / 'deep.safetensors'}", "training.updates=2"), run=tmp_path / "deep")
    with pytest.raises(CheckpointError, match="has other layers than tiny") as caught:
        plan(world.recipe(f"distil.teacher={deep.path}"))
    assert "deep: 3 layers, 32 features" in caught.value.details
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors"):
        plan(world.recipe(f"distil.teacher={tmp_path / 'nothing.safetensors'}"))


def test_a_run_from_a_mask_has_a_teacher_of_the_whole_model(world: World, tmp_path: Path) -> None:
    masked = mask(str(world.encoder), out=tmp_path / "mask.safetensors").path
    with observing(spy := Spy()):
        result = finetune(world.recipe("distil.teacher=dense"), run=tmp_path / "run", init=masked)
    assert result.plan.rounds == (("teacher", 12), ("parp", 12))
    name = checkpoint.read_metadata(masked).prunable[0]
    assert (spy.before[name] != 0).all()


def test_texts_too(films: Films, tmp_path: Path) -> None:
    result = finetune(films.recipe("distil.teacher=dense"), run=tmp_path / "run")
    assert result.plan.rounds == (("teacher", 8), ("parp", 8))
    for line in journal(tmp_path / "run"):
        assert 0 <= line["distillation"] < line["loss"]
    assert journal(tmp_path / "run")[-1]["distillation"] > 0
