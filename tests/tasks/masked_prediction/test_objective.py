from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parp_cli.models.speech.config import frames
from parp_cli.tasks.masked_prediction.objective import masked_prediction_loss, masked_prediction_model
from tests.models.small import SMALL

CLUSTERS = 11


@pytest.fixture(params=["hubert-base", "hubert-large"])
def case(request: pytest.FixtureRequest) -> tuple[Any, Tensor, Tensor]:
    architecture = SMALL[request.param]
    torch.manual_seed(0)
    model = masked_prediction_model(
        architecture, clusters=CLUSTERS, mask_probability=0.65, mask_length=5, projection=16
    )
    waveforms = 0.3 * torch.randn(3, 2_000)
    targets = torch.randint(CLUSTERS, (3, frames(architecture, 2_000)))
    return model.train(), waveforms, targets


def theirs(model: Any, waveforms: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of masked and of other frames, and accuracy, from torchaudio's logits: column 0 is the right cluster."""
    masked, unmasked, _ = model(waveforms, targets)
    losses = [
        nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)) for logits in (masked, unmasked)
    ]
    return losses[0], losses[1], (masked.argmax(-1) == 0).float().mean()


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_equals_torchaudios(case: tuple[Any, Tensor, Tensor], weight: float) -> None:
    model, waveforms, targets = case
    torch.manual_seed(1)
    masked, unmasked, accuracy = theirs(model, waveforms, targets)
    expected = masked + weight * unmasked
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch.manual_seed(1)
    loss, found = masked_prediction_loss(model, waveforms, targets, unmasked_weight=weight)
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found, accuracy)
    assert not found.requires_grad
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(
                parameter.grad, gradients[name], atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_it_learns(case: tuple[Any, Tensor, Tensor]) -> None:
    model, waveforms, targets = case
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss, _ = masked_prediction_loss(model, waveforms, targets, unmasked_weight=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
