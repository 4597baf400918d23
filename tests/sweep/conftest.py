"""A sweep of moments over the tiny world."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from parp_cli.recipe import dump_yaml
from tests.tiny import World

Write = Callable[..., Path]


@pytest.fixture
def write_sweep(world: World, tmp_path: Path) -> Write:
    """Writes a base recipe and a sweep file over it."""

    def write(text: str, *overrides: str, name: str = "sweep.yaml") -> Path:
        (tmp_path / "base.yaml").write_text(dump_yaml(world.recipe(*overrides)))
        path = tmp_path / name
        path.write_text("recipe: base.yaml\n" + text)
        return path

    return write


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same bytes here and in workers: sums depend on how many threads share them."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def without_times(value: Any) -> Any:
    """Figures that are the same for everybody who computes them."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("wall_seconds", "seconds")}
    return [without_times(item) for item in value] if isinstance(value, list) else value
