"""What the rest of parp sees of a network."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from parp_cli.errors import CheckpointError
from parp_cli.models.network import read_architecture
from parp_cli.models.speech.config import Architecture, frames
from parp_cli.models.speech.forward import front_end, pad, recompute_layers
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


class Operators(TorchDispatchMode):
    """Notes what runs with which tensors: what is not on CUDA, has no kernel there, or makes the host wait."""

    def __init__(self) -> None:
        super().__init__()
        self.on_cuda = 0
        self.misplaced: list[str] = []
        self.without_kernel: list[str] = []
        self.waits: list[str] = []

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = operator(*arguments, **(options or {}))
        inputs = [value for value in torch.utils._pytree.tree_leaves(arguments) if isinstance(value, Tensor)]
        devices = {value.device.type for value in inputs}
        if "cuda" not in devices or operator.namespace == "prim":
            return result
        name = operator.name()
        self.on_cuda += 1
        if any(value.device.type != "cuda" and value.dim() > 0 for value in inputs):
            self.misplaced.append(name)
        keys = ("CUDA", "CompositeExplicitAutograd", "CompositeImplicitAutograd")
        if not any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in keys):
            self.without_kernel.append(name)
        to_host = isinstance(result, Tensor) and result.device.type == "cpu"
        if to_host or "_local_scalar_dense" in name or "nonzero" in name:
            self.waits.append(name)
        return result


def test_a_misplaced_operator_is_noted() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), Operators() as seen:
        values = torch.ones(3, 3, device="cuda")
        values.cpu()
        torch.ops.mkldnn._linear_pointwise(values, values, None, "none", [], "none")
    assert seen.without_kernel == ["mkldnn::_linear_pointwise"]
    assert len(seen.waits) == 1


@SMALLS
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_every_operator_runs_on_a_cuda_device(
    architecture: Architecture, precision: torch.dtype, training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a fake device, which needs no driver; and no micro-batch waits for it."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    samples = (4_000, 3_210)
    lengths = torch.tensor([frames(architecture, count) for count in samples])  # real: they are on the CPU
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_device("cuda")
        try:
            network = architecture.build(outputs=5, dropout=0.1, attention_dropout=0.1, activation_dropout=0.1).train(
                training
            )
            if training:
                recompute_layers(network)
        finally:
            torch.set_default_device(None)
        autocast = torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16)
        with torch.set_grad_enabled(training), autocast, Operators() as seen:
            features = [front_end(network, architecture, torch.empty(count, device="cuda")) for count in samples]
            logits = network.encode(pad(features)[0], lengths)
        assert logits.shape == (2, frames(architecture, 4_000), 5)
        assert logits.device.type == "cuda"
    assert seen.on_cuda > 50
    assert seen.waits == []
    assert seen.misplaced == []
    assert seen.without_kernel == []
