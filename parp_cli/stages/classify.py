"""Predict classes or numbers of texts: of labelled splits, with metrics and tests of differences, or of any file."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from parp_cli.config.classification import TextData, TextRecipe
from parp_cli.config.load import recipe_from_dict
from parp_cli.data.batching import sorted_batches
from parp_cli.data.texts import ENDINGS, Columns, Text, columns_of, read_lines, read_texts, split_file
from parp_cli.errors import CheckpointError, DataError, first_few
from parp_cli.models.recognizer import rebuild
from parp_cli.models.sources.load import load_masks
from parp_cli.models.transformers.architecture import TOKENIZER
from parp_cli.pruning.masks import both, check_meant_for, sparsity, under
from parp_cli.runtime.device import autocast, tensor_cores, versions
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.scoring.classes import (
    Measured,
    PairedTest,
    confusion,
    measure_classes,
    measure_numbers,
    paired_test,
)
from parp_cli.scoring.outputs import Outputs, check_outputs, outputs
from parp_cli.scoring.results import read_results
from parp_cli.storage import checkpoint
from parp_cli.storage.atomic import write_text
from parp_cli.storage.checkpoint import Checkpoint, Metadata
from parp_cli.storage.run_folder import require_head, shortest_labels
from parp_cli.tasks.texts.items import Encoding, TextItem, labels_of

_PASS_TOKENS = 8192
"""Padded tokens in one forward pass. Changes no prediction but by rounding."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What is predicted of a text: a class with its probability, or a number, as text, with None."""

    id: str
    label: str
    probability: float | None


@dataclass(frozen=True, kw_only=True)
class ClassifiedSystem:
    """A checkpoint as it is, or under a mask, on labelled texts.

    Attributes:
        metrics: with their intervals; the first one is what its recipe decides by.
        names, confusion: classes, and how often each (rows) was predicted as each (columns); empty for numbers.
        comparisons: its share of wrong classes with that of others.
        path, figures: the files of predictions (JSON Lines) and of all this (JSON).
    """

    name: str
    checkpoint: Path
    mask: Path | None
    splits: tuple[str, ...]
    texts: int
    sparsity: float
    metrics: Mapping[str, Measured]
    names: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    comparisons: tuple[PairedTest, ...]
    seconds: float
    path: Path
    figures: Path


@dataclass(frozen=True, kw_only=True)
class Classified:
    """A checkpoint as it is, then under each mask; with why lines could not be evaluated, and what is unusual."""

    systems: tuple[ClassifiedSystem, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    unusable: str

    @property
    def as_it_is(self) -> ClassifiedSystem:
        return self.systems[0]

    def error(self) -> DataError | None:
        """What to raise after showing the result; None where nothing was left out, or the recipe skips such."""
        if not self.left_out or self.unusable != "refuse":
            return None
        return DataError(f"{len(self.left_out):,} lines were left out", details=first_few(self.left_out))


class Classifier:
    """The network of a checkpoint with a head for texts, and its tokenizer.

    Raises CheckpointError where the checkpoint has another head, or none.
    """

    def __init__(self, content: Checkpoint, source: Path, device: torch.device, *, precision: str = "float32") -> None:
        self.task = require_classes(content.metadata, source)
        self.network = rebuild(content, device, source=str(source))[1]
        limits = (self.task.get("max_length"), self.network.positions)
        length = min(limit for limit in (*limits, 512) if limit is not None) if any(limits) else 512
        packed = content.weights.get(TOKENIZER)
        self.encoding = Encoding(self.network, packed, max_length=length, source=str(source))
        self.names: list[str] = list(self.task["names"])
        self._device, self._precision = device, precision

    def predict(self, items: Sequence[TextItem], notify: Notify = silent) -> list[Prediction]:
        """In the order of the items."""
        found: dict[int, Prediction] = {}
        batches = sorted_batches([len(item.tokens) for item in items], _PASS_TOKENS)
        for batch in batches:
            some = [items[index] for index in batch]
            found |= dict(zip(batch, self._predict(some), strict=True))
            notify(Progress("predicting", len(found), len(items)))
        return [found[index] for index in range(len(items))]

    @torch.no_grad()
    def _predict(self, items: Sequence[TextItem]) -> Iterator[Prediction]:
        with autocast(self._precision, self._device):
            outputs = self.network(self.encoding.batch(items, self._device)).float().cpu()
        if not self.names:
            for item, value in zip(items, outputs[:, 0].tolist(), strict=True):
                yield Prediction(id=item.id, label=f"{value:.6g}", probability=None)
            return
        shares, classes = outputs.softmax(-1).max(-1)
        for item, share, index in zip(items, shares.tolist(), classes.tolist(), strict=True):
            yield Prediction(id=item.id, label=self.names[index], probability=share)


def require_classes(metadata: Metadata, source: Path) -> Mapping[str, Any]:
    """What the head of a checkpoint is for. Raises CheckpointError where it has none for texts."""
    require_head(source, metadata)
    assert metadata.task is not None, "there is a head"
    if metadata.task["kind"] != "classification":
        raise CheckpointError(f"the output head of {source} is for {metadata.task['kind']}, not for texts")
    return metadata.task


def recorded_texts(metadata: Metadata, overrides: Sequence[str] = ()) -> TextRecipe:
    """The recipe of the run that made a checkpoint (the defaults, if none did), with `overrides` as `--set` takes them.

    Raises RecipeError: an override is no recipe key, or has a wrong value.
    """
    recorded = metadata.recipe if metadata.recipe is not None and "data" in metadata.recipe else {}
    return recipe_from_dict({"task": "classification", **recorded}, overrides, kind=TextRecipe)


def evaluate_texts(
    source: Path,
    *,
    out: Path,
    data: TextData | None = None,
    splits: Sequence[str] = (),
    masks: Sequence[Path] = (),
    against: Sequence[Path] = (),
    seed: int = 0,
    precision: str = "float32",
    device: torch.device | None = None,
    notify: Notify = silent,
) -> Classified:
    """Predict all texts of splits, and compute metrics with intervals, and tests of differences.

    Args:
        source: a checkpoint with a head for texts.
        out: where predictions go (JSON Lines: id, split, reference, hypothesis, probability); the figures go beside it,
            as `.json`. Under a mask, its label is added to both names.
        data: by default that of the run that made the checkpoint, and its test split.
        masks: files with masks of the same model, under each of which it is evaluated too.
        against: predictions of other systems on the same texts, to test the difference from.

    Raises:
        CheckpointError: the checkpoint cannot be read, or its head is for something else.
        MaskError: a file has no mask, or one of another model.
        DataError: a split cannot be read, or has labels that the head does not know.
        UsageError: files would overwrite each other.
    """
    content, device = checkpoint.read(source), device or torch.device("cpu")
    head = require_classes(content.metadata, source)
    data = data or recorded_texts(content.metadata).data
    splits = tuple(dict.fromkeys(splits or (data.test,)))
    names = shortest_labels([source if masks else out, *masks, *against])
    suffixes = ["", *(name.replace("/", "-") for name in names[1 : 1 + len(masks)])]
    files = [outputs(out, None, None, label) for label in suffixes]
    check_outputs(files, {"the checkpoint": [source], "--mask": masks, "--against": against})
    others: dict[str, dict[str, tuple[str, str]]] = {}
    for name, path in zip(names[1 + len(masks) :], against, strict=True):
        others[name] = {f"{one.split}/{one.id}": (one.reference, one.hypothesis) for one in read_results(path)}
    texts, left_out = _labelled(data, splits)
    labels, wrong = labels_of([text for _, text in texts], head["names"], "+".join(splits))
    if wrong:
        raise DataError(
            f"{source} cannot be judged by these labels",
            details=wrong,
            hint="its head knows other classes: name the data it was fine-tuned for, or data.label",
        )
    systems: list[ClassifiedSystem] = []
    items: Sequence[TextItem] = ()
    notes: list[str] = []
    with tensor_cores(precision):
        for place, mask in enumerate([None, *masks]):
            began = time.monotonic()
            pruned, share = _under(content, mask, source)
            classifier = Classifier(pruned, source, device, precision=precision)
            if mask is None:  # under masks they are the same
                made = classifier.encoding.items([text for _, text in texts], labels)
                items, notes = made.items, made.notes("+".join(splits), classifier.encoding.max_length)
            predictions = classifier.predict(items, notify)
            measured, table = _measure(labels, predictions, head["names"], seed)
            rows = {
                f"{split}/{text.id}": (text.label or "", one.label)
                for (split, text), one in zip(texts, predictions, strict=True)
            }
            tests = [
                test
                for other, theirs in (others.items() if head["names"] else ())
                if (test := paired_test(rows, theirs, name=names[place], other=other, seed=seed)) is not None
            ]
            if mask is None:
                others = {names[0]: rows, **others}
            first = [name for name in head.get("metrics", ()) if name in measured]
            systems.append(
                ClassifiedSystem(
                    name=names[place],
                    checkpoint=source,
                    mask=mask,
                    splits=splits,
                    texts=len(texts),
                    sparsity=share,
                    metrics={name: measured[name] for name in dict.fromkeys((*first, *measured))},
                    names=tuple(head["names"]),
                    confusion=table,
                    comparisons=tuple(tests),
                    seconds=time.monotonic() - began,
                    path=files[place].hypotheses,
                    figures=files[place].figures,
                )
            )
            used = versions(classifier.network.architecture.libraries)
            about = {"data": asdict(data), "left_out": left_out, "notes": notes, "versions": used}
            _write(systems[-1], files[place], texts, predictions, about)
    return Classified(systems=tuple(systems), left_out=tuple(left_out), notes=tuple(notes), unusable=data.unusable)


def predict(
    source: Path,
    file: Path,
    *,
    data: TextData | None = None,
    device: torch.device | None = None,
    notify: Notify = silent,
) -> list[tuple[Text, Prediction]]:
    """Predict the texts of a file: a table with the columns of `data`, without labels, or else a text per line.

    Raises CheckpointError and DataError as `evaluate_texts`; lines without a text are a DataError.
    """
    content = checkpoint.read(source)
    classifier = Classifier(content, source, device or torch.device("cpu"))
    if file.suffix in ENDINGS:
        asked = data or recorded_texts(content.metadata).data
        columns = columns_of(asked, file, labelled=False)
        texts, problems = read_texts(file, columns)
        if problems:
            raise DataError(f"{len(problems):,} lines of {file} have no text", details=first_few(problems))
    else:
        texts = read_lines(file)
    made = classifier.encoding.items(texts, [None] * len(texts))
    for note in made.notes(str(file), classifier.encoding.max_length):
        notify(Progress("predicting", 0, 0, warning=note))
    return list(zip(texts, classifier.predict(made.items, notify), strict=True))


def _labelled(data: TextData, splits: Sequence[str]) -> tuple[list[tuple[str, Text]], list[str]]:
    texts: list[tuple[str, Text]] = []
    problems: list[str] = []
    for split in splits:
        path = split_file(data, split)
        columns: Columns = columns_of(data, path)
        read, wrong = read_texts(path, columns)
        texts += [(split, text) for text in read]
        problems += wrong
    return texts, problems


def _under(content: Checkpoint, mask: Path | None, source: Path) -> tuple[Checkpoint, float]:
    """A checkpoint under its own mask and another, and the sparsity of both together."""
    if mask is None:
        return content, sparsity(content.masks)
    masks, _ = load_masks(mask)
    check_meant_for(mask, masks, content.weights, what=str(source))
    return replace(content, weights=under(masks, content.weights)), sparsity(both(masks, content.masks))


def _measure(
    labels: Sequence[float | None], predictions: Sequence[Prediction], names: Sequence[str], seed: int
) -> tuple[dict[str, Measured], tuple[tuple[int, ...], ...]]:
    known = [0.0 if label is None else label for label in labels]
    if not names:
        return measure_numbers(known, [float(one.label) for one in predictions], seed=seed), ()
    index = {name: number for number, name in enumerate(names)}
    table = confusion([int(label) for label in known], [index[one.label] for one in predictions], len(names))
    return measure_classes(table, seed=seed), tuple(map(tuple, table.tolist()))


def _write(
    system: ClassifiedSystem,
    files: Outputs,
    texts: Sequence[tuple[str, Text]],
    predictions: Sequence[Prediction],
    about: Mapping[str, Any],
) -> None:
    lines = [
        {
            "id": text.id,
            "split": split,
            "reference": text.label,
            "hypothesis": one.label,
            **({} if one.probability is None else {"probability": round(one.probability, 6)}),
        }
        for (split, text), one in zip(texts, predictions, strict=True)
    ]
    predicted = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    files.make_room(predicted)
    write_text(files.hypotheses, predicted)
    figures = {**asdict(system), "metric": next(iter(system.metrics)), **about}
    write_text(files.figures, json.dumps(figures, default=str, ensure_ascii=False, indent=2, sort_keys=True) + "\n")
