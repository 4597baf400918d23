"""Passes over the magnitudes of many tensors: counted, collected and compared, without a copy of them.

A magnitude is compared as its bits: those of a non-negative IEEE float, read as an integer, are in the order of the
floats. On the CPU the work goes in pieces that stay in the cache, dealt to as many threads as torch uses
(`torch.get_num_threads()`), in NumPy, whose comparisons are several times faster than torch's on integers and on
booleans; other devices run the same in torch. What comes out does not depend on pieces, threads or device.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Integers = NDArray[np.signedinteger[Any]]
Found = TypeVar("Found")

_CPU_PIECE = 1 << 18
"""Entries looked at together on the CPU: a megabyte, so that they and what is made of them stay in the cache.
A multiple of 8, as is the next, so that each piece fills whole bytes of a packed mask."""

_DEVICE_PIECE = 1 << 24
"""The same elsewhere, where each piece costs a wait for the device but takes memory."""

_FEW_PIECES = 4
"""Up to so many pieces are done sooner than threads are started."""


@dataclass(frozen=True)
class FloatFormat:
    """How a dtype's bits are read: as which integer, where the sign is not, and which are infinity's."""

    integer: torch.dtype
    magnitude: int
    infinity: int

    def none(self) -> Integers:
        """An empty array of these integers."""
        return np.empty(0, dtype=np.int32 if self.integer == torch.int32 else np.int16)


FORMATS = {
    torch.float32: FloatFormat(torch.int32, 0x7FFF_FFFF, 0x7F80_0000),
    torch.float16: FloatFormat(torch.int16, 0x7FFF, 0x7C00),
    torch.bfloat16: FloatFormat(torch.int16, 0x7FFF, 0x7F80),
}


@dataclass(frozen=True)
class Counts:
    """What one pass over tensors found, by the number of the tensor.

    Attributes:
        below: how many magnitudes are below the bracket.
        inside: how many are in it, bounds included.
        largest: the largest magnitude, -1 of an empty tensor. NaNs are above infinity.
        collected: the magnitudes in the bracket, in any order; empty if they were only counted.
    """

    below: NDArray[np.int64]
    inside: NDArray[np.int64]
    largest: NDArray[np.int64]
    collected: list[Integers]


@dataclass(frozen=True)
class _Piece:
    """Entries `start` to `stop` of the tensor with this number."""

    number: int
    start: int
    stop: int


def bits_of(weight: Tensor) -> Tensor:
    """The weight's bits (n,) as integers, sign included; a view where the weight is contiguous."""
    return weight.detach().reshape(-1).view(FORMATS[weight.dtype].integer)


def count(tensors: Sequence[Tensor], form: FloatFormat, low: int, high: int, *, collect: bool) -> Counts:
    """One pass: how many magnitudes are below `low` and how many from `low` to `high`, which are collected or not.

    Args:
        tensors: as `bits_of` gives them.
        form: of the dtype that they are bits of.
        low, high: magnitudes.
        collect: whether to return the magnitudes from `low` to `high`.
    """
    below, inside = np.zeros(len(tensors), dtype=np.int64), np.zeros(len(tensors), dtype=np.int64)
    largest = np.full(len(tensors), -1, dtype=np.int64)
    collected: list[list[Integers]] = [[form.none()] for _ in tensors]

    def look(piece: _Piece, bits: Tensor, scratch: _Scratch) -> tuple[int, int, int, Integers | None]:
        if _in_numpy(bits):
            return _count_on_cpu(bits.numpy(), scratch, form, low, high, collect=collect)
        return _count_on_device(bits, form, low, high, collect=collect)

    for piece, (piece_below, piece_inside, piece_largest, magnitudes) in _over_pieces(tensors, look):
        below[piece.number] += piece_below
        inside[piece.number] += piece_inside
        largest[piece.number] = max(largest[piece.number], piece_largest)
        if magnitudes is not None:
            collected[piece.number].append(magnitudes)
    return Counts(below, inside, largest, [np.concatenate(parts) for parts in collected])


def sample(tensors: Sequence[Tensor], form: FloatFormat, share: float, *, seed: int) -> Integers:
    """Magnitudes (m,) drawn at random, with replacement: about `share` of each tensor.

    At random and not evenly spaced: entries in the pattern 2:4, for one, would all be zeros or none.
    """
    generator = np.random.default_rng(seed)
    drawn = [form.none()]
    for bits in tensors:
        places = generator.integers(0, max(1, len(bits)), size=round(share * len(bits)))
        if _in_numpy(bits):
            drawn.append(bits.numpy()[places])
        else:
            drawn.append(bits[torch.from_numpy(places).to(bits.device)].cpu().numpy())
    return np.concatenate(drawn) & form.magnitude


def above(tensors: Sequence[Tensor], form: FloatFormat, threshold: int, *, or_at: Sequence[bool]) -> list[Tensor]:
    """By tensor, which magnitudes (n,) are above the threshold, and those at it too where `or_at` says so."""
    results = [torch.empty(len(bits), dtype=torch.bool, device=bits.device) for bits in tensors]

    def look(piece: _Piece, bits: Tensor, scratch: _Scratch) -> None:
        out = results[piece.number][piece.start : piece.stop]
        if _in_numpy(bits):
            compare = np.greater_equal if or_at[piece.number] else np.greater
            compare(scratch.magnitudes(bits.numpy(), form), threshold, out=out.numpy())
        else:
            torch.ge(bits & form.magnitude, threshold + (not or_at[piece.number]), out=out)

    for _ in _over_pieces(tensors, look):
        pass
    return results


def packed_above(bits: Tensor, form: FloatFormat, threshold: int, *, or_at: bool) -> Tensor:
    """As `above` for one tensor, in bits as `bits.pack` puts them, (ceil(n / 8),) uint8 on the CPU.

    Packed piece by piece: a boolean tensor would be eight times as large, and freeing it leaves a hole that is no use.
    """
    packed = np.empty((len(bits) + 7) // 8, dtype=np.uint8)

    def look(piece: _Piece, part: Tensor, scratch: _Scratch) -> None:
        if _in_numpy(part):
            compare = np.greater_equal if or_at else np.greater
            kept = compare(scratch.magnitudes(part.numpy(), form), threshold, out=scratch.booleans(len(part))[0])
        else:
            kept = torch.ge(part & form.magnitude, threshold + (not or_at)).cpu().numpy()
        packed[piece.start // 8 : (piece.stop + 7) // 8] = np.packbits(kept)

    for _ in _over_pieces([bits], look):
        pass
    return torch.from_numpy(packed)


def first_at(bits: Tensor, form: FloatFormat, threshold: int, wanted: int) -> Tensor:
    """Positions (wanted,) of the first magnitudes of one tensor that are at the threshold."""
    found: list[Tensor] = []
    for start in range(0, len(bits), _piece_length(bits)):
        magnitudes = bits[start : start + _piece_length(bits)] & form.magnitude
        positions = (magnitudes == threshold).nonzero().flatten()[:wanted]
        found.append(positions + start)
        wanted -= len(positions)
        if wanted == 0:
            break
    return torch.cat(found)


class _Scratch:
    """Buffers of one thread, used for every piece: fresh memory would cost more than the comparisons."""

    def __init__(self, length: int) -> None:
        self._integers: dict[Any, Integers] = {}
        self._booleans = [np.empty(length, dtype=np.bool_) for _ in range(2)]
        self._length = length

    def magnitudes(self, bits: Integers, form: FloatFormat) -> Integers:
        if bits.dtype not in self._integers:
            self._integers[bits.dtype] = np.empty(self._length, dtype=bits.dtype)
        return np.bitwise_and(bits, form.magnitude, out=self._integers[bits.dtype][: len(bits)])

    def booleans(self, length: int) -> list[NDArray[np.bool_]]:
        return [buffer[:length] for buffer in self._booleans]


def _count_on_cpu(
    bits: Integers, scratch: _Scratch, form: FloatFormat, low: int, high: int, *, collect: bool
) -> tuple[int, int, int, Integers | None]:
    magnitudes = scratch.magnitudes(bits, form)
    is_below, is_inside = scratch.booleans(len(bits))
    np.less(magnitudes, low, out=is_below)
    np.less_equal(magnitudes, high, out=is_inside)
    np.not_equal(is_below, is_inside, out=is_inside)
    collected = magnitudes[is_inside] if collect else None
    inside = int(np.count_nonzero(is_inside)) if collected is None else len(collected)
    return int(np.count_nonzero(is_below)), inside, int(magnitudes.max()), collected


def _count_on_device(
    bits: Tensor, form: FloatFormat, low: int, high: int, *, collect: bool
) -> tuple[int, int, int, Integers | None]:
    magnitudes = bits & form.magnitude
    is_inside = (magnitudes >= low) & (magnitudes <= high)
    numbers = torch.stack([(magnitudes < low).sum(), is_inside.sum(), magnitudes.max().long()])
    below, inside, largest = numbers.tolist()  # one wait for the device, not three
    return below, inside, largest, magnitudes[is_inside].cpu().numpy() if collect else None


def _in_numpy(bits: Tensor) -> bool:
    return bits.device.type == "cpu"


def _piece_length(bits: Tensor) -> int:
    return _CPU_PIECE if _in_numpy(bits) else _DEVICE_PIECE


def _over_pieces(
    tensors: Sequence[Tensor], look: Callable[[_Piece, Tensor, _Scratch], Found]
) -> Iterator[tuple[_Piece, Found]]:
    """Call `look` for every piece of every tensor, on several threads if there are many; in the order of the pieces."""
    pieces = [
        _Piece(number, start, min(start + length, len(bits)))
        for number, (bits, length) in enumerate((bits, _piece_length(bits)) for bits in tensors)
        for start in range(0, len(bits), length)
    ]
    waiting = deque(enumerate(pieces))
    results: list[Any] = [None] * len(pieces)
    longest = max((piece.stop - piece.start for piece in pieces), default=0)

    def work() -> None:
        scratch = _Scratch(min(longest, _CPU_PIECE))
        while waiting:
            try:
                place, piece = waiting.popleft()
            except IndexError:  # another thread took the last
                return
            results[place] = look(piece, tensors[piece.number][piece.start : piece.stop], scratch)

    threads = torch.get_num_threads() if all(map(_in_numpy, tensors)) else 1
    if len(pieces) <= _FEW_PIECES or threads == 1:
        work()
    else:
        with ThreadPoolExecutor(threads) as pool:
            for finished in [pool.submit(work) for _ in range(threads)]:
                finished.result()
    return zip(pieces, results, strict=True)
