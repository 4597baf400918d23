"""The nine tasks of GLUE (Wang et al. 2019) as their TSV files have them: folders, columns, and metrics."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Glue:
    """A task of GLUE.

    Attributes:
        folder: its published name.
        text, text_b, label: its columns, by name, or by number in files without a header row.
        metrics: as GLUE reports them, the first of which decides.
        header: whether files have a header row.
        splits: files of splits that have another name here.
        numbers: whether labels are numbers to predict.
    """

    folder: str
    text: str
    label: str
    text_b: str | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    header: bool = True
    splits: Mapping[str, str] | None = None
    numbers: bool = False


GLUE = {
    "cola": Glue("CoLA", "3", "1", metrics=("matthews",), header=False),
    "sst2": Glue("SST-2", "sentence", "label"),
    "mrpc": Glue("MRPC", "#1 String", "Quality", "#2 String", metrics=("accuracy", "f1")),
    "stsb": Glue("STS-B", "sentence1", "score", "sentence2", metrics=("pearson", "spearman"), numbers=True),
    "qqp": Glue("QQP", "question1", "is_duplicate", "question2", metrics=("accuracy", "f1")),
    "mnli": Glue("MNLI", "sentence1", "gold_label", "sentence2", splits={"dev": "dev_matched", "test": "test_matched"}),
    "qnli": Glue("QNLI", "question", "label", "sentence"),
    "rte": Glue("RTE", "sentence1", "label", "sentence2"),
    "wnli": Glue("WNLI", "sentence1", "label", "sentence2"),
}
"""By the name that recipes have for it."""
