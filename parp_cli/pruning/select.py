"""Which weights to prune: exactly k of them, over all tensors at once (PARP, section 3, step 1).

The threshold is the k-th smallest magnitude. A random sample brackets it. One pass over the weights counts what is
below the bracket and collects the few magnitudes inside, among which the threshold is selected exactly. A magnitude
that many weights share (zero, say) is counted by itself first, as so many are not to be collected. A bracket that
missed is followed by bisection, with exact counts again. Nothing is concatenated or sorted as a whole. Of the weights
at the threshold those that come first are pruned.

Weights may be sharded over the ranks of a process group: then counts are summed, and no rank sees another's weights.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from parp_cli.errors import ParpError
from parp_cli.pruning import scan
from parp_cli.pruning.scan import FORMATS, FloatFormat, Integers

_FEW = 1 << 16
"""This many magnitudes are collected without a closer bracket."""

_SAMPLE = 1 << 18
"""Size of the sample that gives the first bracket."""

_DEVIATIONS = 5
"""Half the bracket's width, in standard deviations of a rank in the sample: one bracket in two million misses."""

_MANY_TIES = 1 / 64
"""Above this share of the weights, those of one magnitude are not collected."""

_BINS = 256
"""Of a histogram: four of them find one of 2³¹ magnitudes."""


def prune_count(sparsity: float, total: int) -> int:
    """How many of `total` weights a sparsity prunes: round(s·n), as torch.nn.utils.prune counts."""
    return round(sparsity * total)


def total_count(weights: Mapping[str, Tensor], group: ProcessGroup | None = None) -> int:
    """How many entries all tensors have together, in all ranks of a group over which they are sharded."""
    return _Ranks(group, weights).total(sum(weight.numel() for weight in weights.values()))


def magnitude_masks(weights: Mapping[str, Tensor], k: int, *, group: ProcessGroup | None = None) -> dict[str, Tensor]:
    """Masks that prune exactly the k entries of smallest magnitude over all tensors.

    Ties are broken by position: by the order of `weights`, then row-major, earlier entries are pruned first. The
    result depends on the values alone, not on machine, device, number of threads or number of ranks.

    Args:
        weights: tensors of one floating dtype (float32, float16 or bfloat16), any shapes.
        k: how many to prune, 0 <= k <= the number of entries (of all ranks).
        group: ranks over which the weights are sharded. Each calls with the same names, dtype and k, and for each
            name with its own shard along dimension 0, which may be empty, shards being in the order of the ranks: what
            `DTensor.to_local()` returns where FSDP2 shards a parameter. Each gets its shard of the masks.

    Returns:
        For each name a boolean tensor of the weight's shape and device, True = kept.

    Raises:
        ParpError: a weight is NaN (the parameter is named), or the dtypes differ or are not supported.
        ValueError: k is out of range.
    """
    form = _format(weights)
    tensors = [scan.bits_of(weight) for weight in weights.values()]
    ranks = _Ranks(group, weights)
    total = ranks.total(sum(map(len, tensors)))
    if not 0 <= k <= total:
        raise ValueError(f"cannot prune {k} of {total} weights")
    threshold, below, ties = 0, 0, np.zeros(len(tensors), dtype=np.int64)
    if total:
        # To prune none is to prune none of those at the smallest magnitude.
        threshold, below, ties = _threshold(list(weights), tensors, form, ranks, max(k, 1), total)
    pruned = np.clip(k - below - ranks.before(ties), 0, ties)
    masks = scan.at_least(tensors, form, [threshold + int(all_pruned) for all_pruned in pruned == ties])
    for mask, bits, tied, first in zip(masks, tensors, ties, pruned, strict=True):
        if 0 < first < tied:  # the one tensor in which k is reached
            scan.clear_first(mask, bits, form, threshold, int(first))
    return {name: mask.reshape(weights[name].shape) for name, mask in zip(weights, masks, strict=True)}


def _format(weights: Mapping[str, Tensor]) -> FloatFormat:
    dtypes = {weight.dtype for weight in weights.values()} or {torch.float32}
    if len(dtypes) > 1:
        raise ParpError(f"weights of different dtypes cannot be ranked together: {sorted(map(str, dtypes))}")
    dtype = dtypes.pop()
    if dtype not in FORMATS:
        raise ParpError(f"weights of dtype {dtype} cannot be ranked; use float32, float16 or bfloat16")
    return FORMATS[dtype]


class _Ranks:
    """Those that hold the weights between them: the ranks of a group, or without one this process alone."""

    def __init__(self, group: ProcessGroup | None, weights: Mapping[str, Tensor]) -> None:
        self._group = group
        # Some groups communicate only from the device that they compute on.
        self._device = next(iter(weights.values())).device if weights else torch.device("cpu")

    def sum(self, numbers: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """The sums over all ranks, of as many numbers from each."""
        own = np.asarray(numbers, dtype=np.int64)
        if self._group is None:
            return own
        summed = torch.from_numpy(own.copy()).to(self._device)
        distributed.all_reduce(summed, group=self._group)
        sums: NDArray[np.int64] = summed.cpu().numpy()
        return sums

    def total(self, number: int) -> int:
        """The sum over all ranks of one number."""
        return int(self.sum([number])[0])

    def before(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each of this rank's numbers the sum of all before it: those at earlier places of whatever rank, and at
        the same place those of lower ranks."""
        rank, size = 0, 1
        if self._group is not None:
            rank, size = distributed.get_rank(self._group), distributed.get_world_size(self._group)
        table = np.zeros((len(numbers), size), dtype=np.int64)
        table[:, rank] = numbers
        everyone = self.sum(table.reshape(-1))
        before: NDArray[np.int64] = (everyone.cumsum() - everyone).reshape(table.shape)[:, rank]
        return before

    def smallest(self, magnitudes: Integers, position: int, low: int, high: int) -> tuple[int, int]:
        """The magnitude at a position (from 1) in the sorted magnitudes of all ranks, and how many are below it.

        Histograms, each over one bin of the last one, narrow down where it is.

        Args:
            magnitudes: of this rank, from `low` to `high`.
        """
        below = 0
        while low < high:
            shift = max(0, (high - low).bit_length() - _BINS.bit_length() + 1)
            up_to = below + self.sum(np.bincount((magnitudes - low) >> shift, minlength=_BINS)).cumsum()
            place = int(np.searchsorted(up_to, position))
            below = int(up_to[place - 1]) if place else below
            low += place << shift
            high = min(high, low + (1 << shift) - 1)
            magnitudes = magnitudes[(magnitudes >= low) & (magnitudes <= high)]
        return low, below


def _threshold(
    names: Sequence[str], tensors: Sequence[Tensor], form: FloatFormat, ranks: _Ranks, position: int, total: int
) -> tuple[int, int, NDArray[np.int64]]:
    """The magnitude at a position (from 1) in sorted order, by passes over the weights.

    Returns:
        The magnitude; how many are below it, in all ranks; how many are at it in each tensor of this rank.

    Raises:
        ParpError: a weight is NaN, in whichever rank.
    """
    first, last, before, up_to_last = 0, form.magnitude, 0, total  # it is from first to last
    guesses = iter(_brackets(tensors, form, ranks, position, total) if total > _FEW else ())
    while True:
        low, high = first, last
        if up_to_last - before > _FEW:
            fitting = ((max(low, first), min(high, last)) for low, high in guesses if low <= last and high >= first)
            low, high = next(fitting, ((first + last) // 2,) * 2)
        counts = scan.count(tensors, form, low, high)
        below, inside, *is_nan = ranks.sum([counts.below.sum(), counts.inside.sum(), *(counts.largest > form.infinity)])
        if any(is_nan):
            name = names[int(np.argmax(is_nan))]
            raise ParpError(f"{name} holds NaN, which has no magnitude to rank", hint="the model has diverged")
        if position <= below:
            last, up_to_last = low - 1, int(below)
        elif position > below + inside:
            first, before = high + 1, int(below + inside)
        elif low == high:
            return low, int(below), counts.inside
        else:
            found, fewer = ranks.smallest(np.concatenate(counts.collected), position - int(below), low, high)
            ties = np.array([np.count_nonzero(part == found) for part in counts.collected])
            return found, int(below) + fewer, ties


def _brackets(
    tensors: Sequence[Tensor], form: FloatFormat, ranks: _Ranks, position: int, total: int
) -> list[tuple[int, int]]:
    """Magnitudes between which the one at this position should be, from a sample; shared ones alone first."""
    drawn = scan.sample(tensors, form, min(1.0, _SAMPLE / total), seed=0)
    size = ranks.total(len(drawn))
    if not size:
        return []
    share = position / total
    margin = _DEVIATIONS * (math.sqrt(size * share * (1 - share)) + 1)
    first, last = int(share * size - margin), int(share * size + margin)
    low = ranks.smallest(drawn, first, 0, form.magnitude)[0] if first > 0 else 0
    high = ranks.smallest(drawn, last, 0, form.magnitude)[0] if last <= size else form.magnitude
    ends = sorted({low, high})
    ties = ranks.sum([int(np.count_nonzero(drawn == end)) for end in ends])
    return [*((end, end) for end, tied in zip(ends, ties, strict=True) if tied > _MANY_TIES * size), (low, high)]
