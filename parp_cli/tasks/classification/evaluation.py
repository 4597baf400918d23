"""Predict labelled texts, and compute metrics with intervals, and tests of differences."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from parp_cli.config.classification import TextData
from parp_cli.data.texts import Text, columns_of, read_texts, split_file
from parp_cli.errors import DataError, UsageError, first_few
from parp_cli.runtime.device import versions
from parp_cli.runtime.processes import World
from parp_cli.runtime.progress import Notify
from parp_cli.scoring.class_report import ClassReport, Predicted, class_report
from parp_cli.scoring.classes import Measured, PairedTest, confusion, measure_classes, measure_numbers, paired_test
from parp_cli.scoring.outputs import Outputs
from parp_cli.scoring.page import page
from parp_cli.storage import checkpoint
from parp_cli.storage.atomic import write_text
from parp_cli.storage.run_folder import require_head
from parp_cli.tasks.classification.classifier import Classifier, Prediction
from parp_cli.tasks.evaluation import Evaluation, Options, compared
from parp_cli.tasks.texts.items import TextItem, labels_of


@dataclass(frozen=True, kw_only=True)
class ClassifiedSystem:
    """A checkpoint as it is, or under a mask, on labelled texts.

    Attributes:
        metrics: with their intervals; the first one is what its recipe decides by.
        names, confusion: classes, and how often each (rows) was predicted as each (columns); empty for numbers.
        comparisons: its share of wrong classes with that of others.
        path, figures, html: the files of predictions (JSON Lines), of all this (JSON), and a page if one was asked for.
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
    html: Path | None = None


@dataclass(frozen=True, kw_only=True)
class TextEvaluation(Evaluation[ClassifiedSystem]):
    """Of texts; `left_out` are lines of files."""

    left_out: tuple[str, ...]

    def refusal(self) -> DataError:
        return DataError(
            f"lines without a text or a label were left out: {len(self.left_out):,}",
            details=first_few(self.left_out),
            hint="mend the files, or accept it: --set data.unusable=skip",
        )


def evaluate_texts(
    source: Path, *, out: Path, data: TextData, options: Options, device: torch.device, world: World, notify: Notify
) -> TextEvaluation:
    """Arguments and errors as of `stages.evaluate`. Every process of the world predicts all texts.

    Results are lines of id, split, reference, hypothesis and probability.
    """
    if wrong := options.of_speech():
        raise UsageError(f"{', '.join(wrong)} is for speech, {source} classifies texts", hint="leave it out")
    content = checkpoint.read(source)
    head = require_head(source, content.metadata)
    splits = tuple(dict.fromkeys(options.splits or (data.test,)))
    systems, against = compared(source, content, out, options, {})
    others = {
        name: {f"{one.split}/{one.id}": (one.reference, one.hypothesis) for one in some}
        for name, some in against.items()
    }
    texts, left_out = _labelled(data, splits)
    labels, wrong = labels_of([text for _, text in texts], head["names"], "+".join(splits))
    if wrong:
        raise DataError(
            f"{source} cannot be judged by these labels",
            details=wrong,
            hint="its head knows other classes: name the data it was fine-tuned for, or data.label",
        )
    evaluated: list[ClassifiedSystem] = []
    items: Sequence[TextItem] = ()
    notes: list[str] = []
    for system in systems:
        began = time.monotonic()
        classifier = Classifier(system.pruned(content), source, device, precision=options.precision)
        if not evaluated:  # under masks they are the same
            made = classifier.encoding.items([text for _, text in texts], labels)
            items, notes = made.items, made.notes("+".join(splits), classifier.encoding.max_length)
        predictions = classifier.predict(items, notify)
        metrics, table = _measure(labels, predictions, head, options.seed)
        rows = {
            f"{split}/{text.id}": (text.label or "", one.label)
            for (split, text), one in zip(texts, predictions, strict=True)
        }
        tests = [
            paired_test(rows, theirs, name=system.name, other=other, seed=options.seed)
            for other, theirs in (others.items() if head["names"] else ())
        ]
        if not evaluated:
            others = {system.name: rows, **others}
        evaluated.append(
            ClassifiedSystem(
                name=system.name,
                checkpoint=source,
                mask=system.mask,
                splits=splits,
                texts=len(texts),
                sparsity=system.sparsity,
                metrics=metrics,
                names=tuple(head["names"]),
                confusion=table,
                comparisons=tuple(filter(None, tests)),
                seconds=time.monotonic() - began,
                path=system.outputs.hypotheses,
                figures=system.outputs.figures,
                html=system.outputs.html,
            )
        )
        if world.is_main:
            used = versions(classifier.network.architecture.libraries)
            about = {"data": asdict(data), "left_out": left_out, "notes": notes, "versions": used}
            _write(evaluated[-1], system.outputs, texts, predictions, about)
    return TextEvaluation(
        systems=tuple(evaluated), left_out=tuple(left_out), notes=tuple(notes), unusable=data.unusable
    )


def _labelled(data: TextData, splits: Sequence[str]) -> tuple[list[tuple[str, Text]], list[str]]:
    """The texts of splits, each with its split, and what is wrong with other lines."""
    texts: list[tuple[str, Text]] = []
    problems: list[str] = []
    for split in splits:
        path = split_file(data, split)
        read, wrong = read_texts(path, columns_of(data, path))
        texts += [(split, text) for text in read]
        problems += wrong
    return texts, problems


def _measure(
    labels: Sequence[float | None], predictions: Sequence[Prediction], head: Mapping[str, Any], seed: int
) -> tuple[dict[str, Measured], tuple[tuple[int, ...], ...]]:
    """Metrics, those that the head was chosen by first, and the confusion table, empty for numbers."""
    known = [0.0 if label is None else label for label in labels]
    index = {name: number for number, name in enumerate(head["names"])}
    rows: tuple[tuple[int, ...], ...] = ()
    if index:
        table = confusion([int(label) for label in known], [index[one.label] for one in predictions], len(index))
        metrics, rows = measure_classes(table, seed=seed), tuple(map(tuple, table.tolist()))
    else:
        metrics = measure_numbers(known, [float(one.label) for one in predictions], seed=seed)
    first = [name for name in head.get("metrics", ()) if name in metrics]
    return {name: metrics[name] for name in dict.fromkeys((*first, *metrics))}, rows


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
    del figures["html"]  # a page makes no difference to what was found
    write_text(files.figures, json.dumps(figures, default=str, ensure_ascii=False, indent=2, sort_keys=True) + "\n")
    if files.html is not None:
        write_text(files.html, page(_report(system, texts, predictions, about)))


def _report(
    system: ClassifiedSystem,
    texts: Sequence[tuple[str, Text]],
    predictions: Sequence[Prediction],
    about: Mapping[str, Any],
) -> ClassReport:
    shown = [
        Predicted(
            id=text.id,
            split=split,
            text=text.text,
            text_b=text.text_b,
            reference=text.label or "",
            prediction=one.label,
            probability=one.probability,
        )
        for (split, text), one in zip(texts, predictions, strict=True)
    ]
    data = about["data"]
    origin = {
        "checkpoint": str(system.checkpoint),
        "mask": "" if system.mask is None else str(system.mask),
        "sparsity": f"{system.sparsity:.1%}",
        "data": " ".join(filter(None, (data["glue"], data["root"]))) or "generated sentences",
        "splits": ", ".join(system.splits),
        "notes": "; ".join(about["notes"]),
        **about["versions"],
    }
    return class_report(
        shown,
        name=system.name,
        origin=[(name, value) for name, value in origin.items() if value],
        metrics=system.metrics,
        names=system.names,
        confusion=system.confusion,
        comparisons=system.comparisons,
    )
