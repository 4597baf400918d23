"""Distillation: a network learns from the outputs and layers of another, beside its labels.

B items, T frames or tokens, V outputs, D features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, kl_div, layer_norm, log_softmax, mse_loss

from parp_cli.config import finetune


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What a student's loss has beside that of its labels, as published for structured pruning.

    Of outputs the Kullback-Leibler divergence from the teacher's distribution (Xia et al. 2022, "Structured Pruning
    Learns Compact and Accurate Models", section 3.3), for CTC in each frame; of numbers the squared difference. Of each
    layer's output the L1 distance per feature plus the cosine distance (Peng et al. 2023, "DPHuBERT", section 2.3).
    Other than there, features are brought to mean 0 and variance 1 first: without norms after them they would grow from
    layer to layer, and the last ones decide everything.

    Attributes:
        teacher: a network with layers of the same width, in evaluation mode; it does not train.
        outputs, layers: weights of the two parts.
    """

    teacher: Any
    outputs: float
    layers: float

    @classmethod
    def of(cls, settings: finetune.Distillation, teacher: Any, device: torch.device) -> Self | None:
        """As a recipe has it; None without a teacher."""
        if teacher is None:
            return None
        return cls(teacher=teacher.requires_grad_(False).to(device), outputs=settings.outputs, layers=settings.layers)

    def losses(
        self,
        outputs: Tensor,
        states: Mapping[int, Tensor],
        targets: Tensor,
        target_states: Mapping[int, Tensor],
        valid: Tensor,
    ) -> Tensor:
        """Loss (B,) of each item, a mean over its frames.

        Args:
            outputs, targets: of the student and of the teacher, (B, T, V), or (B, V) for whole items.
            states, target_states: of each layer (B, T, D), by its number. The student may have skipped some.
            valid: (B, T), False where padded.
        """
        shares = valid.float() / valid.sum(1, keepdim=True)
        found = self.outputs * _divergence(outputs.float(), targets.float())
        result = found if found.dim() == 1 else (found * shares).sum(1)
        for layer, state in states.items():
            distance = _distance(state.float(), target_states[layer].float())
            result = result + self.layers / len(states) * (distance.masked_fill(~valid, 0.0) * shares).sum(1)
        return result


def _divergence(outputs: Tensor, targets: Tensor) -> Tensor:
    """(B, T) or (B,) of (B, T, V) or (B, V)."""
    if outputs.shape[-1] == 1:
        return mse_loss(outputs, targets, reduction="none").squeeze(-1)
    return kl_div(log_softmax(outputs, -1), log_softmax(targets, -1), reduction="none", log_target=True).sum(-1)


def _distance(state: Tensor, target: Tensor) -> Tensor:
    """(B, T) of (B, T, D)."""
    state, target = (layer_norm(each, each.shape[-1:]) for each in (state, target))
    return (state - target).abs().mean(-1) + 1 - cosine_similarity(state, target, dim=-1)
