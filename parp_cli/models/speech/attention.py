"""Attention in training on a CPU, a few heads at a time.

torch's own has two ways. The one without dropout computes all scores anew in the backward pass, and in bfloat16 takes
twice as long as its matrix products; the one with dropout holds several (B, H, T, T) tensors, whose pages the system
must hand out anew in each layer, and draws its decisions one by one. Here the scores of few heads are worked on where
they are, in the cache, and the attention weights alone are kept. Forward and backward pass of a layer of wav2vec 2.0
base, 4 × 10 s, on one core: with dropout 150 ms, torch's 400 (bfloat16: 90 and 430); without, in bfloat16, 80 and 150.

B utterances, T frames, D features, H heads, d = D / H.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention as attend
from torchaudio.models.wav2vec2 import components

from parp_cli.models.speech.dropout import PIECE, Decisions, by_hand, draw_seed


class _Attention(torch.autograd.Function):
    """softmax(q kᵀ / √d + bias) with dropout, times v.

    The weights P are kept, with the sign of those that were dropped turned; A are those that were not, unscaled. With
    the gradient scaled as P would be, dV = Aᵀ dO and dS = A ∘ (dO Vᵀ) − P ∘ r, where the softmax's row sums r, of
    A ∘ (dO Vᵀ), are those of dO ∘ O (Dao et al. 2022, section 3.1).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, probability: float) -> Tensor:
        """Queries, keys and values (B, H, T, d), bias (B, 1 or T, T) or None; output (B, H, T, d)."""
        batch, heads, frames, size = query.shape
        output = query.new_empty(batch, frames, heads, size).transpose(1, 2)
        # A tensor for each utterance: much larger ones the system takes back and hands out anew, page by page.
        weights = [query.new_empty(heads, frames, frames) for _ in range(batch)]
        decisions = Decisions(probability, draw_seed()) if probability > 0 else None
        room = query.new_empty(_heads_at_once(frames, heads), frames, frames)
        for row in range(batch):
            for part in _parts(heads, len(room)):
                q, k, v, p = query[row, part], key[row, part], value[row, part], weights[row][part]
                kept = p
                torch.bmm(q, k.transpose(1, 2), out=p).mul_(size**-0.5)
                if bias is not None:
                    p.add_(bias[row])
                torch.softmax(p, -1, out=p)
                if decisions is not None:
                    kept = room[: len(p)]
                    torch.copysign(p, decisions.as_mask(kept).sub_(0.5), out=p)
                    torch.clamp_min(p, 0.0, out=kept)
                torch.bmm(kept, v, out=output[row, part])
        ctx.scale = 1.0 if decisions is None else decisions.scale
        output.mul_(ctx.scale)
        ctx.save_for_backward(query, key, value, output, *weights)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, output, *weights = ctx.saved_tensors
        batch, heads, frames, size = query.shape
        rows = (gradient * output).sum(-1, keepdim=True)
        gradient = gradient * ctx.scale
        found = [torch.empty_like(tensor) for tensor in (query, key, value)]
        room, other = query.new_empty(2, _heads_at_once(frames, heads), frames, frames)
        for row in range(batch):
            for part in _parts(heads, len(room)):
                q, k, v, p = query[row, part], key[row, part], value[row, part], weights[row][part]
                d_q, d_k, d_v = (tensor[row, part] for tensor in found)
                d_o, scores = gradient[row, part], room[: len(p)]
                kept = p if ctx.scale == 1.0 else torch.clamp_min(p, 0.0, out=other[: len(p)])
                torch.bmm(kept.transpose(1, 2), d_o, out=d_v)
                torch.bmm(d_o, v.transpose(1, 2), out=scores)
                if kept is p:
                    scores.sub_(rows[row, part]).mul_(p)
                else:
                    scores.mul_(kept).addcmul_(torch.abs(p, out=kept), rows[row, part], value=-1.0)
                torch.bmm(scores, k, out=d_q)
                torch.bmm(scores.transpose(1, 2), q, out=d_k)
        d_query, d_key, d_value = found
        return d_query.mul_(size**-0.5), d_key.mul_(size**-0.5), d_value, None, None


def _heads_at_once(frames: int, heads: int) -> int:
    return max(1, min(heads, PIECE // frames**2))


def _parts(heads: int, at_once: int) -> list[slice]:
    return [slice(first, min(first + at_once, heads)) for first in range(0, heads, at_once)]


class SelfAttention(components.SelfAttention):  # type: ignore[misc]
    """As torchaudio's, but fast on the CPU in training."""

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Attention (B, T, D) of x (B, T, D).

        Args:
            x: hidden states.
            attention_mask: (B, 1, 1 or T, T), added to the scores. Or (U,): without gradients, x (1, T, D) may be of U
                utterances of these lengths one after the other, each of which attends to itself alone.
            position_bias: not used, of WavLM's layers.
            key_padding_mask: likewise.
        """
        shape = (*x.shape[:2], self.num_heads, self.head_dim)
        query, key, value = (
            projection(x).view(shape).transpose(1, 2) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        dropout = self.dropout if self.training else 0.0
        # In float32 torch's way without dropout is as quick, and keeps no weights.
        better = dropout > 0 or query.dtype == torch.bfloat16
        if better and torch.is_grad_enabled() and query.requires_grad and by_hand(query):
            bias = None if attention_mask is None else attention_mask[:, 0].to(query.dtype)
            output = _Attention.apply(query, key, value, bias, dropout).transpose(1, 2)  # type: ignore[no-untyped-call]
        elif attention_mask is not None and attention_mask.dim() == 1:
            sizes = attention_mask.tolist()
            each = zip(query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True)
            output = torch.cat([attend(q, k, v, dropout_p=dropout).transpose(1, 2) for q, k, v in each], 1)
        else:
            if attention_mask is not None:
                attention_mask = attention_mask.to(query.dtype)
            output = attend(query, key, value, attn_mask=attention_mask, dropout_p=dropout).transpose(1, 2)
        return self.out_proj(output.reshape(x.shape)), None
