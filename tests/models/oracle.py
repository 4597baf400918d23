"""torchaudio's builders, as an oracle of our networks."""

from typing import Any

import torch
from torchaudio.models import wav2vec2_model, wavlm_model

from parp_cli.models.speech.config import Architecture, build


def builder_of(architecture: Architecture) -> dict[str, Any]:
    """The architecture as arguments of their builders, without dropout."""
    arguments = {
        "extractor_mode": f"{architecture.conv_norm}_norm",
        "extractor_conv_layer_config": list(architecture.conv_layers),
        "extractor_conv_bias": architecture.conv_bias,
        "encoder_embed_dim": architecture.width,
        "encoder_projection_dropout": 0.0,
        "encoder_pos_conv_kernel": architecture.positional_kernel,
        "encoder_pos_conv_groups": architecture.positional_groups,
        "encoder_num_layers": architecture.layers,
        "encoder_num_heads": architecture.heads,
        "encoder_attention_dropout": 0.0,
        "encoder_ff_interm_features": architecture.feed_forward,
        "encoder_ff_interm_dropout": 0.0,
        "encoder_dropout": 0.0,
        "encoder_layer_norm_first": architecture.norm_first,
        "encoder_layer_drop": 0.0,
    }
    if architecture.family == "wavlm":
        arguments |= {
            "encoder_num_buckets": architecture.buckets,
            "encoder_max_distance": architecture.max_distance,
        }
    return arguments


def torchaudios(architecture: Architecture, vocabulary_size: int | None = None, *, seed: int = 0) -> Any:
    """Their freshly initialised model."""
    builder = wavlm_model if architecture.family == "wavlm" else wav2vec2_model
    torch.manual_seed(seed)
    return builder(**builder_of(architecture), aux_num_out=vocabulary_size).eval()


def ours(architecture: Architecture, vocabulary_size: int | None = None, *, seed: int = 0) -> Any:
    """Ours from the same seed."""
    torch.manual_seed(seed)
    return build(architecture, vocabulary_size=vocabulary_size).eval()
