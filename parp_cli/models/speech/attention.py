"""Attention of queries, keys and values, on a CPU with a dropout that costs little.

B utterances, T frames, H heads of d features.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from parp_cli.models.speech.dropout import PIECE, Dropout, draw_seed, drop_, on_cpu


class _Attention(torch.autograd.Function):
    """softmax(q kᵀ / √d + bias) with dropout, times v: few heads of an utterance at a time, which stay in the cache.

    The softmax P is kept, and seeds to make A from it again, what dropout leaves. With dA = dO Vᵀ, dS = A ∘ dA − P ∘ r,
    where the row sums r, of A ∘ dA, are those of dO ∘ O (Dao et al. 2022, section 3.1). torch's own way keeps two more
    (B, H, T, T) floats, and is half as fast.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, probability: float) -> Tensor:
        """Queries, keys and values (B, H, T, d), bias (B, H or 1, T or 1, T); output (B, H, T, d)."""
        batch, heads, frames, size = query.shape
        output = value.new_empty(batch, frames, heads, value.shape[-1]).transpose(1, 2)
        # A tensor for each utterance: the memory of much larger ones would be mapped anew, page by page.
        weights = [query.new_empty(heads, frames, frames) for _ in range(batch)]
        bias = bias.expand(-1, heads, -1, -1)
        step = max(1, PIECE // frames**2)
        parts = [(row, slice(first, first + step)) for row in range(batch) for first in range(0, heads, step)]
        ctx.probability, ctx.parts = probability, [(part, draw_seed()) for part in parts]
        for at, seed in ctx.parts:
            p = weights[at[0]][at[1]]
            torch.baddbmm(bias[at], query[at], key[at].transpose(1, 2), alpha=size**-0.5, out=p)
            torch.softmax(p, -1, out=p)
            torch.bmm(drop_(p.clone(), probability, seed), value[at], out=output[at])
        ctx.save_for_backward(query, key, value, output, *weights)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        query, key, value, output, *weights = ctx.saved_tensors
        rows = (gradient * output).sum(-1, keepdim=True)
        of_query, of_key, of_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        of_bias = query.new_empty(len(weights), *weights[0].shape) if ctx.needs_input_grad[3] else None
        for at, seed in ctx.parts:
            p = weights[at[0]][at[1]]
            a = drop_(p.clone(), ctx.probability, seed)
            torch.bmm(a.transpose(1, 2), gradient[at], out=of_value[at])
            scores = torch.bmm(gradient[at], value[at].transpose(1, 2)).mul_(a).addcmul_(p, rows[at], value=-1.0)
            torch.bmm(scores, key[at], out=of_query[at])
            torch.bmm(scores.transpose(1, 2), query[at], out=of_key[at])
            if of_bias is not None:
                of_bias[at] = scores
        alpha = query.shape[-1] ** -0.5
        return of_query.mul_(alpha), of_key.mul_(alpha), of_value, of_bias, None


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: Dropout) -> Tensor:
    """softmax(q kᵀ / √d + bias) v, with dropout of the softmax in training.

    Args:
        query, key, value: (B, H, T, d).
        bias: (B, H, T, T), or (B, 1, 1, T) and without gradient, or None.
        dropout: of attention weights.

    Returns:
        (B, T, H · d).
    """
    probability = dropout.p if dropout.training else 0.0
    if 0.0 < probability < 1.0 and on_cpu(query):
        bias = query.new_zeros(len(query), 1, 1, 1) if bias is None else bias.to(query.dtype)
        with torch.autocast("cpu", enabled=False):
            output: Tensor = _Attention.apply(query, key, value, bias, probability)  # type: ignore[no-untyped-call]
    else:
        output = scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=probability)
    return output.transpose(1, 2).flatten(2)
