"""No micro-batch waits for the device: counted on a fake CUDA device, which needs no driver."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from parp_cli.data.streams import Crops, Stream
from parp_cli.data.utterances import Utterance
from parp_cli.tasks import masking
from parp_cli.tasks.ctc.objective import CtcObjective
from parp_cli.tasks.masked_prediction import objective as masked_prediction
from parp_cli.tasks.masking import LatentMasking
from tests.tasks.ctc.conftest import VOCABULARY
from tests.tiny import TINY


class HostWaits(TorchDispatchMode):
    """Notes operators that make the host wait for CUDA."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.on_cuda = 0

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = operator(*arguments, **(options or {}))
        name = str(operator)
        inputs = [value for value in arguments if isinstance(value, Tensor)]
        from_cuda = any(value.device.type == "cuda" for value in inputs)
        self.on_cuda += from_cuda
        to_cpu = isinstance(result, Tensor) and result.device.type == "cpu"
        if from_cuda and ("_local_scalar_dense" in name or "nonzero" in name or to_cpu):
            self.found.append(name)
        return result


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostWaits]:
    """What is drawn on the CPU stays real; pinning needs a driver."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    waits = HostWaits()
    with FakeTensorMode(allow_non_fake_inputs=True), waits:
        yield waits


@pytest.fixture(autouse=True)
def real_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask depends on what is drawn, which a fake tensor does not have."""

    def all_first(sizes: Sequence[int], width: int, *_: Any) -> Tensor:
        return torch.arange(width).expand(len(sizes), width) < 2

    for module in (masking, masked_prediction):
        monkeypatch.setattr(module, "span_mask", all_first)


def test_one_that_waits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch) as waits:
        torch.ones(3, device="cuda").cpu()
    assert len(waits.found) == 1


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(16, 32, device="cuda")
        self.aux = nn.Linear(32, 4, device="cuda")

    def forward(self, features: Tensor, lengths: Tensor, *, alter: Callable[..., Tensor], **_: Any) -> Tensor:
        logits: Tensor = self.aux(alter(self.projection(features), lengths))
        return logits


def ctc_loss(log_probabilities: Tensor, targets: Tensor, *lengths: Tensor, **_: Any) -> Tensor:
    """Stands for torch's, which has no fake kernel. It copies lengths to the CPU, unless they are there."""
    assert log_probabilities.device.type == targets.device.type == "cuda"
    assert [length.device.type for length in lengths] == ["cpu", "cpu"]
    return log_probabilities.sum((0, 2))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_ctc(monkeypatch: pytest.MonkeyPatch, utterances: list[Utterance], precision: str) -> None:
    monkeypatch.setattr(nn.functional, "ctc_loss", ctc_loss)
    with fake_cuda(monkeypatch) as waits:
        network = Linear()
        network.mask_embedding = nn.Parameter(torch.rand(32, device="cuda"))

        def features(items: Sequence[Utterance], update: int) -> list[Tensor]:
            return [torch.rand(20 + 5 * number, 16, device="cuda") for number, _ in enumerate(items)]

        objective = CtcObjective(
            network=network,
            features=features,  # type: ignore[arg-type]
            vocabulary=VOCABULARY,
            masking=LatentMasking(time_probability=0.5, time_length=2, channel_probability=0.5, channel_length=2),
            precision=precision,
        )
        losses = objective.losses(network, utterances, 0, frozenset())
    assert losses.shape == (len(utterances), 1)
    assert losses.device.type == "cuda"
    assert waits.on_cuda > 10
    assert waits.found == []


def test_masked_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    crops = Crops([Stream("a", torch.zeros(20_000, dtype=torch.int16))], 20)
    targets = [torch.zeros(crops.streams[0].frames, dtype=torch.int16)]
    items = [masked_prediction.Crop(number, 0, number) for number in range(3)]

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clusters = nn.Linear(1, 7, device="cuda")

        def forward(self, waveforms: Tensor, masked: Tensor, skip: frozenset[int]) -> Tensor:
            similarity: Tensor = self.clusters(waveforms[:, 320 * torch.arange(20), None])
            return similarity

    with fake_cuda(monkeypatch) as waits:
        objective = masked_prediction.MaskedPrediction(
            network=Network(),  # type: ignore[arg-type]
            architecture=TINY,
            crops=crops,
            targets=targets,
            mask_probability=0.5,
            mask_length=2,
            unmasked_weight=0.5,
            precision="float32",
        )
        with unset_fake_temporarily():
            objective.total(items, 0)  # on the CPU
        losses = objective.losses(objective.module, items, 0, frozenset())
    assert losses.shape == (3, 2)
    assert losses.device.type == "cuda"
    assert waits.found == []
