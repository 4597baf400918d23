"""Which weights to prune: exactly k of them, over all tensors at once (PARP, section 3, step 1).

The threshold is the k-th smallest magnitude. Magnitudes are compared as integers: the bits of non-negative IEEE floats,
read as integers, are in the order of the floats. A histogram of their upper bits, summed over all tensors, gives the
bin of the threshold; another one of the lower bits inside that bin gives the threshold. Nothing is sorted. Of the
weights at the threshold those that come first are pruned.

Weights may be sharded over the ranks of a process group: then counts are summed, and no rank sees another's weights.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from parp_cli.errors import ParpError

_PIECE, _DEVICE_PIECE = 1 << 18, 1 << 24
"""Entries looked at together: on the CPU so few that they stay in its cache, on other devices so few that they fit."""

_LOWER_BITS = 15  # of a magnitude; 16 more of float32 are above them, none of the others

_FORMATS = {
    torch.float32: (torch.int32, 0x7FFF_FFFF, 0x7F80_0000),
    torch.float16: (torch.int16, 0x7FFF, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7FFF, 0x7F80),
}
"""By dtype: integers of the same size, all bits but the sign, and infinity, above which is NaN."""


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
        weights: tensors of one dtype (float32, float16 or bfloat16), any shapes.
        k: how many to prune, at most the number of entries (of all ranks).
        group: ranks over which the weights are sharded. Each calls with the same names, dtype and k, and for each
            name with its own shard along dimension 0, which may be empty, shards being in the order of the ranks: what
            `DTensor.to_local()` returns where FSDP2 shards a parameter. Each gets its shard of the masks.

    Returns:
        For each name a boolean tensor of the weight's shape and device, True = kept.

    Raises:
        ParpError: a weight is NaN (the parameter is named), or the dtypes differ or are not supported.
        ValueError: k is out of range.
    """
    dtypes = {weight.dtype for weight in weights.values()} or {torch.float32}
    if len(dtypes) > 1:
        raise ParpError(f"weights of different dtypes cannot be ranked together: {sorted(map(str, dtypes))}")
    dtype = dtypes.pop()
    if dtype not in _FORMATS:
        raise ParpError(f"weights of dtype {dtype} cannot be ranked; use float32, float16 or bfloat16")
    integer, unsigned, infinity = _FORMATS[dtype]
    tensors = [weight.detach().reshape(-1).view(integer) for weight in weights.values()]
    ranks = _Ranks(group, weights)
    total = ranks.total(sum(map(len, tensors)))
    if not 0 <= k <= total:
        raise ValueError(f"cannot prune {k} of {total} weights")
    if not total:
        return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}
    threshold = below = 0
    for upper in (True, False) if integer == torch.int32 else (False,):
        counts = ranks.sum(_histogram(tensors, unsigned, None if upper else threshold))
        if upper == (integer == torch.int32) and counts[infinity >> (_LOWER_BITS if upper else 0) :].any():
            _refuse_nan(list(weights), tensors, unsigned, infinity, ranks)
        up_to = below + counts.cumsum()
        place = int(np.searchsorted(up_to, max(k, 1)))
        below = int(up_to[place - 1]) if place else below
        threshold = place << _LOWER_BITS if upper else threshold + place
    masks, ties = _above(tensors, unsigned, threshold)
    pruned = np.clip(k - below - ranks.before(ties), 0, ties)
    for mask, bits, tied, first in zip(masks, tensors, ties, pruned, strict=True):
        if first == 0 < tied:
            mask |= (bits & unsigned) == threshold
        elif first < tied:  # in one tensor at most, since a device is waited for
            mask[((bits & unsigned) == threshold).nonzero().flatten()[int(first) :]] = True
    return {name: mask.reshape(weights[name].shape) for name, mask in zip(weights, masks, strict=True)}


def _pieces(bits: Tensor, unsigned: int) -> Iterator[Tensor]:
    """The magnitudes of a tensor, piece by piece."""
    length = _PIECE if bits.device.type == "cpu" else _DEVICE_PIECE
    for start in range(0, len(bits), length):
        yield bits[start : start + length] & unsigned


def _joined(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """The same entries in few tensors on a device other than the CPU, which would be waited for at each of them."""
    if tensors and tensors[0].device.type == "cpu":
        yield from tensors
        return
    some: list[Tensor] = []
    for bits in tensors:
        if some and sum(map(len, some)) + len(bits) > _DEVICE_PIECE:
            yield torch.cat(some)
            some = []
        some.append(bits)
    if some:
        yield torch.cat(some)


def _histogram(tensors: Sequence[Tensor], unsigned: int, within: int | None) -> NDArray[np.int64]:
    """How many magnitudes have each value of their upper bits; or each value of their lower bits, of those with the
    upper bits of `within`."""
    counts = torch.zeros(1 << 16, dtype=torch.int64, device=tensors[0].device if tensors else None)
    for bits in _joined(tensors):
        for magnitudes in _pieces(bits, unsigned):
            if within is None:
                values = magnitudes >> _LOWER_BITS
            elif bits.dtype == torch.int32:
                values = magnitudes[magnitudes >> _LOWER_BITS == within >> _LOWER_BITS] - within
            else:
                values = magnitudes
            counts += torch.bincount(values, minlength=len(counts))
    histogram: NDArray[np.int64] = counts.cpu().numpy()
    return histogram


def _above(tensors: Sequence[Tensor], unsigned: int, threshold: int) -> tuple[list[Tensor], NDArray[np.int64]]:
    """Per tensor, which of its magnitudes (n,) are above the threshold, and how many are at it."""
    masks, ties = [], []
    for bits in tensors:
        mask, start = torch.empty(len(bits), dtype=torch.bool, device=bits.device), 0
        tied = torch.zeros((), dtype=torch.int64, device=bits.device)
        for magnitudes in _pieces(bits, unsigned):
            torch.gt(magnitudes, threshold, out=mask[start : start + len(magnitudes)])
            tied += torch.count_nonzero(magnitudes == threshold)
            start += len(magnitudes)
        masks.append(mask)
        ties.append(tied)
    return masks, np.array(torch.stack(ties).tolist() if ties else [], dtype=np.int64)


def _refuse_nan(names: Sequence[str], tensors: Sequence[Tensor], unsigned: int, infinity: int, ranks: "_Ranks") -> None:
    """Raise a ParpError that names the first parameter with a NaN, in whichever rank, if there is one."""
    is_nan = ranks.sum([any(bool((p > infinity).any()) for p in _pieces(bits, unsigned)) for bits in tensors])
    if is_nan.any():
        name = names[int(np.argmax(is_nan > 0))]
        raise ParpError(f"{name} holds NaN, which has no magnitude to rank", hint="the model has diverged")


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
