import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from parp_cli.cli.app import main
from parp_cli.config.load import load_recipe
from parp_cli.config.pretrain import PretrainRecipe, Source
from parp_cli.errors import CheckpointError, DataError, Interrupted, ParpError, RecipeError, UsageError
from parp_cli.models.sources.load import load_encoder
from parp_cli.models.sources.names import MASK_EMBEDDING, shapes
from parp_cli.models.speech.config import ARCHITECTURES
from parp_cli.runtime.device import resolve_precision
from parp_cli.runtime.interrupts import Stop
from parp_cli.runtime.progress import Progress
from parp_cli.stages import pretrain as module
from parp_cli.stages.pretrain import PretrainResult, pretrain
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Checkpoint
from parp_cli.training.observe import Observer, observing
from parp_cli.training.run import TrainingRun
from tests.tiny import TINY, write_encoder, write_manifest, write_speech

UPDATES = (4, 6)

SETTINGS = """
architecture: tiny
data:
  - {{kind: folder, path: {folder}/sounds}}
  - {{kind: manifest, path: {folder}/manifest.jsonl, split: train}}
distorted: 0.5
crop_seconds: 0.6
batch_seconds: 1.8
mask_length: 4
stages:
  - {{targets: mfcc, clusters: 8, updates: 4}}
  - {{targets: layer-1, clusters: 6, updates: 6}}
log_every: 3
save_every: 2
precision: float32
"""

PROGRAM = """
import sys
from parp_cli.cli.app import main
from parp_cli.models.speech.config import ARCHITECTURES
from parp_cli.training.observe import Observer, observing
from tests.tiny import TINY

ARCHITECTURES["tiny"] = TINY

class Slow(Observer):
    def saved(self, run):
        print("saved", flush=True)
        sys.stdin.readline()

with observing(Slow()):
    main()
"""


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tones and noise, a manifest with two splits, and the recipe that reads them."""
    folder = tmp_path_factory.mktemp("speech")
    for number, text in enumerate(["ABCABC", "CBA CAB", "BBCCAA"]):
        write_speech(folder / "sounds" / f"{number}.wav", text, seed=number)
    write_speech(folder / "sounds" / "short.wav", "")  # 0.1 s, less than a crop
    rows: list[dict[str, object]] = []
    for number, split in enumerate(["train", "train", "test"]):
        rng = numpy.random.default_rng(number)
        soundfile.write(folder / f"{number}.flac", 0.1 * rng.standard_normal(12_000), 8_000)
        rows.append({"id": f"{number}", "audio": f"{number}.flac", "split": split, "speaker": "s"})
    write_manifest(folder / "manifest.jsonl", rows)
    path = folder / "recipe.yaml"
    path.write_text(SETTINGS.format(folder=folder))
    return path


@pytest.fixture
def recipe(recipe_file: Path) -> PretrainRecipe:
    return load_recipe(recipe_file, kind=PretrainRecipe)


@pytest.fixture(scope="module")
def finished(recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PretrainResult]:
    """The run without interruption that others are compared with."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
        recipe = load_recipe(recipe_file, kind=PretrainRecipe)
        yield pretrain(recipe, run=folder, out=folder / "encoder.safetensors")


def run_again(recipe: PretrainRecipe, folder: Path, *, resume: bool = False) -> bytes:
    return pretrain(recipe, run=folder, out=folder / "encoder.safetensors", resume=resume).path.read_bytes()


def is_update(step: Progress) -> bool:
    return step.task.startswith("pre-training") and not step.is_line


def test_it_writes_an_encoder(finished: PretrainResult, recipe: PretrainRecipe) -> None:
    encoder = load_encoder(str(finished.path))
    assert encoder.architecture == TINY
    assert encoder.vocabulary is None
    assert encoder.weights.keys() == {*shapes(TINY), MASK_EMBEDDING}
    assert all(torch.isfinite(weight).all() for weight in encoder.weights.values())
    metadata = checkpoint.read_metadata(finished.path)
    assert (metadata.stage, metadata.seed, metadata.recipe["architecture"]) == ("pretrain", 0, "tiny")  # type: ignore
    assert any("attention.q_proj" in name for name in metadata.prunable)
    assert {weight.dtype for weight in checkpoint.read(finished.path).weights.values()} == {torch.float16}
    assert finished.sha256 == checkpoint.file_hash(finished.path)


def test_history(finished: PretrainResult) -> None:
    assert [(entry["stage"], entry["update"]) for entry in finished.history] == [(1, 3), (1, 4), (2, 3), (2, 6)]
    assert all(math.isfinite(entry["loss"]) and 0 <= entry["accuracy"] <= 1 for entry in finished.history)
    folder = 3 * 0.1 + 19 * (0.16 + 0.05) + 0.1 + 0.05  # three texts of 19 letters and one space between them
    assert finished.hours * 3600 == pytest.approx(folder + 2 * 1.5, abs=0.3)


def test_a_checkpoint_records_what_precision_auto_resolved_to(recipe: PretrainRecipe, tmp_path: Path) -> None:
    result = pretrain(replace(recipe, precision="auto"), run=tmp_path, out=tmp_path / "encoder.safetensors")
    recorded = checkpoint.read_metadata(result.path).recipe
    assert recorded is not None
    assert recorded["precision"] == resolve_precision("auto", torch.device("cpu"))


def test_weights_move_in_both_stages(finished: PretrainResult, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    state = finished.path.parent / "state"
    first, second = (load_file(state / f"pretrain-stage{number}.safetensors") for number in (1, 2))
    assert first.keys() == second.keys()
    still = [name for name in first if torch.equal(first[name], second[name])]
    assert still == []


def test_it_learns_where_there_is_something_to_learn(recipe: PretrainRecipe, tmp_path: Path) -> None:
    stage = replace(recipe.stages[0], updates=60)
    learning = replace(recipe, stages=(stage,), log_every=20, save_every=100, mask_probability=0.3)
    history = pretrain(learning, run=tmp_path, out=tmp_path / "encoder.safetensors").history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


def test_the_same_seed_gives_the_same_bytes(finished: PretrainResult, recipe: PretrainRecipe, tmp_path: Path) -> None:
    assert run_again(recipe, tmp_path) == finished.path.read_bytes()


def test_another_seed_gives_others(finished: PretrainResult, recipe: PretrainRecipe, tmp_path: Path) -> None:
    assert run_again(replace(recipe, seed=1), tmp_path) != finished.path.read_bytes()


def test_an_earlier_run_in_the_folder_leaves_no_trace(
    finished: PretrainResult, recipe: PretrainRecipe, tmp_path: Path
) -> None:
    run_again(replace(recipe, learning_rate=1e-2), tmp_path)  # whose learned targets have the same recipe
    assert run_again(recipe, tmp_path) == finished.path.read_bytes()


@pytest.mark.parametrize("updates", range(1, sum(UPDATES) + 1))
def test_stopped_anywhere_and_resumed(
    updates: int, finished: PretrainResult, recipe: PretrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = Stop()

    @contextmanager
    def stopping() -> Iterator[Stop]:
        yield stop

    done = 0

    def count(step: Progress) -> None:
        nonlocal done
        done += is_update(step)
        stop.requested = done == updates

    with monkeypatch.context() as patched:
        patched.setattr(module, "stopping", stopping)
        with pytest.raises(Interrupted, match="the state is saved") as caught:
            pretrain(recipe, run=tmp_path, out=tmp_path / "encoder.safetensors", notify=count)
    assert "--resume" in (caught.value.hint or "")
    assert not (tmp_path / "encoder.safetensors").exists()
    assert run_again(recipe, tmp_path, resume=True) == finished.path.read_bytes()


@pytest.mark.parametrize("updates", [3, 5, 9])
def test_an_error_anywhere_and_resumed(
    updates: int, finished: PretrainResult, recipe: PretrainRecipe, tmp_path: Path
) -> None:
    """Goes on from the last saved update, which may be of the stage before."""
    done = 0

    def fail(step: Progress) -> None:
        nonlocal done
        done += is_update(step)
        if done == updates:
            raise MemoryError

    with pytest.raises(MemoryError):
        pretrain(recipe, run=tmp_path, out=tmp_path / "encoder.safetensors", notify=fail)
    assert run_again(recipe, tmp_path, resume=True) == finished.path.read_bytes()


def start(recipe_file: Path, folder: Path) -> "subprocess.Popen[str]":
    """`parp pretrain` as a process that waits for a line whenever it has saved its state."""
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "pretrain", str(recipe_file), "--run", str(folder), "--device", "cpu"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_signals(
    number: signal.Signals, finished: PretrainResult, recipe: PretrainRecipe, recipe_file: Path, tmp_path: Path
) -> None:
    with start(recipe_file, tmp_path) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "saved\n"
        process.send_signal(number)
        time.sleep(0.1)
        _, errors = process.communicate("\n" * 20, timeout=300)
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "stopped in stage 1" in errors
        assert "--resume" in errors
    assert not (tmp_path / "pretrain.safetensors").exists()
    assert run_again(recipe, tmp_path, resume=True) == finished.path.read_bytes()


def command(*arguments: object) -> int:
    """The exit code of `parp` with these arguments."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(sys, "argv", ["parp", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
    return int(caught.value.code or 0)


def test_the_command(
    finished: PretrainResult, recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--run", tmp_path, "--device", "cpu", "--json", "--quiet")
    assert command("pretrain", recipe_file, *options) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert shown.err == ""
    assert result["path"] == str(tmp_path / "pretrain.safetensors")
    assert result["sha256"] == finished.sha256
    assert [entry["update"] for entry in result["history"]] == [3, 4, 3, 6]


def test_the_command_for_people(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--run", tmp_path / "run", "--out", tmp_path / "mine.safetensors", "--device", "cpu")
    assert command("pretrain", recipe_file, *options) == 0
    shown = capsys.readouterr()
    assert f"wrote {tmp_path / 'mine.safetensors'}" in shown.out
    assert "pre-training, stage 2: 6/6" in shown.err


def test_the_command_without_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("pretrain", tmp_path / "none.yaml", "--run", tmp_path) == 2
    assert "none.yaml" in capsys.readouterr().err


Change = Callable[[PretrainRecipe], PretrainRecipe]


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda r: replace(r, architecture="minni"), RecipeError, "no architecture minni"),
        (lambda r: replace(r, architecture="wavlm-base"), RecipeError, "wavlm-base cannot be pre-trained"),
        (lambda r: replace(r, model="./nowhere.pt"), CheckpointError, "there is no model ./nowhere.pt"),
        (lambda r: replace(r, model="mini-text"), RecipeError, "mini-text is no encoder of speech"),
        (lambda r: replace(r, mask_length=30, crop_seconds=0.59), RecipeError, "crop_seconds: 0.59 s are 29 frames"),
        (
            lambda r: replace(r, stages=(r.stages[0], replace(r.stages[1], targets="layer-3"))),
            RecipeError,
            "stages[1].targets: layer-3, but it has 2 layers",
        ),
        (lambda r: replace(r, crop_seconds=10.0), DataError, "no speaker has 10"),
        (lambda r: replace(r, stages=(replace(r.stages[0], clusters=5000),)), DataError, "too few for 5000 clusters"),
        (lambda r: replace(r, data=(Source(kind="folder", path="/nowhere"),)), DataError, "no folder /nowhere"),
        (lambda r: replace(r, data=(replace(r.data[1], split="dev"),)), DataError, "no split dev"),
    ],
)
def test_what_cannot_be_done_is_said_before_training(
    change: Change, kind: type[ParpError], words: str, recipe: PretrainRecipe, tmp_path: Path
) -> None:
    def refuse_to_train(step: Progress) -> None:
        assert not is_update(step)

    with pytest.raises(kind) as caught:
        pretrain(change(recipe), run=tmp_path, out=tmp_path / "encoder.safetensors", notify=refuse_to_train)
    assert words in str(caught.value)
    assert not (tmp_path / "encoder.safetensors").exists()


def test_it_goes_on_from_a_model(finished: PretrainResult, recipe: PretrainRecipe, tmp_path: Path) -> None:
    """Its own layers are the first targets, and it is where the weights begin: without a rate they stay."""
    stages = (replace(recipe.stages[1], targets="layer-2", updates=3),)
    goes_on = replace(recipe, model=str(finished.path), stages=stages, learning_rate=1e-12)
    result = pretrain(goes_on, run=tmp_path, out=tmp_path / "encoder.safetensors")
    before, after = checkpoint.read(finished.path), checkpoint.read(result.path)
    assert [parent.sha256 for parent in after.metadata.parents] == [finished.sha256]
    assert after.metadata.architecture == before.metadata.architecture
    assert after.weights.keys() == before.weights.keys()
    for name, weight in after.weights.items():
        torch.testing.assert_close(weight, before.weights[name], atol=1e-3, rtol=1e-3)
    untrained = stage_targets_of(replace(goes_on, model="random:tiny"), tmp_path / "other")
    assert not all(map(torch.equal, stage_targets_of(goes_on, tmp_path / "same"), untrained))


def stage_targets_of(recipe: PretrainRecipe, folder: Path) -> list[torch.Tensor]:
    pretrain(recipe, run=folder, out=folder / "encoder.safetensors")
    kept = load_file(folder / "state" / "pretrain-targets1.safetensors")
    return [kept[name] for name in sorted(kept) if name != "key"]


def test_of_a_fine_tuned_and_pruned_model_the_encoder_alone(recipe: PretrainRecipe, tmp_path: Path) -> None:
    write_encoder(tmp_path / "plain.safetensors")
    content = checkpoint.read(tmp_path / "plain.safetensors")
    masks = {name: torch.rand(content.weights[name].shape) > 0.5 for name in content.metadata.prunable}
    head = {"aux.weight": torch.zeros(3, TINY.width), "aux.bias": torch.zeros(3)}
    metadata = replace(content.metadata, task=checkpoint.ctc_task(["<blank>", "A", "B"], "letters"))
    path = tmp_path / "pruned.safetensors"
    checkpoint.write(path, Checkpoint(weights={**content.weights, **head}, masks=masks, metadata=metadata))
    said: list[str | None] = []
    short = replace(recipe, model=str(path), stages=recipe.stages[:1])
    result = pretrain(
        short, run=tmp_path, out=tmp_path / "out.safetensors", notify=lambda step: said.append(step.warning)
    )
    assert f"of {path} pre-training does not use its head and its mask, so that all weights train" in said
    after = checkpoint.read(result.path)
    assert not after.masks
    assert "aux.weight" not in after.weights


def test_with_nothing_to_resume_it_begins(recipe: PretrainRecipe, tmp_path: Path) -> None:
    """So that the same command begins a long run and goes on with it."""
    steps: list[Progress] = []
    resumed = pretrain(recipe, run=tmp_path, out=tmp_path / "encoder.safetensors", resume=True, notify=steps.append)
    assert f"nothing to resume in {tmp_path}: beginning" in [step.warning for step in steps]
    assert resumed.path.read_bytes() == run_again(recipe, tmp_path / "anew")


def test_it_is_not_lost_by_leaving_out_resume(recipe: PretrainRecipe, tmp_path: Path) -> None:
    class Breaks(Observer):
        def saved(self, run: TrainingRun) -> None:
            raise MemoryError

    with observing(Breaks()), pytest.raises(MemoryError):
        run_again(recipe, tmp_path)
    with pytest.raises(UsageError, match="this run was stopped after update 2") as caught:
        run_again(recipe, tmp_path)
    assert "--resume" in (caught.value.hint or "")
    whole = run_again(recipe, tmp_path, resume=True)
    with pytest.raises(UsageError, match="this run has finished"):
        run_again(recipe, tmp_path)
    assert run_again(recipe, tmp_path, resume=True) == whole


def test_every_update_is_logged(finished: PretrainResult) -> None:
    for stage, updates in enumerate(UPDATES, start=1):
        log = finished.path.parent / f"pretrain-stage{stage}.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        events = [line for line in lines if line["event"] == "update"]
        assert [line["update"] for line in events] == list(range(1, updates + 1))
        assert all(line["audio_seconds"] == 1.8 and 0 <= line["accuracy"] <= 1 for line in events)
        history = [entry for entry in finished.history if entry["stage"] == stage]
        last = [line["loss"] for line in events[3:]]
        assert history[-1]["loss"] == pytest.approx(sum(last) / len(last))


def test_an_update_without_a_finite_gradient_is_skipped(recipe: PretrainRecipe, tmp_path: Path) -> None:
    class Poison(Observer):
        def gradients(self, run: TrainingRun) -> None:
            if run.update == 1:
                next(w.grad for w in run.network.parameters() if w.grad is not None).fill_(math.nan)

    with observing(Poison()):
        run_again(recipe, tmp_path)
    log = (tmp_path / "pretrain-stage1.jsonl").read_text().splitlines()
    assert [json.loads(line)["update"] for line in log if '"skipped"' in line] == [2]


def test_another_recipe_does_not_resume(finished: PretrainResult, recipe: PretrainRecipe) -> None:
    with pytest.raises(CheckpointError, match="another recipe") as caught:
        run_again(replace(recipe, learning_rate=1.0), finished.path.parent, resume=True)
    assert caught.value.details == ("learning_rate: 0.002 before, 1.0 now",)


@pytest.mark.parametrize(
    "file", ["pretrain.safetensors", "pretrain-stage1.safetensors", "pretrain-targets2.safetensors"]
)
def test_broken_state_is_named(file: str, recipe: PretrainRecipe, tmp_path: Path) -> None:
    """In the second stage, which needs all of them."""

    class Breaks(Observer):
        def saved(self, run: TrainingRun) -> None:
            if run.name == "stage 2":
                raise MemoryError

    with observing(Breaks()), pytest.raises(MemoryError):
        run_again(recipe, tmp_path)
    path = tmp_path / "state" / file
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match=file) as caught:
        run_again(recipe, tmp_path, resume=True)
    assert "--resume" in (caught.value.hint or "")


def test_sources_do_not_share_speakers(tmp_path: Path, recipe: PretrainRecipe) -> None:
    """Two corpora may call different people by the same number."""
    for number, corpus in enumerate("ab"):
        write_speech(tmp_path / corpus / "1.wav", "ABCABC", seed=number)
    sources = tuple(Source(kind="folder", path=str(tmp_path / corpus)) for corpus in "ab")
    run_again(replace(recipe, data=sources, stages=recipe.stages[:1]), tmp_path)
    from safetensors.torch import load_file

    assert load_file(tmp_path / "state" / "pretrain-targets1.safetensors").keys() == {"key", "0", "1"}


def test_the_helpers_encoder_has_none(tmp_path: Path) -> None:
    """A checkpoint without a mask embedding is read too."""
    write_encoder(tmp_path / "encoder.safetensors")
    assert MASK_EMBEDDING not in load_encoder(str(tmp_path / "encoder.safetensors")).weights
