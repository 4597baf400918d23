"""Figures of masks and re-prunings, as PNG or SVG. matplotlib (extra `plot`) is imported when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parp_cli.errors import UsageError
from parp_cli.pruning.overlap import Overlap, Pair, both_ways
from parp_cli.pruning.pruner import Repruning
from parp_cli.storage.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

FORMATS = ("png", "svg")

_OVERLAP_COLOURS = "RdBu"  # red below the level of chance, white at it, blue above


@dataclass(frozen=True, kw_only=True)
class Change:
    """Counts of weights per re-pruning, oldest first.

    Attributes:
        name: "revived" or "dropped"; "swapped" where as many were revived as dropped, each time and in each layer.
        overall: over all layers.
        by_layer: by the layers' labels; empty for records without layers.
    """

    name: str
    overall: tuple[int, ...]
    by_layer: Mapping[str, tuple[int, ...]]


def changes(reprunings: Sequence[Repruning]) -> tuple[Change, ...]:
    """One or two series of counts; a series that is always zero is omitted, unless it is "swapped"."""
    layers = list(dict.fromkeys(layer for repruning in reprunings for layer in repruning.layers))
    revived, dropped = (
        Change(
            name=name,
            overall=tuple((repruning.revived, repruning.dropped)[which] for repruning in reprunings),
            by_layer={layer: tuple(r.layers.get(layer, (0, 0))[which] for r in reprunings) for layer in layers},
        )
        for which, name in enumerate(("revived", "dropped"))
    )
    if (revived.overall, revived.by_layer) == (dropped.overall, dropped.by_layer):
        return (Change(name="swapped", overall=revived.overall, by_layer=revived.by_layer),)
    return tuple(change for change in (revived, dropped) if any(change.overall))


def check_plot(path: Path) -> None:
    """Raise a UsageError, before any work is done for a figure, where its name ends in no known format or matplotlib is
    not installed."""
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise UsageError(
            f"cannot draw {path}: the name decides the format",
            hint=f"end it in {' or '.join(f'.{name}' for name in FORMATS)}",
        )
    try:
        import matplotlib  # noqa: F401 (whether it is there)
    except ImportError as error:
        raise UsageError("figures need matplotlib", hint="pip install 'parp-cli[plot]'") from error


def overlap_heatmap(path: Path, pairs: Sequence[Pair]) -> None:
    """Draw overlaps: one panel per pair, with layers down and kinds of module across; of several pairs, the first
    panel shows the overlap of every two masks.

    Cells show the intersection over union of the kept weights in percent; colours show where it lies between the level
    of chance (masks that are random within each tensor, at the tensor's own sparsities) and equal masks. The pairs, at
    least one, are of masks over the same weights. Raises as `check_plot` and `replacing`.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    layers, kinds = list(pairs[0].by_layer), list(pairs[0].by_kind)
    whole = len(pairs) > 1
    count = len(pairs) + whole
    columns = min(3, math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    width, height = max(3.2, 0.55 * len(kinds) + 1.2), max(2.4, 0.3 * len(layers) + 1.4)
    figure = Figure(figsize=(width * columns + 1.0, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    if whole:
        labels = list(dict.fromkeys(label for pair in pairs for label in (pair.first, pair.second)))
        overlap_panel(axes[0], pairs, labels)
        axes[0].set_title("all pairs: IoU in % (by chance)", fontsize=9)
    for ax, pair in zip(axes[whole:], pairs, strict=False):
        image = _matrix(ax, pair.by_layer_and_kind, layers, kinds, "{iou:.0f}")
        iou, chance = 100 * pair.overall.iou, 100 * pair.overall.iou_by_chance
        ax.set_title(f"{pair.first} – {pair.second}\nIoU {iou:.1f} %, by chance {chance:.1f} %", fontsize=9)
        ax.set_ylabel("layer")
    for ax in axes[count:]:
        ax.set_visible(False)
    figure.colorbar(image, ax=list(axes), label="IoU above chance (0: by chance, 1: equal masks)", shrink=0.8)
    save_figure(figure, path)


def overlap_panel(ax: Axes, pairs: Sequence[Pair], labels: Sequence[str]) -> AxesImage:
    """Draw the overlap of every two masks, beside that by chance."""
    return _matrix(ax, both_ways(pairs), labels, labels, "{iou:.0f}\n({chance:.0f})")


def _matrix(
    ax: Axes, overlaps: Mapping[tuple[str, str], Overlap], rows: Sequence[str], columns: Sequence[str], text: str
) -> AxesImage:
    """Colours, and a text with the overlap in percent; cells without weights stay blank."""
    cells = [[overlaps.get((row, column)) for column in columns] for row in rows]
    values = [[math.nan if cell is None else cell.iou_above_chance for cell in line] for line in cells]
    image = ax.imshow(values, cmap=_OVERLAP_COLOURS, vmin=-1, vmax=1, aspect="auto")
    ax.set_xticks(range(len(columns)), columns, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    ax.set_yticks(range(len(rows)), rows, fontsize=8)
    for y, line in enumerate(cells):
        for x, cell in enumerate(line):
            if cell is not None:
                colour = "white" if abs(cell.iou_above_chance) > 0.6 else "black"
                shown = text.format(iou=100 * cell.iou, chance=100 * cell.iou_by_chance)
                ax.text(x, y, shown, ha="center", va="center", fontsize=7, color=colour)
    return image


def repruning_figure(path: Path, reprunings: Sequence[Repruning], title: str) -> None:
    """Draw a run's re-prunings (oldest first, at least one): revived and dropped weights over updates, the more
    frequent of the two by layer too, and the sparsity where it changes. Series that are always zero or not recorded are
    omitted. Raises as `check_plot` and `replacing`."""
    check_plot(path)
    from matplotlib.figure import Figure

    shown = changes(reprunings)
    most = max(shown, key=lambda change: sum(change.overall))
    layers = most.by_layer if any(most.overall) else {}
    grows = len({repruning.sparsity for repruning in reprunings}) > 1
    over_time = len(reprunings) > 1
    by_layer = [max(1.6, 0.25 * len(layers))] if layers and over_time else []
    heights = [2.4 if over_time else max(2.4, 0.3 * len(layers)), *by_layer, *([1.6] if grows else [])]
    figure = Figure(figsize=(8.0, sum(heights) + 0.6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(heights), 1, squeeze=False, sharex=True, height_ratios=heights).flatten()
    updates = [repruning.update for repruning in reprunings]
    if over_time:
        _lines_panel(axes[0], updates, shown)
        axes[-1].set_xlabel("update")
    else:
        _bars_panel(axes[0], updates[0], shown)
    if by_layer:
        _layers_panel(figure, axes[1], updates, most)
    if grows:
        axes[-1].plot(updates, [100 * repruning.sparsity for repruning in reprunings], marker=".")
        axes[-1].set_ylabel("sparsity (%)")
    _whole_numbers(axes[-1].xaxis)
    save_figure(figure, path)


def _lines_panel(ax: Axes, updates: Sequence[int], shown: Sequence[Change]) -> None:
    for change, style in zip(shown, ("-", "--"), strict=False):
        ax.plot(updates, change.overall, marker=".", linestyle=style, label=change.name)
    ax.set_ylabel("weights")
    ax.set_ylim(bottom=0, top=None if any(shown[0].overall) else 1)
    _whole_numbers(ax.yaxis)
    ax.legend()


def _bars_panel(ax: Axes, update: int, shown: Sequence[Change]) -> None:
    """A single re-pruning: bars, one layer below the other, as lines would be points."""
    rows = list(shown[0].by_layer) or ["all"]
    thickness = 0.8 / len(shown)
    for place, change in enumerate(shown):
        counts = [counts[0] for counts in (list(change.by_layer.values()) or [change.overall])]
        label = f"{change.name}: {change.overall[0]:,}"
        ax.barh([row + place * thickness for row in range(len(rows))], counts, thickness, label=label)
    ax.set_yticks([row + (len(shown) - 1) * thickness / 2 for row in range(len(rows))], rows)
    ax.invert_yaxis()
    ax.set_xlim(left=0, right=None if any(shown[0].overall) else 1)
    ax.set_xlabel(f"weights at update {update:,}")
    ax.set_ylabel("layer")
    ax.legend()


def _layers_panel(figure: Figure, ax: Axes, updates: Sequence[int], change: Change) -> None:
    # Re-prunings need not be evenly spaced: a column reaches half-way to its neighbours.
    between = [(earlier + later) / 2 for earlier, later in pairwise(updates)]
    edges = [2 * updates[0] - between[0], *between, 2 * updates[-1] - between[-1]]
    layers = change.by_layer
    mesh: Any = ax.pcolormesh(edges, range(len(layers) + 1), list(layers.values()), cmap="viridis", vmin=0)
    ax.set_yticks([place + 0.5 for place in range(len(layers))], list(layers), fontsize=8)
    ax.invert_yaxis()
    ax.set_ylabel("layer")
    _whole_numbers(figure.colorbar(mesh, ax=ax, label=change.name).ax.yaxis)


def _whole_numbers(axis: Axis) -> None:
    """Ticks for counts: whole numbers, with separators of thousands."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def save_figures(figure: Figure, stem: Path) -> tuple[Path, ...]:
    """Write `<stem>.png` and `<stem>.svg`; their paths."""
    paths = tuple(stem.with_name(f"{stem.name}.{kind}") for kind in FORMATS)
    for path in paths:
        save_figure(figure, path)
    return paths


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format its path ends in; the same figure gives the same bytes: no date, no random names."""
    import matplotlib

    kind = path.suffix.lower().removeprefix(".")
    with matplotlib.rc_context({"svg.hashsalt": "parp"}), replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
