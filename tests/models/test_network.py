"""What the rest of parp sees of a network."""

import pytest
import torch

from parp_cli.errors import CheckpointError
from parp_cli.models.network import read_architecture
from parp_cli.models.speech.config import Architecture, frames
from parp_cli.models.speech.forward import front_end, pad, recompute_layers
from tests.fake_cuda import CUDA, fake_cuda
from tests.models.small import SMALL

SMALLS = pytest.mark.parametrize("architecture", SMALL.values(), ids=SMALL.keys())


@SMALLS
def test_an_architecture_is_read_by_its_kind(architecture: Architecture) -> None:
    written = architecture.to_json()
    assert written["kind"] == "speech"
    assert read_architecture(written) == architecture
    del written["kind"]  # format 1 has none
    assert read_architecture(written) == architecture


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no network of the kind 'mamba'"):
        read_architecture({"kind": "mamba"})


@SMALLS
def test_parts_by_name(architecture: Architecture) -> None:
    network = architecture.build(outputs=5)
    assert network.architecture is architecture
    assert len(network.layers) == architecture.layers
    parameters = dict(network.named_parameters())
    assert network.head is not None
    for part, is_part in ((network.head, network.is_head), (network.feature_encoder, network.is_feature_encoder)):
        own = {id(parameter) for parameter in part.parameters()}
        assert {name for name, parameter in parameters.items() if id(parameter) in own} == set(
            filter(is_part, parameters)
        )
    for name in network.prunable():
        layer = architecture.layer_of(name)
        assert layer is not None
        assert any(parameters[name] is parameter for parameter in network.layers[layer].parameters())
        assert architecture.kind_of(name) in architecture.kinds
    assert architecture.build().head is None


@SMALLS
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_every_operator_runs_on_a_cuda_device(
    architecture: Architecture, precision: torch.dtype, training: bool
) -> None:
    """In a pass that never waits for it; recomputed where it trains."""
    samples = (4_000, 3_210)
    lengths = torch.tensor([frames(architecture, count) for count in samples])  # they are on the CPU
    network = architecture.build(outputs=5, dropout=0.1, attention_dropout=0.1, activation_dropout=0.1).train(training)
    if training:
        recompute_layers(network)
    with fake_cuda() as device:
        network.to(CUDA)
        waveforms = [torch.zeros(count).to(CUDA) for count in samples]
        device.waits.clear()
        autocast = torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16)
        with torch.set_grad_enabled(training), autocast:
            features = [front_end(network, architecture, waveform) for waveform in waveforms]
            logits = network.encode(pad(features)[0], lengths)
        assert logits.shape == (2, frames(architecture, 4_000), 5)
        assert logits.device.type == "cuda"
        assert device.waits == []
