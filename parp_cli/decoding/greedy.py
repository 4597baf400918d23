"""The best path through CTC's output: the likeliest label of every frame, repeats merged, blanks dropped."""

import torch
from torch import Tensor

BLANK_ID = 0


def greedy(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """Label ids of each utterance.

    Args:
        logits: (B, T, V), in any scale that keeps their order.
        lengths: (B,) valid frames.
    """
    best = logits.argmax(-1).cpu()
    hypotheses = []
    for row, length in zip(best, lengths.tolist(), strict=True):
        merged = torch.unique_consecutive(row[:length])
        hypotheses.append(merged[merged != BLANK_ID].tolist())
    return hypotheses
