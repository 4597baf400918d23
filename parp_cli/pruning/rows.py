"""Tensors of which each of several processes holds some rows, as FSDP2 divides parameters, gradients and moments.

Torch has them as DTensor. Plain tensors pass through all of these unchanged, so that their callers need not ask.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def divided(tensor: Tensor) -> bool:
    """Whether this process holds only some of the rows. (torch's own class takes a third of a second to import.)"""
    return hasattr(tensor, "to_local")


def own_rows(tensor: Tensor) -> Tensor:
    """What this process holds, in the same memory, without history."""
    tensor = tensor.detach()
    return _local(tensor) if divided(tensor) else tensor


def all_rows(tensor: Tensor) -> Tensor:
    """The whole tensor on the CPU. All processes must ask at once."""
    tensor = tensor.detach()
    if divided(tensor):
        whole: Any = tensor
        tensor = whole.full_tensor()
    return tensor.cpu()


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """All rows of each tensor, on the CPU. All processes must ask at once; who does not `keep` them only takes part."""
    kept = {}
    for name, tensor in tensors.items():
        if keep or divided(tensor):
            whole = all_rows(tensor)
            if keep:
                kept[name] = whole
    return kept


def divided_as(whole: Tensor, example: Tensor) -> Tensor:
    """A whole tensor that every process has, divided as another one of its shape; on the device of that."""
    if not divided(example):
        return whole.to(example.device)
    like: Any = example
    pieces = whole.chunk(like.device_mesh.size())  # as torch divides rows; there may be fewer than processes
    number = like.device_mesh.get_local_rank()
    own = pieces[number] if number < len(pieces) else whole[:0]
    return _joined(own.clone().to(example.device), example)  # a copy, which does not hold on to the whole


def all_rows_as(own: Tensor, example: Tensor) -> Tensor:
    """The whole tensor on the CPU of which each process has the rows that it has of another one. All must ask."""
    return all_rows(_joined(own, example)) if divided(example) else own.cpu()


def _joined(own: Tensor, example: Tensor) -> Tensor:
    """A divided tensor of the shape of another one, of which each process gives its rows."""
    from torch.distributed.tensor import DTensor

    like: Any = example
    return DTensor.from_local(
        own, like.device_mesh, like.placements, shape=example.shape, stride=tuple(example.stride())
    )


def _local(tensor: Any) -> Tensor:
    rows: Tensor = tensor.to_local()
    return rows
