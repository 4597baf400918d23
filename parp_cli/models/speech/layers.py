"""The linear and feed-forward layers of an encoder, as torchaudio's but faster on a CPU; and all such put in place.

B utterances, T frames, D features.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchaudio.models.wav2vec2 import components

from parp_cli.models.speech.attention import SelfAttention
from parp_cli.models.speech.dropout import PIECE, Decisions, Dropout, by_hand, draw_seed, pieces_of
from parp_cli.models.speech.positional import ConvolutionalPositionalEmbedding

_ONEDNN = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if torch._C._has_mkldnn and torch.backends.cpu.get_cpu_capability() == "AVX512"
    else None
)
"""oneDNN's matrix product, which torch takes for bfloat16 but not for float32, where it asks MKL. With AVX-512 (Zen 4)
oneDNN's is 6 % faster, and 10 % for the gradient of a layer's input, in the shapes of wav2vec 2.0 base; with GELU in
it, 20 % faster than MKL's and GELU after it."""

_FRAMES_AT_ONCE = 1000
"""In a feed-forward block without gradients: what it makes of so many frames, 12 MB in base, stays in the cache. For
3,000 frames at once the system would also clear pages each time; in bfloat16 that takes 15 % longer."""


def product(left: Tensor, right: Tensor, bias: Tensor | None = None, *, activate: bool = False) -> Tensor:
    """`left` (..., n) times the transpose of `right` (m, n), plus bias (m,): torch's `linear`, without gradients.

    Args:
        left, right, bias: of one dtype.
        activate: whether GELU comes after it.
    """
    # Without GELU torch's own way with bfloat16 is the same.
    known = left.dtype == torch.float32 or (activate and left.dtype == torch.bfloat16)
    if _ONEDNN is not None and known and left.numel() and right.numel():
        result: Tensor = _ONEDNN(left, right, bias, "gelu" if activate else "none", [], "none")
        return result
    result = torch.nn.functional.linear(left, right, bias)
    return torch.nn.functional.gelu(result) if activate else result


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, weight)
        return product(values, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        values, weight = ctx.saved_tensors
        of_values, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        return (
            product(gradient, weight.t()) if of_values else None,
            rows.t().mm(values.reshape(-1, values.shape[-1])) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


class Linear(nn.Linear):
    """As torch's, but faster on the CPU in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., m) of (..., n)."""
        if not _for_products(input):
            return super().forward(input)
        if not torch.is_grad_enabled():
            return product(input, self.weight, self.bias)
        result: Tensor = _Linear.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result


def _for_products(values: Tensor) -> bool:
    return (
        _ONEDNN is not None
        and values.dtype == torch.float32
        and by_hand(values)
        and not torch.is_autocast_enabled("cpu")
    )


class _Activated(torch.autograd.Function):
    """GELU, then dropout, then a linear layer: nothing between them is kept, as it is quick to make anew.

    For 4 × 10 s in wav2vec 2.0 base that is 31 MB less in each layer.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None, probability: float) -> Tensor:
        ctx.probability, ctx.seed = probability, draw_seed() if probability > 0 else 0
        ctx.save_for_backward(values, weight)
        active = torch.empty_like(values)
        for source, piece, mask in _pieces(values, active, probability, ctx.seed):
            torch.ops.aten.gelu.out(source, out=piece)
            if mask is not None:
                piece.mul_(mask)
        return product(active, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        values, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_values = product(gradient, weight.t())
        active = torch.empty_like(values)
        pieces = _pieces(values, active, ctx.probability, ctx.seed)
        for (source, piece, mask), change in zip(pieces, pieces_of(of_values), strict=True):
            torch.ops.aten.gelu.out(source, out=piece)
            if mask is not None:
                piece.mul_(mask)
                change.mul_(mask)
            torch.ops.aten.gelu_backward.grad_input(change, source, grad_input=change)
        _, of_weight, of_bias, _ = ctx.needs_input_grad
        return (
            of_values,
            rows.t().mm(active.view(-1, active.shape[-1])) if of_weight else None,
            rows.sum(0) if of_bias else None,
            None,
        )


def _pieces(
    values: Tensor, results: Tensor, probability: float, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """Pieces of contiguous values, where their results go, and what dropout multiplies them by (None: nothing)."""
    decisions = Decisions(probability, seed) if probability > 0 else None
    mask = values.new_empty(min(PIECE, values.numel()))
    for source, piece in zip(pieces_of(values), pieces_of(results), strict=True):
        drawn = None if decisions is None else decisions.as_mask(mask[: len(piece)]).mul_(decisions.scale)
        yield source, piece, drawn


class FeedForward(components.FeedForward):  # type: ignore[misc]
    """As torchaudio's, but faster on the CPU, and in training keeping less than half for the backward pass.

    There the weights of its linear layers are used without calling them, so that hooks on them would not run.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) of (B, T, D)."""
        if by_hand(x) and not torch.is_grad_enabled() and not self.training:
            return self._in_parts(x)
        if not (torch.is_grad_enabled() and by_hand(x)):
            result: Tensor = super().forward(x)
            return result
        hidden = self.intermediate_dense(x).contiguous()
        dropout = self.intermediate_dropout
        last = self.output_dense
        bias = None if last.bias is None else last.bias.to(hidden.dtype)
        probability = dropout.p if dropout.training else 0.0
        output: Tensor = _Activated.apply(hidden, last.weight.to(hidden.dtype), bias, probability)  # type: ignore[no-untyped-call]
        output = self.output_dropout(output)
        return output

    def _in_parts(self, x: Tensor) -> Tensor:
        """Without gradients or dropout, some frames at a time."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        first, last = _weights(self.intermediate_dense, dtype), _weights(self.output_dense, dtype)
        rows = x.to(dtype).reshape(-1, x.shape[-1])
        parts = [product(product(part, *first, activate=True), *last) for part in torch.split(rows, _FRAMES_AT_ONCE)]
        return torch.cat(parts).view(*x.shape[:-1], -1)


def _weights(layer: nn.Linear, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype)


_FASTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.Dropout: Dropout,
    nn.Linear: Linear,
    components.ConvolutionalPositionalEmbedding: ConvolutionalPositionalEmbedding,
    components.FeedForward: FeedForward,
    components.SelfAttention: SelfAttention,
}


def quicken(encoder: nn.Module) -> None:
    """Let the modules of an encoder of torchaudio's compute in this package's ways: the same, but faster on a CPU.

    They stay the objects they are, with their weights under their names, and take another class.
    """
    for module in encoder.modules():
        if (faster := _FASTER.get(type(module))) is not None:
            module.__class__ = faster
