"""Structures: weights that are kept or pruned together, such as attention heads and feed-forward units.

A structure has G groups of equal size in one layer, and each group has parts of several tensors: a head has rows of the
projections to queries, keys and values, and columns of the one of its output. Which structures a network has, its
architecture tells. Where weights are sharded, sums and choices are of whole groups, the same on every rank, and masks
are of a rank's own rows. A structure is referred to by the first of its tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from parp_cli.pruning.sharded import from_all_ranks


class Structure(Protocol):
    """The groups of one kind in one layer.

    Attributes:
        kind: "heads" or "units" of a network; "rows" for the rows of a single linear layer.
        count: G.
        parts: for each tensor's name a dimension, and how often the G groups follow one another along it, all of equal
            length. Further dimensions count as columns.
    """

    @property
    def kind(self) -> str: ...

    @property
    def count(self) -> int: ...

    @property
    def parts(self) -> Mapping[str, tuple[int, int]]: ...


@dataclass(frozen=True)
class Rows:
    """The rows of one linear layer or convolution, each with its entry of the bias."""

    count: int
    parts: Mapping[str, tuple[int, int]]
    kind: str = "rows"


def rows_of(tensors: Mapping[str, Tensor], group: ProcessGroup | None = None) -> list[Structure]:
    """The rows of every layer that the tensors are weights and biases of."""
    layers: dict[str, list[str]] = {}
    for name in tensors:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    totals = {name: total for name, (_, total) in _rows(tensors, group).items()}
    return [Rows(totals[names[0]], dict.fromkeys(names, (0, 1))) for names in layers.values()]


def key_of(structure: Structure) -> str:
    """The name of its first tensor."""
    return next(iter(structure.parts))


def group_sums(
    tensors: Mapping[str, Tensor],
    structures: Sequence[Structure],
    *,
    magnitudes: bool = False,
    group: ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """The sum (G,) over each group, of entries or of their magnitudes, float32 on the CPU, by structure.

    Tensors that are missing add nothing.
    """
    rows = _rows(tensors, group)
    sums = []
    for structure in structures:
        total = torch.zeros(structure.count, dtype=torch.float64)
        for name, part in structure.parts.items():
            if name in tensors:
                matrix = tensors[name].detach().unsqueeze(-1).flatten(1)
                over = 1 - part[0]
                if magnitudes:
                    lines = torch.linalg.vector_norm(matrix, 1, dim=over, dtype=torch.float64)
                else:
                    lines = matrix.sum(over, dtype=torch.float64)
                total.index_add_(0, _groups(matrix, part, structure.count, rows[name]), lines.cpu())
        sums.append(total)
    if group is not None and sums:
        joined = torch.cat(sums).to(next(iter(tensors.values())).device)
        distributed.all_reduce(joined, group=group)
        sums = list(torch.split(joined.cpu(), [structure.count for structure in structures]))
    # How a sum is vectorised shows in the last bits of float64, which float32 does not keep.
    return {key_of(structure): total.float() for structure, total in zip(structures, sums, strict=True)}


def group_sizes(
    tensors: Mapping[str, Tensor], structures: Sequence[Structure], group: ProcessGroup | None = None
) -> dict[str, int]:
    """How many weights each group has, by structure."""
    rows = _rows(tensors, group)
    return {
        key_of(structure): sum(
            rows[name][1] * tensors[name][:0].unsqueeze(-1).flatten(1).shape[1] for name in structure.parts
        )
        // structure.count
        for structure in structures
    }


def keep_groups(
    scores: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    structures: Sequence[Structure],
    sparsity: float,
    *,
    rivals: Mapping[str, str],
    group: ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """Masks that keep the groups of the largest scores.

    Args:
        scores: (G,) by structure.
        tensors: of the shapes and on the devices that the masks are to have.
        sparsity: share of the weights to prune; so many groups are that the number of their weights is nearest to it.
            Of equal scores those that come first are pruned.
        rivals: a label for each structure; those with the same one compete.
        group: processes over which the tensors are sharded.
    """
    sizes = group_sizes(tensors, structures, group)
    sets: dict[str, list[Structure]] = {}
    for structure in structures:
        sets.setdefault(rivals[key_of(structure)], []).append(structure)
    kept: dict[str, Tensor] = {}
    for together in sets.values():
        keys, counts = [key_of(structure) for structure in together], [structure.count for structure in together]
        order = torch.cat([scores[key] for key in keys]).argsort(stable=True)
        weights = torch.tensor([sizes[key] for key in keys]).repeat_interleave(torch.tensor(counts))[order].cumsum(0)
        weights = torch.cat([weights.new_zeros(1), weights])  # of the first groups in this order
        keep = torch.ones(len(order), dtype=torch.bool)
        keep[order[: int((weights - round(sparsity * int(weights[-1]))).abs().argmin())]] = False
        kept |= dict(zip(keys, torch.split(keep, counts), strict=True))
    masks = spread(kept, tensors, structures, group)
    return {name: masks[name] for name in tensors}


def spread(
    values: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    structures: Sequence[Structure],
    group: ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """Tensors of the same shapes and devices in which each entry is the value (G,) of its group."""
    rows = _rows(tensors, group)
    found = {}
    for structure in structures:
        for name, part in structure.parts.items():
            tensor = tensors[name]
            matrix = tensor.detach().unsqueeze(-1).flatten(1)
            lines = values[key_of(structure)][_groups(matrix, part, structure.count, rows[name])].to(tensor.device)
            found[name] = lines.unsqueeze(1 - part[0]).expand(matrix.shape).reshape(tensor.shape).contiguous()
    return found


def _groups(matrix: Tensor, part: tuple[int, int], count: int, rows: tuple[int, int]) -> Tensor:
    """The group of each row, or of each column, of a matrix whose first row is row `rows[0]` of `rows[1]`."""
    dimension, repeats = part
    first, total = rows if dimension == 0 else (0, matrix.shape[1])
    size = max(1, total // (repeats * count))
    return (torch.arange(matrix.shape[dimension]) + first) // size % count


def _rows(tensors: Mapping[str, Tensor], group: ProcessGroup | None) -> dict[str, tuple[int, int]]:
    """For each tensor the first of the rows that this rank holds, and how many there are on all ranks."""
    shards, rank = from_all_ranks({name: len(tensor) for name, tensor in tensors.items()}, group)
    return {
        name: (sum(shard[name] for shard in shards[:rank]), sum(shard[name] for shard in shards)) for name in tensors
    }
