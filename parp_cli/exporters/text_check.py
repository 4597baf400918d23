"""Whether an export of a text encoder does what its checkpoint does, in its own runtime, and how fast.

B texts, T tokens, V outputs, D features.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from parp_cli.exporters.check import MOST_ROUNDS, TIMED_SECONDS, least_seconds
from parp_cli.models.network import outputs_of
from parp_cli.models.transformers.architecture import TextArchitecture

Inputs = Mapping[str, Tensor]
"""Of a network, each (B, T), padded."""

TextRunner = Callable[[Inputs], Tensor]
"""From inputs to logits (B, V), or hidden states (B, T, D) without a head."""


@dataclass(frozen=True, kw_only=True)
class TextCheck:
    """What an export made of texts, beside what the masked checkpoint makes of them.

    Attributes:
        texts, tokens: how many were compared, and how many tokens the shortest and the longest of them has.
        largest_difference: of an output, of texts alone and as one batch.
        seconds_per_text: of the checkpoint, of the export, one text at a time.
        predictions_changed: texts that have another class; None without classes, or where logits are to be equal.
    """

    texts: int
    tokens: tuple[int, int]
    largest_difference: float
    seconds_per_text: tuple[float, float]
    predictions_changed: int | None = None


def text_network(architecture: TextArchitecture, weights: Mapping[str, Tensor], task: Any) -> TextRunner:
    """The network of these weights with the head of a task, as parp runs it."""
    network = architecture.build(outputs=outputs_of(task))
    network.load_state_dict(dict(weights))
    network.eval()

    def run(inputs: Inputs) -> Tensor:
        with torch.inference_mode():
            found: Tensor = network(inputs)
        return found

    return run


def compared_texts(
    ours: TextRunner, theirs: TextRunner, alone: Sequence[Inputs], together: Inputs, *, exact: bool
) -> TextCheck:
    """Two networks on the same texts, each `alone` and all `together` as one batch; unless they are to be `exact`, the
    classes that they predict too."""
    expected, found = ([run(inputs) for inputs in (*alone, together)] for run in (ours, theirs))
    valid = [inputs["attention_mask"].bool() for inputs in (*alone, together)]
    differences = [
        # What is computed of padding is nobody's.
        ((one - other).abs() if one.dim() == 2 else (one - other)[rows].abs()).max()
        for one, other, rows in zip(expected, found, valid, strict=True)
    ]
    timed = [partial(_seconds, run, alone) for run in (ours, theirs)]
    least = least_seconds(timed, rounds=MOST_ROUNDS, most_seconds=TIMED_SECONDS)
    changed = None
    if not exact and expected[-1].dim() == 2 and expected[-1].shape[1] > 1:
        changed = int((expected[-1].argmax(1) != found[-1].argmax(1)).sum())
    lengths = [int(rows.sum()) for rows in valid[:-1]]
    return TextCheck(
        texts=len(lengths),
        tokens=(min(lengths), max(lengths)),
        largest_difference=float(torch.stack(differences).max()),
        seconds_per_text=(least[0] / len(lengths), least[1] / len(lengths)),
        predictions_changed=changed,
    )


def _seconds(run: TextRunner, texts: Sequence[Inputs]) -> float:
    """Of work on the texts, one at a time."""
    began = time.perf_counter()
    for inputs in texts:
        run(inputs)
    return time.perf_counter() - began
