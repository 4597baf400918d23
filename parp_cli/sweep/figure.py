"""Error rate against sparsity: one line per method, the dense model as a level. Needs matplotlib (extra `plot`)."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from parp_cli.pruning.methods import spec_of
from parp_cli.pruning.plots import FORMATS, save_figure
from parp_cli.sweep.report import Mean, Panel

_MARKERS = "os^vDPX*<>"
_COLUMNS = 3
_TITLE_CHARACTERS = 48


def draw(panels: Sequence[Panel], stem: Path) -> tuple[Path, ...]:
    """Write `<stem>.png` and `<stem>.svg`. All panels have the same axes, so that they can be compared; error bars show
    the spread over seeds, and a method has the same colour in every panel.

    Returns:
        The files: none where there is no result yet.

    Raises:
        UsageError, ResourceError: the files cannot be written.
    """
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
        _panel(axes, panel, methods)
        axes.set_title(textwrap.fill(title, _TITLE_CHARACTERS))
    for axes in grid[len(drawn) :]:
        axes.set_visible(False)
    paths = tuple(stem.with_name(f"{stem.name}.{kind}") for kind in FORMATS)
    for path in paths:
        save_figure(figure, path)
    return paths


def titles(panels: Sequence[Panel]) -> list[str]:
    """The panels' titles without the parts that all of them share."""
    parts = [panel.title_parts for panel in panels]
    return [", ".join(p for p in own if not all(p in others for others in parts)) or own[0] for own in parts]


def _panel(axes: Any, panel: Panel, methods: Sequence[str]) -> None:
    for number, method in enumerate(methods):
        points = [(sparsity, mean) for (name, sparsity), mean in sorted(panel.means.items()) if name == method]
        if not points:
            continue
        if not spec_of(method).prunes:
            _level(axes, points[0][1])
            continue
        axes.errorbar(
            [100 * sparsity for sparsity, _ in points],
            [100 * mean.error for _, mean in points],
            yerr=[100 * (mean.spread or 0.0) for _, mean in points] if panel.spreads else None,
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


def _level(axes: Any, dense: Mean) -> None:
    level, spread = 100 * dense.error, 100 * (dense.spread or 0.0)
    axes.axhline(level, color="black", linestyle="--", label="dense")
    axes.axhspan(level - spread, level + spread, color="black", alpha=0.08, linewidth=0)
