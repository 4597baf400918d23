"""Units: the rows of a layer's weight, each with its entry of the bias. A unit is kept or pruned as a whole.

R rows in a layer, which is named by the first of its tensors. Where weights are sharded, each process has the scores
and the masks of its own rows.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from parp_cli.pruning.masks import Masks
from parp_cli.pruning.sharded import from_all_ranks


def units_of(names: Iterable[str]) -> dict[str, list[str]]:
    """The names of a layer's weight and bias, by the first of them."""
    layers: dict[str, list[str]] = {}
    for name in names:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return {together[0]: together for together in layers.values()}


def unit_sums(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The sum (R,) over each unit, by its layer."""
    sums = {name: tensor.detach().unsqueeze(-1).flatten(1).sum(1) for name, tensor in tensors.items()}
    return {unit: torch.stack([sums[name] for name in names]).sum(0) for unit, names in units_of(tensors).items()}


def keep_units(
    scores: Mapping[str, Tensor],
    masks: Masks,
    sparsity: float,
    *,
    rivals: Mapping[str, str],
    group: ProcessGroup | None = None,
) -> dict[str, Tensor]:
    """Masks that keep the units of the largest scores, and none that is pruned already.

    Args:
        scores: (R,) by layer; 0 where it is missing.
        masks: the current ones.
        sparsity: share of the weights to prune; so many units are that the number of their weights is nearest to it.
            Of equal scores those that come first are pruned.
        rivals: from `Pattern.rivals`.
        group: processes over which the weights are sharded.
    """
    units = units_of(masks)
    alive = {unit: masks[unit].unsqueeze(-1).flatten(1).any(1).cpu() for unit in units}
    own = {unit: torch.where(alive[unit], scores[unit].cpu() if unit in scores else 0.0, -1.0) for unit in units}
    shards, rank = from_all_ranks(own, group)
    sets: dict[str, list[str]] = {}
    for unit in units:
        sets.setdefault(rivals[unit], []).append(unit)
    kept: dict[str, Tensor] = {}
    for together in sets.values():
        rows = [sum(len(shard[unit]) for shard in shards) for unit in together]
        sizes = [sum(math.prod(masks[name].shape[1:]) for name in units[unit]) for unit in together]
        order = torch.cat([shard[unit] for unit in together for shard in shards]).argsort(stable=True)
        pruned = torch.tensor(sizes).repeat_interleave(torch.tensor(rows))[order].cumsum(0)
        pruned = torch.cat([pruned.new_zeros(1), pruned])  # weights, by the number of pruned units
        keep = torch.ones(len(order), dtype=torch.bool)
        keep[order[: int((pruned - round(sparsity * int(pruned[-1]))).abs().argmin())]] = False
        for unit, part in zip(together, torch.split(keep, rows), strict=True):
            mine = torch.split(part, [len(shard[unit]) for shard in shards])[rank]
            for mask, name in ((masks[name], name) for name in units[unit]):
                kept[name] = mine.to(mask.device).reshape(-1, *[1] * (mask.dim() - 1)).expand(mask.shape).clone()
    return {name: kept[name] for name in masks}
