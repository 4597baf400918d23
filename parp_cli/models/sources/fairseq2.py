"""Checkpoints of fairseq2, which has names of its own: omniASR_W2V, 300M to 7B, and the encoders of omniASR_CTC.

They hold weights alone. All published ones have the front end, heads and order of norms of XLS-R, so that width, layers
and inner size, which the weights tell, are all that is left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from parp_cli.errors import CheckpointError
from parp_cli.models.sources.names import MASK_EMBEDDING, Encoder, fit, head_note, without
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, with_known_name

if TYPE_CHECKING:
    from torch import Tensor

_FRONTEND = r"encoder_frontend\."
_LAYER = r"encoder\.layers\.(\d+)\."
_OURS = r"encoder.transformer.layers.\1"
NAMES = (
    (r"masker\.temporal_mask_embed$", MASK_EMBEDDING),
    (_FRONTEND + r"feature_extractor\.layers\.(\d+)\.", r"feature_extractor.conv_layers.\1."),
    (_FRONTEND + r"model_dim_proj\.", "encoder.feature_projection.projection."),
    (_FRONTEND + r"post_extract_layer_norm\.", "encoder.feature_projection.layer_norm."),
    (_FRONTEND + r"pos_encoder\.conv\.", "encoder.transformer.pos_conv_embed.conv."),
    (r"encoder\.layer_norm\.", "encoder.transformer.layer_norm."),
    (_LAYER + r"self_attn_layer_norm\.", _OURS + ".layer_norm."),
    (_LAYER + r"self_attn\.output_proj\.", _OURS + ".attention.out_proj."),
    (_LAYER + r"self_attn\.", _OURS + ".attention."),
    (_LAYER + r"ffn\.inner_proj\.", _OURS + ".feed_forward.intermediate_dense."),
    (_LAYER + r"ffn\.output_proj\.", _OURS + ".feed_forward.output_dense."),
    (_LAYER + r"ffn_layer_norm\.", _OURS + ".final_layer_norm."),
)

_PRETRAINING = ("quantizer.", "vector_quantizer.", "final_target_proj.")
_HEAD = "final_proj."  # of pre-training or, without a quantizer, of CTC
_HEADS = 16  # at every published size
_INNER = "encoder.layers.0.ffn.inner_proj.weight"


def is_state(names: Iterable[str]) -> bool:
    """Whether these are fairseq2's names of weights."""
    return any(name.startswith("encoder_frontend.") for name in names)


def read(state: Mapping[str, Tensor], *, source: str) -> Encoder:
    """The encoder of a state dict; a CTC head is left out, as its labels are those of a tokenizer in another file.

    Raises CheckpointError: weights are missing, left over, or of other shapes.
    """
    weights = without(state, _PRETRAINING)
    notes: tuple[str, ...] = ()
    if (head := weights.get(f"{_HEAD}weight")) is not None and len(weights) == len(state):
        notes = (head_note(source, len(head), "a new one is trained"),)
    weights = without(weights, [_HEAD])
    architecture = _architecture(weights, source)
    return Encoder(architecture, fit(weights, architecture, source=source, rules=NAMES), None, notes=notes)


def _architecture(weights: Mapping[str, Tensor], source: str) -> Architecture:
    if (inner := weights.get(_INNER)) is None or inner.dim() != 2:
        raise CheckpointError(f"{source} is no wav2vec 2.0 of fairseq2", details=[f"no matrix {_INNER}"])
    layers = {match[1] for name in weights if (match := re.match(_LAYER, name))}
    feed_forward, width = inner.shape
    known = ARCHITECTURES["xls-r-300m"]
    if width % _HEADS:
        raise CheckpointError(f"{source} has a width of {width}, which {_HEADS} heads cannot share")
    sized = replace(known, name="omniasr-w2v", width=width, layers=len(layers), heads=_HEADS, feed_forward=feed_forward)
    return with_known_name(sized)
