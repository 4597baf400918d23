"""What distribution costs; that it changes no number is tested with real processes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.device_mesh
import torch.distributed.fsdp
from torch import nn

from parp_cli.runtime.processes import World
from parp_cli.training.distributed import gradients_exchanged, shard


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
