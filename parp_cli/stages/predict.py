"""Predict classes or numbers of the texts of any file."""

from collections.abc import Sequence
from pathlib import Path

import torch

from parp_cli.data.texts import ENDINGS, Text, columns_of, read_lines, read_texts
from parp_cli.errors import DataError, first_few
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage import checkpoint
from parp_cli.tasks.classification.classifier import Classifier, Prediction
from parp_cli.tasks.classification.task import ClassificationTask


def predict(
    source: Path,
    file: Path,
    *,
    settings: Sequence[str] = (),
    device: torch.device | None = None,
    notify: Notify = silent,
) -> list[tuple[Text, Prediction]]:
    """Predict the texts of a file: a table with the columns of the checkpoint's recipe, without labels, or else a text
    per line.

    Args:
        source: a checkpoint with a head for texts.
        settings: other columns, as `--set` takes them.

    Raises:
        CheckpointError: the checkpoint cannot be read, or its head is for something else.
        RecipeError: a setting is no recipe key, or has a wrong value.
        DataError: the file cannot be read, or has lines without a text.
    """
    content = checkpoint.read(source)
    classifier = Classifier(content, source, device or torch.device("cpu"))
    data = ClassificationTask.recorded(content.metadata, settings).data
    if file.suffix in ENDINGS:
        texts, problems = read_texts(file, columns_of(data, file, labelled=False))
        if problems:
            raise DataError(
                f"lines of {file} without a text: {len(problems):,}",
                details=first_few(problems),
                hint="remove them, or name the column of texts: --set data.text=COLUMN",
            )
    else:
        texts = read_lines(file)
    made = classifier.encoding.items(texts, [None] * len(texts))
    for note in made.notes(str(file), classifier.encoding.max_length):
        notify(Progress("predicting", 0, 0, warning=note))
    return list(zip(texts, classifier.predict(made.items, notify), strict=True))
