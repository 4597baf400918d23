"""The texts of a recipe: read, checked, tokenized; and what the labels are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parp_cli.config.classification import TextRecipe
from parp_cli.data.glue import GLUE
from parp_cli.data.texts import Text, columns_of, read_texts, split_file
from parp_cli.errors import DataError, first_few
from parp_cli.scoring.classes import CLASS_METRICS, NUMBER_METRICS
from parp_cli.tasks.texts.items import Encoding, TextItem, class_names, labels_of


@dataclass(frozen=True, kw_only=True)
class TextSet:
    """What is learned from and judged on.

    Attributes:
        names: of the classes, by their index; empty for numbers.
        metrics: that people read; the first decides which checkpoint is best.
        left_out: why lines are left out, one message each.
        notes: what is unusual about the others.
    """

    train: tuple[TextItem, ...]
    valid: tuple[TextItem, ...]
    names: tuple[str, ...]
    metrics: tuple[str, ...]
    encoding: Encoding
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def metrics_of(recipe: TextRecipe, *, numbers: bool) -> tuple[str, ...]:
    """The metrics of a recipe, the one that decides first. Raises DataError where it is none of its labels'."""
    possible = NUMBER_METRICS if numbers else CLASS_METRICS
    reported = GLUE[recipe.data.glue].metrics if recipe.data.glue else ()
    chosen = recipe.data.metric or (reported or possible)[0]
    if chosen not in possible:
        raise DataError(
            f"data.metric {chosen} is not for {'numbers' if numbers else 'classes'}",
            hint=f"one of {', '.join(possible)}",
        )
    return tuple(dict.fromkeys((chosen, *(reported or possible))))


def are_numbers(recipe: TextRecipe) -> bool:
    """Whether labels are numbers to predict."""
    if recipe.data.target is not None:
        return recipe.data.target == "number"
    return recipe.data.glue is not None and GLUE[recipe.data.glue].numbers


def load_texts(recipe: TextRecipe, encoding: Encoding, own: Sequence[str] | None) -> TextSet:
    """Read both splits.

    `own` are the classes of the head that training begins from, which are kept where they have all labels. Raises
    DataError where the data is missing, or has nothing that can be trained on.
    """
    data, numbers = recipe.data, are_numbers(recipe)
    problems: list[str] = []
    notes: list[str] = []
    read: dict[str, list[Text]] = {}
    for split in dict.fromkeys((data.train, data.valid)):
        path = split_file(data, split)
        read[split], wrong = read_texts(path, columns_of(data, path))
        problems += wrong
    names: list[str] = []
    if not numbers:
        names = class_names(read[data.train])
        if own is not None and set(names) <= set(own):
            names = list(own)
        if len(names) < 2:
            raise DataError(f"all texts of {data.train} have the label {names[0]!r}: there is nothing to tell apart")
    items: dict[str, tuple[TextItem, ...]] = {}
    for split, texts in read.items():
        labels, wrong = labels_of(texts, names, split)
        problems += wrong
        usable = [(text, label) for text, label in zip(texts, labels, strict=True) if label is not None]
        if not usable:
            raise DataError(
                f"no usable text in {split}",
                details=first_few(problems),
                hint="name other files or columns: data.train, data.valid, data.text, data.label; or data.target",
            )
        made = encoding.items([text for text, _ in usable], [label for _, label in usable])
        items[split] = made.items
        notes += made.notes(split, encoding.max_length)
        if names:
            counts = Counter(text.label for text, _ in usable)
            notes.append(f"{split}: " + ", ".join(f"{counts[name]:,} {name}" for name in names))
    return TextSet(
        train=items[data.train],
        valid=items[data.valid],
        names=tuple(names),
        metrics=metrics_of(recipe, numbers=numbers),
        encoding=encoding,
        left_out=tuple(problems),
        notes=tuple(notes),
    )


def recorded_names(head: Mapping[str, Any] | None) -> list[str] | None:
    """The classes of a head, by what a checkpoint says of it; None for another task, for numbers, or without a head."""
    if head is None or head["kind"] != "classification" or head["target"] != "class":
        return None
    return list(head["names"])
