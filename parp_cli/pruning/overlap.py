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

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from parp_cli.pruning.masks import Masks, check_same_weights

Label = TypeVar("Label", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Two masks over the same weights, as counts of weights. All properties are part of the JSON of `parp compare`.

    Attributes:
        total: n, all weights.
        kept_first, kept_second: a and b, kept by each mask.
        kept_both: c, kept by both.
        kept_both_by_chance: c expected of masks that are random within each tensor.
    """

    total: int
    kept_first: int
    kept_second: int
    kept_both: int
    kept_both_by_chance: float

    @property
    def iou(self) -> float:
        """Intersection over union of the kept weights; 1 where neither keeps any."""
        return self._iou(self.kept_both)

    @property
    def iou_by_chance(self) -> float:
        return self._iou(self.kept_both_by_chance)

    @property
    def iou_by_chance_pooled(self) -> float:
        """For masks that are random over all these weights, whatever the sparsities of single tensors are."""
        return self._iou(self.kept_both_by_chance_pooled)

    @property
    def iou_above_chance(self) -> float:
        """The IoU on a scale from chance (0) to equal masks (1); negative below chance, 0 where everything is kept."""
        chance = self.iou_by_chance
        return (self.iou - chance) / (1 - chance) if chance < 1 else 0.0

    @property
    def pruned_iou(self) -> float:
        """Intersection over union of the pruned weights; 1 where neither prunes any."""
        return self._pruned_iou(self.kept_both)

    @property
    def pruned_iou_by_chance(self) -> float:
        return self._pruned_iou(self.kept_both_by_chance)

    @property
    def pruned_iou_by_chance_pooled(self) -> float:
        return self._pruned_iou(self.kept_both_by_chance_pooled)

    @property
    def agreement(self) -> float:
        """Share of the weights that both keep or both prune; 1 where there are no weights."""
        return self._agreement(self.kept_both)

    @property
    def agreement_by_chance(self) -> float:
        return self._agreement(self.kept_both_by_chance)

    @property
    def agreement_by_chance_pooled(self) -> float:
        return self._agreement(self.kept_both_by_chance_pooled)

    @property
    def kept_both_by_chance_pooled(self) -> float:
        return self.kept_first * self.kept_second / self.total if self.total else 0.0

    def _iou(self, kept_both: float) -> float:
        kept_either = self.kept_first + self.kept_second - kept_both
        return kept_both / kept_either if kept_either else 1.0

    def _pruned_iou(self, kept_both: float) -> float:
        pruned_either = self.total - kept_both
        pruned_both = self.total - self.kept_first - self.kept_second + kept_both
        return pruned_both / pruned_either if pruned_either else 1.0

    def _agreement(self, kept_both: float) -> float:
        disagreeing = self.kept_first + self.kept_second - 2 * kept_both
        return 1 - disagreeing / self.total if self.total else 1.0


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


def overlaps(first: Masks, second: Masks) -> dict[str, Overlap]:
    """The overlap in each weight, by its name.

    Raises:
        MaskError: the masks are not for the same weights.
    """
    check_same_weights(first, second)
    return {name: _overlap(mask, second[name]) for name, mask in first.items()}


def together(parts: Iterable[Overlap]) -> Overlap:
    """The overlap over all of the parts at once."""
    parts = list(parts)
    return Overlap(
        total=sum(part.total for part in parts),
        kept_first=sum(part.kept_first for part in parts),
        kept_second=sum(part.kept_second for part in parts),
        kept_both=sum(part.kept_both for part in parts),
        kept_both_by_chance=sum(part.kept_both_by_chance for part in parts),
    )


def by_group(by_name: Mapping[str, Overlap], groups: Mapping[str, Label]) -> dict[Label, Overlap]:
    """The overlap in each group of weights.

    Args:
        by_name: of `overlaps`.
        groups: a label for each name.

    Returns:
        By label, in the order in which labels first occur.
    """
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
