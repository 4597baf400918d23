"""`parp reproduce`: the paper's experiments by name."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from parp_cli.cli import options
from parp_cli.cli.options import option
from parp_cli.cli.sweep import fail, show_plan, show_result
from parp_cli.console import Output

_RUN = Path("parp-reproduce")


def reproduce(
    name: Annotated[
        Literal["main", "cost", "overlap", "transfer", "joint", "ablations"],
        typer.Argument(help="The experiment.", show_default=False),
    ],
    budget: Annotated[
        str | None, option("--budget TIME", "Run what fits in a time such as 2h or 45m, and say what is left out.")
    ] = None,
    model: Annotated[
        str | None, option("--model -m NAME", "A full-size encoder, with the published settings; needs --set data.…")
    ] = None,
    dry_run: options.DryRun = False,
    workers: options.Workers = None,
    cluster: options.Cluster = False,
    settings: options.Set = None,
    choices: options.Grid = None,
    run: Annotated[Path, option("--run DIR", "Where all is written; experiments share it.", default=True)] = _RUN,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """The paper's experiments: each ends in a table, a figure, and what the numbers say of the paper's claims.

    main: error rate against sparsity, all methods, 10 minutes and 1 hour, as published and on equal terms.

    cost: what it takes to get there. overlap: of masks. transfer, joint: languages. ablations: each setting alone.

    By default of the bundled encoder on generated speech. Finished work is not repeated: the same command continues.

    [bold]Examples:[/]
      parp reproduce main --budget 2h
      parp reproduce ablations --grid seed=[0]
      parp reproduce main --model wav2vec2-base --set data.root=FOLDER
    """
    from parp_cli.runtime.device import select_device
    from parp_cli.sweep.budget import parse_time
    from parp_cli.sweep.reproduce import load_experiment, within
    from parp_cli.sweep.reproduce import reproduce as stage
    from parp_cli.sweep.run import plan_sweep

    output = Output(as_json=as_json, quiet=quiet)
    seconds = None if budget is None else parse_time(budget)
    where = select_device(device)
    with output.progress() as notify:
        experiment = load_experiment(
            name, settings or (), device=where, model=model, choices=choices or (), notify=notify
        )
        if seconds is not None:
            experiment = within(experiment, seconds, run=run, device=where, notify=notify)
    if experiment.left_out:
        output.note(f"within {budget}: {experiment.left_out}")
    if dry_run:
        plans = [plan_sweep(sweep, run) for sweep in experiment.sweeps]
        for sweep, plan in zip(experiment.sweeps, plans, strict=True):
            output.text(f"{sweep.file.stem}:")
            show_plan(output, plan)
        output.json({"name": name, "left_out": experiment.left_out, "plans": plans})
        return
    with output.progress() as notify:
        result = stage(
            experiment, run=run, device=where, workers=workers, cluster=cluster, note=output.note, notify=notify
        )
    for sweep, each in zip(experiment.sweeps, result.sweeps, strict=True):
        output.text(f"{sweep.file.stem}:")
        show_result(output, each, run)
    output.text("", *result.paragraph.splitlines())
    if result.left_out:
        output.text(f"Within {budget}: {result.left_out}.")
    output.wrote(*result.figures)
    output.json(result)
    for sweep, each in zip(experiment.sweeps, result.sweeps, strict=True):
        fail(each, len(sweep.cells))
