"""A deterministic run on a GPU that is stopped, and resumed, ends in the same bytes."""

import signal
from pathlib import Path

import pytest
import torch

from tests.stages.processes import FILES, started, wait_for_state
from tests.tiny import World

pytestmark = pytest.mark.gpu

LONG = ("training.updates=200", "training.validate_every=20", "pruning.interval=7", "training.deterministic=true")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_that_is_stopped(
    device: torch.device, world: World, masked: Path, tmp_path: Path, precision: str
) -> None:
    settings = (*world.settings, *LONG, f"training.precision={precision}")
    options = ("--init", str(masked), "--device", device.type)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = started(whole, settings, *options)
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 0, err
    process = started(broken, settings, *options)
    wait_for_state(broken, process, seconds=90)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=90)[1]
    assert process.returncode == 130, err
    process = started(broken, settings, *options, "--resume")
    err = process.communicate(timeout=120)[1]
    assert process.returncode == 0, err
    for name in FILES:
        assert (broken / name).read_bytes() == (whole / name).read_bytes(), name
