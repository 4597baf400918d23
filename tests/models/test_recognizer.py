from typing import Any

import pytest
import torch

from parp_cli.errors import CheckpointError
from parp_cli.models.recognizer import rebuild
from parp_cli.models.speech.config import Architecture, build
from parp_cli.storage.checkpoint import Checkpoint, Metadata, ctc_task
from tests.models.small import SMALL, randomise, waveform

CPU = torch.device("cpu")
VOCABULARY = ("<blank>", "|", "A")


def checkpoint_of(architecture: Architecture, vocabulary: tuple[str, ...] | None) -> tuple[Any, Checkpoint]:
    model = randomise(build(architecture, vocabulary_size=None if vocabulary is None else len(vocabulary)))
    task = None if vocabulary is None else ctc_task(vocabulary, "letters")
    metadata = Metadata(stage="finetune", architecture=architecture.to_json(), task=task)
    return model, Checkpoint(weights=model.state_dict(), masks={}, metadata=metadata)


@pytest.mark.parametrize("name", ["wav2vec2-group-norm", "hubert-large", "wavlm-large"])
@pytest.mark.parametrize("vocabulary", [VOCABULARY, None])
def test_the_model_is_the_same(name: str, vocabulary: tuple[str, ...] | None) -> None:
    model, checkpoint = checkpoint_of(SMALL[name], vocabulary)
    architecture, rebuilt = rebuild(checkpoint, CPU, source="it")
    assert architecture == SMALL[name]
    assert not rebuilt.training
    with torch.inference_mode():
        assert torch.equal(rebuilt(waveform())[0], model(waveform())[0])


def test_half_precision_and_the_vector_for_masked_frames() -> None:
    model, checkpoint = checkpoint_of(SMALL["hubert-large"], VOCABULARY)
    weights = {name: weight.half() for name, weight in checkpoint.weights.items()}
    half = Checkpoint(weights=weights | {"mask_embedding": torch.zeros(32)}, masks={}, metadata=checkpoint.metadata)
    _, rebuilt = rebuild(half, CPU, source="it")
    assert {parameter.dtype for parameter in rebuilt.parameters()} == {torch.float32}
    assert set(rebuilt.state_dict()) == set(model.state_dict())


def test_weights_of_another_model_are_listed() -> None:
    _, checkpoint = checkpoint_of(SMALL["hubert-large"], VOCABULARY)
    weights = dict(checkpoint.weights)
    weights["aux.bias"] = torch.zeros(4)
    weights["foreign"] = weights.pop("aux.weight")
    broken = Checkpoint(weights=weights, masks={}, metadata=checkpoint.metadata)
    with pytest.raises(CheckpointError, match="the weights of the file do not fit") as caught:
        rebuild(broken, CPU, source="the file")
    details = "\n".join(caught.value.details)
    assert "aux.weight: missing" in details
    assert "foreign: left over" in details
    assert "aux.bias: (4,)" in details
    assert caught.value.hint
