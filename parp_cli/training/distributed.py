"""The encoder as processes train it together: whole in each of them (DDP), or divided among them (FSDP2).

DDP sums the gradients of an update while the last of its backward passes still computes the earlier layers'. Told to
look for parameters without a part in the loss (a skipped layer, a frozen encoder), it never changes the order in which
it sums, so that a resumed run ends in the same bytes. Under FSDP2 each process holds some rows of every weight, its
gradient and its moments, and a layer is whole only while it computes; the convolutional front end, which is small,
frozen then, and runs on whatever utterances a process has, is whole in each.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from parp_cli.errors import UsageError
from parp_cli.models.speech.forward import encode
from parp_cli.runtime.processes import World

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import SpeechNetwork


class Encoder(nn.Module):
    """From front-end features to logits, as `models.forward.encode`, in the shape in which torch distributes modules.

    Args:
        model: from `models.architectures.build`.
    """

    def __init__(self, model: "SpeechNetwork") -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, lengths: Tensor, **options: Any) -> Tensor:
        return encode(self.model, features, lengths, **options)


def divide(encoder: Encoder, world: World, device: torch.device) -> None:
    """Divide the weights among processes, which from then on call the encoder as often and in the same order.

    Parameters become DTensors. A gradient is the mean over the processes.

    Args:
        encoder: with the same weights in all processes; on the CPU, since a device may not hold it whole.
        world: that train it.
        device: of this process, where its part goes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = encoder.model
    mesh = init_device_mesh(device.type, (world.world_size,))
    for layer in model.encoder.transformer.layers:
        fully_shard(layer, mesh=mesh)
    # What is no layer is also put away after each pass: a validation has no backward pass to do it.
    front_end = set(model.feature_extractor.to(device).parameters())
    fully_shard(encoder, mesh=mesh, reshard_after_forward=True, ignored_params=front_end)


def averaging(encoder: Encoder) -> nn.Module:
    """The encoder of one of several processes, which makes a gradient its mean over them.

    It takes note of every backward pass through the parameters, so it is to be made after those that others do not take
    part in.

    Args:
        encoder: whole, on its device, with the same weights in all processes and whatever trains at any time set to.
    """
    return DistributedDataParallel(
        encoder, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
    )


def check_divisible(*, train_front_end: bool, prunes_front_end: bool) -> None:
    """Refuse runs that change the convolutional front end, which is not divided.

    Raises:
        UsageError: this is one.
    """
    if train_front_end or prunes_front_end:
        what = "training.train_front_end" if train_front_end else "pruning.scope"
        raise UsageError(
            f"training.shard_weights cannot be together with a front end that changes ({what})",
            hint="leave training.shard_weights out: then every process holds all weights",
        )


def pass_of_update(encoder: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Around a forward and a backward pass: gradients are exchanged in an update's last one."""
    if last or not isinstance(encoder, DistributedDataParallel):
        return nullcontext()
    without: Callable[[], AbstractContextManager[None]] = encoder.no_sync
    return without()
