"""Passes over the magnitudes of many tensors, piece by piece and without a copy of them.

Magnitudes are compared as integers: the bits of non-negative IEEE floats, read as integers, are in the order of the
floats. On the CPU pieces stay in the cache and are shared by as many threads as torch uses, in NumPy, which compares
integers and handles booleans several times faster than torch does; other devices do the same in torch. Results do not
depend on pieces, threads or device.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.signedinteger[Any]]
Result = TypeVar("Result")

_CPU_PIECE = 1 << 18
"""Entries per piece on the CPU: a megabyte of float32, so that it and its temporaries stay in the cache."""

_DEVICE_PIECE = 1 << 24
"""Entries per piece on other devices, where each piece costs a wait for the device but takes memory."""

_FEW_PIECES = 4
"""Up to this many pieces are done before threads would have started."""


@dataclass(frozen=True)
class FloatFormat:
    """A float dtype as integers: their dtype, the bits without the sign, and the bits of infinity."""

    integer: torch.dtype
    magnitude: int
    infinity: int

    def empty(self, size: int) -> Integers:
        """An uninitialised array of these integers."""
        return np.empty(size, dtype=np.int32 if self.integer == torch.int32 else np.int16)


FORMATS = {
    torch.float32: FloatFormat(torch.int32, 0x7FFF_FFFF, 0x7F80_0000),
    torch.float16: FloatFormat(torch.int16, 0x7FFF, 0x7C00),
    torch.bfloat16: FloatFormat(torch.int16, 0x7FFF, 0x7F80),
}


@dataclass(frozen=True)
class Counts:
    """One pass over tensors with a bracket of magnitudes; one entry per tensor.

    Attributes:
        below: how many magnitudes are below the bracket.
        inside: how many are in it, ends included.
        largest: the largest magnitude, -1 of an empty tensor. NaNs are above infinity.
        collected: the magnitudes in the bracket, in any order; empty where it is a single magnitude.
    """

    below: NDArray[np.int64]
    inside: NDArray[np.int64]
    largest: NDArray[np.int64]
    collected: list[Integers]


class _Piece(NamedTuple):
    """Part of the bits of the tensor with this number; `buffers` are those of the calling thread."""

    number: int
    entries: slice
    bits: Tensor
    buffers: "_Buffers"


def bits_of(weight: Tensor) -> Tensor:
    """The weight's bits (n,) as integers, sign included; a view where the weight is contiguous."""
    return weight.detach().reshape(-1).view(FORMATS[weight.dtype].integer)


def count(tensors: Sequence[Tensor], form: FloatFormat, low: int, high: int) -> Counts:
    """Count the magnitudes below a bracket and in it, and collect the latter unless they are all the same.

    Args:
        tensors: as `bits_of` returns them.
        form: of the dtype that they are bits of.
        low, high: magnitudes, the ends of the bracket.
    """
    below, inside = np.zeros((2, len(tensors)), dtype=np.int64)
    largest = np.full(len(tensors), -1, dtype=np.int64)
    collected: list[list[Integers]] = [[form.empty(0)] for _ in tensors]

    def look(piece: _Piece) -> tuple[int, tuple[int, int, int], Integers]:
        count_piece = _count_in_numpy if _in_numpy(piece.bits) else _count_in_torch
        return piece.number, *count_piece(piece, form, low, high)

    for number, (piece_below, piece_inside, piece_largest), magnitudes in _over_pieces(tensors, form, look):
        below[number] += piece_below
        inside[number] += piece_inside
        largest[number] = max(largest[number], piece_largest)
        collected[number].append(magnitudes)
    return Counts(below, inside, largest, [np.concatenate(parts) for parts in collected])


def sample(tensors: Sequence[Tensor], form: FloatFormat, share: float, *, seed: int) -> Integers:
    """Magnitudes (m,) drawn at random, with replacement: about `share` of each tensor.

    At random and not evenly spaced: of entries in the pattern 2:4 an even spacing would draw only zeros, or none.
    """
    generator = np.random.default_rng(seed)
    drawn = [form.empty(0)]
    for bits in tensors:
        places = torch.from_numpy(generator.integers(0, max(1, len(bits)), size=round(share * len(bits))))
        drawn.append(bits[places.to(bits.device)].cpu().numpy())
    return np.concatenate(drawn) & form.magnitude


def at_least(tensors: Sequence[Tensor], form: FloatFormat, limits: Sequence[int]) -> list[Tensor]:
    """Per tensor, which of its magnitudes (n,) are at or above its limit."""
    results = [torch.empty(len(bits), dtype=torch.bool, device=bits.device) for bits in tensors]

    def look(piece: _Piece) -> None:
        out, limit = results[piece.number][piece.entries], limits[piece.number]
        if _in_numpy(piece.bits):
            np.greater_equal(piece.buffers.magnitudes(piece.bits, form), limit, out=out.numpy())
        else:
            torch.ge(piece.bits & form.magnitude, limit, out=out)

    for _ in _over_pieces(tensors, form, look):
        pass
    return results


def clear_first(mask: Tensor, bits: Tensor, form: FloatFormat, magnitude: int, wanted: int) -> None:
    """Set a mask (n,) to False at the first `wanted` entries that have this magnitude."""
    for start in range(0, len(bits), _piece_length(bits)):
        piece = slice(start, start + _piece_length(bits))
        found = ((bits[piece] & form.magnitude) == magnitude).nonzero().flatten()[:wanted]
        mask[piece][found] = False
        wanted -= len(found)
        if wanted == 0:
            return


class _Buffers(threading.local):
    """Each thread's own, used for every piece: fresh memory would cost more than the comparisons."""

    def __init__(self, form: FloatFormat, length: int) -> None:
        self._integers = form.empty(length)
        self._booleans = np.empty((2, length), dtype=np.bool_)

    def magnitudes(self, bits: Tensor, form: FloatFormat) -> Integers:
        magnitudes: Integers = np.bitwise_and(bits.numpy(), form.magnitude, out=self._integers[: len(bits)])
        return magnitudes

    def booleans(self, length: int) -> NDArray[np.bool_]:
        return self._booleans[:, :length]


def _count_in_numpy(piece: _Piece, form: FloatFormat, low: int, high: int) -> tuple[tuple[int, int, int], Integers]:
    magnitudes = piece.buffers.magnitudes(piece.bits, form)
    is_below, is_inside = piece.buffers.booleans(len(magnitudes))
    np.less(magnitudes, low, out=is_below)
    np.less_equal(magnitudes, high, out=is_inside)
    np.not_equal(is_below, is_inside, out=is_inside)
    inside = int(np.count_nonzero(is_inside))
    collected = magnitudes[is_inside] if low < high else form.empty(0)
    return (int(np.count_nonzero(is_below)), inside, int(magnitudes.max())), collected


def _count_in_torch(piece: _Piece, form: FloatFormat, low: int, high: int) -> tuple[tuple[int, int, int], Integers]:
    magnitudes = piece.bits & form.magnitude
    is_inside = (magnitudes >= low) & (magnitudes <= high)
    numbers = torch.stack([(magnitudes < low).sum(), is_inside.sum(), magnitudes.max().long()])
    below, inside, largest = numbers.tolist()  # one wait for the device, not three
    return (below, inside, largest), magnitudes[is_inside].cpu().numpy() if low < high else form.empty(0)


def _in_numpy(bits: Tensor) -> bool:
    return bits.device.type == "cpu"


def _piece_length(bits: Tensor) -> int:
    return _CPU_PIECE if _in_numpy(bits) else _DEVICE_PIECE


def _over_pieces(tensors: Sequence[Tensor], form: FloatFormat, look: Callable[[_Piece], Result]) -> Iterator[Result]:
    """Call `look` for every piece of every tensor, in several threads if there are many; results in order."""
    on_cpu = all(map(_in_numpy, tensors))
    buffers = _Buffers(form, min(max(map(len, tensors), default=0), _CPU_PIECE) if on_cpu else 0)
    pieces = [
        _Piece(number, entries, bits[entries], buffers)
        for number, bits in enumerate(tensors)
        for start in range(0, len(bits), _piece_length(bits))
        for entries in [slice(start, start + _piece_length(bits))]
    ]
    threads = torch.get_num_threads() if on_cpu else 1
    if len(pieces) <= _FEW_PIECES or threads == 1:
        return map(look, pieces)
    with ThreadPoolExecutor(threads) as pool:
        return pool.map(look, pieces)
