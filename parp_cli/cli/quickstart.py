"""`parp quickstart`: every stage in one command, within minutes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from parp_cli.cli import options
from parp_cli.cli.options import option
from parp_cli.console import Output, duration, percent, size

_METHODS = {"dense": "dense", "MPI (fixed mask)": "mpi", "PARP": "parp"}


def quickstart(
    run: Annotated[Path, option("--run DIR", "Where everything is written.", default=True)] = Path("parp-quickstart"),
    sparsity: Annotated[float, option("--sparsity -s", "Share of weights to prune, in [0, 1).", default=True)] = 0.5,
    updates: Annotated[int, option("--updates", "Updates of each of the three runs.", min=1, default=True)] = 300,
    seed: Annotated[int, option("--seed", "Seed of everything random.", min=0, max=2**32 - 1, default=True)] = 0,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Dense, fixed-mask and PARP fine-tuning of the bundled encoder on ten minutes of generated speech.

    Generates the corpus, gives each method the same updates, evaluates each on test-clean, and prints one table.

    [bold]Example:[/]
      parp quickstart
    """
    from parp_cli.config.load import load_recipe
    from parp_cli.pruning.methods import spec_of
    from parp_cli.runtime.device import select_device
    from parp_cli.stages.evaluate import evaluate
    from parp_cli.stages.finetune import finetune
    from parp_cli.stages.mask import mask
    from parp_cli.storage.run_folder import MASK, state_path

    output = Output(as_json=as_json, quiet=quiet)
    began = time.monotonic()
    where = select_device(device)
    lengths = [f"training.updates={updates}", f"training.validate_every={max(1, updates // 3)}"]
    rows: list[dict[str, Any]] = []
    with output.progress() as notify:
        masked = mask("mini", sparsity=sparsity, out=run / MASK, seed=seed, device=where, notify=notify)
        for number, (name, method) in enumerate(_METHODS.items(), start=1):
            output.note(f"{number} of {len(_METHODS)}: {name}")
            folder = run / method
            tuned = finetune(
                load_recipe(None, [f"seed={seed}", f"pruning.method={method}", *lengths]),
                run=folder,
                init=masked.path if spec_of(method).accepts("magnitude") else None,
                resume=state_path(folder).exists(),
                device=where,
                notify=notify,
            )
            evaluated = evaluate(tuned.path, out=folder / "eval-test-clean.jsonl", device=where, notify=notify)
            result = evaluated.as_it_is
            rates = {
                unit: errors.rate for unit in ("words", "characters") if (errors := result.errors(unit)) is not None
            }
            rows.append(
                {
                    "method": name,
                    "word": rates["words"],
                    "character": rates["characters"],
                    "sparsity": result.sparsity,
                    "size": tuned.path.stat().st_size,
                    "seconds": tuned.cost.seconds,
                    "checkpoint": tuned.path,
                    "hypotheses": result.outputs.hypotheses,
                }
            )
    seconds = time.monotonic() - began
    formats: dict[str, Callable[[Any], str]] = {
        "method": str,
        "word": percent,
        "character": percent,
        "sparsity": percent,
        "size": size,
        "seconds": duration,
    }
    cells = [[show(row[key]) for key, show in formats.items()] for row in rows]
    output.table(
        "Ten minutes of generated English, test-clean", ("method", "WER", "CER", "sparsity", "file", "time"), cells
    )
    written = (masked.path, *(row[key] for row in rows for key in ("checkpoint", "hypotheses")))
    output.text(f"all in {duration(seconds)}; wrote", *(f"  {path}" for path in written))
    output.json({"rows": rows, "mask": masked.path, "seconds": seconds})
