"""What the results of a sweep say of the paper's claims: findings with their numbers, a paragraph, and a figure.

A claim that one error rate is at or below another agrees where a paired test finds it lower, does not where it finds it
higher, and "cannot be told" otherwise. Differences are over utterances and seeds, as in the tables.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from parp_cli.pruning.methods import spec_of
from parp_cli.pruning.plots import save_figures
from parp_cli.scoring.comparison import verdict_of
from parp_cli.scoring.intervals import Difference, counted
from parp_cli.scoring.tables import difference_texts
from parp_cli.stages.compare import compare
from parp_cli.sweep.cells import Outcome
from parp_cli.sweep.differences import PARP, Paired, difference_over, differences
from parp_cli.sweep.grid import METHOD, SEED, SPARSITY, shown
from parp_cli.sweep.languages import Matrix, languages
from parp_cli.sweep.report import Mean, Panel, panels, percent, titles

Verdict = Literal["agrees", "does not agree", "cannot be told"]
VERDICTS: tuple[Verdict, ...] = ("agrees", "does not agree", "cannot be told")

FREEZE = "training.freeze_encoder_updates"
_FAR_ABOVE = 0.5  # on the scale from chance (0) to equal masks (1): overlap that is far above chance
_BY_CHANCE = 0.05  # on the same scale, what still counts as chance
_LISTED = 4  # numbers of a sentence per verdict; of the others their range is given


@dataclass(frozen=True)
class Finding:
    """What the results say of a claim at one place.

    Attributes:
        numbers: what the verdict is from.
        setting: of the sweep, such as "equal terms"; "" where there is one alone.
        place: such as "50%".
        difference: that it is from, if it is one: of the first in the claim to the second.
    """

    claim: str
    verdict: Verdict
    numbers: str
    setting: str = ""
    place: str = ""
    difference: Difference | None = None


Conclude = Callable[[Sequence[Outcome], Path], list[Finding]]


def main(outcomes: Sequence[Outcome], run: Path) -> list[Finding]:
    """Error rates of all methods, as published and on equal terms."""
    found = []
    tables = panels(outcomes)
    for panel, setting in zip(tables, _settings(tables), strict=True):
        pairs = _by_place(panel, run)
        found += _against(panel, setting, pairs, "dense", "PARP is at or below the dense network")
        for method in ("omp", "imp"):
            claim = f"PARP is at or below {method.upper()} at a fraction of its cost"
            found += _against(panel, setting, pairs, method, claim)
        found += _degrade_first(setting, pairs)
    return found + _freeze(outcomes, run)


def cost(outcomes: Sequence[Outcome], run: Path) -> list[Finding]:
    """What PARP and the methods that search take, and which is the cheapest that is as good as dense."""
    found = []
    tables = panels(outcomes)
    for panel, setting in zip(tables, _settings(tables), strict=True):
        pairs = _by_place(panel, run)
        for method, sparsity in itertools.product(("omp", "imp"), panel.sparsities):
            ours, theirs = panel.means.get((PARP, sparsity)), panel.means.get((method, sparsity))
            if ours is not None and theirs is not None:
                pair = pairs.get((method, sparsity, PARP))
                difference = None if pair is None else pair.flipped
                numbers = _costs(ours, theirs) + ("" if pair is None else f"; PARP's error rate {_points(difference)}")
                claim, holds = f"PARP costs a fraction of {method.upper()}", ours.updates < theirs.updates
                found.append(Finding(claim, _told(holds), numbers, setting, percent(sparsity), difference))
        found += _cheapest(panel, setting)
    return found


def overlap(outcomes: Sequence[Outcome], run: Path) -> list[Finding]:
    """Overlap of the masks of every two methods, of the same seed and sparsity."""
    groups: dict[tuple[float, int], dict[str, Path]] = {}
    for each in outcomes:
        if each.sparsity and each.checkpoint:
            groups.setdefault((each.sparsity_target, each.seed), {})[each.method] = run / each.checkpoint
    shares: dict[tuple[float, str, str], list[tuple[float, float, float]]] = {}
    for (sparsity, _), by_method in groups.items():
        if len(by_method) < 2:
            continue
        compared = compare(list(by_method.values()))
        methods = {file.label: method for file, method in zip(compared.files, by_method, strict=True)}
        for pair in compared.pairs:
            one = pair.overall
            key = (sparsity, methods[pair.first], methods[pair.second])
            shares.setdefault(key, []).append((one.iou, one.iou_by_chance, one.iou_above_chance))
    found = []
    for (sparsity, first, second), values in shares.items():
        iou, chance, above = (statistics.fmean(column) for column in zip(*values, strict=True))
        claim = "Masks of different methods overlap far above chance, more than half of the way to equal masks"
        holds = above >= _FAR_ABOVE
        if "rp" in (first, second):
            claim, holds = "A random mask overlaps with others by chance alone", abs(above) <= _BY_CHANCE
        numbers = f"IoU {100 * iou:.1f}%, by chance {100 * chance:.1f}%, {counted(len(values), 'seed')}"
        found.append(Finding(claim, _told(holds), numbers, place=f"{first} and {second}, {percent(sparsity)}"))
    return found


def transfer(outcomes: Sequence[Outcome], run: Path) -> list[Finding]:
    """Masks of other languages against a language's own."""
    found: list[Finding] = []
    for matrix in languages(run, outcomes).transfers:
        claim = f"A mask of another language costs nothing, trained by {matrix.title.split(', ')[2]}"
        found += _of_matrix(matrix, claim, "{row} to {column}")
    return found


def joint(outcomes: Sequence[Outcome], run: Path) -> list[Finding]:
    """One network for several languages against each language's own."""
    found = languages(run, outcomes).rates
    claim = "One subnetwork for all languages is at or below each language's own"
    return [finding for matrix in found for finding in _of_matrix(matrix, claim, "{column}, {row}")]


def ablations(outcomes: Sequence[Outcome], run: Path) -> list[Finding]:
    """Each value of a setting against that of the recipe, which is the first of a method and seed."""
    groups: dict[tuple[str, float, str, int], list[Outcome]] = {}
    for each in outcomes:
        groups.setdefault((each.method, each.sparsity_target, each.split, each.seed), []).append(each)
    pairs: dict[tuple[str, str, str, str], list[tuple[Outcome, Outcome]]] = {}
    for (method, *_), (first, *others) in groups.items():
        for other in others:
            for key in first.values.keys() & other.values.keys():
                if key not in (METHOD, SPARSITY, SEED) and first.values[key] != other.values[key]:
                    values = shown(first.values[key]), shown(other.values[key])
                    pairs.setdefault((method, key, *values), []).append((first, other))
    found = []
    for (method, key, own, value), some in pairs.items():
        some = [pair for pair in some if all(one.result is not None for one in pair)]
        if some:
            difference = difference_over(some, run)
            claim = f"{method.upper()} is best with {key} {own}, as in the recipe"
            found.append(_finding(claim, "", f"against {value}", difference, len(some)))
    return found


FINDINGS: Mapping[str, Conclude] = {
    "main": main,
    "cost": cost,
    "overlap": overlap,
    "transfer": transfer,
    "joint": joint,
    "ablations": ablations,
}
"""By what is reproduced."""


def _settings(tables: Sequence[Panel]) -> list[str]:
    """What the panels are of, in words."""
    words = []
    for title in titles(tables) if len(tables) > 1 else [""] * len(tables):
        frozen = title.partition(f"{FREEZE} ")[2].partition(",")[0]
        if frozen:
            terms = "equal terms" if frozen == "0" else f"as published, baselines frozen for {frozen} updates"
            title = title.replace(f"{FREEZE} {frozen}", terms)
        words.append(title)
    return words


def _by_place(panel: Panel, run: Path) -> dict[tuple[str, float, str], Paired]:
    return {(pair.method, pair.sparsity, pair.other): pair for pair in differences(panel.outcomes, run)}


def _against(
    panel: Panel, setting: str, pairs: Mapping[tuple[str, float, str], Paired], other: str, claim: str
) -> list[Finding]:
    """PARP against dense or another method at each sparsity; against the latter with what both cost."""
    found = []
    for sparsity in panel.sparsities:
        dense = pairs.get((PARP, sparsity, other))
        pair = dense or pairs.get((other, sparsity, PARP))
        if pair is None:
            continue
        updates = "" if dense else f", {_updates(panel.means[PARP, sparsity], panel.means[other, sparsity])}"
        difference = pair.difference if dense else pair.flipped
        found.append(_finding(claim, setting, percent(sparsity), difference, pair.seeds, updates))
    return found


def _finding(
    claim: str, setting: str, place: str, difference: Difference | None, seeds: int, more: str = ""
) -> Finding:
    """Of a claim that the first of a difference is at or below the second."""
    numbers = f"{_points(difference)}, {counted(seeds, 'seed')}{more}"
    return Finding(claim, _OF[verdict_of(difference)], numbers, setting, place, difference)


_OF: dict[str, Verdict] = {"better": "agrees", "worse": "does not agree", "undecided": "cannot be told"}


def _told(holds: bool) -> Verdict:
    return "agrees" if holds else "does not agree"


def _points(difference: Difference | None) -> str:
    """Such as "-1.83 points (-2.34 to -1.33)"."""
    if difference is None:
        return "too few speakers to tell"
    value, interval, _ = difference_texts(difference)
    return f"{value} points ({interval})"


def _updates(ours: Mean, theirs: Mean) -> str:
    return f"{ours.updates:,.0f} updates against {theirs.updates:,.0f}"


def _costs(ours: Mean, theirs: Mean) -> str:
    return (
        f"{_updates(ours, theirs)}, {ours.audio_seconds / 3600:.2f} hours of audio "
        f"against {theirs.audio_seconds / 3600:.2f}, {ours.wall_seconds / 60:.1f} minutes against "
        f"{theirs.wall_seconds / 60:.1f}"
    )


def _degrade_first(setting: str, pairs: Mapping[tuple[str, float, str], Paired]) -> list[Finding]:
    """Whether MPI and RP are worse than dense at lower sparsities than the methods whose mask knows the task."""
    onsets: dict[str, float] = {}
    for method, sparsity, other in pairs:
        if not spec_of(other).prunes:
            onsets.setdefault(method, math.inf)
            if verdict_of(pairs[method, sparsity, other].difference) == "worse":
                onsets[method] = min(onsets[method], sparsity)
    early = [onsets[method] for method in ("mpi", "rp") if method in onsets]
    late = [onsets[method] for method in (PARP, "omp", "imp") if method in onsets]
    if not early or not late:
        return []
    verdict: Verdict = "cannot be told"
    if max(early) < min(late):
        verdict = "agrees"
    elif min(late) < min(early):
        verdict = "does not agree"
    numbers = (f"{m} {'nowhere' if s == math.inf else f'from {percent(s)} on'}" for m, s in onsets.items())
    return [Finding("MPI and RP degrade first", verdict, f"worse than dense: {', '.join(numbers)}", setting)]


def _freeze(outcomes: Sequence[Outcome], run: Path) -> list[Finding]:
    """Each baseline without the frozen encoder against the same with it."""
    groups: dict[tuple[str, float, str], dict[int, dict[int, Outcome]]] = {}
    for each in outcomes:
        if each.result is not None and FREEZE in each.values:
            places = groups.setdefault((each.method, each.sparsity_target, each.split), {})
            places.setdefault(each.seed, {})[int(each.values[FREEZE])] = each
    found = []
    for (method, sparsity, _), by_seed in groups.items():
        pairs = [(some[min(some)], some[max(some)]) for some in by_seed.values() if len(some) > 1]
        if pairs:
            place = f"{method}, {percent(sparsity)}" if sparsity else method
            claim = "Baselines are better where their encoder trains from the first update, as PARP's does"
            found.append(_finding(claim, "", place, difference_over(pairs, run), len(pairs)))
    return found


def _cheapest(panel: Panel, setting: str) -> list[Finding]:
    """Which of the methods that find a mask for the task reaches dense's error rate with the fewest updates."""
    dense = next((mean for (method, _), mean in panel.means.items() if not spec_of(method).prunes), None)
    reached = {
        place: mean
        for place, mean in panel.means.items()
        if dense is not None and spec_of(place[0]).prunes and mean.error <= dense.error
    }
    if dense is None or len(panel.means) == 1:
        return []
    fewest = min((mean.updates for mean in reached.values()), default=0.0)
    first = [place for place, mean in reached.items() if mean.updates == fewest]
    reaching = [f"{method} at {percent(sparsity)} in {fewest:,.0f}" for method, sparsity in first]
    numbers = f"fewest updates to {100 * dense.error:.1f}%: {', '.join(reaching) or 'no method reaches it'}"
    verdict = _told(PARP in dict(first)) if first else "cannot be told"
    return [Finding("PARP is the cheapest way to the dense network's error rate", verdict, numbers, setting)]


def _of_matrix(matrix: Matrix, claim: str, place: str) -> Iterable[Finding]:
    for row, values in zip(matrix.rows, matrix.values, strict=True):
        for column, value in zip(matrix.columns, values, strict=True):
            if value is not None and value.difference is not None:
                found, where = value.difference, place.format(row=row, column=column)
                yield Finding(claim, _OF[verdict_of(found)], _points(found), place=where, difference=found)


def paragraph(findings: Sequence[Finding]) -> str:
    """A sentence for each claim and setting: where it agrees, where not, and where it cannot be told."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for each in findings:
        groups.setdefault((each.claim, each.setting), []).append(each)
    return "\n".join(
        f"{claim}{f' ({setting})' if setting else ''}: {_verdicts(some)}." for (claim, setting), some in groups.items()
    )


def _verdicts(findings: Sequence[Finding]) -> str:
    parts = []
    for verdict in VERDICTS:
        some = [each for each in findings if each.verdict == verdict]
        if some:
            listed = [f"{each.place}: {each.numbers}" if each.place else each.numbers for each in some[:_LISTED]]
            points = [each.difference.value for each in some[_LISTED:] if each.difference is not None]
            if rest := some[_LISTED:]:
                reach = f", {100 * min(points):+.1f} to {100 * max(points):+.1f} points" if points else ""
                listed.append(f"{len(rest)} more{reach}")
            of_all = f" in {len(some)} of {len(findings)}" if len(some) < len(findings) else ""
            parts.append(f"{verdict}{of_all} ({'; '.join(listed)})")
    return ", ".join(parts)


def draw_findings(findings: Sequence[Finding], stem: Path) -> tuple[Path, ...]:
    """Write `<stem>-claims.png` and `.svg`: every difference with its interval, in the colour of its verdict; nothing
    where there is none. Raises as `parp_cli.sweep.report.draw`."""
    from matplotlib.figure import Figure

    drawn = [(each, each.difference) for each in findings if each.difference is not None]
    if not drawn:
        return ()
    figure = Figure(figsize=(11.0, 1.2 + 0.22 * len(drawn)), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(VERDICTS, ("C2", "C3", "0.5"), strict=True))
    for row, (each, difference) in enumerate(drawn):
        value, *ends = difference.points()
        axes.plot(ends or [value, value], [row, row], color=colours[each.verdict])
        axes.plot(value, row, marker="o", markersize=4, color=colours[each.verdict], label=each.verdict)
    axes.axvline(0, color="black", linewidth=0.8)
    labels = [", ".join(filter(None, (each.claim, each.setting, each.place))) for each, _ in drawn]
    axes.set_yticks(range(len(drawn)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("points, with 95 % intervals; below 0 agrees")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(handles.values(), handles.keys())
    return save_figures(figure, stem.with_name(f"{stem.name}-claims"))
