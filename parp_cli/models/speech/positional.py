"""The positional convolution of an encoder through the frequency domain.

Its kernel of 128 frames is long enough for that to save most of the arithmetic: on a CPU and cached features the direct
convolution takes 8 % of an update of wav2vec 2.0 base, this 2 %. The frames are cut into overlapping blocks of two
kernels' length (overlap-save), whose spectra are multiplied with the kernels' group by group. The transforms are
products with matrices of sines and cosines: at this length those are quicker than fast Fourier transforms, and put the
frequency first, as the products by group need it. Equal to the direct convolution to rounding.

B utterances, T frames, D features, G groups, c = D / G channels of one, K kernel length, N block length,
f = N / 2 + 1 frequencies.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d

_FEW_KERNELS = 4
"""Lengths of the kernel from which on an input is long enough for the kernel's transform to pay."""

_GROUPS_AT_ONCE = 4
"""The spectra of a released encoder's kernels take 38 MB. Parts of 10 MB reuse memory; for larger ones the
system would clear new pages, which takes four times as long."""


@lru_cache(maxsize=8)
def _transforms(kernel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices to the spectra, real parts above imaginary ones, of a block (2f, N) and of a reversed kernel (2f, K),
    and from the spectrum of a product to the frames of a block that do not wrap around (N - K + 1, 2f)."""
    size = 2 * kernel
    with torch.inference_mode(False):  # they are used in training too
        angles = (torch.arange(kernel + 1)[:, None] * torch.arange(size) % size).double() * (math.pi / kernel)
        cosines, sines = angles.cos(), angles.sin()
        twice = torch.full((kernel + 1, 1), 2.0, dtype=torch.float64)  # for the negative frequencies
        twice[0] = twice[-1] = 1.0
        back = torch.cat([twice * cosines, -twice * sines])[:, : size - kernel + 1].T / size
        forth, reversed_ = torch.cat([cosines, -sines]), torch.cat([cosines, sines])[:, :kernel]
        return forth.to(dtype), reversed_.to(dtype).contiguous(), back.to(dtype).contiguous()


def convolve(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Correlation of each channel's frames with the kernels of its group: `conv1d` that keeps the number of frames.

    Args:
        x: (B, T, D), taken as zero before and after.
        weight: (D, c, K), applied from K // 2 frames before a frame on.
        groups: G.

    Returns:
        (B, T, D).
    """
    batch, frames, _ = x.shape
    channels, kernel = weight.shape[1:]
    forth, reversed_, back = _transforms(kernel, x.dtype)
    step, size = back.shape[0], forth.shape[1]
    blocks = math.ceil(frames / step)
    before = kernel // 2
    padded = torch.nn.functional.pad(x, (0, 0, before, (blocks - 1) * step + size - before - frames))
    parts = []
    for first in range(0, groups, _GROUPS_AT_ONCE):
        part = slice(first * channels, min(first + _GROUPS_AT_ONCE, groups) * channels)
        signals = padded[..., part].unfold(1, size, step).permute(3, 0, 1, 2)  # (N, B, blocks, channels)
        of_signals = (forth @ signals.reshape(size, -1)).view(len(forth), batch * blocks, -1, channels).transpose(1, 2)
        kernels = (reversed_ @ weight[part].reshape(-1, kernel).T).view(len(forth), -1, channels, channels)
        a, b = of_signals.chunk(2)
        c, d = kernels.transpose(-1, -2).chunk(2)
        spectrum = torch.cat([a @ c - b @ d, a @ d + b @ c])  # (2f, groups, B · blocks, channels)
        made = back @ spectrum.transpose(1, 2).reshape(len(forth), -1)
        parts.append(made.view(step, batch, blocks, -1).permute(1, 2, 0, 3).reshape(batch, blocks * step, -1))
    return torch.cat(parts, -1)[:, :frames]


def pays(x: Tensor, kernel: int) -> bool:
    """Whether this way is the faster one on a CPU for the frames of x (B, T, D)."""
    return x.shape[0] * x.shape[1] >= _FEW_KERNELS * kernel


def frequency_convolution(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> Tensor:
    """`convolve` and a bias (D,), in float32 at least, which sums over frequencies need; in the precision of x."""
    with torch.autocast("cpu", enabled=False):
        exact = x if x.dtype == torch.float64 else x.float()
        return (convolve(exact, weight.to(exact.dtype), groups) + bias).to(x.dtype)


def direct_convolution(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """As many frames (B, T, D) of x (B, T, D) as it has, by a convolution that is padded by half its kernel.

    On a CPU in float32 and in the precision of x, where another one would round to bfloat16: of groups of few channels
    oneDNN's kernels for AMX make numbers that have nothing to do with the convolution.
    """
    rounds = x.dtype == torch.bfloat16 or (x.dtype == torch.float32 and torch.is_autocast_enabled("cpu"))
    if rounds and x.device.type == "cpu":
        with torch.autocast("cpu", enabled=False):
            weight, bias = conv.weight.float(), None if conv.bias is None else conv.bias.float()
            made = conv1d(x.mT.float(), weight, bias, padding=conv.kernel_size[0] // 2, groups=conv.groups).to(x.dtype)
    else:
        made = conv(x.mT)
    return made[..., : x.shape[1]].mT
