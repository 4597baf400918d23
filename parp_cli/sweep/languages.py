"""What a sweep over languages shows: error rates by language, masks carried from one language to another, and overlaps;
of texts the same over tasks.

Differences are between networks that were evaluated on the same utterances, with the same seeds: paired, over speakers;
or on the same texts, over these.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from parp_cli.pruning.methods import spec_of
from parp_cli.pruning.methods.spec import FOUND_MASKS
from parp_cli.pruning.overlap import Pair, both_ways
from parp_cli.scoring.classes import NAMES
from parp_cli.scoring.intervals import Difference
from parp_cli.stages.compare import compare
from parp_cli.sweep.cells import Outcome
from parp_cli.sweep.differences import difference_over
from parp_cli.sweep.grid import SEED, shown
from parp_cli.sweep.report import metric_name, percent, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

_DARK = 0.6
"""Share of the scale beyond which a cell's colour is dark."""

_SHOWN_ELSEWHERE = (
    SEED,
    "pruning.method",
    "pruning.sparsity",
    "data.language",
    "data.glue",
    "data.root",
    "pruning.found_on",
)


@dataclass(frozen=True, kw_only=True)
class Value:
    """An error rate or a score, mean over seeds; and its difference to what it is compared with, None without such."""

    error: float
    difference: Difference | None = None

    def __str__(self) -> str:
        text = f"{100 * self.error:.1f}%"
        if self.difference is None:
            return text
        value, *ends = (f"{point:+.1f}" for point in self.difference.points())
        return f"{text}, {value}" + (f" ({' to '.join(ends)})" if ends else "")


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Values by row and language; None where there is no result."""

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[Value | None, ...], ...]

    def lines(self) -> list[str]:
        """As a table in Markdown."""
        rows = [
            [row, *("–" if value is None else str(value) for value in values)]
            for row, values in zip(self.rows, self.values, strict=True)
        ]
        return table([self.title, *self.columns], rows)


@dataclass(frozen=True, kw_only=True)
class MaskOverlaps:
    """Overlaps of the masks that one method found in each language."""

    title: str
    languages: tuple[str, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, kw_only=True)
class Languages:
    """All that a sweep shows of languages, or tasks of texts (`noun`); empty where it has fewer than two."""

    noun: str = "language"
    rates: tuple[Matrix, ...]
    transfers: tuple[Matrix, ...]
    overlaps: tuple[MaskOverlaps, ...]

    def markdown(self) -> str:
        """All tables; "" where there is nothing to show."""
        text: list[str] = []
        transfer = f"Masks of one {self.noun} for another"
        for head, about, matrices in (
            (f"By {self.noun}", _BY, self.rates),
            (transfer, _TRANSFER, self.transfers),
        ):
            if matrices:
                text += [f"## {head}", "", about.replace("language", self.noun), ""]
            for matrix in matrices:
                text += [*matrix.lines(), ""]
        if self.overlaps:
            text += ["## Overlap of masks", "", _OVERLAP, ""]
        for each in self.overlaps:
            text += [*_overlap_lines(each), ""]
        return "\n".join(text)


_BY = (
    "Means over seeds. One network for several languages is beside its difference to each language's own, in points, "
    "with a 95 % interval."
)
_TRANSFER = (
    "Rows: where the mask was found. Columns: the language that was trained under it, and the difference to the "
    "language's own mask, in points, with a 95 % interval."
)
_OVERLAP = (
    "Intersection over union of the kept weights; in brackets that of masks that are random within each tensor. Of the "
    "first seed."
)


def languages(run: Path, outcomes: Sequence[Outcome]) -> Languages:
    """What the results of a sweep in `run` show of languages; reads hypotheses and masks of its cells.

    Raises CheckpointError, DataError where these cannot be read.
    """
    own = [each for each in outcomes if each.result is not None and each.checkpoint and _language(each) is not None]
    names = tuple(dict.fromkeys(name for each in own if (name := _language(each))))
    if len(names) < 2:
        return Languages(rates=(), transfers=(), overlaps=())
    carried = [each for each in own if each.found_on]
    plain = [each for each in own if not each.found_on]
    return Languages(
        noun="language" if own[0].metric is None else "task",
        rates=tuple(_rates(run, split, names, some) for split, some in _by_split(plain)),
        transfers=tuple(matrix for split, some in _by_split(carried) for matrix in _transfers(run, split, names, some)),
        overlaps=_overlaps(run, own),
    )


def _language(outcome: Outcome) -> str | None:
    """The language that a result is of; None for several together, and for what has none."""
    if outcome.part is not None:
        return outcome.part
    return outcome.languages[0] if len(outcome.languages) == 1 else None


def _by_split(outcomes: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    splits: dict[str, list[Outcome]] = {}
    for each in outcomes:
        splits.setdefault(each.split, []).append(each)
    return list(splits.items())


def _setting(outcome: Outcome) -> str:
    """How a network was pruned, and values of the grid's other keys."""
    words = [outcome.method]
    if outcome.sparsity_target:
        words.append(percent(outcome.sparsity_target))
    words += [f"{k.split('.')[-1]} {shown(v)}" for k, v in outcome.values.items() if k not in _SHOWN_ELSEWHERE]
    return ", ".join(words)


def _rates(run: Path, split: str, names: tuple[str, ...], outcomes: Sequence[Outcome]) -> Matrix:
    """Settings down, languages across; networks for several languages below."""
    rows: dict[str, dict[str, list[Outcome]]] = {}
    for each in sorted(outcomes, key=lambda each: len(each.languages) > 1):
        joint = f", one network for {len(each.languages)}" if len(each.languages) > 1 else ""
        rows.setdefault(_setting(each) + joint, {}).setdefault(_language(each) or "", []).append(each)

    def value(row: str, name: str) -> Value | None:
        some = rows[row].get(name)
        if not some:
            return None
        alike = (some[0].method, some[0].sparsity_target)
        singles = [
            each
            for each in outcomes
            if _language(each) == name and len(each.languages) == 1 and (each.method, each.sparsity_target) == alike
        ]
        return _value(run, some, singles if len(some[0].languages) > 1 else ())

    values = tuple(tuple(value(row, name) for name in names) for row in rows)
    columns = _columns(names, outcomes)
    return Matrix(title=f"{metric_name(outcomes)}, {split}", rows=tuple(rows), columns=columns, values=values)


def _transfers(run: Path, split: str, names: tuple[str, ...], outcomes: Sequence[Outcome]) -> list[Matrix]:
    """A matrix for each setting: where the mask was found down, languages across."""
    settings: dict[str, dict[tuple[str, str], list[Outcome]]] = {}
    for each in outcomes:
        place = "+".join(each.found_on), _language(each) or ""
        settings.setdefault(_setting(each), {}).setdefault(place, []).append(each)
    matrices = []
    for setting, cells in settings.items():
        rows = tuple(dict.fromkeys(row for row, _ in cells))

        def value(row: str, name: str, cells: dict[tuple[str, str], list[Outcome]] = cells) -> Value | None:
            some, others = cells.get((row, name)), cells.get((name, name), ())
            return None if some is None else _value(run, some, others if row != name else ())

        matrices.append(
            Matrix(
                title=f"{metric_name(outcomes)}, {split}, {setting}, mask of",
                rows=rows,
                columns=_columns(names, outcomes),
                values=tuple(tuple(value(row, name) for name in names) for row in rows),
            )
        )
    return matrices


def _columns(names: tuple[str, ...], outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """The names, with the metric of each task where not all have the same."""
    metrics = {_language(each): each.metric for each in outcomes if each.metric is not None}
    if len(set(metrics.values())) < 2:
        return names
    return tuple(f"{name} ({NAMES[metric]})" if (metric := metrics.get(name)) else name for name in names)


def _value(run: Path, some: Sequence[Outcome], others: Sequence[Outcome]) -> Value:
    """The mean of some outcomes, and their difference to others of the same seeds."""
    by_seed = {each.seed: each for each in others}
    pairs = [(each, by_seed[each.seed]) for each in some if each.seed in by_seed]
    return Value(error=statistics.fmean(each.result or 0.0 for each in some), difference=difference_over(pairs, run))


def _overlaps(run: Path, outcomes: Sequence[Outcome]) -> tuple[MaskOverlaps, ...]:
    """Of masks that were found in each language: of the first seed, by setting.

    A mask that came from another language, or from the pre-trained weights alone, is the same in all languages.
    """
    settings: dict[str, dict[str, Outcome]] = {}
    for each in outcomes:
        found_here = spec_of(each.method).reprunes or spec_of(each.method).runs is not None
        found_here = found_here or each.initial in FOUND_MASKS
        if each.sparsity and found_here and len(each.languages) == 1 and each.found_on in ((), each.languages):
            settings.setdefault(_setting(each), {}).setdefault(each.languages[0], each)
    found = []
    for setting, by_language in settings.items():
        if len(by_language) < 2:
            continue
        paths = [run / (each.checkpoint or "") for each in by_language.values()]
        compared = compare(paths)
        label = {file.label: name for file, name in zip(compared.files, by_language, strict=True)}
        pairs = tuple(replace(pair, first=label[pair.first], second=label[pair.second]) for pair in compared.pairs)
        found.append(MaskOverlaps(title=setting, languages=tuple(by_language), pairs=pairs))
    return tuple(found)


def _overlap_lines(overlaps: MaskOverlaps) -> list[str]:
    """Every two languages, and the mean over pairs of each layer."""
    by_pair, rows = both_ways(overlaps.pairs), []
    for first in overlaps.languages:
        cells = [by_pair.get((first, second)) for second in overlaps.languages]
        shown = ["–" if each is None else f"{100 * each.iou:.1f}% ({100 * each.iou_by_chance:.1f}%)" for each in cells]
        rows.append([first, *shown])
    lines = table([f"IoU, {overlaps.title}", *overlaps.languages], rows)
    layers = _layer_means(overlaps)
    by_layer = [[name, f"{100 * iou:.1f}%", f"{100 * chance:.1f}%"] for name, (iou, chance) in layers.items()]
    return [*lines, "", *table(["layer, mean over pairs", "IoU", "by chance"], by_layer)]


def _layer_means(overlaps: MaskOverlaps) -> dict[str, tuple[float, float]]:
    means = {}
    for name in overlaps.pairs[0].by_layer:
        parts = [pair.by_layer[name] for pair in overlaps.pairs]
        means[name] = statistics.fmean(p.iou for p in parts), statistics.fmean(p.iou_by_chance for p in parts)
    return means


def draw_languages(found: Languages, stem: Path) -> tuple[Path, ...]:
    """Write `<stem>-languages.png` and `.svg` where there are transfers or overlaps: a matrix for each, and overlaps by
    layer beside the level of chance. Raises as `parp_cli.sweep.report.draw`."""
    from matplotlib.figure import Figure

    from parp_cli.pruning.plots import overlap_panel, save_figures

    count = len(found.transfers) + 2 * len(found.overlaps)
    if not count:
        return ()
    size = 1.0 + 0.7 * max([len(matrix.columns) for matrix in found.transfers] + [4])
    figure = Figure(figsize=((size + 1.5) * count, size), layout="constrained")
    grid = iter(figure.subplots(1, count, squeeze=False).flatten())
    for matrix in found.transfers:
        axes = next(grid)
        label = "points more than with the own mask"
        figure.colorbar(_transfer_panel(axes, matrix, found.noun), ax=axes, label=label)
    for each in found.overlaps:
        axes = next(grid)
        image = overlap_panel(axes, each.pairs, each.languages)
        axes.set_title(f"IoU in % (by chance), {each.title}", fontsize=9)
        figure.colorbar(image, ax=axes, label="0: by chance, 1: equal masks")
        axes, layers = next(grid), _layer_means(each)
        axes.plot(list(layers), [100 * iou for iou, _ in layers.values()], marker="o", label="mean over pairs")
        axes.plot(list(layers), [100 * chance for _, chance in layers.values()], linestyle="--", label="by chance")
        axes.set_xlabel("layer")
        axes.set_ylabel("IoU (%)")
        axes.set_ylim(0, 100)
        axes.set_title(each.title, fontsize=9)
        axes.legend()
    return save_figures(figure, stem.with_name(f"{stem.name}-languages"))


def _transfer_panel(axes: "Axes", matrix: Matrix, noun: str) -> "AxesImage":
    """Error rates or scores as text, differences to the diagonal as colours, what is worse in red."""
    differences = [
        [0.0 if value is None or value.difference is None else 100 * value.difference.value for value in row]
        for row in matrix.values
    ]
    limit = max([1.0, *(abs(each) for row in differences for each in row)])
    image = axes.imshow(
        differences, cmap="RdBu" if noun == "task" else "RdBu_r", vmin=-limit, vmax=limit, aspect="auto"
    )
    axes.set_xticks(range(len(matrix.columns)), matrix.columns)
    axes.set_yticks(range(len(matrix.rows)), matrix.rows)
    axes.set_xlabel(noun)
    axes.set_ylabel("mask found on")
    axes.set_title(matrix.title.removesuffix(", mask of"), fontsize=9)
    for y, row in enumerate(matrix.values):
        for x, value in enumerate(row):
            if value is not None:
                colour = "white" if abs(differences[y][x]) > _DARK * limit else "black"
                axes.text(x, y, f"{100 * value.error:.1f}", ha="center", va="center", fontsize=8, color=colour)
    return image
