"""HuBERT's pre-training task: predict the cluster of the frames that were hidden from the encoder.

Hsu et al. 2021, equations 1 to 4. B crops, T frames, D features, K clusters.
"""

from typing import Any

from torch import Tensor, nn

from parp_cli.models.speech.config import Architecture

_TEMPERATURE = 0.1
"""Divides the cosine similarities (HuBERT, section 3.3)."""


def masked_prediction_model(
    architecture: Architecture, *, clusters: int, mask_probability: float, mask_length: int, projection: int = 64
) -> Any:
    """torchaudio's HuBERTPretrainModel around an encoder.

    Args:
        architecture: of the encoder.
        clusters: number of targets K.
        mask_probability: expected share of masked frames, before spans overlap.
        mask_length: frames in a masked span.
        projection: dimensions in which frames and clusters are compared.
    """
    from torchaudio.models import hubert_pretrain_model

    return hubert_pretrain_model(
        extractor_mode=f"{architecture.conv_norm}_norm",
        extractor_conv_layer_config=architecture.conv_layers,
        extractor_conv_bias=architecture.conv_bias,
        encoder_embed_dim=architecture.width,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=architecture.positional_kernel,
        encoder_pos_conv_groups=architecture.positional_groups,
        encoder_num_layers=architecture.layers,
        encoder_num_heads=architecture.heads,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=architecture.feed_forward,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=architecture.norm_first,
        encoder_layer_drop=0.0,
        mask_prob=mask_probability,
        mask_selection="static",
        mask_other=0.0,
        mask_length=mask_length,
        no_mask_overlap=False,
        mask_min_space=1,
        mask_channel_prob=0.0,
        mask_channel_selection="static",
        mask_channel_other=0.0,
        mask_channel_length=64,
        no_mask_channel_overlap=False,
        mask_channel_min_space=1,
        skip_masked=False,
        skip_nomask=False,
        num_classes=clusters,
        final_dim=projection,
        feature_grad_mult=None,
    )


def masked_prediction_loss(
    model: Any, waveforms: Tensor, targets: Tensor, *, unmasked_weight: float
) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of one batch of crops.

    The forward pass is HuBERTPretrainModel's, but for the logits: theirs expands every frame to every cluster,
    (K + 1, frames, D) floats, where a product of normalised matrices gives the same cosines.

    Args:
        model: from `masked_prediction_model`.
        waveforms: (B, S), all of one length.
        targets: (B, T) cluster numbers.
        unmasked_weight: weight of the frames that were not masked.

    Returns:
        The scalar loss, and the share of masked frames whose cluster was found.
    """
    features, _ = model.wav2vec2.feature_extractor(waveforms, None)
    hidden, _ = model.wav2vec2.encoder._preprocess(features, None)
    hidden, masked = model.mask_generator(hidden, None)
    hidden = model.wav2vec2.encoder.transformer(hidden)
    frames = nn.functional.normalize(model.logit_generator.final_proj(hidden).float(), dim=-1)
    clusters = nn.functional.normalize(model.logit_generator.label_embeddings.float(), dim=-1)
    logits = (frames @ clusters.T / _TEMPERATURE).flatten(0, 1)
    losses = nn.functional.cross_entropy(logits, targets.flatten(), reduction="none")
    chosen = masked.flatten()
    loss = losses[chosen].mean()
    if unmasked_weight > 0:
        loss = loss + unmasked_weight * losses[~chosen].mean()
    accuracy = (logits[chosen].argmax(-1) == targets.flatten()[chosen]).float().mean()
    return loss, accuracy.detach()
