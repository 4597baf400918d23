"""Error rate against sparsity: a line a method, the dense model as a level line. Needs matplotlib (extra `plot`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from parp_cli.plots import FORMATS, save_figure
from parp_cli.sweep.report import Mean, Panel

_MARKERS = "os^vDPX*<>"


def draw(panels: Sequence[Panel], stem: Path) -> tuple[Path, ...]:
    """Write `<stem>.png` and `<stem>.svg`, with a panel beside another; the spread over seeds as error bars.

    Returns:
        What was written: nothing where there is no result yet.

    Raises:
        UsageError, ResourceError: the place cannot be written to.
    """
    drawn = [panel for panel in panels if panel.means]
    if not drawn:
        return ()
    figure = Figure(figsize=(6.0 * len(drawn), 4.5), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        _panel(axes, panel)
    paths = tuple(stem.with_name(f"{stem.name}.{kind}") for kind in FORMATS)
    for path in paths:
        save_figure(figure, path)
    return paths


def _panel(axes: Any, panel: Panel) -> None:
    for number, method in enumerate(panel.methods):
        points = [(sparsity, mean) for (name, sparsity), mean in sorted(panel.means.items()) if name == method]
        if not points:
            continue
        if method == "dense":
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
    axes.set_title(panel.title)
    axes.grid(alpha=0.3)
    axes.legend()


def _level(axes: Any, dense: Mean) -> None:
    level, spread = 100 * dense.error, 100 * (dense.spread or 0.0)
    axes.axhline(level, color="black", linestyle="--", label="dense")
    axes.axhspan(level - spread, level + spread, color="black", alpha=0.08, linewidth=0)
