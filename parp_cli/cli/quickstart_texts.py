"""`parp quickstart --task classification`: the same on sentences."""

import time
from pathlib import Path
from typing import Any

from parp_cli.cli import render
from parp_cli.cli.predict import interval
from parp_cli.cli.quickstart import fine_tuned
from parp_cli.console import Output, duration, percent, size

UPDATES = 100

_SETTINGS = ("task=classification", "training.learning_rate=1e-3", "pruning.interval=10", "data.test=test")


def quickstart_texts(output: Output, run: Path, *, sparsity: float, updates: int, seed: int, device: str) -> None:
    """Fine-tune mini-text on 100 generated sentences by each method, and compare them on the test split in one table.

    Raises UsageError where one of the extras demo and nlp is not installed.
    """
    from parp_cli.config.classification import DEFAULT_TEXT_MODEL
    from parp_cli.models.transformers.library import library
    from parp_cli.runtime.device import select_device
    from parp_cli.stages.evaluate import Options, evaluate
    from parp_cli.stages.mask import mask
    from parp_cli.storage.run_folder import MASK

    library()  # a missing package is named before anything trains
    began, where = time.monotonic(), select_device(device)
    settings = (*_SETTINGS, f"seed={seed}", f"training.updates={updates}", f"training.validate_every={updates}")
    rows: list[dict[str, Any]] = []
    with output.progress() as notify:
        masked = mask(DEFAULT_TEXT_MODEL, sparsity=sparsity, out=run / MASK, seed=seed, device=where, notify=notify)
        for name, tuned in fine_tuned(output, run, settings, masked.path, where, notify):
            options = Options(against=tuple(row["predictions"] for row in rows))
            out = tuned.path.with_name("eval-test.jsonl")
            found = evaluate(tuned.path, out=out, options=options, device=where, notify=notify).as_it_is
            rows.append(
                {
                    "method": name,
                    "checkpoint": tuned.path,
                    "predictions": found.path,
                    "seconds": tuned.cost.seconds,
                    "sparsity": found.sparsity,
                    "size": tuned.path.stat().st_size,
                    "comparisons": found.comparisons,
                    "metrics": found.metrics,
                }
            )
    seconds = time.monotonic() - began
    columns: render.Columns = {
        "method": ("method", str),
        "accuracy": ("accuracy", interval),
        "f1": ("F1", lambda found: percent(found.value)),
        "sparsity": ("sparsity", percent),
        "size": ("file", size),
        "seconds": ("time", duration),
    }
    title = "100 generated sentences, 1,000 others to test on"
    render.rows(output, title, columns, [{**row, **row["metrics"]} for row in rows])
    output.text("Is PARP any different from the others?", *(one.words for one in rows[-1]["comparisons"]))
    written = (masked.path, *(row[key] for row in rows for key in ("checkpoint", "predictions")))
    output.text(f"all in {duration(seconds)}; wrote", *(f"  {path}" for path in written))
    output.json({"rows": rows, "mask": masked.path, "seconds": seconds})
