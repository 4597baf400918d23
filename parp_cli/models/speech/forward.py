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
from torch import Tensor

from parp_cli.errors import ResourceError
from parp_cli.models.speech.config import Architecture
from parp_cli.models.speech.convolutions import features_by_blocks
from parp_cli.models.speech.dropout import on_cpu
from parp_cli.models.speech.encoder import padding, recomputing
from parp_cli.models.speech.waveform import normalize
from parp_cli.runtime.device import on_device

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import SpeechNetwork


_COMPILED_VARIANTS = 32
"""More than there can be of a layer."""


def front_end(model: "SpeechNetwork", architecture: Architecture, waveform: Tensor) -> Tensor:
    """Front-end features (T, C) of one utterance's waveform (S,) at 16 kHz, on the model's device.

    With gradients and without they are the same except for rounding.
    """
    device = next(model.parameters()).device
    waveform = waveform.to(device)
    if on_cpu(waveform) and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
        return features_by_blocks(model, architecture, waveform)
    features, _ = model.feature_extractor(normalize(waveform, architecture)[None], None)
    result: Tensor = features[0]
    return result


def pad(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Features of several utterances, each (T_i, C), as a batch (B, T, C) padded with zeros, and lengths (B,).

    The lengths are on the CPU, where they come from, whatever device the features are on: `encode` decides by them
    whether anything is padded, for which no host should have to wait.
    """
    lengths = torch.tensor([len(item) for item in features])
    return torch.nn.utils.rnn.pad_sequence(list(features), batch_first=True), lengths


def encode(
    model: "SpeechNetwork",
    features: Tensor,
    lengths: Tensor,
    *,
    alter: Callable[[Tensor, Tensor], Tensor] | None = None,
    skip: Collection[int] = (),
    states: dict[int, Tensor] | None = None,
) -> Tensor:
    """Logits (B, T, V) of padded front-end features, or hidden states (B, T, D) of a model without a head.

    Padded frames are hidden from attention and zero before the positional convolution, so that an utterance's logits
    do not depend on what it is padded with.

    Args:
        model: from `config.build`; in training mode it drops units as built.
        features: (B, T, C).
        lengths: (B,) valid frames, as from `pad` on the CPU.
        alter: called with projected features (B, T, D) and lengths before the Transformer: the place for masking
            latent features in training.
        skip: indices of Transformer layers that are left out, from `draw_skipped_layers`.
        states: as of `Transformer.forward`.
    """
    projected = model.encoder.feature_projection(features)
    if alter is not None:
        projected = alter(projected, lengths)
    padded = None
    valid: list[int] = lengths.tolist()
    if min(valid) < features.shape[1]:
        padded = padding(on_device(lengths, features.device), features.shape[1])
    hidden = model.encoder.encode(projected, padded, skip=skip, lengths=valid, states=states)
    result: Tensor = hidden if model.aux is None else model.aux(hidden)
    return result


def draw_skipped_layers(model: "SpeechNetwork") -> frozenset[int]:
    """Layer drop: the Transformer layers to leave out of an update, drawn from torch's global generator.

    To be drawn once per update, not for each micro-batch: then all parts of an update train the same layers, and
    processes that share it take part in the same exchanges of gradients. Empty for a model that is not training.
    """
    transformer = model.encoder.transformer
    if not model.training or transformer.layer_drop <= 0:
        return frozenset()
    draws = torch.rand(len(transformer.layers)).tolist()
    # The layer that makes the position bias of all WavLM's layers is never dropped.
    return frozenset(
        index
        for index, (draw, layer) in enumerate(zip(draws, transformer.layers, strict=True))
        if draw < transformer.layer_drop and not getattr(layer.attention, "makes_position_bias", False)
    )


def recompute_layers(model: "SpeechNetwork") -> None:
    """Keep only each Transformer layer's input for the backward pass, and compute the layer again there.

    Inside the layer's own call, so that what is around it (FSDP2, which gathers its weights) happens once. To be called
    after the layers are compiled: torch 2.11 fails to compile some recomputed layers with dropout.
    """
    for layer in model.encoder.transformer.layers:
        layer.forward = partial(recomputing, layer.forward)


def compile_layers(model: "SpeechNetwork", device: torch.device) -> None:
    """Compile each Transformer layer where it is used; state-dict names stay. The first passes take minutes.

    For CUDA: on a CPU a layer of wav2vec 2.0 base takes 1.2 to 1.7 times as long compiled as it does without. Lengths
    may vary without compiling again.

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
    if device.type == "cuda" and not any(shutil.which(name) for name in (os.environ.get("CC", "gcc"), "clang")):
        raise ResourceError(
            "no C compiler is found, which Triton needs to start kernels",
            hint="install gcc, or name one in the environment variable CC, or set training.compile to false",
        )
    # All layers share their code: padded or not, in training or not, WavLM's first one, one utterance alone.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _COMPILED_VARIANTS)
    model.encoder.transformer.compiled = True
    for layer in model.encoder.transformer.layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)  # not what other code adds to the layer's call
