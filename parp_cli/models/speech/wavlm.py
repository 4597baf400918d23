"""WavLM's attention: relative positions that each frame weighs by a gate (Chen et al. 2022, section III-B).

B utterances, T frames, D features, H heads of d = D / H features, N buckets. A layer may have kept h of the H heads.
"""

import math

import torch
from torch import Tensor, nn

from parp_cli.models.speech.attention import attend
from parp_cli.models.speech.dropout import Dropout
from parp_cli.models.speech.linear import Linear, linear


class PackedProjections(nn.Module):
    """Query, key and value projections as one matrix (3·h·d, D), under the names of torch's MultiheadAttention."""

    def __init__(self, features: int, inner: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * inner, features))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * inner))
        self.out_proj = Linear(inner, features)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Queries, keys and values (B, T, 3·h·d) of (B, T, D)."""
        return linear(x, self.in_proj_weight, self.in_proj_bias)


class RelativeAttention(nn.Module):
    """Attention with gated relative positions, whose embedding the first layer with heads has and shares with all.

    Each of the H heads has its own part of the hidden states for its gate, and its own positions. `kept` are those that
    this layer has, by their numbers; None for all.
    """

    _bucket_of: Tensor

    def __init__(
        self,
        features: int,
        heads: int,
        dropout: float,
        *,
        kept: tuple[int, ...] | None = None,
        buckets: int,
        max_distance: int,
        makes_position_bias: bool,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.kept = None if kept is None else list(kept)
        count = heads if kept is None else len(kept)
        self.max_distance = max_distance
        self.makes_position_bias = makes_position_bias
        if makes_position_bias:
            self.rel_attn_embed = nn.Embedding(buckets, heads)
            # Where the weights are, so that no pass copies it there.
            self.register_buffer("_bucket_of", bucket_of(buckets, max_distance), persistent=False)
        self.attention = PackedProjections(features, features // heads * count)
        self.gru_rel_pos_linear = Linear(features // heads, 8)
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, count, 1, 1))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None, position_bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, T, D) of (B, T, D) and a mask (B, 1, 1, T), and the position bias (1, H, T, T) of all layers."""
        if position_bias is None:
            position_bias = self._position_bias(x.shape[1], x.device)
        own = x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)
        own_bias = position_bias
        if self.kept is not None:
            own, own_bias = own[:, self.kept], position_bias[:, self.kept]
        gates: Tensor = self.gru_rel_pos_linear(own)
        gates = gates.view(*gates.shape[:3], 2, 4).sum(-1).sigmoid()  # (B, h, T, 2)
        update, reset = gates.chunk(2, dim=-1)
        bias = (update * (reset * self.gru_rel_pos_const - 1.0) + 2.0) * own_bias
        if mask is not None:
            bias = bias + mask
        query, key, value = (
            part.unflatten(2, (own.shape[1], -1)).transpose(1, 2) for part in self.attention(x).chunk(3, -1)
        )
        return self.attention.out_proj(attend(query, key, value, bias, self.dropout)), position_bias

    def _position_bias(self, frames: int, device: torch.device) -> Tensor:
        """(1, H, T, T): the embedding of each pair's bucket."""
        places = torch.arange(frames, device=device)
        offsets = (places[None, :] - places[:, None]).clamp(-self.max_distance, self.max_distance)
        pairs = self._bucket_of[offsets + self.max_distance]
        result: Tensor = self.rel_attn_embed(pairs).permute(2, 0, 1)[None]
        return result


def bucket_of(buckets: int, max_distance: int) -> Tensor:
    """The bucket of each offset from `-max_distance` to `max_distance`: near ones have one each, others by logarithm.

    All that are farther have that of the farthest. Half of the buckets are for keys that come later.
    """
    half = buckets // 2
    exact = half // 2
    # On the CPU, so that rounding of logarithms is the same everywhere; also where networks have no values.
    offsets = torch.arange(-max_distance, max_distance + 1, device="cpu")
    distances = offsets.abs()
    scale = (half - exact) / math.log(max_distance / exact)
    far = exact + (torch.log(distances.clamp(min=1).float() / exact) * scale).long()
    return torch.where(distances < exact, distances, far.clamp(max=half - 1)) + (offsets > 0).long() * half
