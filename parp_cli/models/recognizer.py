"""A model rebuilt from a checkpoint of parp, ready to run."""

from typing import TYPE_CHECKING

from parp_cli.models.sources.names import MASK_EMBEDDING, fit, without
from parp_cli.models.speech.config import Architecture, build
from parp_cli.storage.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

    from parp_cli.models.speech.encoder import SpeechNetwork


def rebuild(checkpoint: Checkpoint, device: "torch.device", *, source: str) -> tuple[Architecture, "SpeechNetwork"]:
    """The checkpoint's model in evaluation mode, float32, with its CTC head if it has one.

    Args:
        source: names the checkpoint in errors.

    Raises:
        CheckpointError: the weights are not those of the architecture; every name is listed.
    """
    architecture = Architecture.from_json(checkpoint.metadata.architecture)
    vocabulary = checkpoint.metadata.vocabulary
    size = None if vocabulary is None else len(vocabulary)
    model = build(architecture, vocabulary_size=size)
    weights = fit(checkpoint.weights, architecture, source=source, vocabulary_size=size)
    model.load_state_dict(without(weights, [MASK_EMBEDDING]))
    return architecture, model.to(device).eval()
