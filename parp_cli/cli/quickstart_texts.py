"""`parp quickstart --task classification`: the same on sentences."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parp_cli.cli.predict import in_words, interval
from parp_cli.console import Output, duration, percent, size

UPDATES = 100

_SETTINGS = ("task=classification", "training.learning_rate=1e-3", "pruning.interval=10", "data.test=test")


def quickstart_texts(
    output: Output, run: Path, methods: dict[str, str], *, sparsity: float, updates: int, seed: int, device: str
) -> None:
    """Fine-tune mini-text on 100 generated sentences by each method, named for people, and compare them on the test
    split in one table.

    Raises UsageError where one of the extras demo and nlp is not installed.
    """
    from parp_cli.config.classification import DEFAULT_TEXT_MODEL
    from parp_cli.config.load import load_recipe
    from parp_cli.models.transformers.library import library
    from parp_cli.pruning.methods import spec_of
    from parp_cli.runtime.device import select_device
    from parp_cli.stages.evaluate import Options, evaluate
    from parp_cli.stages.finetune import finetune
    from parp_cli.stages.mask import mask
    from parp_cli.storage.run_folder import MASK

    library()  # a missing package is named before anything trains
    began, where = time.monotonic(), select_device(device)
    settings = (*_SETTINGS, f"seed={seed}", f"training.updates={updates}", f"training.validate_every={updates}")
    rows: list[dict[str, Any]] = []
    with output.progress() as notify:
        masked = mask(DEFAULT_TEXT_MODEL, sparsity=sparsity, out=run / MASK, seed=seed, device=where, notify=notify)
        for number, (name, method) in enumerate(methods.items(), start=1):
            output.note(f"{number} of {len(methods)}: {name}")
            folder = run / method
            tuned = finetune(
                load_recipe(None, [*settings, f"pruning.method={method}"]),
                run=folder,
                init=masked.path if spec_of(method).accepts("magnitude") else None,
                resume=folder.exists(),  # what is finished is not trained again
                device=where,
                notify=notify,
            )
            options = Options(against=tuple(row["predictions"] for row in rows))
            out = folder / "eval-test.jsonl"
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
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "method": ("method", str),
        "accuracy": ("accuracy", interval),
        "f1": ("F1", lambda found: percent(found.value)),
        "sparsity": ("sparsity", percent),
        "size": ("file", size),
        "seconds": ("time", duration),
    }
    output.table(
        "100 generated sentences, 1,000 others to test on",
        [title for title, _ in columns.values()],
        [[show({**row, **row["metrics"]}[key]) for key, (_, show) in columns.items()] for row in rows],
    )
    output.text("Is PARP any different from the others?", *(in_words(one) for one in rows[-1]["comparisons"]))
    written = (masked.path, *(row[key] for row in rows for key in ("checkpoint", "predictions")))
    output.text(f"all in {duration(seconds)}; wrote", *(f"  {path}" for path in written))
    output.json({"rows": rows, "mask": masked.path, "seconds": seconds})
