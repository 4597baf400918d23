"""Two processes (gloo), started by torchrun, train and evaluate as one does.

This file is also what the two processes run: `torchrun … test_processes.py FOLDER`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from parp_cli.config.finetune import Recipe
from parp_cli.errors import Interrupted, ParpError
from parp_cli.pruning.patterns import Pattern
from parp_cli.pruning.pruner import Pruner, Repruning
from parp_cli.pruning.structures import Rows
from parp_cli.runtime.processes import SINGLE, World, joined
from parp_cli.runtime.progress import Progress
from parp_cli.stages.evaluate import Options, evaluate
from parp_cli.stages.finetune import finetune
from parp_cli.storage import checkpoint
from parp_cli.training.observe import Observer, observing
from parp_cli.training.run import TrainingRun
from tests.tiny import World as TinyWorld
from tests.tiny import make_world

RANDOM = (
    "training.layer_drop=0.3",
    "training.dropout=0.1",
    "training.attention_dropout=0.1",
    "training.activation_dropout=0.1",
    "training.time_mask_probability=0.2",
    "training.gradient_clip=5",
)
STILL = (
    "training.activation_dropout=0",
    "training.time_mask_probability=0",
    "training.channel_mask_probability=0",
)
# Or gradients that are zero but for rounding would count as much as any.
CALM = ("training.adam_epsilon=1e-3", "training.precision=float32")
SHORT = ("training.updates=6", "training.validate_every=4", "pruning.interval=2")

RUNS = {
    "everything random": (*RANDOM, *CALM, "training.micro_batch_seconds=2", "training.updates=8"),
    "head first": (*SHORT, *CALM, "training.freeze_encoder_updates=2", "pruning.method=fixed"),
    "front end too": (*SHORT, *CALM, "training.train_front_end=true", "training.micro_batch_seconds=2"),
    "one forward pass": (*SHORT, *STILL, *CALM, "training.micro_batch_seconds=100"),
    "one utterance": (*SHORT, *STILL, *CALM, "training.batch_seconds=1"),
    "all used": (*SHORT, *CALM, "training.layer_drop=0", "training.micro_batch_seconds=2"),
    "divided": (*RANDOM, *CALM, *SHORT, "training.micro_batch_seconds=2", "training.shard_weights=true"),
    "divided, recomputed": (
        *RANDOM,
        *CALM,
        *SHORT,
        "training.checkpoint_activations=true",
        "training.shard_weights=true",
    ),
    "divided rigl": (*SHORT, *CALM, "pruning.method=rigl", "training.shard_weights=true"),
    "divided wanda": (*SHORT, *CALM, "pruning.method=wanda", "training.shard_weights=true"),
    "divided movement": (*SHORT, *CALM, "pruning.method=movement", "training.shard_weights=true"),
    "divided taylor": (*SHORT, *CALM, "pruning.method=taylor", "pruning.end=6", "training.shard_weights=true"),
    "taught": (*RANDOM, *CALM, *SHORT, "distil.teacher=dense", "training.micro_batch_seconds=2"),
    "divided, taught": (*STILL, *CALM, *SHORT, "distil.teacher=dense", "training.shard_weights=true"),
    "divided 2:4": (*SHORT, *CALM, "pruning.pattern=2:4", "training.shard_weights=true"),
    "divided structures": (*SHORT, *CALM, "pruning.pattern=structures", "training.shard_weights=true"),
}
"""By name, settings of runs that one process and two make."""

BFLOAT16 = (*SHORT, "training.precision=bfloat16", "pruning.method=wanda", "training.shard_weights=true")
"""Settings of a sharded run that is equal to one process's to rounding of bfloat16 alone."""

COMPILED = (
    *(*STILL, *CALM, "training.updates=3", "pruning.interval=2", "training.micro_batch_seconds=2"),
    *("training.checkpoint_activations=true", "training.compile=true", "training.shard_weights=true"),
)

STOPPED = (*RANDOM, *CALM, "training.micro_batch_seconds=2", "training.updates=6", "training.shard_weights=true")
AT = 3
"""Settings of a run that stops after so many updates, and goes on in another number of processes."""

PATTERNS = ("global", "layer", "tensor", "2:4", "8x8", "structures")


def recipe_of(world: TinyWorld, settings: tuple[str, ...]) -> Recipe:
    return world.recipe(*settings)


class Unused(Observer):
    """Whether DDP looks for parameters without a gradient in each pass."""

    looks: bool | None = None

    def update_ends(self, run: TrainingRun) -> None:
        self.looks = getattr(run.module, "find_unused_parameters", None)


class StopsAfter(Observer):
    """Sends a signal after an update."""

    def __init__(self, update: int) -> None:
        self._update = update

    def update_ends(self, run: TrainingRun) -> None:
        if run.update == self._update:
            os.kill(os.getpid(), signal.SIGTERM)


def flipping_a_bit() -> Any:
    """While it is patched in, one entry of a mask changes at each re-pruning."""
    after_step = Pruner.after_step

    def with_flip(pruner: Pruner, *arguments: Any) -> Repruning | None:
        repruning = after_step(pruner, *arguments)
        if repruning is not None:
            next(iter(pruner.masks.values())).flatten()[0].logical_not_()
        return repruning

    return mock.patch.object(Pruner, "after_step", with_flip)


def stop(recipe: Recipe, run: Path, processes: World = SINGLE, *, signalled: bool = True) -> None:
    with observing(StopsAfter(AT if signalled else -1)), pytest.raises(Interrupted):
        finetune(recipe, run=run, world=processes)


def refused(run: Callable[[], object]) -> str:
    with pytest.raises(ParpError) as caught:
        run()
    return str(caught.value)


def sharded_as_whole(name: str, processes: World) -> bool:
    """Whether masks of this pattern, made from each process's rows, are those rows of the whole weights' masks."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"layers.0.a": (16, 24), "layers.0.b": (16, 8), "layers.1.a": (48, 24)}
    weights = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    labels = {key: key[:8] for key in weights}

    def rows(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.chunk(processes.world_size)[processes.rank]

    structures = (
        Rows(8, {"layers.0.a": (0, 1), "layers.0.b": (0, 2)}, kind="units"),
        Rows(12, {"layers.1.a": (1, 1)}, kind="heads"),
    )
    pattern = Pattern.parse(name)
    own = {key: rows(weight) for key, weight in weights.items()}
    masks = pattern.masks(own, 0.5, labels, structures=structures, group=processes.group)
    whole = pattern.masks(weights, 0.5, labels, structures=structures)
    return all(torch.equal(masks[key], rows(whole[key])) for key in weights)


def work(folder: Path) -> None:
    """What one of the processes does."""
    world = TinyWorld(folder, folder / "encoder.safetensors", folder / "manifest.jsonl")
    found: dict[str, Any] = {}
    with joined() as processes:
        found["gathered"] = processes.gather({"rank": processes.rank, "long": "ä" * processes.rank})
        found["first"] = processes.from_main(processes.rank)
        found["sum"] = processes.sum(torch.tensor([1.5, processes.rank])).tolist()
        found["any"] = processes.any(processes.rank == 1, False)
        found["differing"] = refused(lambda: processes.check_same("a thing", f"hash {processes.rank}"))
        with processes.main_first():
            found["before"] = (folder / "turn").exists()
            (folder / "turn").touch()
        found["said first"] = processes.says_first("something")

        found["patterns"] = {name: sharded_as_whole(name, processes) for name in PATTERNS}
        found["cut block"] = refused(lambda: sharded_as_whole("16x8", processes))
        for name, settings in RUNS.items():
            steps: list[Progress] = []
            spy = Unused()
            with observing(spy):
                finetune(recipe_of(world, settings), run=folder / "two" / name, world=processes, notify=steps.append)
            found[name] = {
                "warnings": [step.warning for step in steps if step.warning],
                "steps": len(steps),
                "looks for unused": spy.looks,
            }
        finetune(recipe_of(world, BFLOAT16), run=folder / "two" / "bfloat16", world=processes)
        stop(recipe_of(world, STOPPED), folder / "stopped by two", processes, signalled=processes.rank == 1)
        finetune(recipe_of(world, STOPPED), run=folder / "stopped by one", resume=True, world=processes)

        result = evaluate(
            folder / "two" / "everything random" / "finetune.safetensors",
            out=folder / "two.jsonl",
            world=processes,
            options=Options(batch_seconds=2),
        ).as_it_is.report
        found["errors"] = [result.metrics[0].errors.rate, result.utterances]
        recipe = recipe_of(world, (*SHORT, "training.shard_weights=true"))
        front_end = replace(recipe, training=replace(recipe.training, train_front_end=True))
        found["front end"] = refused(lambda: finetune(front_end, run=folder / "no", world=processes))
        odd = recipe_of(world, (*SHORT, f"seed={processes.rank}"))
        found["odd"] = refused(lambda: finetune(odd, run=folder / "no", world=processes))
        with flipping_a_bit() if processes.rank == 1 else nullcontext():
            found["flipped"] = refused(
                lambda: finetune(recipe_of(world, SHORT), run=folder / "flipped", world=processes)
            )
        (folder / f"{processes.rank}.json").write_text(json.dumps(found))


def compiled(folder: Path) -> None:
    """What one of the processes does where layers are compiled."""
    world = TinyWorld(folder, folder / "encoder.safetensors", folder / "manifest.jsonl")
    with joined() as processes:
        finetune(recipe_of(world, COMPILED), run=folder / "two" / "compiled", world=processes)


def torchrun(*command: str, count: int = 2, timeout: float = 900) -> Any:
    """Several processes by torchrun; `--` in the command keeps it from reading what follows as its own options."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run(
        [*launcher, *command],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return make_world(tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def found(world: TinyWorld) -> list[dict[str, Any]]:
    """What each process found, after it has trained everything."""
    stop(recipe_of(world, STOPPED), world.folder / "stopped by one")
    ended = torchrun("--", __file__, str(world.folder))
    assert ended.returncode == 0, ended.stderr
    return [json.loads((world.folder / f"{rank}.json").read_text()) for rank in range(2)]


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "finetune.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def assert_same_run(run: Path, alone: Path, *, rounding: float = 1e-5) -> None:
    """Equal loss curves to rounding, identical masks, and the same files with the same names in them."""
    updates, expected = events(run, "update"), events(alone, "update")
    assert [line["update"] for line in updates] == [line["update"] for line in expected]
    for key in ("loss", "gradient_norm"):
        assert [u[key] for u in updates] == pytest.approx([u[key] for u in expected], rel=rounding)
    assert [u["audio_seconds"] for u in updates] == [u["audio_seconds"] for u in expected]
    assert events(run, "reprune") == events(alone, "reprune")
    assert {p.name for p in run.iterdir()} == {p.name for p in alone.iterdir()}
    for name in ("finetune.safetensors", "finetune-last.safetensors"):
        written, wanted = checkpoint.read(run / name), checkpoint.read(alone / name)
        assert written.metadata.sparsity == wanted.metadata.sparsity
        assert list(written.weights) == list(wanted.weights)
        assert set(written.masks) == set(wanted.masks) != set()
        for key, mask in wanted.masks.items():
            assert torch.equal(written.masks[key], mask), key
            assert not written.weights[key][~mask].any(), key
        for key, weight in wanted.weights.items():
            torch.testing.assert_close(written.weights[key], weight, atol=1e-5, rtol=1e-4, msg=f"{name}: {key}")


class TestTwo:
    @pytest.mark.parametrize("name", RUNS)
    def test_they_train_as_one(self, world: TinyWorld, found: list[dict[str, Any]], name: str) -> None:
        alone = world.folder / "one" / name
        finetune(recipe_of(world, RUNS[name]), run=alone)
        assert_same_run(world.folder / "two" / name, alone)

    def test_sharded_in_bfloat16(self, world: TinyWorld, found: list[dict[str, Any]]) -> None:
        alone = world.folder / "one" / "bfloat16"
        finetune(recipe_of(world, BFLOAT16), run=alone)
        losses, expected = (
            [line["loss"] for line in events(run, "update")] for run in (world.folder / "two" / "bfloat16", alone)
        )
        assert losses == pytest.approx(expected, rel=0.02)
        written = checkpoint.read(world.folder / "two" / "bfloat16" / "finetune.safetensors")
        assert all(not written.weights[name][~mask].any() for name, mask in written.masks.items())

    def test_unused_parameters_are_looked_for_where_there_can_be_some(self, found: list[dict[str, Any]]) -> None:
        looks = {name: found[0][name]["looks for unused"] for name in RUNS}
        assert looks["everything random"] is looks["head first"] is looks["one forward pass"] is True
        assert looks["all used"] is False
        assert looks["divided"] is None

    def test_too_small_updates_are_mentioned_once(self, found: list[dict[str, Any]]) -> None:
        warned = {name: sum("fewer forward passes" in w for w in found[0][name]["warnings"]) for name in RUNS}
        assert warned["everything random"] == 0
        assert warned["one forward pass"] == warned["one utterance"] == 1

    def test_only_the_first_notifies(self, found: list[dict[str, Any]]) -> None:
        assert all(found[0][name]["steps"] > 5 for name in RUNS)
        assert all("fine-tuning" not in name and found[1][name]["warnings"] == [] for name in RUNS)

    def test_another_number_goes_on(self, world: TinyWorld, found: list[dict[str, Any]]) -> None:
        alone = world.folder / "one" / "stopped"
        finetune(recipe_of(world, STOPPED), run=alone)
        assert_same_run(world.folder / "stopped by one", alone)
        finetune(recipe_of(world, STOPPED), run=world.folder / "stopped by two", resume=True)
        assert_same_run(world.folder / "stopped by two", alone)

    def test_they_recognise_as_one(self, world: TinyWorld, found: list[dict[str, Any]]) -> None:
        source = world.folder / "two" / "everything random" / "finetune.safetensors"
        result = evaluate(source, out=world.folder / "one.jsonl", options=Options(batch_seconds=2)).as_it_is.report
        assert (world.folder / "two.jsonl").read_bytes() == (world.folder / "one.jsonl").read_bytes()
        assert found[0]["errors"] == found[1]["errors"] == [result.metrics[0].errors.rate, result.utterances]

    def test_what_cannot_be(self, found: list[dict[str, Any]]) -> None:
        for seen in found:
            assert "training.shard_weights" in seen["front end"]
            assert "processes differ in recipe, beginning or data" in seen["odd"]
            assert "process 0" in seen["odd"]

    def test_every_pattern_selects_as_in_one(self, found: list[dict[str, Any]]) -> None:
        for seen in found:
            assert seen["patterns"] == dict.fromkeys(PATTERNS, True)
            assert "sharded over the processes as it is, cannot hold the pattern 16x8" in seen["cut block"]

    def test_masks_that_part_are_noticed(self, world: TinyWorld, found: list[dict[str, Any]]) -> None:
        assert all("processes differ in their masks after update 2" in seen["flipped"] for seen in found)
        assert len(events(world.folder / "flipped", "update")) == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_recomputed_and_sharded_layers_train_as_one(world: TinyWorld) -> None:
    ended = torchrun("--", __file__, str(world.folder), "compiled")
    assert ended.returncode == 0, ended.stderr
    plain = [setting for setting in COMPILED if "compile" not in setting and "checkpoint" not in setting]
    finetune(recipe_of(world, tuple(plain)), run=world.folder / "one" / "compiled")
    assert_same_run(world.folder / "two" / "compiled", world.folder / "one" / "compiled", rounding=1e-4)


class TestExchange:
    def test_values(self, found: list[dict[str, Any]]) -> None:
        for seen in found:
            assert seen["gathered"] == [{"rank": 0, "long": ""}, {"rank": 1, "long": "ä"}]
            assert seen["first"] == 0
            assert seen["sum"] == [3.0, 1.0]
            assert seen["any"] == [True, False]
            assert seen["differing"].startswith("processes differ in a thing\n  process 0: hash 0\n  process 1: hash 1")
        assert [seen["before"] for seen in found] == [False, True]
        assert sorted(seen["said first"] for seen in found) == [False, True]

    @pytest.mark.parametrize(("count", "pieces"), [(1, 5), (2, 5), (3, 5), (3, 6), (4, 1), (4, 0)])
    def test_shares(self, count: int, pieces: int) -> None:
        shares = [World(rank=rank, world_size=count).share(pieces) for rank in range(count)]
        assert len({len(share) for share in shares}) == 1
        assert sorted(piece for share in shares for piece, counts in share if counts) == list(range(pieces))
        assert all(0 <= piece < pieces for share in shares for piece, _ in share)

    def test_one_alone_needs_nobody(self) -> None:
        assert SINGLE.gather([1]) == [[1]]
        assert SINGLE.from_main("a") == "a"
        assert SINGLE.any(True, False) == (True, False)
        SINGLE.check_same("anything", "x")
        SINGLE.wait()
        with SINGLE.main_first():
            pass
        assert SINGLE.says_first("a")
        assert SINGLE.group is None
        assert SINGLE.share(3) == [(0, True), (1, True), (2, True)]


def test_more_processes_than_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ParpError, match="process 3 has no CUDA device of its own: this machine has 2"):
        World(rank=3, world_size=4).device(torch.device("cuda"))
    assert World(rank=3, world_size=4).device(torch.device("cpu")) == torch.device("cpu")


if __name__ == "__main__":
    if sys.argv[2:] == ["compiled"]:
        compiled(Path(sys.argv[1]))
    else:
        work(Path(sys.argv[1]))
    os._exit(0)  # as the command line ends
