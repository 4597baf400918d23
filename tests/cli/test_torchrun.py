"""The command line in two processes that torchrun starts.

This file is also what the processes run that are to fail: `torchrun … test_torchrun.py HOW RANK ARGUMENTS`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from parp_cli.errors import ResourceError
from parp_cli.training.observe import Observer, observing
from parp_cli.training.run import TrainingRun
from tests.tiny import World, make_world
from tests.training.test_processes import assert_same_run, torchrun

SETTINGS = ("training.micro_batch_seconds=2", "training.precision=float32", "training.adam_epsilon=1e-3")
PARP = ("-m", "--", "parp_cli")  # without the dashes torchrun takes --run for one of its own options
FINETUNE = ("finetune", "--device", "cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("torchrun"))


def settings(world: World, *more: str) -> list[str]:
    return [part for value in (*world.settings, *SETTINGS, *more) for part in ("--set", value)]


def fail(how: str, rank: str) -> None:
    """The command line, of which one process fails after the second update."""

    class Fails(Observer):
        def update_ends(self, run: TrainingRun) -> None:
            if run.update == 2 and os.environ["RANK"] == rank:
                if how == "end":
                    os._exit(9)
                if how == "stop":
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                raise ResourceError("the device is on fire", hint="put it out")
            if run.update == 2 and rank == "all":
                raise ResourceError("all devices are on fire")

    from parp_cli.cli.app import main

    with observing(Fails()):
        main()


def test_it_looks_like_one_process(world: World, tmp_path: Path) -> None:
    short = settings(world, "training.updates=3", "training.validate_every=3")
    ended = torchrun(*PARP, *FINETUNE, *short, "--run", str(tmp_path / "run"), "--json")
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout)  # one object, from one process
    assert result["own_cost"]["updates"] == 3
    assert ended.stderr.count("starting from") == 1
    assert "Warning" not in ended.stderr
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        ".lock",
        "finetune.jsonl",
        "finetune.safetensors",
        "finetune-last.safetensors",
        "finetune-finished.json",
        "state",
    }


@pytest.mark.slow
class TestSlow:
    def test_eval(self, world: World, tmp_path: Path) -> None:
        run = tmp_path / "run"
        ended = torchrun(*PARP, *FINETUNE, *settings(world, "training.updates=3"), "--run", str(run))
        assert ended.returncode == 0, ended.stderr
        two = torchrun(*PARP, "eval", "--run", str(run), "--out", str(tmp_path / "two.jsonl"), "--device", "cpu")
        assert two.returncode == 0, two.stderr
        one = subprocess.run(
            [sys.executable, "-m", "parp_cli", "eval", "--run", run, "--out", tmp_path / "one.jsonl"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
        assert two.stdout.count("wrote") == one.stdout.count("wrote") > 0

    @pytest.mark.parametrize("more", [(), ("training.shard_weights=true",)])
    def test_a_signal_stops_all_and_they_go_on(self, world: World, tmp_path: Path, more: tuple[str, ...]) -> None:
        command = [*PARP, *FINETUNE, *settings(world, "training.updates=60", "training.validate_every=60", *more)]
        run = tmp_path / "run"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        process = subprocess.Popen(
            [*launcher, *command, "--run", str(run)],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            began = time.monotonic()
            while not (run / "finetune.jsonl").exists() or len((run / "finetune.jsonl").read_text().splitlines()) < 5:
                assert time.monotonic() - began < 120
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=300)
        finally:
            process.kill()
        assert process.returncode != 0
        assert said.count("the state is saved") == 1, said
        assert (run / "state" / "finetune.safetensors").exists()
        assert not (run / "finetune-finished.json").exists()
        ended = torchrun(*command, "--run", str(run), "--resume")
        assert ended.returncode == 0, ended.stderr
        alone = tmp_path / "alone"
        subprocess.run([sys.executable, *command[:1], *command[2:], "--run", alone], check=True, capture_output=True)
        assert_same_run(run, alone, rounding=1e-4)  # which adds up in 60 updates

    @pytest.mark.parametrize(
        "more",
        [("training.layer_drop=0.3",), ("training.layer_drop=0.3", "training.shard_weights=true"), ()],
        ids=["unused parameters", "sharded", "all used"],
    )
    def test_three_go_on_to_the_same_bytes(self, world: World, tmp_path: Path, more: tuple[str, ...]) -> None:
        random = ("training.dropout=0.1", "training.updates=6")
        arguments = [*FINETUNE, *settings(world, *random, *more, "training.micro_batch_seconds=1"), "--run"]
        whole, stopped = tmp_path / "whole", tmp_path / "stopped"
        ended = torchrun(*PARP, *arguments, str(whole), count=3)
        assert ended.returncode == 0, ended.stderr
        ended = torchrun("--", __file__, "stop", "1", *arguments, str(stopped), count=3)
        assert ended.stderr.count("stopped after update 2 of 6; the state is saved") == 1, ended.stderr
        ended = torchrun(*PARP, *arguments, str(stopped), "--resume", count=3)
        assert ended.returncode == 0, ended.stderr
        for name in ("finetune.safetensors", "finetune-last.safetensors"):
            assert (stopped / name).read_bytes() == (whole / name).read_bytes()

    @pytest.mark.parametrize(
        ("how", "rank", "said", "code"),
        [
            ("raise", "1", "the device is on fire\n  hint: put it out", "exitcode  : 5"),
            ("raise", "0", "the device is on fire\n  hint: put it out", "exitcode  : 5"),
            ("raise", "all", "all devices are on fire", "exitcode  : 5"),
            ("end", "1", "another process exited without reporting an error", "exitcode  : 9"),
        ],
    )
    def test_one_fails_and_all_end(
        self, world: World, tmp_path: Path, how: str, rank: str, said: str, code: str
    ) -> None:
        arguments = [*FINETUNE, *settings(world), "--run", str(tmp_path / "run")]
        ended = torchrun("--", __file__, how, rank, *arguments)
        assert ended.returncode == 1
        assert ended.stderr.count(said) == 1, ended.stderr
        assert ended.stderr.count("parp: error:") == 1
        assert code in ended.stderr
        assert "bug in parp" not in ended.stderr

    def test_what_is_for_one_process(self, tmp_path: Path) -> None:
        ended = torchrun(*PARP, "sweep", "sweep.yaml", "--run", str(tmp_path))
        assert ended.returncode == 1
        assert ended.stderr.count("parp sweep does not run under torchrun") == 1

    def test_a_mistake_is_told_once(self, tmp_path: Path) -> None:
        ended = torchrun(*PARP, "finetune", "--set", "training.updatez=1", "--run", str(tmp_path / "run"))
        assert ended.returncode == 1
        assert ended.stderr.count("parp: error:") == ended.stderr.count("unknown key training.updatez") == 1, (
            ended.stderr
        )


def _main() -> Any:
    how, rank = sys.argv[1:3]
    del sys.argv[1:3]
    fail(how, rank)


if __name__ == "__main__":
    _main()
