"""Settings of every test, and what tests of whole stages and of the command line share: a tiny world, made once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from parp_cli.stages.finetune import finetune
from parp_cli.stages.mask import mask
from tests.tiny import World, make_world

CHECKOUT = Path(__file__).parents[1]

# A busy machine is no failure. On CI the examples are the same every time, so that a change is not blamed for old luck.
settings.register_profile("parp", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("parp")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests of a GPU need one, or what PARP_GPU_TESTS_DEVICE puts in its place for those that ask for the `device`."""
    if item.get_closest_marker("gpu") is None or torch.cuda.is_available():
        return
    if "device" not in getattr(item, "fixturenames", ()) or "PARP_GPU_TESTS_DEVICE" not in os.environ:
        pytest.skip("there is no CUDA device")


@pytest.fixture(scope="session", autouse=True)
def checkout_in_subprocesses() -> Iterator[None]:
    """Processes that tests start import this checkout, also where another parp is installed: `torchrun script.py` puts
    the script's folder first on the path, not the working folder."""
    before = os.environ.get("PYTHONPATH")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(CHECKOUT), *([before] if before else [])]))
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests keep what they read and generate out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread, here and in processes that tests start: rounding depends on the number of threads, and so would
    results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny encoder and a tiny corpus."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def masked(world: World) -> Path:
    """The tiny encoder, half pruned."""
    return mask(str(world.encoder), sparsity=0.5, out=world.folder / "masked" / "mask.safetensors").path


@pytest.fixture(scope="session")
def trained(world: World, masked: Path) -> Path:
    """A PARP run that is long enough for some letters to be right."""
    settings = ("training.updates=300", "training.validate_every=100", "pruning.interval=20", "training.layer_drop=0")
    recipe = world.recipe(*settings, "training.activation_dropout=0")
    return finetune(recipe, run=world.folder / "trained", init=masked).path
