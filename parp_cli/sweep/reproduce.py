"""The paper's experiments by name: sweeps of recipes/, and what their results say of its claims."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from parp_cli.config.shipped import shipped
from parp_cli.runtime.progress import Notify, silent
from parp_cli.sweep.budget import find_pace, left_out, select
from parp_cli.sweep.cells import Outcome
from parp_cli.sweep.claims import FINDINGS, Finding, draw_findings, paragraph
from parp_cli.sweep.grid import Sweep, load_sweep, with_data
from parp_cli.sweep.run import SweepResult, run_sweep

Name = Literal["main", "cost", "overlap", "transfer", "joint", "ablations"]

_FILES: dict[Name, tuple[str, ...]] = {
    "main": ("reproduce/main.yaml", "reproduce/main-1h.yaml"),
    "cost": ("reproduce/cost.yaml",),
    "overlap": ("reproduce/overlap.yaml",),
    "transfer": ("languages/transfer.yaml",),
    "joint": ("languages/joint.yaml",),
    "ablations": ("reproduce/ablations.yaml",),
}

_FULL_SIZE = {
    "main": ("training.freeze_encoder_updates=[0, 10000]",),
    "main-1h": ("training.freeze_encoder_updates=[0, 10000]",),
    "joint": ("training.updates=[12000]",),
    "ablations": (
        "training.learning_rate=[2e-5, 1e-4]",
        "training.updates=[6000, 24000]",
        "training.freeze_encoder_updates=[2000, 10000]",
        "pruning.pattern=[tensor, layer]",
    ),
}
"""By sweep file: values that are of the size of the bundled encoder in it."""

_LARGE = ("large", "lv60k", "xls")  # in names of models of 24 layers


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The sweeps of a name, with what a budget leaves of them, and what it leaves out (in words; "" without)."""

    name: Name
    sweeps: tuple[Sweep, ...]
    left_out: str = ""


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What an experiment gave; `paragraph` is written from the findings."""

    name: Name
    findings: tuple[Finding, ...]
    paragraph: str
    left_out: str
    sweeps: tuple[SweepResult, ...]
    figures: tuple[Path, ...]


def load_experiment(
    name: Name,
    settings: Sequence[str] = (),
    *,
    device: torch.device,
    model: str | None = None,
    choices: Sequence[str] = (),
    notify: Notify = silent,
) -> Experiment:
    """The sweeps of an experiment, all their data read.

    Args:
        settings: `section.key=value` for all cells.
        model: instead of the bundled encoder, a full-size one, with the published settings for its size.
        choices: `section.key=[value, ...]` instead of the values of the grid.

    Raises RecipeError, DataError as `load_sweep` and `with_data`.
    """
    sweeps = []
    for file in _FILES[name]:
        path, recipe = shipped(file), None
        values, own = list(choices), list(settings)
        if model is not None:
            size = "large" if any(part in model for part in _LARGE) else "base"
            recipe = shipped(f"librispeech/{size}-{'1h' if '1h' in file else '10min'}.yaml")
            values = [*_FULL_SIZE.get(path.stem, ()), *values]
            own = [f"model={model}", *(["data.labels=phones"] if "languages" in file else []), *own]
        loaded = load_sweep(path, own, device=device, choices=values, recipe=recipe)
        sweeps.append(with_data(loaded, notify))
    return Experiment(name=name, sweeps=tuple(sweeps))


def within(
    experiment: Experiment, seconds: float, *, run: Path, device: torch.device, notify: Notify = silent
) -> Experiment:
    """What of an experiment fits into a time on this machine. Raises UsageError: nothing does."""
    cells = [cell for sweep in experiment.sweeps for cell in sweep.cells]
    kept = select(cells, find_pace(run, cells, experiment.name, device, notify), seconds)
    keys = {cell.key for cell in kept}
    fitting = (
        replace(sweep, cells=tuple(cell for cell in sweep.cells if cell.key in keys)) for sweep in experiment.sweeps
    )
    sweeps = tuple(sweep for sweep in fitting if sweep.cells)
    return replace(experiment, sweeps=sweeps, left_out=left_out(cells, kept))


def reproduce(
    experiment: Experiment,
    *,
    run: Path,
    device: torch.device,
    workers: int | None = None,
    cluster: bool = False,
    note: Callable[[str], None] = lambda text: None,
    notify: Notify = silent,
) -> Reproduction:
    """Run what is left of an experiment and write its results; arguments and errors as of `run_sweep`."""
    run, find = run.absolute(), FINDINGS[experiment.name]
    results: list[SweepResult] = []
    findings: list[Finding] = []
    figures: list[Path] = []
    for sweep in experiment.sweeps:
        setting = sweep.file.stem if len(experiment.sweeps) > 1 else ""

        def of(outcomes: Sequence[Outcome], setting: str = setting) -> list[Finding]:
            named = find(outcomes, run)
            return [replace(each, setting=", ".join(filter(None, (setting, each.setting)))) for each in named]

        def conclude(outcomes: Sequence[Outcome]) -> str:
            text = paragraph(of(outcomes))
            parts = ["## What it says", text, experiment.left_out and f"Within the budget: {experiment.left_out}."]
            return "\n\n".join(filter(None, parts)) + "\n" if text else ""

        result = run_sweep(
            sweep,
            run=run,
            device=device,
            workers=workers,
            cluster=cluster,
            conclude=conclude,
            note=note,
            notify=notify,
        )
        results.append(result)
        own = of(result.outcomes)
        findings += own
        if result.figures:  # matplotlib is there
            figures += draw_findings(own, run / sweep.file.stem)
    return Reproduction(
        name=experiment.name,
        findings=tuple(findings),
        paragraph=paragraph(findings),
        left_out=experiment.left_out,
        sweeps=tuple(results),
        figures=tuple(figures),
    )
