"""The best path through CTC's output: the likeliest label of every frame, repeats merged, blanks dropped."""

import torch
from torch import Tensor

from parp_cli.data.labels import BLANK_ID


def collapse(path: Tensor) -> list[int]:
    """Label ids that a path (T,) spells."""
    merged = torch.unique_consecutive(path)
    ids: list[int] = merged[merged != BLANK_ID].tolist()
    return ids
