"""`parp quickstart`: every stage in one command, within minutes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from parp_cli.cli import options
from parp_cli.cli.options import option
from parp_cli.console import Output, duration, percent, size

if TYPE_CHECKING:
    from parp_cli.stages.evaluate import Evaluated
    from parp_cli.stages.finetune import FinetuneResult

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

    Generates the corpus, gives each method the same updates, evaluates each on test-clean, the last one also with a
    language model of the ten minutes' own sentences, and prints one table.

    [bold]Example:[/]
      parp quickstart
    """
    from parp_cli.config.load import load_recipe
    from parp_cli.decoding.choose import Decoding
    from parp_cli.decoding.lm import flashlight
    from parp_cli.pruning.methods import spec_of
    from parp_cli.runtime.device import select_device
    from parp_cli.stages.evaluate import Options, evaluate
    from parp_cli.stages.finetune import finetune
    from parp_cli.stages.lm import build, transcripts
    from parp_cli.stages.mask import mask
    from parp_cli.storage.run_folder import MASK

    output = Output(as_json=as_json, quiet=quiet)
    flashlight("decoder")  # that the last row needs it is said before the first one trains
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
                resume=folder.exists(),  # what is finished is not trained again
                device=where,
                notify=notify,
            )
            # Each is compared with the ones before it, on the same utterances.
            against = Options(against=tuple(row["hypotheses"] for row in rows))
            results = folder / "eval-test-clean.jsonl"
            evaluated = evaluate(tuned.path, out=results, options=against, device=where, notify=notify).as_it_is
            rows.append(_row(name, tuned, evaluated))
        data = load_recipe(None).data
        lm = build(transcripts(data, [data.train], notify), out=run / "lm.arpa", notify=notify)
        results = run / method / "eval-test-clean-lm.jsonl"
        lexicon = Options(decoding=Decoding(decoder="lexicon", lm=str(lm.path)))
        spelt = evaluate(tuned.path, out=results, options=lexicon, device=where, notify=notify).as_it_is
        rows.append(_row(f"{name}, 4-gram of its sentences", tuned, spelt))
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
    compared = [comparison.words for comparison in evaluated.report.comparisons]
    output.text(*compared)
    written = dict.fromkeys((masked.path, *(row[key] for row in rows for key in ("checkpoint", "hypotheses"))))
    output.text(f"all in {duration(seconds)}; wrote", *(f"  {path}" for path in written))
    output.json({"rows": rows, "compared": compared, "mask": masked.path, "seconds": seconds})


def _row(name: str, tuned: "FinetuneResult", evaluated: "Evaluated") -> dict[str, Any]:
    rates = {unit: errors.rate for unit in ("words", "characters") if (errors := evaluated.errors(unit)) is not None}
    return {
        "method": name,
        "word": rates["words"],
        "character": rates["characters"],
        "sparsity": evaluated.sparsity,
        "size": tuned.path.stat().st_size,
        "seconds": tuned.cost.seconds,
        "checkpoint": tuned.path,
        "hypotheses": evaluated.outputs.hypotheses,
    }
