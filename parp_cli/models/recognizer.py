"""From a checkpoint of parp to its weights, checked, and to a network that runs."""

from typing import TYPE_CHECKING, Any

from parp_cli.models.network import outputs_of, read_architecture
from parp_cli.models.sources.names import MASK_EMBEDDING, Encoder, without
from parp_cli.storage.checkpoint import Checkpoint, Parent

if TYPE_CHECKING:
    import torch


def encoder_of(checkpoint: Checkpoint, *, source: str, parents: tuple[Parent, ...] = ()) -> Encoder:
    """The checkpoint's architecture, its weights, which are exactly the architecture's, and what its head is for.

    Args:
        source: names the checkpoint in errors.
        parents: what it descends from.

    Raises CheckpointError: the weights are not those of the architecture; every name is listed.
    """
    architecture, task = read_architecture(checkpoint.metadata.architecture), checkpoint.metadata.task
    weights = architecture.fit(checkpoint.weights, source=source, outputs=outputs_of(task))
    return Encoder(architecture, weights, task, parents, checkpoint.masks)


def rebuild(checkpoint: Checkpoint, device: "torch.device", *, source: str) -> tuple[Any, Any]:
    """The checkpoint's architecture, and its network in evaluation mode, float32, with its head if it has one.

    It computes with those of the checkpoint's kernels that the device has.

    Args:
        source: names the checkpoint in errors.

    Raises CheckpointError: as `encoder_of`, or this parp does not have such a kernel.
    """
    encoder = encoder_of(checkpoint, source=source)
    model = encoder.architecture.build(outputs=outputs_of(encoder.task))
    model.load_state_dict(without(encoder.weights, [MASK_EMBEDDING]))
    model = model.to(device).eval()
    if checkpoint.kernels:
        from parp_cli.models.speech.kernels import install

        install(model, checkpoint.kernels, source=source)
    return encoder.architecture, model
