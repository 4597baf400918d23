"""Which weights to prune: exactly k of them, over all tensors at once (PARP, section 3, step 1).

Magnitudes are compared as integers: the bits of a non-negative IEEE float, read as an integer, are in the order of
the floats. A sample brackets the threshold (the k-th smallest magnitude), one pass counts what is below the bracket
and collects the few entries inside, and the threshold is selected exactly among those. Nothing is concatenated or
sorted as a whole. Among entries whose magnitude equals the threshold, those that come first are pruned.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from parp_cli.errors import ParpError, UsageError

_CHUNK = 1 << 22
"""Entries looked at together, which bounds the memory beyond the masks."""

_SAMPLE = 1 << 18
"""Entries that the threshold's bounds are read from."""

_INTEGERS = {
    torch.float32: (torch.int32, 0x7FFF_FFFF, 0x7F80_0000, 32),
    torch.float16: (torch.int16, 0x7FFF, 0x7C00, 16),
    torch.bfloat16: (torch.int16, 0x7FFF, 0x7F80, 16),
}
"""By dtype: the integer of its width, the mask that clears the sign, the bits of infinity, the width."""


def check_sparsity(sparsity: float) -> None:
    """Refuse a share that cannot be pruned.

    Raises:
        UsageError: outside [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise UsageError(f"sparsity {sparsity:g} is outside [0, 1)", hint="0.5 prunes half of the weights")


def prune_count(sparsity: float, total: int) -> int:
    """How many of `total` weights a sparsity prunes: round(s·n), as torch.nn.utils.prune counts."""
    return round(sparsity * total)


def magnitude_masks(weights: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """Masks that prune exactly the k entries of smallest magnitude over all tensors.

    Ties are broken by position: by the order of `weights`, then row-major, earlier entries are pruned first. The
    result depends on the values alone, not on machine, device or number of threads.

    Args:
        weights: tensors of one floating dtype (float32, float16 or bfloat16), any shapes.
        k: how many to prune, 0 <= k <= the number of entries.

    Returns:
        For each name a boolean tensor of the weight's shape and device, True = kept.

    Raises:
        ParpError: a weight is NaN (the parameter is named), or the dtypes differ or are not supported.
        ValueError: k is out of range.
    """
    total = sum(weight.numel() for weight in weights.values())
    if not 0 <= k <= total:
        raise ValueError(f"cannot prune {k} of {total} weights")
    dtype = _dtype(weights)
    if dtype is None:
        return {}
    keys = {name: _bits(weight) for name, weight in weights.items()}
    _refuse_nan(keys, dtype)
    threshold, below = _kth_smallest(keys, k, dtype)
    return _masks_at(weights, keys, threshold, ties=k - below)


def random_masks(shapes: Mapping[str, tuple[int, ...]], k: int, *, seed: int) -> dict[str, Tensor]:
    """Masks that prune exactly k entries chosen uniformly over all tensors of these shapes."""
    sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    total = sum(sizes.values())
    if not 0 <= k <= total:
        raise ValueError(f"cannot prune {k} of {total} weights")
    generator = torch.Generator().manual_seed(seed)
    kept = torch.ones(total, dtype=torch.bool)
    kept[torch.randperm(total, generator=generator)[:k]] = False
    parts = torch.split(kept, list(sizes.values()))
    return {name: part.reshape(shapes[name]).clone() for name, part in zip(sizes, parts, strict=True)}


def _dtype(weights: Mapping[str, Tensor]) -> torch.dtype | None:
    dtypes = {weight.dtype for weight in weights.values()}
    if len(dtypes) > 1:
        raise ParpError(f"weights of different dtypes cannot be ranked together: {sorted(map(str, dtypes))}")
    for dtype in dtypes:
        if dtype not in _INTEGERS:
            raise ParpError(f"weights of dtype {dtype} cannot be ranked; use float32, float16 or bfloat16")
        return dtype
    return None


def _bits(weight: Tensor) -> Tensor:
    """The weight's bits (n,) as integers, sign included; a view where the weight is contiguous."""
    return weight.detach().reshape(-1).view(_INTEGERS[weight.dtype][0])


def _chunks(bits: Tensor) -> tuple[Tensor, ...]:
    return torch.split(bits, _CHUNK)


def _magnitudes(bits: Tensor, dtype: torch.dtype) -> Tensor:
    return bits & _INTEGERS[dtype][1]


def _refuse_nan(keys: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    infinity = _INTEGERS[dtype][2]
    for name, bits in keys.items():
        if any(bool((_magnitudes(chunk, dtype) > infinity).any()) for chunk in _chunks(bits)):
            raise ParpError(f"{name} holds NaN, which has no magnitude to rank", hint="the model has diverged")


def _kth_smallest(keys: Mapping[str, Tensor], k: int, dtype: torch.dtype) -> tuple[int, int]:
    """The k-th smallest magnitude's bits, and how many magnitudes are below it.

    With k = 0 nothing is to be pruned: -1 is below everything.
    """
    if k == 0:
        return -1, 0
    found = None
    for low, high in (_bracket(keys, k, dtype), (0, _INTEGERS[dtype][1])):
        found = _kth_between(keys, k, dtype, low, high)
        if found is not None:
            break
    assert found is not None, "every magnitude is between zero and the largest bit pattern"
    return found


def _bracket(keys: Mapping[str, Tensor], k: int, dtype: torch.dtype) -> tuple[int, int]:
    """Bounds between which the k-th smallest magnitude almost surely lies, from an evenly spaced sample."""
    total = sum(bits.numel() for bits in keys.values())
    step = max(1, total // _SAMPLE)
    sample = torch.cat([_magnitudes(bits[::step], dtype) for bits in keys.values()]).int().sort().values
    place = k / total * len(sample)
    slack = 4 * len(sample) ** 0.5  # 8 standard deviations of the sample's rank at the median
    low, high = max(0, int(place - slack)), min(len(sample) - 1, int(place + slack) + 1)
    return int(sample[low]) if low > 0 else 0, int(sample[high]) if high < len(sample) - 1 else _INTEGERS[dtype][1]


def _kth_between(keys: Mapping[str, Tensor], k: int, dtype: torch.dtype, low: int, high: int) -> tuple[int, int] | None:
    """As `_kth_smallest`, collecting only magnitudes from `low` to `high`; None where the answer is not among them."""
    below = 0
    among = []
    for bits in keys.values():
        for chunk in _chunks(bits):
            magnitudes = _magnitudes(chunk, dtype)
            below += int((magnitudes < low).sum())
            among.append(magnitudes[(magnitudes >= low) & (magnitudes <= high)])
    candidates = torch.cat(among)
    if not below < k <= below + len(candidates):
        return None
    value = low if low == high else int(candidates.int().kthvalue(k - below).values)
    return value, below + int((candidates < value).sum())


def _masks_at(
    weights: Mapping[str, Tensor], keys: Mapping[str, Tensor], threshold: int, *, ties: int
) -> dict[str, Tensor]:
    """Keep what is above the threshold, and what is at it but for the first `ties` entries."""
    masks = {}
    for name, weight in weights.items():
        magnitudes = [_magnitudes(chunk, weight.dtype) for chunk in _chunks(keys[name])]
        kept = torch.cat([chunk > threshold for chunk in magnitudes]) if magnitudes else torch.ones(0, dtype=torch.bool)
        start = 0
        for chunk in magnitudes:
            tied = (chunk == threshold).nonzero().flatten()
            kept[start + tied[ties:]] = True
            ties -= min(ties, len(tied))
            start += len(chunk)
        masks[name] = kept.reshape(weight.shape)
    return masks
