"""Sharded tensors: each rank holds some of the rows, as FSDP2 shards parameters, gradients and moments (DTensor).

Plain tensors pass through every function unchanged, so that callers need not distinguish the two.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

T = TypeVar("T")


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds only some of the rows. (DTensor itself takes a third of a second to import.)"""
    return hasattr(tensor, "to_local")


def local_shard(tensor: Tensor) -> Tensor:
    """The rows that this rank holds, in the same memory, without autograd history."""
    detached: Any = tensor.detach()
    shard: Tensor = detached.to_local() if is_sharded(tensor) else detached
    return shard


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, on its device. Collective: all ranks must call it."""
    detached: Any = tensor.detach()
    full: Tensor = detached.full_tensor() if is_sharded(tensor) else detached
    return full


def full_tensors(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The full tensors on the CPU. Collective; a rank that does not `keep` them takes part and returns none."""
    kept = {}
    for name, tensor in tensors.items():
        if keep or is_sharded(tensor):
            full = full_tensor(tensor)
            if keep:
                kept[name] = full.cpu()
    return kept


def shard_like(full: Tensor, example: Any) -> Tensor:
    """A tensor that every rank holds in full, sharded like `example`, which has as many rows, and on that device."""
    if not is_sharded(example):
        return full.to(example.device)
    rank, size = example.device_mesh.get_local_rank(), example.device_mesh.size()
    shards = full.chunk(size)  # as torch shards rows; there may be fewer shards than ranks
    shard = shards[rank] if rank < len(shards) else full[:0]
    return joined(shard.clone().to(example.device), example)  # a copy, which does not keep the full tensor alive


def full_tensor_like(shard: Tensor, example: Tensor) -> Tensor:
    """The full tensor on the CPU of which each rank holds the rows that it holds of `example`. Collective."""
    return full_tensor(joined(shard, example)).cpu()


def from_all_ranks(value: T, group: ProcessGroup | None) -> tuple[list[T], int]:
    """The value of each rank of a group, without one that of this process alone, and the own rank. Collective."""
    if group is None:
        return [value], 0
    values: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(values, value, group=group)
    return values, distributed.get_rank(group)


def joined(shard: Tensor, example: Any) -> Tensor:
    """A sharded tensor with the rows of `example`, of which each rank gives those that it holds of that; the tensor
    itself where that is not sharded."""
    if not is_sharded(example):
        return shard
    from torch.distributed.tensor import DTensor

    full = torch.empty((example.shape[0], *shard.shape[1:]), device="meta")
    mesh, placements = example.device_mesh, example.placements
    return DTensor.from_local(shard, mesh, placements, shape=full.shape, stride=full.stride())
