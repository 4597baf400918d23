"""From waveform to logits, in the two halves that training and evaluation need apart.

The convolutional front end runs on one utterance at a time, so that padding never enters its statistics; the encoder
runs on padded batches of its output. B utterances, S samples, T frames of 20 ms, C front-end channels, D features,
V tokens.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from parp_cli.errors import ResourceError
from parp_cli.models.speech.attention import SelfAttention
from parp_cli.models.speech.config import Architecture
from parp_cli.models.speech.convolutions import features_by_blocks
from parp_cli.models.speech.dropout import by_hand
from parp_cli.models.speech.waveform import normalize

if TYPE_CHECKING:
    from torchaudio.models import Wav2Vec2Model


_COMPILED_VARIANTS = 32
"""More than there can be of a layer."""


def front_end(model: "Wav2Vec2Model", architecture: Architecture, waveform: Tensor) -> Tensor:
    """Front-end features (T, C) of one utterance's waveform (S,) at 16 kHz, on the model's device.

    With gradients and without they are the same but for rounding.
    """
    device = next(model.parameters()).device
    waveform = waveform.to(device)
    if by_hand(waveform) and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
        return features_by_blocks(model, architecture, waveform)
    features, _ = model.feature_extractor(normalize(waveform, architecture)[None], None)
    result: Tensor = features[0]
    return result


def pad(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Features of several utterances, each (T_i, C), as a batch (B, T, C) padded with zeros, and lengths (B,)."""
    lengths = torch.tensor([len(item) for item in features], device=features[0].device)
    return torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True), lengths


def encode(
    model: "Wav2Vec2Model",
    features: Tensor,
    lengths: Tensor,
    *,
    alter: Callable[[Tensor, Tensor], Tensor] | None = None,
    skip: Collection[int] = (),
    checkpoint_activations: bool = False,
) -> Tensor:
    """Logits (B, T, V) of padded front-end features, or hidden states (B, T, D) of a model without a head.

    Padded frames are hidden from attention and zero before the positional convolution, so that an utterance's logits
    do not depend on what it is padded with. This is torchaudio's own pass, spelt out because theirs does not hand a
    padding mask to WavLM's attention.

    Args:
        model: from `architectures.build`; in training mode it drops units as built.
        features: (B, T, C), zero where padded.
        lengths: (B,) valid frames.
        alter: called with projected features (B, T, D) and lengths before the Transformer: the place for masking
            latent features in training.
        skip: indices of Transformer layers that are left out, from `draw_skipped_layers`.
        checkpoint_activations: keep only each layer's input for the backward pass, and compute the layer again there.
    """
    hidden = model.encoder.feature_projection(features)
    padded = torch.arange(hidden.shape[1], device=lengths.device) >= lengths[:, None]
    if alter is not None:
        hidden = alter(hidden, lengths)
    hidden = hidden.masked_fill(padded[..., None], 0.0)
    transformer = model.encoder.transformer
    hidden = transformer._preprocess(hidden)
    is_padded = bool(padded.any())
    # Then no layer works on padding.
    in_a_row = is_padded and by_hand(hidden) and not torch.is_grad_enabled() and _takes_rows(transformer.layers[0])
    bias: Tensor | None = None
    mask: Tensor | None = None
    if in_a_row:
        hidden, mask = hidden[~padded][None], lengths
    elif is_padded:
        # A number and of the weights' dtype, because WavLM adds it to its position bias, which is so too.
        dtype = next(transformer.parameters()).dtype
        bias = torch.zeros(padded.shape, dtype=dtype, device=hidden.device).masked_fill(padded, -1e4)
        mask = bias[:, None, None, :].expand(-1, 1, padded.shape[1], -1)
    position_bias: Tensor | None = None
    for index, layer in enumerate(transformer.layers):
        if index in skip:
            continue
        run = partial(checkpoint, layer, use_reentrant=False) if checkpoint_activations else layer
        if _is_relative(layer):
            hidden, position_bias = run(hidden, position_bias=position_bias, key_padding_mask=bias)
        else:
            hidden, _ = run(hidden, mask)
    if not transformer.layer_norm_first:
        hidden = transformer.layer_norm(hidden)
    result: Tensor = hidden if model.aux is None else model.aux(hidden)
    return _in_places(result[0], padded) if in_a_row else result


def _in_places(values: Tensor, padded: Tensor) -> Tensor:
    """Values (frames, V) of one utterance after the other as (B, T, V), zero where `padded` (B, T)."""
    result = values.new_zeros(*padded.shape, values.shape[-1])
    result[~padded] = values
    return result


def draw_skipped_layers(model: "Wav2Vec2Model") -> frozenset[int]:
    """Layer drop: the Transformer layers to leave out of an update, drawn from torch's global generator.

    To be drawn once an update, not for each micro-batch: then all parts of an update train the same layers, and
    processes that share it take part in the same exchanges of gradients. Empty for a model that is not training.
    """
    transformer = model.encoder.transformer
    if not model.training or transformer.layer_drop <= 0:
        return frozenset()
    draws = torch.rand(len(transformer.layers)).tolist()
    # WavLM's first layer makes the position bias of all, so it is never dropped.
    return frozenset(
        index
        for index, draw in enumerate(draws)
        if draw < transformer.layer_drop and not (index == 0 and _is_relative(transformer.layers[0]))
    )


def compile_layers(model: "Wav2Vec2Model", device: torch.device) -> None:
    """Compile each Transformer layer where it is used; state-dict names stay. The first passes take minutes.

    For CUDA: on a CPU a layer of wav2vec 2.0 base takes 1.2 to 1.7 times as long compiled as it does without. Lengths
    may vary without compiling anew.

    Args:
        model: wherever it is now.
        device: where it will run.

    Raises:
        ResourceError: no compiler is found for the code that torch writes.
    """
    if device.type == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++")):
        raise ResourceError(
            "no C++ compiler is found to compile the Transformer layers with",
            hint="install g++, or name one in the environment variable CXX, or set training.compile to false",
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ResourceError(
            "Triton is not installed, with which torch compiles for CUDA",
            hint="pip install triton, or set training.compile to false",
        )
    # All layers share their code: padded or not, in training or not, WavLM's first one, one utterance alone.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _COMPILED_VARIANTS)
    for layer in model.encoder.transformer.layers:
        layer.compile(dynamic=True)


def _takes_rows(layer: nn.Module) -> bool:
    """Whether utterances may follow one another in a row of its input."""
    return isinstance(layer.attention, SelfAttention) and layer._compiled_call_impl is None


def _is_relative(layer: nn.Module) -> bool:
    """Whether it is one of WavLM's layers."""
    return hasattr(layer.attention, "rel_attn_embed")
