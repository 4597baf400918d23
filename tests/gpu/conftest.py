"""What tests of a GPU compute on. PARP_GPU_TESTS_DEVICE=cpu runs their code where there is none, which shows only that
it runs."""

import os

import pytest
import torch

from tests.cli.conftest import parp
from tests.tiny import World

__all__ = ["parp"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU, or what takes its place."""
    return torch.device(os.environ.get("PARP_GPU_TESTS_DEVICE", "cuda"))


@pytest.fixture
def base(device: torch.device, world: World) -> str:
    """wav2vec 2.0 base with random weights; something tiny where the CPU takes the place of a GPU."""
    return "random:wav2vec2-base" if device.type == "cuda" else str(world.encoder)
