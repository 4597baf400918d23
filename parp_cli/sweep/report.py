"""Results of a sweep: one line per cell and split (JSON Lines), tables (Markdown), and a figure (extra `plot`)."""

import json
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parp_cli.pruning.methods import spec_of
from parp_cli.pruning.plots import save_figures
from parp_cli.scoring.classes import NAMES
from parp_cli.scoring.tables import difference_texts
from parp_cli.storage.atomic import write_text
from parp_cli.sweep.cells import Outcome
from parp_cli.sweep.differences import differences
from parp_cli.sweep.grid import METHOD, SEED, SPARSITY, shown

_MARKERS = "os^vDPX*<>"
_COLUMNS = 3
_TITLE_CHARACTERS = 48


@dataclass(frozen=True, kw_only=True)
class Mean:
    """One method at one sparsity, over as many seeds as have a result: mean error rate or score, its standard deviation
    (None for a single seed), and means of what training took, with all runs that found the mask."""

    error: float
    spread: float | None
    seeds: int
    updates: float
    audio_seconds: float
    wall_seconds: float


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One table, and one part of the figure, for a split and values of the grid's other keys (`title_parts`): methods
    in the order of the grid, rising sparsities (0 for dense), means by both where there is a result, and what these are
    means of."""

    title_parts: tuple[str, ...]
    metric: str
    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    means: Mapping[tuple[str, float], Mean]
    outcomes: tuple[Outcome, ...]

    @property
    def title(self) -> str:
        return ", ".join(self.title_parts)


def panels(outcomes: Sequence[Outcome]) -> list[Panel]:
    """Outcomes as tables: one per split and combination of values of keys other than method, sparsity and seed.

    A key that makes no difference to an outcome may have any value: it is part of every combination of that key.
    """
    outcomes = [outcome for outcome in outcomes if outcome.part is None]
    tables = []
    for split in dict.fromkeys(outcome.split for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.split == split]
        every = [{k: v for k, v in o.values.items() if k not in (METHOD, SPARSITY, SEED)} for o in own]
        whole = [others for others in every if not any(others.items() < more.items() for more in every)]
        for others in {json.dumps(others, sort_keys=True): others for others in whole}.values():
            rows = [row for row in own if all(row.values.get(key, value) == value for key, value in others.items())]
            tables.append(_panel((split, *(f"{key} {shown(value)}" for key, value in others.items())), rows))
    return tables


def _panel(title_parts: tuple[str, ...], rows: Sequence[Outcome]) -> Panel:
    groups: dict[tuple[str, float], list[Outcome]] = {}
    for row in rows:
        if row.result is not None:
            groups.setdefault((row.method, row.sparsity_target), []).append(row)
    return Panel(
        title_parts=title_parts,
        metric=metric_name(rows),
        methods=tuple(dict.fromkeys(row.method for row in rows)),
        sparsities=tuple(sorted({row.sparsity_target for row in rows})),
        means={place: _mean(group) for place, group in groups.items()},
        outcomes=tuple(rows),
    )


def metric_name(rows: Sequence[Outcome]) -> str:
    """What results are, for people; several where tasks have their own."""
    named = dict.fromkeys(NAMES[row.metric] for row in rows if row.metric is not None)
    return " or ".join(named) or ("PER" if any(row.per is not None for row in rows) else "WER")


def _mean(rows: Sequence[Outcome]) -> Mean:
    errors = [row.result or 0.0 for row in rows]
    return Mean(
        error=statistics.fmean(errors),
        spread=statistics.stdev(errors) if len(errors) > 1 else None,
        seeds=len(errors),
        updates=statistics.fmean(row.updates or 0 for row in rows),
        audio_seconds=statistics.fmean(row.audio_seconds or 0.0 for row in rows),
        wall_seconds=statistics.fmean(row.wall_seconds or 0.0 for row in rows),
    )


def error_rows(panel: Panel) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of results: methods down, sparsities across."""
    columns = [f"{panel.metric}, {panel.title}", *(percent(sparsity) for sparsity in panel.sparsities)]
    rows = [[method, *(_shown(panel.means.get((method, s))) for s in panel.sparsities)] for method in panel.methods]
    return columns, rows


def cost_rows(panel: Panel) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of what training cost, means over seeds."""
    texts = any(outcome.metric is not None for outcome in panel.outcomes)
    size, unit = ("thousand tokens", 1000) if texts else ("hours of audio", 3600)
    columns = ["cost, searching the mask included", "sparsity", "seeds", "updates", size, "minutes"]
    rows = []
    for (method, sparsity), mean in panel.means.items():
        hours, minutes = f"{mean.audio_seconds / unit:.2f}", f"{mean.wall_seconds / 60:.1f}"
        rows.append([method, percent(sparsity), str(mean.seeds), f"{mean.updates:,.0f}", hours, minutes])
    return columns, rows


def difference_rows(panel: Panel, run: Path) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of paired differences, by the results in a sweep's folder."""
    columns = [f"{panel.metric}, paired", "sparsity", "against", "seeds", "points", "95 % interval", "p"]
    rows = [
        [pair.method, percent(pair.sparsity), pair.other, str(pair.seeds), *difference_texts(pair.difference)]
        for pair in differences(panel.outcomes, run)
    ]
    return columns, rows


def write_results(stem: Path, outcomes: Sequence[Outcome], *more: str) -> tuple[Path, Path]:
    """Write `<stem>.jsonl`, with the cells that were run, and `<stem>.md`, with more (Markdown) if any."""
    lines, tables = (stem.with_name(stem.name + suffix) for suffix in (".jsonl", ".md"))
    ran = [outcome for outcome in outcomes if outcome.failed is not None or outcome.result is not None]
    write_text(lines, "".join(json.dumps(asdict(outcome), ensure_ascii=False) + "\n" for outcome in ran))
    write_text(tables, "\n".join((markdown(outcomes, stem.parent), *filter(None, more))))
    return lines, tables


def markdown(outcomes: Sequence[Outcome], run: Path) -> str:
    """All tables that have a result, and the cells that failed."""
    text = ["# Results", "", "Results as mean ± sample standard deviation (seeds), – where there is none.", ""]
    for panel in [each for each in panels(outcomes) if each.means]:
        tables = [error_rows(panel), difference_rows(panel, run), cost_rows(panel)]
        for columns, rows in [each for each in tables if each[1]]:
            text += [*table(columns, rows), ""]
    failed = [outcome for outcome in outcomes if outcome.failed is not None]
    if failed:
        text += ["Failed:", "", *(f"- {outcome.cell}, {outcome.split}: {outcome.failed}" for outcome in failed), ""]
    return "\n".join(text)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _shown(mean: Mean | None) -> str:
    if mean is None:
        return "–"
    spread = "" if mean.spread is None else f" ± {100 * mean.spread:.1f}"
    return f"{100 * mean.error:.1f}%{spread} ({mean.seeds})"


def percent(sparsity: float) -> str:
    """Such as "50%" or "12.5%"."""
    return f"{100 * sparsity:.4g}%"


def draw(panels: Sequence[Panel], stem: Path) -> tuple[Path, ...]:
    """Write `<stem>.png` and `<stem>.svg`, unless there is no result yet: error rate against sparsity, one line per
    method, dense as a level. All panels have the same axes, so that they can be compared; error bars show the spread
    over seeds, and a method has the same colour in every panel.

    Raises:
        ImportError: matplotlib is not installed.
        UsageError, ResourceError: the files cannot be written.
    """
    from matplotlib.figure import Figure

    drawn = [panel for panel in panels if panel.means]
    if not drawn:
        return ()
    columns = min(len(drawn), _COLUMNS)
    rows = math.ceil(len(drawn) / columns)
    figure = Figure(figsize=(6.0 * columns, 4.5 * rows), layout="constrained")
    shared_error = len({panel.metric for panel in drawn}) == 1
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=shared_error).flatten()
    methods = list(dict.fromkeys(method for panel in drawn for method in panel.methods))
    for axes, panel, title in zip(grid, drawn, titles(drawn), strict=False):
        _draw_panel(axes, panel, methods)
        axes.set_title(textwrap.fill(title, _TITLE_CHARACTERS))
    for axes in grid[len(drawn) :]:
        axes.set_visible(False)
    return save_figures(figure, stem)


def titles(panels: Sequence[Panel]) -> list[str]:
    """The panels' titles without the parts that all of them share."""
    parts = [panel.title_parts for panel in panels]
    return [", ".join(p for p in own if not all(p in others for others in parts)) or own[0] for own in parts]


def _draw_panel(axes: Any, panel: Panel, methods: Sequence[str]) -> None:
    spreads = any(mean.spread is not None for mean in panel.means.values())
    for number, method in enumerate(methods):
        points = [(100 * sparsity, mean) for (name, sparsity), mean in sorted(panel.means.items()) if name == method]
        errors = [100 * mean.error for _, mean in points]
        bars = [100 * (mean.spread or 0.0) for _, mean in points]
        if points and not spec_of(method).prunes:
            axes.axhline(errors[0], color="black", linestyle="--", label="dense")
            axes.axhspan(errors[0] - bars[0], errors[0] + bars[0], color="black", alpha=0.08, linewidth=0)
        elif points:
            axes.errorbar(
                [sparsity for sparsity, _ in points],
                errors,
                yerr=bars if spreads else None,
                label=method,
                color=f"C{number % 10}",
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=5,
                capsize=3,
            )
    axes.set_xlabel("sparsity (%)")
    axes.set_ylabel(f"{panel.metric} (%)")
    axes.tick_params(labelbottom=True, labelleft=True)
    axes.grid(alpha=0.3)
    axes.legend()
