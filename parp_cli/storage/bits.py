"""Boolean tensors as bits: how masks are stored in files."""

import zlib

import numpy as np
import torch
from torch import Tensor

from parp_cli.errors import MaskError


def pack(mask: Tensor) -> Tensor:
    """Bits (ceil(n / 8),) uint8 of a boolean mask, row-major, first bit highest, the last byte padded with 0."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1)))


def unpack(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The boolean mask of `shape` that `pack` was given; a MaskError where the bytes do not fit the shape."""
    count = int(np.prod(shape, dtype=np.int64))
    if packed.dtype != torch.uint8 or packed.numel() != (count + 7) // 8:
        raise MaskError(f"a packed mask of {packed.numel()} bytes does not fit shape {tuple(shape)}")
    bits = np.unpackbits(packed.numpy(), count=count)
    return torch.from_numpy(bits.astype(np.bool_)).reshape(shape)


def shortened(packed: Tensor) -> Tensor:
    """Bits compressed by zlib, where that makes them fewer bytes (of sparse or structured masks)."""
    coded = zlib.compress(packed.numpy().tobytes(), 9)
    return torch.frombuffer(bytearray(coded), dtype=torch.uint8) if len(coded) < packed.numel() else packed


def lengthened(coded: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The bits (ceil(n / 8),) that `shortened` was given; a MaskError where they are none of a mask of this shape."""
    size = (int(np.prod(shape, dtype=np.int64)) + 7) // 8
    if coded.numel() >= size:
        return coded
    try:
        expanded = zlib.decompressobj().decompress(coded.numpy().tobytes(), size + 1)
    except zlib.error as error:
        raise MaskError("a compressed mask is damaged", details=[str(error)]) from error
    return torch.frombuffer(bytearray(expanded), dtype=torch.uint8)
