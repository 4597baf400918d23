"""Inspect: what a checkpoint holds, from its header and masks; weights are hashed with the file, not loaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from parp_cli.models.network import read_architecture
from parp_cli.pruning.masks import count_all, count_pruned
from parp_cli.pruning.pruner import Repruning
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Metadata

K = TypeVar("K", str, tuple[str, str])


@dataclass(frozen=True, kw_only=True)
class Group:
    """The masks of one layer or kind of module together."""

    name: str
    pruned: int
    total: int

    @property
    def sparsity(self) -> float:
        return self.pruned / self.total


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A checkpoint, for people.

    Attributes:
        size: of the file, in bytes.
        by_layer, by_kind: sparsity of the masks; empty without any.
        by_layer_and_kind: the same, crossed.
        reprunings: of the run that wrote it, oldest first. Those of the first files have no counts by layer.
    """

    path: Path
    size: int
    sha256: str
    metadata: Metadata
    overall: Group | None
    by_layer: tuple[Group, ...]
    by_kind: tuple[Group, ...]
    by_layer_and_kind: Mapping[tuple[str, str], Group]
    reprunings: tuple[Repruning, ...]


def inspect(path: Path) -> Inspection:
    """Summarise a checkpoint. Raises CheckpointError: missing, truncated, damaged or not written by parp."""
    metadata, masks = checkpoint.read_metadata(path), checkpoint.read_masks(path)
    masks = {name: masks[name] for name in metadata.prunable if name in masks}  # in the order of the model
    architecture = read_architecture(metadata.architecture)
    layers = architecture.layers_of(masks)
    by_kind = _grouped(masks, architecture.kind_of)
    return Inspection(
        path=path,
        size=path.stat().st_size,
        sha256=checkpoint.file_hash(path),
        metadata=metadata,
        overall=Group(name="all", pruned=count_pruned(masks), total=count_all(masks)) if masks else None,
        by_layer=tuple(_grouped(masks, lambda name: layers[name]).values()),
        by_kind=tuple(by_kind[name] for name in dict.fromkeys((*architecture.kinds, *by_kind)) if name in by_kind),
        by_layer_and_kind=_grouped(masks, lambda name: (layers[name], architecture.kind_of(name))),
        reprunings=_reprunings(metadata),
    )


def _grouped(masks: Mapping[str, Tensor], key: Callable[[str], K]) -> dict[K, Group]:
    members: dict[K, dict[str, Tensor]] = {}
    for name, mask in masks.items():
        members.setdefault(key(name), {})[name] = mask
    return {
        label: Group(
            name=label if isinstance(label, str) else " ".join(label), pruned=count_pruned(own), total=count_all(own)
        )
        for label, own in members.items()
    }


def _reprunings(metadata: Metadata) -> tuple[Repruning, ...]:
    # Runs that recorded no sparsity kept theirs from beginning to end.
    constant = 0.0 if metadata.sparsity is None else metadata.sparsity.exact
    return tuple(
        Repruning(
            update=record["update"],
            sparsity=record.get("sparsity", constant),
            revived=record["revived"],
            dropped=record["dropped"],
            layers={label: (counts[0], counts[1]) for label, counts in record.get("layers", {}).items()},
        )
        for record in metadata.metrics.get("reprunings", ())
    )
