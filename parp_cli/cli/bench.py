"""`parp bench`: models and exports side by side on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parp_cli.cli import options
from parp_cli.cli.options import option
from parp_cli.console import Output, percent, size

if TYPE_CHECKING:
    from parp_cli.stages.bench import BenchResult, Speed

_QUIET_LOAD = 0.5  # a load average up to this is of a machine that does nothing else


def bench(
    models: Annotated[
        list[Path],
        typer.Argument(
            help="Checkpoints, and what --to hf, onnx, sherpa and gguf wrote.", show_default=False, metavar="MODEL…"
        ),
    ],
    seconds: Annotated[
        list[float] | None, option("--seconds", "Length of an utterance; may be given again.", default="1, 10, 30")
    ] = None,
    batch: Annotated[
        list[int] | None, option("--batch", "Utterances per pass; may be given again.", default="1, 8")
    ] = None,
    rounds: Annotated[
        int, option("--rounds", "Times that each is measured, in turn; the fastest counts.", min=1, default=True)
    ] = 3,
    dense: Annotated[
        bool, option("--dense/--no-dense", "Measure the dense network in transformers too, if installed.", default=True)
    ] = True,
    split: Annotated[
        str | None, option("--split", "Count errors on this split of the first checkpoint's corpus.")
    ] = None,
    figure: Annotated[
        Path | None, option("--figure PATH", "Draw error rate against speed: a .png or .svg (extra `plot`).")
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Size, load time, memory and speed of models on this machine's CPU, each in its own runtime and a fresh process.

    Threads are torch's: OMP_NUM_THREADS sets them for all runtimes. Memory is beyond Python and its libraries. All
    models are in memory at once, and compute the same in turn.

    [bold]Examples:[/]
      parp bench parp-run/finetune.safetensors parp-run/small.safetensors parp-run/model-int8.onnx
      parp bench parp-run/finetune.safetensors parp-run/model.onnx --split test-clean --figure speed.png
    """
    from parp_cli.stages.bench import BATCHES, LENGTHS
    from parp_cli.stages.bench import bench as stage

    output = Output(as_json=as_json, quiet=quiet)
    with output.progress() as notify:
        result = stage(
            models,
            lengths=seconds or LENGTHS,
            batches=batch or BATCHES,
            rounds=rounds,
            dense=dense,
            split=split,
            figure=figure,
            notify=notify,
        )
    show(output, result)
    output.wrote(*filter(None, [figure]))
    output.json(result)


def show(output: Output, result: "BenchResult") -> None:
    """The measurements as two tables."""
    columns = ["model", "runtime", "size", "load", "first result", "peak memory"]
    rows = [
        [
            one.model,
            one.runtime,
            size(one.bytes),
            f"{one.loaded.load_seconds:.2f} s",
            f"{one.loaded.first_result_seconds:.2f} s",
            "–" if one.peak_bytes is None else size(one.peak_bytes),
        ]
        for one in result.all
    ]
    if result.split is not None:
        columns.append(f"{result.metric} {result.split}")
        for row, one in zip(rows, result.all, strict=True):
            row.append(percent(None if one.errors is None else one.errors.rate))
    output.table("Size, load time and memory", columns, rows)
    first = result.all[0].speeds
    output.table(
        f"Seconds of work per second of audio and times as fast as the first, {result.threads} threads",
        ["model", *map(_work, first)],
        [
            [one.model, *(_beside(speed, before) for speed, before in zip(one.speeds, first, strict=True))]
            for one in result.all
        ],
    )
    if result.load_average is not None and result.load_average > _QUIET_LOAD:
        output.text(
            f"the machine had a load of {result.load_average:.1f} before: compare these numbers with each other alone"
        )


def _work(speed: "Speed") -> str:
    return f"{speed.seconds:g} s" + (f" × {speed.batch}" if speed.batch > 1 else "")


def _beside(speed: "Speed", first: "Speed") -> str:
    return f"{speed.real_time_factor:.4f} {first.real_time_factor / speed.real_time_factor:.1f}×"
