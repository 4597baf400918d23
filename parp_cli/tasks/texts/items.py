"""Texts as a network reads them: tokenized, cut to length, checked and padded. B texts, T tokens."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parp_cli.data.texts import Text
from parp_cli.errors import DataError, UsageError, first_few
from parp_cli.models.transformers.network import TextNetwork
from parp_cli.models.transformers.tokenizer import tokenizer_of
from parp_cli.runtime.device import on_device

_MOST_UNKNOWN = 0.5  # share of unknown tokens beyond which a tokenizer cannot be the one for a text

_AT_ONCE = 1000


@dataclass(frozen=True, kw_only=True)
class TextItem:
    """A text or pair with its tokens, the segment of each where the model has such, and its label: the index of its
    class, or a number; None without one."""

    id: str
    tokens: array[int]
    segments: array[int] | None
    label: float | None = None


@dataclass(frozen=True)
class Tokenized:
    """Items, how many of them were cut, and how many of their tokens are unknown."""

    items: tuple[TextItem, ...]
    cut: int
    unknown: int

    def notes(self, split: str, length: int) -> list[str]:
        """What is unusual about them."""
        tokens = sum(len(item.tokens) for item in self.items)
        notes = []
        if self.cut:
            notes.append(
                f"{split}: {self.cut:,} of {len(self.items):,} texts are longer than {length} tokens: cut there"
            )
        if self.unknown:
            share = self.unknown / tokens
            notes.append(f"{split}: {self.unknown:,} of {tokens:,} tokens ({share:.1%}) are unknown to the tokenizer")
        return notes


class Encoding:
    """From texts to items and batches, by the tokenizer of a network.

    Raises UsageError where the network has fewer positions than `max_length`; CheckpointError where it has no
    tokenizer. `source` names the network in messages.
    """

    def __init__(self, network: TextNetwork, packed: Tensor | None, *, max_length: int, source: str) -> None:
        if network.positions is not None and max_length > network.positions:
            raise UsageError(
                f"texts of {max_length} tokens are longer than the {network.positions} positions of {source}",
                hint=f"--set training.max_length={network.positions}",
            )
        self.max_length = max_length
        self.tokenizer = tokenizer_of(packed, source=source, config=network.architecture.config)

    def items(self, texts: Sequence[Text], labels: Sequence[float | None]) -> Tokenized:
        """Tokenize texts. Raises DataError where most of it is unknown to the tokenizer."""
        items: list[TextItem] = []
        cut = unknown = 0
        for start in range(0, len(texts), _AT_ONCE):
            some = texts[start : start + _AT_ONCE]
            pairs = [text.text_b for text in some]
            found = self.tokenizer(
                [text.text for text in some],
                pairs if pairs[0] is not None else None,
                truncation=True,
                max_length=self.max_length,
                return_attention_mask=False,
            )
            segments: Any = found.get("token_type_ids") or [None] * len(some)
            for text, ids, kinds, encoding, label in zip(
                some, found["input_ids"], segments, found.encodings, labels[start:], strict=False
            ):
                cut += bool(encoding.overflowing)
                unknown += sum(token == self.tokenizer.unk_token_id for token in ids)
                kept = None if kinds is None else array("b", kinds)
                items.append(TextItem(id=text.id, tokens=array("i", ids), segments=kept, label=label))
        tokens = sum(len(item.tokens) for item in items)
        if unknown > _MOST_UNKNOWN * tokens:
            raise DataError(
                f"{unknown:,} of {tokens:,} tokens are unknown to the tokenizer",
                details=[f"for example in {texts[0].text[:80]!r}"],
                hint="it is of another language, or its files are not those that the model was trained with",
            )
        return Tokenized(tuple(items), cut, unknown)

    def batch(self, items: Sequence[TextItem], device: torch.device) -> dict[str, Tensor]:
        """The inputs of a network, padded on the side that its tokenizer pads on."""
        longest = max(len(item.tokens) for item in items)
        left = self.tokenizer.padding_side == "left"
        inputs = {
            "input_ids": self._padded([item.tokens for item in items], longest, self.tokenizer.pad_token_id, left)
        }
        ones = [array("b", [1]) * len(item.tokens) for item in items]
        inputs["attention_mask"] = self._padded(ones, longest, 0, left)
        if all(item.segments is not None for item in items):
            segments = [item.segments or array("b") for item in items]
            inputs["token_type_ids"] = self._padded(segments, longest, self.tokenizer.pad_token_type_id, left)
        return {name: on_device(value, device) for name, value in inputs.items()}

    @staticmethod
    def _padded(rows: Sequence[array[int]], longest: int, value: int, left: bool) -> Tensor:
        padded = torch.full((len(rows), longest), value, dtype=torch.int64)
        for row, place in zip(rows, padded, strict=True):
            part = place[longest - len(row) :] if left else place[: len(row)]
            part.copy_(torch.tensor(row.tolist(), dtype=torch.int64))
        return padded


def class_names(texts: Sequence[Text]) -> list[str]:
    """The classes that labels name: numbers by their size, else by the alphabet."""
    names = {text.label or "" for text in texts}
    whole = all(name.removeprefix("-").isdigit() for name in names)
    return sorted(names, key=(lambda name: (int(name), name)) if whole else str)


def labels_of(texts: Sequence[Text], names: Sequence[str], split: str) -> tuple[list[float | None], list[str]]:
    """The label of each text: the index of its class, or a number where there are no `names`; and what is wrong."""
    index: Mapping[str, int] = {name: number for number, name in enumerate(names)}
    labels: list[float | None] = []
    problems = Counter[str]()
    for text in texts:
        written = text.label or ""
        try:
            labels.append(float(index[written] if names else written))
        except (KeyError, ValueError):
            labels.append(None)
            problems[written] += 1
    what = f"label {{}} is none of {', '.join(first_few(list(names), 8))}" if names else "label {} is no number"
    return labels, [f"{split}: {what.format(repr(name))} ({count:,} texts)" for name, count in problems.most_common()]
