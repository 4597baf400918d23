"""`parp quickstart`: every stage in one command, within minutes."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parp_cli.cli.options import DeviceOption, JsonOption, QuietOption
from parp_cli.console import Output, duration, percent, size

if TYPE_CHECKING:
    from parp_cli.config.finetune import Recipe

_UPDATES = 300
"""Updates of each of the three runs."""

_METHODS = (("dense", "dense"), ("MPI (fixed mask)", "mpi"), ("PARP", "parp"))


@dataclass(frozen=True, kw_only=True)
class Row:
    """Result of one method; `size` is that of the checkpoint, in bytes."""

    method: str
    word: float
    character: float
    sparsity: float
    size: int
    seconds: float
    checkpoint: Path
    hypotheses: Path


def quickstart(
    run: Annotated[Path, typer.Option("--run", metavar="DIR", help="Where everything is written.")] = Path(
        "parp-quickstart"
    ),
    sparsity: Annotated[float, typer.Option("--sparsity", "-s", help="Share of weights to prune, in [0, 1).")] = 0.5,
    updates: Annotated[int, typer.Option("--updates", min=1, help="Updates of each of the three runs.")] = _UPDATES,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of everything random.")] = 0,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Dense, fixed-mask and PARP fine-tuning of the bundled encoder on ten minutes of generated speech.

    Generates the corpus, gives each method the same updates, evaluates each on test-clean, and prints one table.

    [bold]Example:[/]

      parp quickstart
    """
    import time

    from parp_cli.pruning.methods import spec_of
    from parp_cli.runtime.device import select_device
    from parp_cli.stages.evaluate import evaluate
    from parp_cli.stages.finetune import finetune
    from parp_cli.stages.mask import mask
    from parp_cli.storage.run_folder import MASK, state_path

    output = Output(as_json=as_json, quiet=quiet)
    began = time.monotonic()
    where = select_device(device)
    rows = []
    with output.progress() as notify:
        masked = mask("mini", sparsity=sparsity, out=run / MASK, seed=seed, device=where, notify=notify)
        for number, (name, method) in enumerate(_METHODS, start=1):
            output.note(f"{number} of {len(_METHODS)}: {name}")
            tuned = finetune(
                _recipe(method, updates, seed),
                run=run / method,
                init=masked.path if spec_of(method).accepts("magnitude") else None,
                resume=state_path(run / method).exists(),
                device=where,
                notify=notify,
            )
            result = evaluate(
                tuned.path, out=run / method / "eval-test-clean.jsonl", device=where, notify=notify
            ).as_it_is
            words, characters = result.errors("words"), result.errors("characters")
            assert words is not None
            assert characters is not None
            rows.append(
                Row(
                    method=name,
                    word=words.rate,
                    character=characters.rate,
                    sparsity=result.sparsity,
                    size=tuned.path.stat().st_size,
                    seconds=tuned.cost.seconds,
                    checkpoint=tuned.path,
                    hypotheses=result.outputs.hypotheses,
                )
            )
    _show(output, rows, masked.path, time.monotonic() - began)


def _recipe(method: str, updates: int, seed: int) -> "Recipe":
    """The bundled ten-minute recipe, shortened."""
    from parp_cli.config.finetune import Recipe

    whole = Recipe(seed=seed)
    training = replace(whole.training, updates=updates, validate_every=max(1, updates // 3))
    return replace(whole, training=training, pruning=replace(whole.pruning, method=method))


def _show(output: Output, rows: list[Row], mask: Path, seconds: float) -> None:
    output.table(
        "Ten minutes of generated English, test-clean",
        ("method", "WER", "CER", "sparsity", "file", "time"),
        [
            [r.method, percent(r.word), percent(r.character), percent(r.sparsity), size(r.size), duration(r.seconds)]
            for r in rows
        ],
    )
    output.text(f"all in {duration(seconds)}; wrote")
    for path in (mask, *(path for row in rows for path in (row.checkpoint, row.hypotheses))):
        output.text(f"  {path}")
    output.json({"rows": [asdict(row) for row in rows], "mask": mask, "seconds": seconds})
