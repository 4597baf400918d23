"""`parp sweep`: run and compare a grid of recipes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parp_cli.cli import options
from parp_cli.console import Output
from parp_cli.errors import ParpError

if TYPE_CHECKING:
    from parp_cli.sweep.run import SweepPlan, SweepResult


def sweep(
    file: Annotated[Path, typer.Argument(help="A YAML file such as recipes/sweeps/mini.yaml.")],
    dry_run: options.DryRun = False,
    workers: options.Workers = None,
    cluster: options.Cluster = False,
    settings: options.Set = None,
    choices: options.Grid = None,
    run: options.Run = options.DEFAULT_RUN,
    device: options.Device = "auto",
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Run every combination of a grid of settings: methods, sparsities, seeds, anything.

    Finished work is not repeated: after an interruption the same command continues.

    Training that several cells need, such as the dense run of omp, runs once.

    [bold]Examples:[/]
      parp sweep recipes/sweeps/mini.yaml --run mini-sweep --dry-run
      parp sweep recipes/sweeps/mini.yaml --run mini-sweep
    """
    from parp_cli.runtime.device import select_device
    from parp_cli.sweep.grid import load_sweep, with_data
    from parp_cli.sweep.run import plan_sweep, run_sweep

    output = Output(as_json=as_json, quiet=quiet)
    where = select_device(device)
    loaded = load_sweep(file, settings or (), device=where, choices=choices or ())
    if dry_run:
        with output.progress() as notify:
            loaded = with_data(loaded, notify)
        planned = plan_sweep(loaded, run)
        show_plan(output, planned)
        output.json(planned)
        return
    with output.progress() as notify:
        result = run_sweep(
            loaded, run=run, device=where, workers=workers, cluster=cluster, note=output.note, notify=notify
        )
    show_result(output, result, run)
    output.json(result)
    fail(result, len(loaded.cells))


def fail(result: "SweepResult", cells: int) -> None:
    """Raise the ParpError of cells that failed, if any did."""
    if result.failed:
        error = ParpError(
            f"{len(result.failed)} of {cells} cells failed",
            details=[f"{name}: {message}" for name, message in result.failed],
            hint="the same command tries them again",
        )
        error.exit_code = result.exit_code
        raise error


def show_plan(output: Output, plan: "SweepPlan") -> None:
    """The cells of a sweep and what is left of them."""
    rows = []
    for cell in plan.cells:
        left = sum(updates - done for _, _, updates, done, _ in cell.rounds)
        search = [f"{name}{'' if done < updates else ' (done)'}" for name, _, updates, done, _ in cell.rounds[:-1]]
        state = "done" if cell.done else f"{left:,}"
        rows.append([cell.name, f"{cell.rounds[-1][2]:,}", state, _shortened(search), cell.key[:8]])
    output.table("Cells", ("cell", "updates", "left", "", ""), rows)
    shared: dict[str, tuple[str, int, int, int]] = {}
    for cell in plan.cells:
        for name, key, updates, done, needed in cell.rounds:
            # A deleted run has to be repeated for cells whose training is not finished.
            shared[key] = (name, updates, min(done, shared[key][2] if key in shared else done), needed)
    rows = [
        [key[:8], name, f"{needed}", f"{updates:,}", "done" if done == updates else f"{updates - done:,}"]
        for key, (name, updates, done, needed) in shared.items()
        if needed > 1
    ]
    if rows:
        output.table("Training that several cells need", ("", "run", "cells", "updates", "left"), rows)
    done = sum(cell.done for cell in plan.cells)
    output.text(f"cells: {len(plan.cells)}, {done} of them done; training runs: {plan.runs}")
    output.text(
        f"{plan.updates_left:,} of {plan.updates:,} updates left ({plan.updates_alone:,} if cells shared nothing)"
    )


def _shortened(names: list[str]) -> str:
    """The runs before the last one, in one line."""
    if len(names) > 2:
        return f"after {names[0]} … {names[-1]}"
    return f"after {', '.join(names)}" if names else ""


def show_result(output: Output, result: "SweepResult", run: Path) -> None:
    """The tables of a sweep."""
    from parp_cli.sweep.report import cost_rows, difference_rows, error_rows, panels

    for panel in panels(result.outcomes):
        columns, rows = error_rows(panel)
        output.table("Results: mean ± standard deviation (seeds)", columns, rows)
        columns, rows = difference_rows(panel, run)
        if rows:
            output.table("Differences on the same utterances with the same seeds", columns, rows)
        output.table("Cost: means over seeds", *cost_rows(panel))
    output.wrote(result.results, result.tables, *result.figures)
