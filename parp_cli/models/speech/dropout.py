"""Dropout that costs little on a CPU, in time and in what is kept for the backward pass.

torch draws one random number per entry (6 ns) and keeps a float for each. Here NumPy's SFC64 fills 64 bits in 1.7 ns,
16 of which make a decision, and only the seed is kept. With dropout everywhere that is a sixth of an update of
wav2vec 2.0 base. Other devices, and compilers, get torch's own.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_LEVELS = 1 << 16
"""Values of the bits behind one decision; a dropout probability is rounded to a multiple of 1 / `_LEVELS`."""

PIECE = 1 << 19
"""Entries worked on together, 2 MB of float32, which stay in the cache."""


def on_cpu(tensor: Tensor) -> bool:
    """Whether to take the CPU's own path, which a compiler or exporter should not see."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def draw_seed() -> int:
    """A seed for `drop_`, from torch's global generator, so that `torch.manual_seed` governs all dropout."""
    return int(torch.randint(1 << 62, ()).item())


def drop_(values: Tensor, probability: float, seed: int) -> Tensor:
    """Zero entries of contiguous values on the CPU in place, the same ones for the same seed, and scale the others."""
    dropped = min(round(probability * _LEVELS), _LEVELS - 1)
    scale = _LEVELS / (_LEVELS - dropped)
    generator = np.random.SFC64(seed)
    mask = values.new_empty(min(PIECE, values.numel()))
    for piece in torch.split(values.view(-1), PIECE):
        words = generator.random_raw(math.ceil(len(piece) / 4))
        levels = torch.from_numpy(words.view(np.int16))[: len(piece)]
        # Comparing into floats is four times as fast as into booleans.
        piece.mul_(torch.ge(levels, dropped - _LEVELS // 2, out=mask[: len(piece)])).mul_(scale)
    return values


class _Dropout(torch.autograd.Function):
    """Keeps a seed, as drawing the same bits again is as quick as reading them."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, probability: float, inplace: bool) -> Tensor:
        ctx.probability, ctx.seed = probability, draw_seed()
        if not inplace:
            return _dropped(values, ctx)
        ctx.mark_dirty(values)
        return drop_(values, probability, ctx.seed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _dropped(gradient, ctx), None, None


def _dropped(values: Tensor, drawn: Any) -> Tensor:
    return drop_(values.clone(memory_format=torch.contiguous_format), drawn.probability, drawn.seed)


class Dropout(nn.Dropout):
    """torch's, but fast on the CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Zero entries with probability `p` in training, and scale the others."""
        if not (self.training and 0.0 < self.p < 1.0 and on_cpu(input)):
            return super().forward(input)
        result: Tensor = _Dropout.apply(input, self.p, self.inplace)  # type: ignore[no-untyped-call]
        return result


_recomputes = ContextVar("_recomputes", default=True)


@contextmanager
def nothing_recomputed() -> Iterator[None]:
    """Let `recomputed` do nothing: for layers that are computed again as a whole, which unpack each tensor once."""
    token = _recomputes.set(False)
    try:
        yield
    finally:
        _recomputes.reset(token)


def recomputed(kept: Tensor, compute: Callable[[], Tensor]) -> AbstractContextManager[Any]:
    """Let operators in this context save no copy of `kept` for the backward pass, but compute its values again there.

    Args:
        kept: an input of the operators. Nothing else should hold on to it.
        compute: makes the same values again.
    """
    if kept.grad_fn is None or not on_cpu(kept) or not _recomputes.get():
        return nullcontext()
    address = kept.untyped_storage().data_ptr()

    def pack(saved: Tensor) -> Tensor | tuple[torch.Size, tuple[int, ...]]:
        return (saved.shape, saved.stride()) if saved.untyped_storage().data_ptr() == address else saved

    def unpack(saved: Tensor | tuple[torch.Size, tuple[int, ...]]) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        with torch.no_grad():
            return compute().as_strided(*saved)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def dropped_again(values: Tensor, before: Any, after: Any) -> Tensor:
    """Dropout of the same values by the same decisions, without gradients.

    Args:
        values: what was dropped from.
        before: the `grad_fn` of these.
        after: the `grad_fn` of the result; the same where nothing was dropped.
    """
    return values if after is before else _dropped(values, after)
