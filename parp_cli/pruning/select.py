"""Which weights to prune: exactly k of them, over all tensors at once (PARP, section 3, step 1).

The threshold is the k-th smallest magnitude. A random sample brackets it; one pass over the weights counts what is
below the bracket and collects the few entries inside, and the threshold is selected exactly among those. Where many
weights share one magnitude at an end of the bracket (half of them zero, say), that magnitude is first counted by
itself. A bracket that missed is made wider, and if need be halved, always by exact counts. Nothing is concatenated or
sorted as a whole. Among entries whose magnitude equals the threshold, those that come first are pruned.

Weights may be sharded over processes: then counts are summed over them, and no process sees another's weights.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from parp_cli.errors import ParpError
from parp_cli.pruning import scan
from parp_cli.pruning.scan import FORMATS, FloatFormat, Integers
from parp_cli.storage.bits import pack

_FEW = 1 << 16
"""So many entries are collected without further ado: with no more weights than these no sample is taken."""

_SAMPLE = 1 << 18
"""Entries that the brackets are read from."""

_DEVIATIONS = (4, 16)
"""How wide brackets are to either side, in standard deviations of a sample's rank. The first misses in 6 of 100,000
selections, which costs one more pass."""

_MANY_TIES = 1 / 64
"""Above this share of the weights, those of one magnitude are not collected."""

_PIVOTS = 255
"""Magnitudes whose ranks are asked for together where processes search: four sums find one of 2³¹ magnitudes."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where a selection cuts: from it the mask of each tensor follows by one comparison.

    With it masks can be made tensor by tensor, so that never all of them are in memory:
    `cut = magnitude_cut(weights, k)`, then `cut.packed(name, weights[name])` for one name after another.

    Attributes:
        threshold: the k-th smallest magnitude, as the bits of a non-negative float of the weights' dtype.
        ties: by name, how many entries are at the threshold.
        pruned_ties: by name, how many of them are pruned: the first.
    """

    threshold: int
    ties: Mapping[str, int]
    pruned_ties: Mapping[str, int]

    def mask(self, name: str, weight: Tensor) -> Tensor:
        """The mask of one of the tensors that were selected from, unchanged since: boolean, True = kept."""
        return self.masks({name: weight})[name]

    def packed(self, name: str, weight: Tensor) -> Tensor:
        """The mask of one tensor as bits, (ceil(n / 8),) uint8 on the CPU, in the order of `bits.pack`."""
        if 0 < self.pruned_ties[name] < self.ties[name]:
            return pack(self.mask(name, weight))
        keeps_ties = self.pruned_ties[name] < self.ties[name]
        return scan.packed_above(scan.bits_of(weight), FORMATS[weight.dtype], self.threshold, or_at=keeps_ties)

    def masks(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The masks of any of the tensors that were selected from, unchanged since: boolean, True = kept."""
        if not weights:
            return {}
        form = FORMATS[next(iter(weights.values())).dtype]
        tensors = [scan.bits_of(weight) for weight in weights.values()]
        # Ties are kept or pruned together in all tensors but one, that in which k is reached.
        kept = scan.above(tensors, form, self.threshold, or_at=[self.pruned_ties[n] < self.ties[n] for n in weights])
        for name, bits, mask in zip(weights, tensors, kept, strict=True):
            if 0 < self.pruned_ties[name] < self.ties[name]:
                mask[scan.first_at(bits, form, self.threshold, self.pruned_ties[name])] = False
        return {name: mask.reshape(weights[name].shape) for name, mask in zip(weights, kept, strict=True)}


def prune_count(sparsity: float, total: int) -> int:
    """How many of `total` weights a sparsity prunes: round(s·n), as torch.nn.utils.prune counts."""
    return round(sparsity * total)


def total_count(weights: Mapping[str, Tensor], group: ProcessGroup | None = None) -> int:
    """How many entries all tensors have together; in all processes of a group over which they are sharded."""
    counts = [sum(weight.numel() for weight in weights.values())]
    device = next(iter(weights.values())).device if weights else torch.device("cpu")
    return _Processes(group, device).sum(counts)[0]


def magnitude_masks(weights: Mapping[str, Tensor], k: int, *, group: ProcessGroup | None = None) -> dict[str, Tensor]:
    """Masks that prune exactly the k entries of smallest magnitude over all tensors.

    Ties are broken by position: by the order of `weights`, then row-major, earlier entries are pruned first. The
    result depends on the values alone, not on machine, device, number of threads or number of processes.

    Args:
        weights: tensors of one floating dtype (float32, float16 or bfloat16), any shapes.
        k: how many to prune, 0 <= k <= the number of entries (of all processes).
        group: processes over which the weights are sharded. Each calls with the same names, dtype and k, and for each
            name with its own slice along dimension 0, which may be empty, slices being in the order of the ranks: what
            `DTensor.to_local()` gives where FSDP2 shards a parameter. Each gets its slice of the masks.

    Returns:
        For each name a boolean tensor of the weight's shape and device, True = kept.

    Raises:
        ParpError: a weight is NaN (the parameter is named), or the dtypes differ or are not supported.
        ValueError: k is out of range.
    """
    return magnitude_cut(weights, k, group=group).masks(weights)


def magnitude_cut(weights: Mapping[str, Tensor], k: int, *, group: ProcessGroup | None = None) -> Cut:
    """As `magnitude_masks`, but where the masks are to be made tensor by tensor. Arguments and errors are the same."""
    form = _format(weights)
    tensors = [scan.bits_of(weight) for weight in weights.values()]
    processes = _Processes(group, tensors[0].device if tensors else torch.device("cpu"))
    total = processes.sum([sum(map(len, tensors))])[0]
    if not 0 <= k <= total:
        raise ValueError(f"cannot prune {k} of {total} weights")
    threshold, below, ties = 0, 0, [0] * len(tensors)
    if total:
        # To prune none is to prune none of those at the smallest magnitude.
        threshold, below, ties = _Search(weights, tensors, form, processes, total).smallest(max(k, 1))
    return Cut(
        threshold=threshold,
        ties=dict(zip(weights, ties, strict=True)),
        pruned_ties=dict(zip(weights, _first_of(ties, k - below, processes), strict=True)),
    )


def _format(weights: Mapping[str, Tensor]) -> FloatFormat:
    dtypes = {weight.dtype for weight in weights.values()} or {torch.float32}
    if len(dtypes) > 1:
        raise ParpError(f"weights of different dtypes cannot be ranked together: {sorted(map(str, dtypes))}")
    dtype = dtypes.pop()
    if dtype not in FORMATS:
        raise ParpError(f"weights of dtype {dtype} cannot be ranked; use float32, float16 or bfloat16")
    return FORMATS[dtype]


class _Processes:
    """Those that hold the weights between them: a group, or without one this process alone."""

    def __init__(self, group: ProcessGroup | None, device: torch.device) -> None:
        self._group = group
        self._device = device  # some groups communicate only from the device that they compute on

    def sum(self, numbers: Sequence[int]) -> list[int]:
        """The sums over all processes, of as many numbers from each."""
        if self._group is None:
            return [int(number) for number in numbers]
        summed = torch.tensor(numbers, dtype=torch.int64, device=self._device)
        distributed.all_reduce(summed, group=self._group)
        return [int(number) for number in summed.tolist()]

    def before(self, numbers: Sequence[int]) -> list[int]:
        """How much comes before each of this process's numbers: all earlier ones, and those of lower rank in its place.

        As if the processes' numbers were listed place by place, and in each place in the order of the ranks.
        """
        rank, size = 0, 1
        if self._group is not None:
            rank, size = distributed.get_rank(self._group), distributed.get_world_size(self._group)
        table = np.zeros((len(numbers), size), dtype=np.int64)
        table[:, rank] = numbers
        everyone = np.array(self.sum(table.reshape(-1).tolist()), dtype=np.int64)
        before = (everyone.cumsum() - everyone).reshape(table.shape)[:, rank]
        return [int(number) for number in before]

    def smallest(self, magnitudes: Integers, rank: int) -> int:
        """The rank-th smallest (from 1) of the magnitudes of all processes; puts `magnitudes` in another order."""
        if self._group is None:
            magnitudes.partition(rank - 1)
            return int(magnitudes[rank - 1])
        magnitudes.sort()
        low, high = 0, int(np.iinfo(magnitudes.dtype).max)
        while low < high:
            step = (high - low) // (_PIVOTS + 1) + 1
            pivots = np.arange(low, high, step)  # the last answer needs no pivot: it is `high` if it is none of them
            ranks = self.sum(np.searchsorted(magnitudes, pivots.astype(magnitudes.dtype), side="right").tolist())
            place = int(np.searchsorted(ranks, rank))
            if place < len(pivots):
                high = int(pivots[place])
            if place > 0:
                low = int(pivots[place - 1]) + 1
        return low


class _Search:
    """For the magnitude of a given rank, by passes over the weights."""

    def __init__(
        self, names: Iterable[str], tensors: list[Tensor], form: FloatFormat, processes: _Processes, total: int
    ) -> None:
        self._names = list(names)
        self._tensors = tensors
        self._form = form
        self._processes = processes
        self._total = total

    def smallest(self, rank: int) -> tuple[int, int, list[int]]:
        """The rank-th smallest magnitude (from 1).

        Returns:
            The magnitude; how many are below it, in all processes; how many are at it in each tensor of this process.

        Raises:
            ParpError: a weight is NaN, in whichever process.
        """
        guesses = self._guesses(rank) if self._total > _FEW else iter(())
        least, below_least = 0, 0
        most, up_to_most = self._form.magnitude, self._total
        while True:
            low, high = least, most
            if (guess := next(guesses, None)) is not None:
                low, high = max(least, guess[0]), min(most, guess[1])
            elif up_to_most - below_least > _FEW:
                low = high = (least + most) // 2
            if low > high:
                continue
            counts, below, inside = self._count(low, high)
            if rank <= below:
                most, up_to_most = low - 1, below
            elif rank > below + inside:
                least, below_least = high + 1, below + inside
            elif low == high:
                return low, below, counts.inside.tolist()
            else:
                found = self._processes.smallest(np.concatenate(counts.collected), rank - below)
                below += self._processes.sum([sum(int((part < found).sum()) for part in counts.collected)])[0]
                return found, below, [int((part == found).sum()) for part in counts.collected]

    def _count(self, low: int, high: int) -> tuple[scan.Counts, int, int]:
        counts = scan.count(self._tensors, self._form, low, high, collect=low < high)
        is_nan = (counts.largest > self._form.infinity).astype(np.int64)
        below, inside, *nans = self._processes.sum([counts.below.sum(), counts.inside.sum(), *is_nan])
        for name, found in zip(self._names, nans, strict=True):
            if found:
                raise ParpError(f"{name} holds NaN, which has no magnitude to rank", hint="the model has diverged")
        return counts, below, inside

    def _guesses(self, rank: int) -> Iterator[tuple[int, int]]:
        """Magnitudes between which the one of this rank should be, from a sample."""
        drawn = scan.sample(self._tensors, self._form, min(1.0, _SAMPLE / self._total), seed=0)
        size = self._processes.sum([len(drawn)])[0]
        share = rank / self._total
        deviation = math.sqrt(size * share * (1 - share)) + 1
        for deviations in _DEVIATIONS if size else ():
            first, last = (int(share * size + sign * deviations * deviation) for sign in (-1, 1))
            low = self._processes.smallest(drawn, first) if first > 0 else 0
            high = self._processes.smallest(drawn, last) if last <= size else self._form.magnitude
            ends = sorted({low, high})
            ties = self._processes.sum([int((drawn == end).sum()) for end in ends])
            yield from ((end, end) for end, tied in zip(ends, ties, strict=True) if tied > _MANY_TIES * size)
            yield low, high


def _first_of(ties: Sequence[int], wanted: int, processes: _Processes) -> list[int]:
    """How many of each tensor's ties are among the first `wanted` over all tensors and processes."""
    before = processes.before(ties)
    return [min(max(wanted - earlier, 0), tied) for earlier, tied in zip(before, ties, strict=True)]
