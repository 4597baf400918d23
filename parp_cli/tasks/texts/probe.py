"""Some texts to try a network on."""

from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parp_cli.config.classification import TextFiles
from parp_cli.data.texts import split_texts
from parp_cli.errors import ParpError
from parp_cli.models.transformers.architecture import TOKENIZER, TextArchitecture
from parp_cli.tasks.texts.items import Encoding, TextItem

_MOST, _LONGEST = 24, 128
"""How many texts are taken of a split, and how many tokens of each at most."""

_LENGTHS = (3, 17, 64)
"""Tokens of made-up texts."""


class SomeTexts(NamedTuple):
    """The inputs of each text alone, and those of all as one batch."""

    alone: list[dict[str, Tensor]]
    together: dict[str, Tensor]


def some_texts(
    data: Any, architecture: TextArchitecture, weights: Mapping[str, Tensor], *, max_length: int | None, source: str
) -> SomeTexts:
    """Inputs for a network, the shortest first: of the data's validation split, or of random tokens where there is none
    that can be read.

    Args:
        data: of the recipe that the weights are of; None without one.
        max_length: tokens of the longest text that the network was trained on, if that is known.

    Raises CheckpointError where the weights lack a tokenizer; `source` names them.
    """
    with torch.device("meta"):
        network = architecture.build()
    longest = min(limit for limit in (_LONGEST, network.positions, max_length) if limit is not None)
    encoding = Encoding(network, weights.get(TOKENIZER), max_length=longest, source=source)
    items: list[TextItem] = []
    if isinstance(data, TextFiles):
        try:
            texts, _ = split_texts(data, data.valid)
            texts = texts[:: max(1, len(texts) // _MOST)][:_MOST]
            items = list(encoding.items(texts, [None] * len(texts)).items)
        except ParpError:  # moved, or of another machine
            items = []
    items = items or [_made_up(length, encoding, architecture) for length in _LENGTHS if length <= longest]
    items.sort(key=lambda item: len(item.tokens))
    cpu = torch.device("cpu")
    return SomeTexts([encoding.batch([item], cpu) for item in items], encoding.batch(items, cpu))


def _made_up(length: int, encoding: Encoding, architecture: TextArchitecture) -> TextItem:
    """A text of random tokens."""
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(architecture.config["vocab_size"], (length,), generator=generator).tolist()
    has_segments = "token_type_ids" in encoding.tokenizer.model_input_names
    segments = array("b", [0] * length) if has_segments else None
    return TextItem(id=f"{length} random tokens", tokens=array("i", tokens), segments=segments)
