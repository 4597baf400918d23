"""`parp predict`, and what `parp eval` shows of texts."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from parp_cli.cli import options
from parp_cli.cli.options import option
from parp_cli.console import Output, duration, percent

if TYPE_CHECKING:
    from parp_cli.scoring.classes import Measured
    from parp_cli.tasks.classification.evaluation import ClassifiedSystem, TextEvaluation

_MOST_CLASSES = 10  # in a confusion table on the terminal


def predict(
    file: Annotated[
        Path, typer.Argument(help="A text per line; or a .tsv, .csv or .jsonl with the columns of the recipe.")
    ],
    checkpoint: options.NamedCheckpoint = None,
    layout: Annotated[Literal["tsv", "jsonl"], option("--format -f", "Of the predictions.", default=True)] = "tsv",
    settings: Annotated[list[str] | None, option("--set KEY=VALUE", "Other columns: data.text, data.text_b.")] = None,
    out: Annotated[Path | None, option("--out PATH", "Write here instead of printing.")] = None,
    run: options.Run = options.DEFAULT_RUN,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Predict the class of each text, with its probability; or a number.

    [bold]Examples:[/]
      parp predict reviews.txt
      parp predict pairs.tsv --format jsonl --out predictions.jsonl
    """
    from parp_cli.runtime.device import select_device
    from parp_cli.stages.predict import predict as stage
    from parp_cli.storage.atomic import require_writable, write_text
    from parp_cli.storage.run_folder import checkpoint_or_newest

    output = Output(as_json=as_json, quiet=quiet)
    source = checkpoint_or_newest(checkpoint, run)
    if out is not None:
        require_writable(out, "--out")
    with output.progress() as notify:
        predicted = stage(source, file, settings=settings or (), device=select_device(device), notify=notify)
    rows: list[dict[str, object]] = []
    for text, one in predicted:
        pair = {} if text.text_b is None else {"text_b": text.text_b}
        sure = {} if one.probability is None else {"probability": round(one.probability, 4)}
        rows.append({"id": text.id, "label": one.label, **sure, "text": text.text, **pair})
    if layout == "jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        lines = [list(rows[0]), *(list(map(str, row.values())) for row in rows)]
        content = "".join(
            "\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in line) + "\n" for line in lines
        )
    if out is None:
        output.verbatim(content)
    else:
        write_text(out, content)
        output.wrote(out)
    output.json({"predictions": rows})


def show(output: Output, result: "TextEvaluation") -> None:
    """An evaluation of texts."""
    from parp_cli.scoring.classes import NAMES

    first = result.as_it_is
    output.text(f"{', '.join(first.splits)}: {first.texts:,} texts", *result.notes)
    shown = list(first.metrics)
    rows = [
        [system.name, *(interval(system.metrics[name]) for name in shown), percent(system.sparsity)]
        for system in result.systems
    ]
    output.table("Metrics, with 95 % intervals", ("system", *(NAMES[name] for name in shown), "sparsity"), rows)
    if len(result.systems) == 1 and 0 < len(first.names) <= _MOST_CLASSES:
        _confusion(output, first)
    output.text(*(test.words for system in result.systems for test in system.comparisons))
    output.text(f"took {duration(first.seconds)}")
    output.wrote(*(path for system in result.systems for path in (system.path, system.figures, system.html) if path))


def _confusion(output: Output, system: "ClassifiedSystem") -> None:
    rows = [
        [name, *(f"{count:,}" for count in counts), percent(counts[place] / sum(counts) if sum(counts) else None)]
        for place, (name, counts) in enumerate(zip(system.names, system.confusion, strict=True))
    ]
    output.table("References down, predictions across", ("", *system.names, "recognised"), rows)


def interval(measured: "Measured") -> str:
    """A metric, with its interval where it has one."""
    if measured.low is None or measured.high is None:
        return percent(measured.value)
    return f"{percent(measured.value)} [{100 * measured.low:.1f}, {100 * measured.high:.1f}]"
