"""What a checkpoint holds, counted by hand, and without reading its weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parp_cli.errors import CheckpointError
from parp_cli.pruning.pruner import Repruning
from parp_cli.stages.inspect import Group, inspect
from parp_cli.storage import checkpoint
from tests.tiny import World


def counted(masks: Any, part: str) -> tuple[int, int]:
    """Pruned and all, of the masks whose names hold `part`."""
    chosen = [kept for name, kept in masks.items() if part in name]
    return sum(int((~kept).sum()) for kept in chosen), sum(kept.numel() for kept in chosen)


def test_numbers_against_brute_force(trained: Path) -> None:
    result, masks = inspect(trained), checkpoint.read(trained).masks

    def figures(group: Group) -> tuple[int, int]:
        return group.pruned, group.total

    assert result.overall is not None
    assert figures(result.overall) == counted(masks, "")
    assert [group.name for group in result.by_layer] == ["0", "1"]
    for group in result.by_layer:
        assert figures(group) == counted(masks, f".layers.{group.name}.")
    spelled = {"fc1": "intermediate_dense", "fc2": "output_dense"}
    assert [group.name for group in result.by_kind] == ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    for group in result.by_kind:
        assert figures(group) == counted(masks, f".{spelled.get(group.name, group.name)}.")
    crossed = result.by_layer_and_kind.values()
    assert sum(group.total for group in crossed) == result.overall.total
    assert sum(group.pruned for group in crossed) == result.overall.pruned == 8416
    assert (result.size, result.sha256) == (trained.stat().st_size, checkpoint.file_hash(trained))
    assert result.metadata == checkpoint.read_metadata(trained)


def test_without_a_mask(world: World) -> None:
    result = inspect(world.encoder)
    assert (result.overall, result.by_layer, result.by_kind) == (None, (), ())


def test_weights_are_not_read(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    opened = checkpoint._opened

    class Recording:
        def __init__(self, path: Path) -> None:
            self.file = opened(path)

        def __enter__(self) -> "Recording":
            self.file.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.file.__exit__(*error)

        def get_tensor(self, name: str) -> Any:
            read.append(name)
            return self.file.get_tensor(name)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    monkeypatch.setattr(checkpoint, "_opened", Recording)
    inspect(trained)
    assert read
    assert all(name.startswith("mask/") for name in read)


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        inspect(tmp_path / "absent.safetensors")


def test_reprunings_of_a_run(trained: Path) -> None:
    result = inspect(trained)
    recorded = result.metadata.metrics["reprunings"]
    assert len(result.reprunings) == len(recorded) > 1
    for found, record in zip(result.reprunings, recorded, strict=True):
        assert (found.update, found.revived, found.dropped) == (record["update"], record["revived"], record["dropped"])
        assert found.sparsity == 0.5
        assert set(found.layers) == {"0", "1"}
        assert tuple(map(sum, zip(*found.layers.values(), strict=True))) == (found.revived, found.dropped)


def test_reprunings_of_the_first_files(trained: Path, tmp_path: Path) -> None:
    """They say neither layers nor sparsity."""
    content = checkpoint.read(trained)
    metrics = {"reprunings": [{"update": 20, "revived": 3, "dropped": 4}]}
    path = tmp_path / "old.safetensors"
    metadata = replace(content.metadata, metrics=metrics)
    checkpoint.write(path, checkpoint.Checkpoint(weights=content.weights, masks=content.masks, metadata=metadata))
    assert inspect(path).reprunings == (Repruning(update=20, sparsity=0.5, revived=3, dropped=4, layers={}),)


def test_no_reprunings(masked: Path) -> None:
    assert inspect(masked).reprunings == ()
