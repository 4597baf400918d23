"""What a run begins from and when it re-prunes, before anything is trained."""

import json
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import soundfile

from parp_cli.errors import CheckpointError, DataError, ParpError, UsageError
from parp_cli.runtime.progress import Progress, silent
from parp_cli.stages.finetune import Preparation, plan_of, prepare
from parp_cli.stages.mask import mask
from parp_cli.storage import checkpoint
from parp_cli.training.plan import rounds_of
from tests.tiny import TINY, World, write_encoder, write_manifest


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder with as many layers as the large ones."""
    path = tmp_path_factory.mktemp("deep") / "deep.safetensors"
    write_encoder(path, replace(TINY, name="deep", width=8, layers=24, feed_forward=8))
    return path


@pytest.fixture(scope="module")
def masks(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of masks over the tiny encoder."""
    folder = tmp_path_factory.mktemp("masks")
    for method in ("magnitude", "random", "random-weights"):
        mask(str(world.encoder), sparsity=0.5, method=method, out=folder / f"{method}.safetensors")
    mask(str(world.encoder), sparsity=0.7, biases=False, out=folder / "dense-groups.safetensors")
    return folder


def prepared(world: World, *settings: str, init: Path | None = None) -> Preparation:
    return prepare(world.recipe(*settings), init, silent)


# ------------------------------------------------------------------------------------------------------ intervals


@pytest.mark.parametrize(
    ("split", "base", "large"),
    [("10min", 50, 10), ("1h", 150, 25), ("train-10h", 115, 48), ("10min/0", 50, 10), ("train", 50, 50)],
)
def test_published_intervals(world: World, deep: Path, tmp_path: Path, split: str, base: int, large: int) -> None:
    rows = [json.loads(line) for line in world.manifest.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(world.folder / row["audio"])
        row["split"] = split if row["split"] == "train" else row["split"]
    manifest = write_manifest(tmp_path / "manifest.jsonl", rows)
    settings = (f"data.manifest={manifest}", f"data.train={split}", "pruning.interval=null", "training.updates=500")
    assert prepared(world, *settings).settings.schedule.interval == base
    assert prepared(world, *settings, f"model={deep}").settings.schedule.interval == large
    assert prepared(world, *settings, "pruning.interval=7").settings.schedule.interval == 7, (
        "what the recipe says comes first"
    )


@pytest.mark.parametrize(
    ("unit", "share", "interval"),
    [("epochs", 1.0, 6), ("epochs", 0.5, 3), ("epochs", 2.5, 15), ("epochs", 0.01, 1), ("seconds", 0.5, 3)],
)
def test_intervals_in_epochs_and_seconds(world: World, unit: str, share: float, interval: int) -> None:
    """Each update holds one of six utterances."""
    one_each = ("training.batch_seconds=0.1", "training.updates=31")
    seconds = sum(utterance.seconds for utterance in prepared(world).task.train)
    amount = share if unit == "epochs" else share * seconds
    recipe = world.recipe(*one_each, f"pruning.interval={amount}", f"pruning.interval_unit={unit}")
    preparation = prepare(recipe, None, silent)
    shown = plan_of(rounds_of(recipe), preparation)
    assert (preparation.settings.schedule.interval, shown.repruning_interval) == (interval, interval)
    assert shown.reprunings == len([update for update in range(1, 32) if update % interval == 0 or update == 31])


def test_the_plan_counts_what_the_schedule_and_the_method_say(world: World) -> None:
    def reprunings(*settings: str) -> int:
        recipe = world.recipe("training.updates=40", "pruning.interval=4", *settings)
        return plan_of(rounds_of(recipe), prepare(recipe, None, silent)).reprunings

    assert reprunings() == 10
    assert reprunings("pruning.start=10") == 8
    assert reprunings("pruning.end=19") == 5
    assert reprunings("pruning.end=19", "pruning.final=false") == 4
    assert reprunings("pruning.method=rigl") == 7
    assert [reprunings(f"pruning.method={method}") for method in ("dense", "mpi", "omp", "imp")] == [0] * 4
    assert reprunings("pruning.method=pap") == 10, "in its search"


@pytest.mark.parametrize("method", ["parp", "parp-p", "rigl"])
def test_a_method_that_would_never_reprune(world: World, method: str) -> None:
    with pytest.raises(UsageError, match=rf"method {method} would not re-prune once: every 4 updates, of 12"):
        prepared(world, f"pruning.method={method}", "pruning.interval=4", "pruning.start=13", "pruning.final=false")


def test_a_first_mask_beside_one_of_the_start(world: World, masks: Path) -> None:
    with pytest.raises(UsageError, match=r"first mask is random, but .*magnitude.safetensors has one of its own"):
        prepared(world, "pruning.initial=random", init=masks / "magnitude.safetensors")


def test_sparsity_does_not_shrink(world: World) -> None:
    with pytest.raises(UsageError, match=r"starts at 0\.6, above the 0\.5"):
        prepared(world, "pruning.method=parp-p", "pruning.start_sparsity=0.6")


# ----------------------------------------------------------------------------------------------------- first masks


def test_a_mask_of_another_checkpoint(world: World, masks: Path) -> None:
    given = masks / "random.safetensors"
    start = prepared(world, f"pruning.initial={given}").start
    expected = checkpoint.read_masks(given)
    assert all((start.masks[name] == kept).all() for name, kept in expected.items())
    encoder = checkpoint.read(world.encoder).weights
    assert all((start.weights[name] == weight).all() for name, weight in encoder.items()), "its mask, not its weights"
    assert start.parents[-1].sha256 == checkpoint.file_hash(given)
    start = prepared(world, f"pruning.initial={given}", init=world.encoder).start
    assert set(start.masks) == set(expected), "also over a checkpoint without a mask"


@pytest.mark.parametrize(("method", "kind"), [("mpi", "magnitude"), ("rp", "random"), ("rp", "random-weights")])
def test_methods_take_the_masks_of_their_kind(world: World, masks: Path, method: str, kind: str) -> None:
    for given in ({"init": masks / f"{kind}.safetensors"}, {}):
        initial = () if given else (f"pruning.initial={masks / f'{kind}.safetensors'}",)
        assert prepared(world, f"pruning.method={method}", *initial, **given).start.masks


@pytest.mark.parametrize(("method", "kind"), [("mpi", "random"), ("mpi", "random-weights"), ("rp", "magnitude")])
def test_methods_refuse_masks_of_another_kind(world: World, masks: Path, method: str, kind: str) -> None:
    path = masks / f"{kind}.safetensors"
    for settings, init in ((), path), ((f"pruning.initial={path}",), None):
        with pytest.raises(
            UsageError, match=f"method {method} has a .* mask, but that of .*{kind}.safetensors"
        ) as caught:
            prepared(world, f"pruning.method={method}", *settings, init=init)
        assert "pruning.method=fixed" in (caught.value.hint or "")


@pytest.mark.parametrize("method", ["dense", "omp", "imp", "pap"])
def test_methods_that_find_their_mask_do_not_start_from_one(world: World, masks: Path, method: str) -> None:
    with pytest.raises(UsageError, match=f"{method}.*magnitude.safetensors is pruned") as caught:
        prepared(world, f"pruning.method={method}", init=masks / "magnitude.safetensors")
    assert "--init" in (caught.value.hint or "")


def test_growing_sparsity(world: World, masks: Path) -> None:
    grown = prepared(world, "pruning.method=parp-p", "pruning.sparsity=0.8")
    assert (grown.settings.start_sparsity, grown.settings.sparsity) == (0.4, 0.8)
    grown = prepared(world, "pruning.method=parp-p", "pruning.sparsity=0.8", "pruning.start_sparsity=0.1")
    assert (grown.settings.start_sparsity, grown.settings.sparsity) == (0.1, 0.8)
    half = masks / "magnitude.safetensors"
    grown = prepared(world, "pruning.method=parp-p", "pruning.sparsity=0.8", init=half)
    assert (grown.settings.start_sparsity, grown.settings.sparsity) == (0.5, 0.8)
    for wrong in ("pruning.sparsity=0.3", "pruning.start_sparsity=0.1"):
        with pytest.raises(UsageError, match=r"grows from .*magnitude.safetensors is pruned to 0\.5") as caught:
            prepared(world, "pruning.method=parp-p", "pruning.sparsity=0.8", wrong, init=half)
        assert "pruning.start_sparsity" in (caught.value.hint or "")


# -------------------------------------------------------------------------------------------------------- mistakes


def refused(world: World, kind: type[ParpError], match: str, *settings: str, init: Path | None = None) -> str:
    """The hint of the error that these settings must raise."""
    with pytest.raises(kind, match=match) as caught:
        prepared(world, *settings, init=init)
    assert caught.value.hint
    return caught.value.hint


def test_unknown_first_masks(world: World) -> None:
    hint = refused(world, UsageError, r"there is no first mask .*/magnitud\n", "pruning.initial=./magnitud")
    assert "magnitude, random, random-weights, omp, parp, or the path" in hint
    hint = refused(world, CheckpointError, "has no mask to start from", f"pruning.initial={world.encoder}")
    assert "parp mask" in hint


def test_a_mask_whose_sparsity_is_not_the_patterns(world: World, masks: Path) -> None:
    """It is told before anything is trained."""
    path = masks / "dense-groups.safetensors"
    message = r"pattern 2:4 prunes 0\.5 .*dense-groups\.safetensors is pruned to 0\.7"
    assert "parp mask" in refused(world, UsageError, message, "pruning.pattern=2:4", init=path)


def test_other_sparsities_than_asked_for(world: World, masks: Path) -> None:
    path = masks / "magnitude.safetensors"
    hint = refused(
        world, UsageError, r"0\.7, but .*magnitude\.safetensors is pruned", "pruning.sparsity=0.7", init=path
    )
    assert "parp reprune" in hint
    refused(world, UsageError, "pattern 2:4 prunes 0.5", "pruning.pattern=2:4", "pruning.sparsity=0.7")
    refused(world, UsageError, "no pattern '4:2'", "pruning.pattern=4:2")


# -------------------------------------------------------------------------------------------- utterances to train on


@pytest.fixture
def spoilt(world: World, tmp_path: Path) -> Path:
    """A manifest of the tiny corpus with something wrong in both splits; audio stays readable by its header."""
    rows = [json.loads(line) for line in world.manifest.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(world.folder / row["audio"])
    by_id = {row["id"]: row for row in rows}
    by_id["train-1"] |= {"text": "ÄB"}
    by_id["train-2"] |= {"seconds": 99.0}
    flat = tmp_path / "flat.wav"
    soundfile.write(flat, numpy.zeros(16_000), 16_000)
    by_id["valid-0"] |= {"audio": str(flat), "seconds": 1.0}
    low = tmp_path / "low.wav"
    soundfile.write(low, numpy.random.default_rng(0).standard_normal(8000) / 9, 8_000)
    by_id["valid-1"] |= {"audio": str(low), "seconds": 1.0}
    return write_manifest(tmp_path / "spoilt.jsonl", rows)


def test_problems_of_both_splits_are_reported_together(world: World, spoilt: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepared(world, f"data.manifest={spoilt}")
    assert caught.value.message == (
        "3 problems with the utterances of train and valid (silence 1, wrong length 1, outside vocabulary 1)"
    )
    examples = [line.split(":")[0].strip() for line in caught.value.details if line.startswith("  ")]
    assert examples == ["valid-0", "train-2", "train-1"]
    assert "valid-1 at 8,000 Hz" in caught.value.details[-1]


def test_all_of_them_are_left_out_by_choice(world: World, spoilt: Path) -> None:
    recipe = world.recipe(f"data.manifest={spoilt}", "data.unusable=skip")
    steps: list[Progress] = []
    preparation = prepare(recipe, None, steps.append)
    assert [utterance.id for utterance in preparation.task.data.train] == ["train-0", "train-3", "train-4", "train-5"]
    assert [utterance.id for utterance in preparation.task.data.valid] == ["valid-1", "valid-2"]
    assert [problem.utterance_id for problem in preparation.task.data.skipped] == ["train-1", "train-2", "valid-0"]
    assert plan_of(rounds_of(recipe), preparation).skipped == 3
    assert [step.warning for step in steps if step.warning] == list(preparation.task.data.notes)
    assert "valid-1 at 8,000 Hz" in preparation.task.data.notes[0]


def test_a_split_of_which_nothing_is_left(world: World, spoilt: Path) -> None:
    settings = (f"data.manifest={spoilt}", "data.unusable=skip", "data.max_valid_utterances=1")
    with pytest.raises(DataError, match="no usable utterance in valid") as caught:
        prepared(world, *settings)
    assert caught.value.details[0].startswith("silence (1): ")
    assert caught.value.details[1].startswith("  valid-0: ")
    assert "skip" not in (caught.value.hint or ""), "which was done"


def test_a_split_to_train_and_validate_on_is_reported_once(world: World, spoilt: Path) -> None:
    with pytest.raises(DataError, match=r"^2 problems with the utterances of train \("):
        prepared(world, f"data.manifest={spoilt}", "data.valid=train")
