"""Layers and outputs that a text encoder can be taught by."""

from pathlib import Path

import pytest
import torch

from parp_cli.runtime.progress import silent
from parp_cli.stages.finetune import prepare
from tests.models.text import CONFIGS
from tests.tasks.classification.world import make_films


@pytest.mark.parametrize("family", [name for name in CONFIGS if name != "deberta-v2"])
def test_every_family_gives_its_layers(family: str, tmp_path: Path) -> None:
    preparation = prepare(make_films(tmp_path, family).recipe(), None, silent)
    network = preparation.task.network(preparation.start.weights).eval()
    inputs = preparation.task.data.encoding.batch(preparation.task.train[:3], torch.device("cpu"))
    with torch.no_grad():
        outputs, states = network(inputs, states=True)
        assert torch.equal(outputs, network(inputs))
    shape = (*inputs["input_ids"].shape, network.architecture.width)
    assert {number: tuple(state.shape) for number, state in states.items()} == {0: shape, 1: shape}
    assert not torch.equal(states[0], states[1])
