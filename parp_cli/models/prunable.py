"""Which parameters are pruned, and where in the encoder a parameter sits.

PARP prunes weights and biases of the attention projections and of both feed-forward layers in every
Transformer layer. Which those are follows from the types of the modules that torchaudio's builders put
together; nothing here spells out the parameters of one model. torch is imported when a model is at hand,
so that reports on masks alone can use the names.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# What torchaudio calls a module -> what the field (fairseq, the paper) calls it.
_KINDS = {
    "q_proj": "q_proj",
    "k_proj": "k_proj",
    "v_proj": "v_proj",
    "in_proj": "qkv",  # WavLM's attention keeps the three in one matrix (3·D, D)
    "out_proj": "out_proj",
    "intermediate_dense": "fc1",
    "output_dense": "fc2",
}
_KIND = re.compile(rf"\.layers\.\d+\..*\b({'|'.join(_KINDS)})[._](?:weight|bias)$")
_LAYER = re.compile(r"transformer\.layers\.(\d+)\.")

KINDS = tuple(_KINDS.values())
"""Every kind of prunable module, in reading order."""


def prunable_parameters(model: nn.Module, *, biases: bool = True) -> dict[str, nn.Parameter]:
    """The parameters that pruning may touch.

    Args:
        model: a model of `parp_cli.models.architectures.build`, or one that contains it.
        biases: whether biases are pruned too, as in the paper's release.

    Returns:
        The parameters themselves by their state-dict names, from the first Transformer layer to the last; the
        order is the same each time, so that positions in it can break ties.
    """
    from torch import nn
    from torchaudio.models.wav2vec2.components import FeedForward, SelfAttention, WavLMSelfAttention

    found: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        # WavLM's attention also holds its gate for relative positions (a Linear, and constants). What it shares
        # with the others, the four projections, is in its MultiheadAttention.
        if isinstance(module, WavLMSelfAttention):
            found |= _parameters(f"{name}.attention", module.attention)
        elif isinstance(module, SelfAttention | FeedForward):
            for child_name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    found |= _parameters(f"{name}.{child_name}", child)
    return {name: parameter for name, parameter in found.items() if biases or not name.endswith("bias")}


def _parameters(prefix: str, module: nn.Module) -> dict[str, nn.Parameter]:
    return {f"{prefix}.{name}": parameter for name, parameter in module.named_parameters()}


def kind_of(name: str) -> str:
    """The kind of module a prunable parameter belongs to: one of `KINDS`; "other" for any other name."""
    match = _KIND.search(name)
    return _KINDS[match[1]] if match else "other"


def layer_of(name: str) -> int | None:
    """The Transformer layer a parameter belongs to, from 0; None outside of them."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None
