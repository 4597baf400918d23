"""Results of a sweep: one line per cell and split (JSON Lines), tables (Markdown), and a figure."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parp_cli.storage.atomic import write_text
from parp_cli.sweep.grid import METHOD, SEED, SPARSITY, shown
from parp_cli.sweep.tasks import Outcome

_KNOWN_AXES = (METHOD, SPARSITY, SEED)


@dataclass(frozen=True, kw_only=True)
class Mean:
    """One method at one sparsity: means over seeds.

    Attributes:
        error: the error rate.
        spread: its sample standard deviation; None for a single seed.
        seeds: how many have a result.
        updates, audio_seconds, wall_seconds: of training, with all runs that found the mask.
    """

    error: float
    spread: float | None
    seeds: int
    updates: float
    audio_seconds: float
    wall_seconds: float


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One table, and one part of the figure.

    Attributes:
        title_parts: the split, and the values of the grid's other keys.
        metric: WER or PER.
        methods: in the order of the grid.
        sparsities: rising; that of dense is 0.
        means: by method and sparsity, of those that have a result.
    """

    title_parts: tuple[str, ...]
    metric: str
    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    means: Mapping[tuple[str, float], Mean]

    @property
    def title(self) -> str:
        return ", ".join(self.title_parts)

    @property
    def spreads(self) -> bool:
        """Whether any mean is of several seeds."""
        return any(mean.spread is not None for mean in self.means.values())


def panels(outcomes: Sequence[Outcome]) -> list[Panel]:
    """Outcomes as tables: one per split and combination of values of keys other than method, sparsity and seed."""
    tables = []
    for split in dict.fromkeys(outcome.split for outcome in outcomes):
        of_split = [outcome for outcome in outcomes if outcome.split == split]
        for others in _combinations(of_split):
            rows = [row for row in of_split if _agrees(row, others)]
            tables.append(_panel((split, *(f"{key} {shown(value)}" for key, value in others.items())), rows))
    return tables


def _combinations(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The combinations of values of the grid's other keys, without those that are part of another."""
    every = [{k: v for k, v in o.values.items() if k not in _KNOWN_AXES} for o in outcomes]
    whole = [others for others in every if not any(others.items() < more.items() for more in every)]
    return list({json.dumps(others, sort_keys=True): others for others in whole}.values())


def _agrees(outcome: Outcome, others: Mapping[str, Any]) -> bool:
    """Whether an outcome belongs to a combination; a key that makes no difference to it may have any value."""
    return all(outcome.values.get(key, value) == value for key, value in others.items())


def _panel(title_parts: tuple[str, ...], rows: Sequence[Outcome]) -> Panel:
    groups: dict[tuple[str, float], list[Outcome]] = {}
    for row in rows:
        groups.setdefault((row.method, row.sparsity_target), []).append(row)
    means = {place: mean for place, group in groups.items() if (mean := _mean(group)) is not None}
    return Panel(
        title_parts=title_parts,
        metric="PER" if any(row.per is not None for row in rows) else "WER",
        methods=tuple(dict.fromkeys(row.method for row in rows)),
        sparsities=tuple(sorted({row.sparsity_target for row in rows})),
        means=means,
    )


def _mean(group: Sequence[Outcome]) -> Mean | None:
    rows = [row for row in group if row.error_rate is not None]
    errors = [row.error_rate or 0.0 for row in rows]
    if not errors:
        return None
    return Mean(
        error=statistics.fmean(errors),
        spread=statistics.stdev(errors) if len(errors) > 1 else None,
        seeds=len(errors),
        updates=statistics.fmean(row.updates or 0 for row in rows),
        audio_seconds=statistics.fmean(row.audio_seconds or 0.0 for row in rows),
        wall_seconds=statistics.fmean(row.wall_seconds or 0.0 for row in rows),
    )


def error_rows(panel: Panel) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of error rates: methods down, sparsities across."""
    columns = [f"{panel.metric}, {panel.title}", *(_percent(sparsity) for sparsity in panel.sparsities)]
    rows = [
        [method, *(_shown(panel.means.get((method, sparsity))) for sparsity in panel.sparsities)]
        for method in panel.methods
    ]
    return columns, rows


def cost_rows(panel: Panel) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of what training cost, means over seeds."""
    columns = ["cost, searching the mask included", "sparsity", "seeds", "updates", "hours of audio", "minutes"]
    rows = []
    for (method, sparsity), mean in panel.means.items():
        hours, minutes = f"{mean.audio_seconds / 3600:.2f}", f"{mean.wall_seconds / 60:.1f}"
        rows.append([method, _percent(sparsity), str(mean.seeds), f"{mean.updates:,.0f}", hours, minutes])
    return columns, rows


def write_results(stem: Path, outcomes: Sequence[Outcome]) -> tuple[Path, Path]:
    """Write `<stem>.jsonl`, with the cells that were run, and `<stem>.md`."""
    lines, tables = (stem.with_name(stem.name + suffix) for suffix in (".jsonl", ".md"))
    ran = [outcome for outcome in outcomes if outcome.failed is not None or outcome.error_rate is not None]
    write_text(lines, "".join(json.dumps(asdict(outcome), ensure_ascii=False) + "\n" for outcome in ran))
    write_text(tables, markdown(outcomes))
    return lines, tables


def markdown(outcomes: Sequence[Outcome]) -> str:
    """All tables, and the cells that failed."""
    text = ["# Results", "", "Error rates as mean ± sample standard deviation (seeds), – where there is none.", ""]
    for panel in panels(outcomes):
        for columns, rows in (error_rows(panel), cost_rows(panel)):
            text += [*_markdown_table(columns, rows), ""]
    failed = [outcome for outcome in outcomes if outcome.failed is not None]
    if failed:
        text += ["Failed:", "", *(f"- {outcome.cell}, {outcome.split}: {outcome.failed}" for outcome in failed), ""]
    return "\n".join(text)


def _markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "| --- |" + " ---: |" * (len(columns) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _shown(mean: Mean | None) -> str:
    if mean is None:
        return "–"
    spread = "" if mean.spread is None else f" ± {100 * mean.spread:.1f}"
    return f"{100 * mean.error:.1f}%{spread} ({mean.seeds})"


def _percent(sparsity: float) -> str:
    return f"{100 * sparsity:.4g}%"
