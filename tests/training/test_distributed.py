"""What distribution costs; that whole runs come to the same numbers is tested in `test_processes.py`.

This file is also what two processes (gloo) run: `torchrun … test_distributed.py FOLDER`.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.device_mesh
import torch.distributed.fsdp
from torch import nn
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from parp_cli.pruning.sharded import full_tensor
from parp_cli.runtime.processes import SINGLE, World, joined
from parp_cli.runtime.progress import silent
from parp_cli.stages.finetune import finetune, prepare
from parp_cli.training.distributed import average, gradients_exchanged, shard
from parp_cli.training.observe import Observer, observing
from parp_cli.training.run import TrainingRun
from tests.training.test_processes import torchrun

TEXTS = ("training.updates=4", "training.validate_every=4", "pruning.interval=2", "training.dropout=0")


class Sharded(nn.Module):
    """Notes when gradients would be exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.exchanged: list[bool] = []

    def set_requires_gradient_sync(self, exchanged: bool) -> None:
        self.exchanged.append(exchanged)


def test_gradients_of_shards_are_exchanged_once_an_update() -> None:
    module = Sharded()
    for place in range(3):
        with gradients_exchanged(module, last=place == 2):
            pass
    assert module.exchanged == [False, False, True]


@pytest.mark.parametrize(
    ("precision", "device", "gathered"),
    [("float32", "cuda", None), ("bfloat16", "cuda", torch.bfloat16), ("bfloat16", "cpu", None)],
)
def test_weights_are_gathered_in_the_precision_that_computes(
    monkeypatch: pytest.MonkeyPatch, precision: str, device: str, gathered: torch.dtype | None
) -> None:
    sharded: list[tuple[nn.Module, Any]] = []
    monkeypatch.setattr(torch.distributed.device_mesh, "init_device_mesh", lambda *_: None)
    monkeypatch.setattr(
        torch.distributed.fsdp, "fully_shard", lambda module, mp_policy, **_: sharded.append((module, mp_policy))
    )
    layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
    objective: Any = SimpleNamespace(module=nn.Sequential(*layers), layers=layers, unsharded=())
    shard(objective, World(world_size=2), torch.device(device), precision=precision)
    assert [module for module, _ in sharded] == [*layers, objective.module]
    assert {policy.param_dtype for _, policy in sharded} == {gathered}
    assert all(policy.reduce_dtype == (torch.float32 if gathered else None) for _, policy in sharded)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(x).relu()).square().sum()
        return result


class Scattered(TorchDispatchMode):
    """Counts reductions whose result is scattered over the processes."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "reduce_scatter" in str(func)
        return func(*args, **(kwargs or {}))


def gradients_of(module: nn.Module) -> list[torch.Tensor]:
    return [full_tensor(weight.grad).clone() for weight in module.parameters() if weight.grad is not None]


def passes(module: nn.Module, rank: int, count: Callable[[], int]) -> list[int]:
    """How many exchanges of gradients there were after each of three forward and backward passes of an update."""
    found = []
    for place in range(3):
        with gradients_exchanged(module, last=place == 2):
            module(torch.full((2, 4), 1.0 + rank + place)).backward()
        found.append(count())
    return found


class Unused(Observer):
    """Whether DDP looks for parameters without a gradient in each pass."""

    found: bool | None = None

    def update_ends(self, run: TrainingRun) -> None:
        self.found = getattr(run.module, "find_unused_parameters", None)


def work(folder: Path) -> None:
    """What one of two processes does."""
    from tests.tasks.classification.world import Films

    with joined() as processes:
        whole: Any = average(SimpleNamespace(module=Two()), uses_all=True)
        exchanged: list[int] = []

        def noting(_: None, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
            exchanged.append(bucket.index())
            return default_hooks.allreduce_hook(None, bucket)

        whole.register_comm_hook(None, noting)
        counts = passes(whole, processes.rank, lambda: len(exchanged))

        sharded = Two()
        objective: Any = SimpleNamespace(module=sharded, layers=[sharded.first, sharded.second], unsharded=())
        shard(objective, processes, torch.device("cpu"), precision="float32")
        with Scattered() as scattered:
            reductions = passes(sharded, processes.rank, lambda: scattered.count)

        alone = Two()
        for rank in range(2):
            for place in range(3):
                (alone(torch.full((2, 4), 1.0 + rank + place)) / 2).backward()
        expected = gradients_of(alone)
        alike = [
            all(torch.allclose(*pair) for pair in zip(gradients_of(module), expected, strict=True))
            for module in (whole, sharded)
        ]
        films = Films(data=folder / "data", model=folder / "model")
        looks = Unused()
        with observing(looks):
            finetune(films.recipe(*TEXTS), run=folder / "two", world=processes)
        found = {"ddp": counts, "fsdp": reductions, "alike": alike, "looks": looks.found}
        (folder / f"{processes.rank}.json").write_text(json.dumps(found))


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for line in (run / "finetune.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["event"] == "update"]


def test_two_processes_exchange_gradients_once_an_update(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.tasks.classification.world import make_films

    films = make_films(tmp_path)
    ended = torchrun("--", __file__, str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found["ddp"] == [0, 0, 1]  # one bucket
        assert found["fsdp"] == [0, 0, 2]  # two layers
        assert found["alike"] == [True, True]
        assert found["looks"] is False
    finetune(films.recipe(*TEXTS), run=tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    assert len(losses(tmp_path / "two")) == 4


@pytest.mark.parametrize(
    ("family", "task", "uses_all"),
    [
        ("bert", "classification", True),
        ("deberta-v2", "classification", True),
        ("xlnet", "classification", False),  # what stands for hidden tokens
        ("bert", "masked-lm", False),  # the pooler
        ("roberta", "masked-lm", True),
    ],
)
def test_unused_parameters_of_texts_are_found_before_training(
    tmp_path: Path, family: str, task: str, uses_all: bool
) -> None:
    pytest.importorskip("transformers")
    from tests.tasks.classification.world import make_films
    from tests.tasks.masked_lm.test_task import recipe_of

    films = make_films(tmp_path, family)
    preparation: Any = prepare(films.recipe() if task == "classification" else recipe_of(films), None, silent)
    network = preparation.task.network(preparation.start.weights)
    objective = preparation.task.objective(
        network, masked=(), sharded=False, device=torch.device("cpu"), world=SINGLE, scratch=None
    )
    assert objective.uses_all is uses_all
    assert all(weight.grad is None for weight in network.parameters())


if __name__ == "__main__":
    work(Path(sys.argv[1]))
    os._exit(0)  # as the command line ends
