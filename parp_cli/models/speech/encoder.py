"""The networks of wav2vec 2.0, HuBERT, WavLM and data2vec-audio, under torchaudio's state-dict names.

All are a convolutional feature encoder, a projection of its features with convolutions for positions, and Transformer
layers with layer norm before or after each half (Baevski et al. 2020; Hsu et al. 2021; Chen et al. 2022; Baevski et al.
2022). Fresh weights are those that torchaudio's builders draw from the same seed, where it has such a network: modules
are made in their order.

B utterances, S samples, T frames of 20 ms, C feature channels, D features, H heads of d features, F features inside a
feed-forward block, V tokens.
"""

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from torch.utils.checkpoint import checkpoint

from parp_cli.models.speech.attention import attend
from parp_cli.models.speech.dropout import (
    Dropout,
    dropped_again,
    nothing_recomputed,
    on_cpu,
    recomputed,
)
from parp_cli.models.speech.linear import Linear
from parp_cli.models.speech.positional import direct_convolution, frequency_convolution, pays
from parp_cli.models.speech.prunable import is_feature_encoder, is_head, prunable_parameters

if TYPE_CHECKING:
    from parp_cli.models.speech.config import Architecture, ConvLayer

HIDDEN = -1e4
"""Added to the attention scores of padded frames. A number, so that a row of nothing else stays finite."""


_FRAMES_AT_ONCE = 1000
"""Of frames in a feed-forward block without gradients: their hidden values (12 MB in base) stay in the cache."""


class CountingNorm(nn.LayerNorm):
    """Layer norm over C channels, as if there were `counted` of them, the others zero: what it was before those were
    removed."""

    def __init__(self, channels: int, counted: int) -> None:
        super().__init__(channels)
        self.removed = counted - channels

    def normalized(self, x: Tensor) -> Tensor:
        """(…, C) of (…, C)."""
        if not self.removed:
            return super().forward(x)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        counted = x.shape[-1] + self.removed
        mean = x.sum(-1, keepdim=True) / counted
        centred = x - mean
        variance = (centred.square().sum(-1, keepdim=True) + self.removed * mean.square()) / counted
        return centred * (variance + self.eps).rsqrt() * self.weight + self.bias

    def forward(self, input: Tensor) -> Tensor:
        """(…, C) of (…, C)."""
        return self.normalized(input)


class ChannelNorm(CountingNorm):
    """Layer norm over the channels of (B, C, T)."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, T) of (B, C, T)."""
        return self.normalized(input.transpose(1, 2)).transpose(1, 2)


class ConvBlock(nn.Module):
    """A convolution of the feature encoder, its norm if it has one, GELU."""

    def __init__(self, channels: int, layer: "ConvLayer", *, bias: bool, norm: nn.Module | None) -> None:
        super().__init__()
        out_channels, self.kernel_size, self.stride = layer
        self.layer_norm = norm
        self.conv = nn.Conv1d(channels, out_channels, self.kernel_size, self.stride, bias=bias)

    def frames(self, lengths: Tensor) -> Tensor:
        """Frames made of `lengths` frames before."""
        return ((lengths - self.kernel_size).div(self.stride, rounding_mode="floor") + 1).clamp(min=0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) of (B, channels before, frames before)."""
        x = self.conv(x)
        return gelu(x if self.layer_norm is None else self.layer_norm(x))


class FeatureExtractor(nn.Module):
    """The convolutional feature encoder: a group norm after its first convolution, or a layer norm after each."""

    def __init__(self, layers: "Sequence[ConvLayer]", *, bias: bool, group_norm: bool, counted: Sequence[int]) -> None:
        super().__init__()
        blocks: list[ConvBlock] = []
        channels = 1
        for layer, count in zip(layers, counted, strict=True):
            norm: nn.Module | None = None if group_norm else ChannelNorm(layer[0], count)
            if group_norm and not blocks:
                norm = nn.GroupNorm(layer[0], layer[0])
            blocks.append(ConvBlock(channels, layer, bias=bias, norm=norm))
            channels = layer[0]
        self.conv_layers = nn.ModuleList(blocks)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Features (B, T, C) of waveforms (B, S), and the valid frames (B,) of `lengths` (B,) valid samples."""
        x = waveforms[:, None]
        for block in self.conv_layers:
            assert isinstance(block, ConvBlock)
            x = block(x)
            if lengths is not None:
                lengths = block.frames(lengths)
        return x.transpose(1, 2), lengths


class FeatureProjection(nn.Module):
    """From the feature encoder's channels to the Transformer's features."""

    def __init__(self, channels: int, features: int, dropout: float, *, counted: int) -> None:
        super().__init__()
        self.layer_norm = CountingNorm(channels, counted)
        self.projection = Linear(channels, features)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) of (B, T, C)."""
        result: Tensor = self.dropout(self.projection(self.layer_norm(x)))
        return result


class PositionalConvolution(nn.Module):
    """Relative positions as a convolution over many frames, its weight normalised for each place of the kernel."""

    def __init__(self, features: int, kernel: int, groups: int) -> None:
        super().__init__()
        convolution = nn.Conv1d(features, features, kernel, padding=kernel // 2, groups=groups)
        if convolution.weight.is_meta:  # where its norm imports torch's compiler, which takes seconds
            convolution.weight = nn.Parameter(torch.empty(convolution.weight.shape, device="cpu"))
        self.conv = nn.utils.parametrizations.weight_norm(convolution, dim=2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) of (B, T, D), zero where padded; the mask is not needed."""
        del mask
        if on_cpu(x) and pays(x, self.conv.kernel_size[0]):
            return gelu(frequency_convolution(x, self.conv.weight, self.conv.bias, self.conv.groups))
        return gelu(direct_convolution(self.conv, x))


class PositionalLayer(nn.Module):
    """One of the convolutions of a `PositionalStack`, with a norm that has no weights, and GELU."""

    def __init__(self, features: int, kernel: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(features, features, kernel, padding=kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) of (B, T, D)."""
        found = direct_convolution(self.conv, x)
        return gelu(nn.functional.layer_norm(found, found.shape[-1:]))


class PositionalStack(nn.Module):
    """Relative positions as several convolutions over few frames each, under transformers' state-dict names
    (data2vec-audio)."""

    def __init__(self, features: int, kernel: int, groups: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(PositionalLayer(features, kernel, groups) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) of (B, T, D), zero where padded, and a mask as `Transformer.forward` takes it.

        Biases and norms make something of padding, which the next convolution must not see.
        """
        for layer in self.layers:
            x = layer(x)
            if mask is not None:
                x = x.masked_fill(mask[:, 0, 0, :, None] != 0, 0.0)
        return x


class SelfAttention(nn.Module):
    """Attention of wav2vec 2.0 and HuBERT. Its heads may have fewer features in all than the Transformer."""

    def __init__(self, features: int, heads: int, head_size: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_size
        self.k_proj = Linear(features, inner)
        self.v_proj = Linear(features, inner)
        self.q_proj = Linear(features, inner)
        self.out_proj = Linear(inner, features)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, mask: Tensor | list[int] | None, position_bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) of (B, T, D) and a mask (B, 1, 1, T); the position bias is passed on.

        Or of x (1, U, D), where utterances of the lengths in `mask` follow each other, each of which attends to itself.
        """
        projected = (
            projection(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if isinstance(mask, list):
            each = zip(*(torch.split(part, mask, 2) for part in projected), strict=True)
            output = torch.cat([attend(query, key, value, None, self.dropout) for query, key, value in each], 1)
        else:
            query, key, value = projected
            output = attend(query, key, value, mask, self.dropout)
        return self.out_proj(output), position_bias


class FeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, features: int, inner: int, inner_dropout: float, dropout: float) -> None:
        super().__init__()
        self.intermediate_dense = Linear(features, inner)
        self.intermediate_dropout = Dropout(inner_dropout, inplace=True)
        self.output_dense = Linear(inner, features)
        self.output_dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) of (B, T, D). On a CPU GELU's output (B, T, F) is computed again in the backward pass, not kept."""
        if on_cpu(x) and not torch.is_grad_enabled() and x.shape[0] * x.shape[1] > _FRAMES_AT_ONCE:
            rows = torch.split(x.flatten(0, 1), _FRAMES_AT_ONCE)
            return torch.cat([self.forward(part[None]) for part in rows], 1).view(x.shape)
        kept = gelu(self.intermediate_dense(x))
        if not on_cpu(x):  # a compiler does not follow `grad_fn`
            output: Tensor = self.output_dropout(self.output_dense(self.intermediate_dropout(kept)))
            return output
        before = kept.grad_fn
        kept = self.intermediate_dropout(kept)
        after = kept.grad_fn

        def again() -> Tensor:
            return dropped_again(gelu(before._saved_self), before, after)  # type: ignore[union-attr]

        with recomputed(kept, again):
            x = self.output_dense(kept)
        result: Tensor = self.output_dropout(x)
        return result


class NoUnits(nn.Module):
    """What a feed-forward block is without any units: the bias of its output."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) of (B, T, D)."""
        return self.bias.to(x.dtype).expand_as(x)


class NoHeads(nn.Module):
    """What attention is without any heads: the bias of its output."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor, mask: Any, position_bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) of (B, T, D); the position bias is passed on."""
        del mask
        return self.bias.to(x.dtype).expand_as(x), position_bias


class Layer(nn.Module):
    """Attention and feed-forward block, layer norm before (`norm_first`) or after each."""

    def __init__(
        self, features: int, attention: nn.Module, feed_forward: nn.Module, dropout: float, *, norm_first: bool
    ) -> None:
        super().__init__()
        self.attention = attention
        self.dropout = Dropout(dropout)
        self.layer_norm = nn.LayerNorm(features)
        self.feed_forward = feed_forward
        self.final_layer_norm = nn.LayerNorm(features)
        self.norm_first = norm_first

    def forward(
        self, x: Tensor, mask: Tensor | list[int] | None = None, position_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) of (B, T, D), and the position bias for the next layer.

        Args:
            x: hidden states.
            mask: (B, 1, 1, T), `HIDDEN` where padded; None where nothing is; or lengths, as `SelfAttention` takes them.
            position_bias: (1, H, T, T) of WavLM's first layer with heads.
        """
        residual = x
        x, position_bias = self.attention(self.layer_norm(x) if self.norm_first else x, mask, position_bias)
        x = residual + self.dropout(x)
        if self.norm_first:
            return x + self.feed_forward(self.final_layer_norm(x)), position_bias
        x = self.layer_norm(x)
        return self.final_layer_norm(x + self.feed_forward(x)), position_bias


def recomputing(layer: Callable[..., Any], *inputs: Tensor | None) -> Any:
    """What the layer makes of its inputs, which alone are kept for the backward pass."""
    return checkpoint(
        layer, *inputs, use_reentrant=False, context_fn=lambda: (nothing_recomputed(), nothing_recomputed())
    )


class Transformer(nn.Module):
    """Positions, and the layers."""

    def __init__(
        self,
        positions: nn.Module,
        layers: Sequence[Layer],
        *,
        features: int,
        dropout: float,
        layer_drop: float,
        norm_first: bool,
    ) -> None:
        super().__init__()
        self.pos_conv_embed = positions
        self.layer_norm = nn.LayerNorm(features)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(layers)
        self.layer_drop = layer_drop
        self.norm_first = norm_first
        self.compiled = False  # by `forward.compile_layers`

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        skip: Collection[int] = (),
        lengths: list[int] | None = None,
        states: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) of projected features (B, T, D), which are zero where padded.

        Args:
            x: projected features.
            mask: (B, 1, 1, T), `HIDDEN` where padded; None where nothing is.
            skip: layers that are left out.
            lengths: valid frames, where they may be known: then layers need not work on padding.
            states: where the output (B, T, D) of each layer is put, by its number; None for nowhere.
        """
        x = x + self.pos_conv_embed(x, mask)
        # Where each half of a layer begins with its norm, this one follows the last layer; else it precedes the first.
        if not self.norm_first:
            x = self.layer_norm(x)
        x = self.dropout(x)
        layer_mask: Tensor | list[int] | None = None if mask is None else mask.to(x.dtype)
        valid: Tensor | None = None
        if lengths is not None and mask is not None and states is None and self._packs(x):
            valid, layer_mask = mask[:, 0, 0] == 0, lengths
            x = x[valid][None]
        position_bias: Tensor | None = None
        for index, layer in enumerate(self.layers):
            if index not in skip:
                x, position_bias = layer(x, layer_mask, position_bias)
                if states is not None:
                    states[index] = x
        if self.norm_first:
            x = self.layer_norm(x)
        if valid is None:
            return x
        result = x.new_zeros(*valid.shape, x.shape[-1])
        result[valid] = x[0]
        return result

    def _packs(self, x: Tensor) -> bool:
        """Whether utterances follow each other without padding: it saves a tenth of recognition on a CPU."""
        kinds = (SelfAttention, NoHeads)
        alike = all(isinstance(layer, Layer) and isinstance(layer.attention, kinds) for layer in self.layers)
        return alike and not self.compiled and on_cpu(x) and not torch.is_grad_enabled()


class Encoder(nn.Module):
    """All between the feature encoder and the head."""

    def __init__(self, feature_projection: FeatureProjection, transformer: Transformer) -> None:
        super().__init__()
        self.feature_projection = feature_projection
        self.transformer = transformer

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, D) of features (B, T, C) with `lengths` (B,) valid frames, or without padding."""
        padded = None if lengths is None else padding(lengths, features.shape[1])
        return self.encode(self.feature_projection(features), padded)

    def encode(self, projected: Tensor, padded: Tensor | None, **options: Any) -> Tensor:
        """Hidden states (B, T, D) of projected features (B, T, D), of which `padded` (B, T) hide from all others.

        Args:
            projected: padded frames may hold anything.
            padded: None where nothing is.
            options: of `Transformer.forward`.
        """
        mask = None
        if padded is not None:
            projected = projected.masked_fill(padded[..., None], 0.0)
            mask = torch.zeros_like(padded, dtype=torch.float32).masked_fill(padded, HIDDEN)[:, None, None]
        result: Tensor = self.transformer(projected, mask, **options)
        return result


def padding(lengths: Tensor, frames: int) -> Tensor:
    """(B, `frames`), True at and beyond each of `lengths` (B,), where these are."""
    return torch.arange(frames, device=lengths.device) >= lengths[:, None]


class SpeechNetwork(nn.Module):
    """Feature encoder, encoder, and a linear CTC head `aux` if there is one: a `models.network.Network`.

    Attributes:
        architecture: what it was built from.
        mask_embedding: (D,), which replaces masked frames in training; registered by whoever trains.
    """

    mask_embedding: nn.Parameter

    def __init__(
        self,
        architecture: "Architecture",
        feature_extractor: FeatureExtractor,
        encoder: Encoder,
        aux: nn.Linear | None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.feature_extractor = feature_extractor
        self.encoder = encoder
        self.aux = aux

    @property
    def layers(self) -> nn.ModuleList:
        """The Transformer layers."""
        return self.encoder.transformer.layers

    @property
    def head(self) -> nn.Linear | None:
        """The CTC head."""
        return self.aux

    @property
    def feature_encoder(self) -> FeatureExtractor:
        """The convolutions of the waveform, which PARP's protocol freezes."""
        return self.feature_extractor

    is_head = staticmethod(is_head)
    is_feature_encoder = staticmethod(is_feature_encoder)

    def prunable(
        self, scope: str = "transformer", *, biases: bool = True, norms: bool = False
    ) -> dict[str, nn.Parameter]:
        """As `prunable_parameters`."""
        return prunable_parameters(self, scope=scope, biases=biases, norms=norms)

    def encode(self, inputs: Tensor, lengths: Tensor, **options: Any) -> Tensor:
        """As `forward.encode`."""
        from parp_cli.models.speech.forward import encode

        return encode(self, inputs, lengths, **options)

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V), or hidden states (B, T, D) without a head, and the valid frames (B,).

        No branch depends on values, so that exporters can follow it.

        Args:
            waveforms: (B, S) at 16 kHz, normalised where the architecture wants it.
            lengths: (B,) valid samples; None where nothing is padded. Group norm would count padding in the statistics
                of the feature encoder: `parp_cli.models.speech.forward` runs that on single utterances.
        """
        features, lengths = self.feature_extractor(waveforms, lengths)
        hidden = self.encoder(features, lengths)
        return (hidden if self.aux is None else self.aux(hidden)), lengths
