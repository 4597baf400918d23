"""Compare: the overlap of the masks of several checkpoints. Weights are not loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from torch import Tensor

from parp_cli.errors import MaskError, UsageError
from parp_cli.models.network import Architecture, read_architecture
from parp_cli.models.sources.load import load_masks
from parp_cli.models.sources.names import check_same_model
from parp_cli.pruning.masks import count_all, count_pruned
from parp_cli.pruning.overlap import Pair, by_group, overlaps, together
from parp_cli.storage.run_folder import shortest_labels


@dataclass(frozen=True, kw_only=True)
class MaskFile:
    """One of the files compared, by a short unique label; with the stage that wrote it and its numbers of weights."""

    path: Path
    label: str
    stage: str
    pruned: int
    total: int

    @property
    def sparsity(self) -> float:
        return self.pruned / self.total


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All files, in pairs. Overlaps are over the weights that all masks cover; `left_out` names those that only some
    do, as they were made with another scope or pattern, or without biases."""

    files: tuple[MaskFile, ...]
    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...]


def compare(paths: Sequence[Path]) -> Comparison:
    """Compare the masks of two or more checkpoints of one architecture.

    Raises:
        UsageError: there are fewer than two.
        CheckpointError: one cannot be read.
        MaskError: one has no mask, or is of another model.
    """
    if len(paths) < 2:
        raise UsageError("one checkpoint cannot be compared", hint="name two or more: `parp compare A B`")
    loaded = [load_masks(path) for path in paths]
    metadata = [known for _, known in loaded]
    # Files of masks alone do not say which model they are for.
    first = next((path for path, known in zip(paths, metadata, strict=True) if known.architecture), None)
    if first is None:
        raise MaskError("none of these files says for which model it is", hint="name a checkpoint of that model first")
    described = metadata[paths.index(first)].architecture
    for path, known in zip(paths, metadata, strict=True):
        if known.architecture:
            check_same_model(str(first), described, str(path), known.architecture)
    masks = [{name: found[name] for name in known.prunable if name in found} for found, known in loaded]
    everywhere = [name for name in masks[0] if all(name in other for other in masks)]
    if not everywhere:
        raise MaskError(
            "these masks have no weight in common",
            details=[
                f"{path} masks {len(mask)} tensors, such as {next(iter(mask))}"
                for path, mask in zip(paths, masks, strict=True)
            ],
            hint="masks made with the same --scope can be compared",
        )
    architecture = read_architecture(described)
    labels = shortest_labels(paths)
    shared = [{name: mask[name] for name in everywhere} for mask in masks]
    return Comparison(
        files=tuple(
            MaskFile(path=path, label=label, stage=known.stage, pruned=count_pruned(mask), total=count_all(mask))
            for path, label, known, mask in zip(paths, labels, metadata, masks, strict=True)
        ),
        pairs=tuple(
            _pair(labels[first], labels[second], shared[first], shared[second], architecture)
            for first, second in combinations(range(len(paths)), 2)
        ),
        left_out=tuple(dict.fromkeys(name for mask in masks for name in mask if name not in shared[0])),
    )


def _pair(
    first: str, second: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], architecture: Architecture
) -> Pair:
    by_name = overlaps(ours, theirs)
    layers, kinds = architecture.layers_of(by_name), {name: architecture.kind_of(name) for name in by_name}
    by_kind = by_group(by_name, kinds)
    return Pair(
        first=first,
        second=second,
        overall=together(by_name.values()),
        by_layer=by_group(by_name, layers),
        by_kind={kind: by_kind[kind] for kind in dict.fromkeys((*architecture.kinds, *by_kind)) if kind in by_kind},
        by_layer_and_kind=by_group(by_name, {name: (layers[name], kinds[name]) for name in by_name}),
    )
