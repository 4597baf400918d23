"""From a checkpoint of parp to its weights, checked, and to a network that runs."""

from typing import TYPE_CHECKING

from parp_cli.models.network import read_architecture
from parp_cli.models.sources.names import MASK_EMBEDDING, Encoder, fit, without
from parp_cli.models.speech.config import Architecture, build
from parp_cli.storage.checkpoint import Checkpoint, Parent

if TYPE_CHECKING:
    import torch

    from parp_cli.models.speech.encoder import SpeechNetwork


def encoder_of(checkpoint: Checkpoint, *, source: str, parents: tuple[Parent, ...] = ()) -> Encoder:
    """The checkpoint's architecture, its weights, which are exactly the architecture's, and what its head is for.

    Args:
        source: names the checkpoint in errors.
        parents: what it descends from.

    Raises:
        CheckpointError: the weights are not those of the architecture; every name is listed.
    """
    architecture = read_architecture(checkpoint.metadata.architecture)
    vocabulary = checkpoint.metadata.vocabulary
    size = None if vocabulary is None else len(vocabulary)
    weights = fit(checkpoint.weights, architecture, source=source, vocabulary_size=size)
    return Encoder(architecture, weights, checkpoint.metadata.task, parents)


def rebuild(checkpoint: Checkpoint, device: "torch.device", *, source: str) -> tuple[Architecture, "SpeechNetwork"]:
    """The checkpoint's model in evaluation mode, float32, with its CTC head if it has one.

    Args:
        source: names the checkpoint in errors.

    Raises:
        As `encoder_of`.
    """
    encoder = encoder_of(checkpoint, source=source)
    vocabulary = checkpoint.metadata.vocabulary
    model = build(encoder.architecture, vocabulary_size=None if vocabulary is None else len(vocabulary))
    model.load_state_dict(without(encoder.weights, [MASK_EMBEDDING]))
    return encoder.architecture, model.to(device).eval()
