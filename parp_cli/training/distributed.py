"""A module as processes train it together: whole in each of them (DDP), or sharded among them (FSDP2).

Both make a gradient its mean over the processes. A resumed run has to end in the same bytes, so that the processes have
to be summed in the same order always. DDP keeps the order where it looks for unused parameters; otherwise it settles on
one after its first backward pass, which must then be one whose gradients are thrown away.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from parp_cli.runtime.device import validation_precision
from parp_cli.runtime.processes import World

if TYPE_CHECKING:
    from parp_cli.tasks.task import Objective


def shard(objective: "Objective[Any]", world: World, device: torch.device, *, precision: str) -> None:
    """Shard the weights of an objective's module (FSDP2); they become DTensors.

    Processes then have to call the module equally often and in the same order. Compile and recompute layers before.
    The module has the same weights in all processes, and is on the CPU, since a device may not hold it whole; shards go
    to this process's `device`, and stay float32. On CUDA all weights are gathered in the `precision` that layers
    compute in: in bfloat16 those of norms and all biases are rounded too, which autocast alone leaves in float32. On a
    CPU they are gathered in float32, since it validates so.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (world.world_size,))
    policy = MixedPrecisionPolicy()
    if validation_precision(precision, device) == "bfloat16":
        policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in objective.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    for parameter in objective.unsharded:
        parameter.data = parameter.data.to(device)
    # The rest is resharded after each pass too: a validation has no backward pass to do it.
    ignored = set(objective.unsharded)
    fully_shard(objective.module, mesh=mesh, reshard_after_forward=True, ignored_params=ignored, mp_policy=policy)


def average(objective: "Objective[Any]", *, uses_all: bool) -> nn.Module:
    """The module of an objective, whole and on its device, so that its gradients become means over the processes (DDP).

    It registers with the parameters that train, so it is to be made after backward passes that other processes do not
    take part in. Unless each pass `uses_all` of them, DDP looks in each for those that are not used.
    """
    return DistributedDataParallel(
        objective.module,
        broadcast_buffers=False,
        find_unused_parameters=not uses_all,
        gradient_as_bucket_view=True,
    )


@contextmanager
def gradients_exchanged(module: nn.Module, *, last: bool) -> Iterator[None]:
    """Around a forward and a backward pass: gradients are exchanged in the last one of an update."""
    if isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
        return
    set_sync: Any = getattr(module, "set_requires_gradient_sync", None)  # of FSDP2
    if set_sync is not None:
        set_sync(last)
    yield
