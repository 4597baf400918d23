"""The best path through CTC's output: the likeliest label of every frame, repeats merged, blanks dropped."""

import torch
from torch import Tensor

from parp_cli.data.labels import BLANK_ID


def best_paths(logits: Tensor, lengths: Tensor) -> list[Tensor]:
    """The likeliest label of each frame (T_i,) of each utterance, on the CPU.

    Args:
        logits: (B, T, V), in any scale that keeps their order.
        lengths: (B,) valid frames.
    """
    return [row[:length] for row, length in zip(logits.argmax(-1).cpu(), lengths.tolist(), strict=True)]


def collapse(path: Tensor) -> list[int]:
    """Label ids that a path (T,) spells."""
    merged = torch.unique_consecutive(path)
    ids: list[int] = merged[merged != BLANK_ID].tolist()
    return ids
