"""A sweep of moments over the tiny world."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parp_cli.config.load import dump_yaml
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


def without_times(value: Any) -> Any:
    """Figures that are the same for everybody who computes them."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("wall_seconds", "seconds")}
    return [without_times(item) for item in value] if isinstance(value, list) else value
