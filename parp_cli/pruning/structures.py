"""Structures: weights that are kept or pruned together, such as attention heads and feed-forward units.

A structure has G groups of equal size in one layer, and each group has parts of several tensors: a head has rows of the
projections to queries, keys and values, and columns of the one of its output. The architecture says
which structures a network has. Where weights are sharded, sums and choices are of whole groups, the same on every rank,
and masks are of the rank's own rows. A structure is referred to by the first of its tensors.
"""

import math
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
        kind: "heads", "units" or "channels" of a network; "rows" for the rows of a single linear layer.
        count: G.
        parts: for each tensor's name a dimension, and how often the G groups follow one another along it, all of equal
            length. Further dimensions count as columns. A tensor may have rows of one structure and columns of another.
        ranked: the tensors whose magnitudes groups are ranked by, the first one among them.
        least: how many groups are kept in any case.
        closing: the tensors whose parts have to be zero for a group to have no effect. A group whose others are not may
            come back: were all of it zero, it would get no gradient, and stay zero for ever.
    """

    @property
    def kind(self) -> str: ...

    @property
    def count(self) -> int: ...

    @property
    def parts(self) -> Mapping[str, tuple[int, int]]: ...

    @property
    def ranked(self) -> Sequence[str]: ...

    @property
    def least(self) -> int: ...

    @property
    def closing(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Rows:
    """The rows of one linear layer or convolution, each with its entry of the bias."""

    count: int
    parts: Mapping[str, tuple[int, int]]
    kind: str = "rows"
    least: int = 0

    @property
    def ranked(self) -> Sequence[str]:
        return list(self.parts)

    closing = ranked


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
    sums = [torch.zeros(structure.count, dtype=torch.float64) for structure in structures]
    groups: list[tuple[Tensor, Tensor]] = []  # of a structure's sum, and the group of each line that is added to it
    lines: list[Tensor] = []
    for structure, total in zip(structures, sums, strict=True):
        for name, part in structure.parts.items():
            if name in tensors:
                matrix = tensors[name].detach().unsqueeze(-1).flatten(1)
                over = 1 - part[0]
                if magnitudes:
                    lines.append(torch.linalg.vector_norm(matrix, 1, dim=over, dtype=torch.float64))
                else:
                    lines.append(matrix.sum(over, dtype=torch.float64))
                groups.append((total, _groups(matrix, part, structure.count, rows[name])))
    # All at once, since a device is waited for.
    on_cpu = torch.split(torch.cat(lines).cpu(), list(map(len, lines))) if lines else ()
    for (total, group_of), line in zip(groups, on_cpu, strict=True):
        total.index_add_(0, group_of, line)
    if group is not None and sums:
        joined = torch.cat(sums).to(next(iter(tensors.values())).device)
        distributed.all_reduce(joined, group=group)
        sums = list(torch.split(joined.cpu(), [structure.count for structure in structures]))
    # How a sum is vectorised shows in the last bits of float64, which float32 does not keep.
    return {key_of(structure): total.float() for structure, total in zip(structures, sums, strict=True)}


def group_means(
    tensors: Mapping[str, Tensor], structures: Sequence[Structure], group: ProcessGroup | None = None
) -> dict[str, Tensor]:
    """The mean magnitude (G,) of what each group is ranked by, by structure. Sums would favor large groups."""
    ranked = [Rows(each.count, {name: each.parts[name] for name in each.ranked}) for each in structures]
    sizes = group_sizes(tensors, ranked, group)
    return {key: s / sizes[key] for key, s in group_sums(tensors, ranked, magnitudes=True, group=group).items()}


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
    sets: dict[str, list[Structure]] = {}
    for structure in structures:
        sets.setdefault(rivals[key_of(structure)], []).append(structure)
    kept: dict[str, Tensor] = {}
    for together in sets.values():
        ranked = [scores[key_of(structure)].clone() for structure in together]
        for structure, own in zip(together, ranked, strict=True):
            own[own.topk(structure.least).indices] = torch.inf
        order = torch.cat(ranked).argsort(stable=True)
        counts = [structure.count for structure in together]
        owners = torch.arange(len(together)).repeat_interleave(torch.tensor(counts))[order]
        weights, total = _pruned_with(owners, tensors, together, group)
        weights = weights[: len(order) - sum(structure.least for structure in together) + 1]
        keep = torch.ones(len(order), dtype=torch.bool)
        keep[order[: int((weights - round(sparsity * total)).abs().argmin())]] = False
        kept |= zip(map(key_of, together), torch.split(keep, counts), strict=True)
    masks = spread(kept, tensors, structures, group)
    return {name: masks[name] for name in tensors}


def _pruned_with(
    owners: Tensor, tensors: Mapping[str, Tensor], structures: Sequence[Structure], group: ProcessGroup | None
) -> tuple[Tensor, int]:
    """How many weights are pruned with the first 0, 1, … groups of an order, and how many there are.

    The `owners` are the number of the structure of each group, in this order. What is in a row of one group and in a
    column of another counts once.
    """
    rows, total = _rows(tensors, group), 0
    pruned = torch.zeros(len(owners) + 1, dtype=torch.int64)
    of_name: dict[str, list[int]] = {}
    for number, structure in enumerate(structures):
        for name in structure.parts:
            of_name.setdefault(name, []).append(number)
    gone = {n: torch.cat([pruned[:1], (owners == n).cumsum(0)]) for n in {n for some in of_name.values() for n in some}}
    for name, numbers in of_name.items():
        size = rows[name][1] * tensors[name][:0].unsqueeze(-1).flatten(1).shape[1]
        cells = math.prod(structures[number].count for number in numbers)
        left = math.prod(structures[number].count - gone[number] for number in numbers)
        pruned += size // cells * (cells - left)
        total += size
    return pruned, total


def closed(masks: Mapping[str, Tensor], structures: Sequence[Structure]) -> dict[str, Tensor]:
    """Masks that prune of each pruned group no more than it takes for it to have no effect (`Structure.closing`)."""
    found: dict[str, Tensor] = {}
    for structure in structures:
        for name in structure.closing:
            mask, over = masks[name].unsqueeze(-1).flatten(1), 1 - structure.parts[name][0]
            lines = mask.any(over, keepdim=True).expand(mask.shape).reshape(masks[name].shape)
            found[name] = found[name] & lines if name in found else lines
    return found


def spread(
    values: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    structures: Sequence[Structure],
    group: ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """Tensors of the same shapes and devices in which each entry is the value (G,) of its group; of two its product."""
    rows = _rows(tensors, group)
    found: dict[str, Tensor] = {}
    for structure in structures:
        for name, part in structure.parts.items():
            tensor = tensors[name]
            matrix = tensor.detach().unsqueeze(-1).flatten(1)
            lines = values[key_of(structure)][_groups(matrix, part, structure.count, rows[name])].to(tensor.device)
            own = lines.unsqueeze(1 - part[0]).expand(matrix.shape).reshape(tensor.shape)
            found[name] = found[name] * own if name in found else own.contiguous()
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
