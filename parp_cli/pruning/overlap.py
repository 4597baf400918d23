"""Overlap of two masks, and the overlap of random masks that keep as many weights.

n weights, of which the first mask keeps a, the second b, and both keep c:

    intersection over union   c / (a + b - c)       of the kept weights; of the pruned ones likewise
    agreement                 1 - (a + b - 2c) / n    share of the weights that both keep or both prune

Two independent random masks that keep exactly a and b of n weights both keep a·b/n on average (the mean of the
hypergeometric distribution). Methods prune some tensors more than others, and masks that have only this in common
overlap by more than a·b/n of all weights. The levels of chance are therefore those of masks that are random within each
tensor, at the tensor's own two sparsities: c is the sum over tensors of a·b/n. The pooled levels, with a single a·b/n
over all weights, are reported too.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor

from parp_cli.pruning.masks import Masks, check_same_weights

Label = TypeVar("Label", bound=Hashable)


def _iou(total: int, first: int, second: int, both: float) -> float:
    return both / (first + second - both) if first + second - both else 1.0


def _pruned_iou(total: int, first: int, second: int, both: float) -> float:
    return _iou(total, total - first, total - second, total - first - second + both)


def _agreement(total: int, first: int, second: int, both: float) -> float:
    return 1 - (first + second - 2 * both) / total if total else 1.0


def _rates(formula: Callable[[int, int, int, float], float]) -> list[Any]:
    """Properties of an Overlap: a formula for what both keep, for the level of chance, and for the pooled level."""

    def rate(both: str) -> property:
        counts = attrgetter("total", "kept_first", "kept_second", both)
        return property(lambda overlap: formula(*counts(overlap)))

    return [rate(both) for both in ("kept_both", "kept_both_by_chance", "kept_both_by_chance_pooled")]


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Two masks over the same weights, as counts of weights. All properties are part of the JSON of `parp compare`.

    Attributes:
        total: n, all weights.
        kept_first, kept_second: a and b, kept by each mask.
        kept_both: c, kept by both.
        kept_both_by_chance: c expected of masks that are random within each tensor; `pooled` over all weights.
        iou, pruned_iou: intersection over union of the kept and of the pruned weights; 1 where the union is empty.
        agreement: share of the weights that both keep or both prune; 1 where there are no weights.
    """

    total: int
    kept_first: int
    kept_second: int
    kept_both: int
    kept_both_by_chance: float

    iou, iou_by_chance, iou_by_chance_pooled = _rates(_iou)
    pruned_iou, pruned_iou_by_chance, pruned_iou_by_chance_pooled = _rates(_pruned_iou)
    agreement, agreement_by_chance, agreement_by_chance_pooled = _rates(_agreement)

    @property
    def kept_both_by_chance_pooled(self) -> float:
        return self.kept_first * self.kept_second / self.total if self.total else 0.0

    @property
    def iou_above_chance(self) -> float:
        """The IoU on a scale from chance (0) to equal masks (1); negative below chance, 0 where everything is kept."""
        chance: float = self.iou_by_chance
        return float((self.iou - chance) / (1 - chance)) if chance < 1 else 0.0


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two masks with names, compared.

    Attributes:
        first, second: their names.
        overall: over all weights.
        by_layer, by_kind: of groups of weights, by label, in reading order.
        by_layer_and_kind: of groups by both labels.
    """

    first: str
    second: str
    overall: Overlap
    by_layer: Mapping[str, Overlap]
    by_kind: Mapping[str, Overlap]
    by_layer_and_kind: Mapping[tuple[str, str], Overlap]


def both_ways(pairs: Iterable[Pair]) -> dict[tuple[str, str], Overlap]:
    """The overlap of every two masks by their names, in either order."""
    found = {(pair.first, pair.second): pair.overall for pair in pairs}
    return found | {(second, first): overlap for (first, second), overlap in found.items()}


def overlaps(first: Masks, second: Masks) -> dict[str, Overlap]:
    """The overlap in each weight, by its name. Raises MaskError where the masks are not for the same weights."""
    check_same_weights(first, second)
    return {name: _overlap(mask, second[name]) for name, mask in first.items()}


def together(parts: Iterable[Overlap]) -> Overlap:
    """The overlap over all of the parts at once."""
    parts = list(parts)
    return Overlap(**{field.name: sum(getattr(part, field.name) for part in parts) for field in fields(Overlap)})


def by_group(by_name: Mapping[str, Overlap], groups: Mapping[str, Label]) -> dict[Label, Overlap]:
    """The overlap in each group of weights, from that in each weight and a label for each name; labels are in the order
    in which they first occur."""
    members: dict[Label, list[Overlap]] = {}
    for name, part in by_name.items():
        members.setdefault(groups[name], []).append(part)
    return {label: together(parts) for label, parts in members.items()}


def _overlap(first: Tensor, second: Tensor) -> Overlap:
    total = first.numel()
    kept_first, kept_second, kept_both = (int(torch.count_nonzero(m)) for m in (first, second, first & second))
    return Overlap(
        total=total,
        kept_first=kept_first,
        kept_second=kept_second,
        kept_both=kept_both,
        kept_both_by_chance=kept_first * kept_second / total if total else 0.0,
    )
