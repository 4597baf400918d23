"""A report's tables as text: columns and rows, for any renderer."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from parp_cli.scoring.comparison import SIGNIFICANT, Comparison, digits_apart, p_text
from parp_cli.scoring.intervals import Difference, Interval, Units, counted
from parp_cli.scoring.metrics import Confusion, Confusions, ErrorRate, steps
from parp_cli.scoring.report import Aligned, Group, Report

_HEADS = ("  ref    ", "  hyp    ", "         ")
_COUNTED = ("95 % interval", "substituted", "deleted", "inserted", "of")
_MARKS = {"equal": "", "substitute": "S", "delete": "D", "insert": "I"}

SPACE = "␣"
"""Stands for a space that is itself a token."""


@dataclass(frozen=True)
class TextTable:
    """A table as text. All columns but the first, and those without a name, hold numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def terminal_tables(report: Report, limit: int = 10) -> list[TextTable]:
    """All tables that have something to show.

    Args:
        limit: rows of speakers (the worst) and of confusions.
    """
    metric, speakers = report.metrics[0].name, report.by_speaker
    worst = f"Worst of {len(speakers)} speakers" if len(speakers) > limit else "Speakers"
    some = (("Splits", report.by_split), ("Durations", report.by_duration), (worst, speakers))
    tables = [metrics_table(report)]
    tables += [
        groups_table(title, metric, groups[:limit] if groups is speakers else groups)
        for title, groups in some
        if len(groups) > 1
    ]
    tables += [confusions_table(each, limit) for each in (report.confusions, report.symbols) if each is not None]
    if report.comparisons:
        tables.append(comparisons_table(report.comparisons))
    return [table for table in tables if table.rows]


def metrics_table(report: Report) -> TextTable:
    """The metrics of the whole; the title says what the intervals are over."""
    rows = [
        (metric.name, f"{metric.errors.rate:.2%}", interval_text(metric.interval), *_counts(metric.errors))
        for metric in report.metrics
    ]
    title = f"{report.name}, {counted(report.utterances, 'utterance')}; {intervals_text(report.units)}"
    return TextTable(title, ("", "rate", *_COUNTED), tuple(rows))


def groups_table(title: str, metric: str, groups: Sequence[Group]) -> TextTable:
    """One row per speaker, band of durations or split."""
    rows = [
        (
            each.name,
            f"{each.errors.rate:.1%}",
            interval_text(each.interval),
            *_counts(each.errors),
            f"{each.utterances:,}",
        )
        for each in groups
    ]
    return TextTable(title, ("", metric, *_COUNTED, "utterances"), tuple(rows))


def _counts(errors: ErrorRate) -> list[str]:
    return [f"{count:,}" for count in (errors.substitutions, errors.deletions, errors.insertions, errors.tokens)]


def confusions_table(confusions: Confusions, limit: int) -> TextTable:
    """The most frequent errors, the three kinds side by side."""
    kinds = (confusions.substitutions[:limit], confusions.deletions[:limit], confusions.insertions[:limit])
    rows = [tuple(cell for each in row for cell in _confusion_cells(each)) for row in zip_longest(*kinds)]
    columns = ("substituted", "times", "", "times", "", "times")
    return TextTable(f"Most frequent errors: {confusions.unit} substituted, deleted, inserted", columns, tuple(rows))


def comparisons_table(comparisons: Sequence[Comparison]) -> TextTable:
    """One row per compared system; the sentence of each comparison says more."""
    rows = [
        (
            this.other,
            f"{this.theirs.rate:.2%}",
            f"{this.ours.rate:.2%}",
            *difference_texts(this.difference),
            str(this.units),
            this.verdict,
        )
        for this in comparisons
    ]
    first = comparisons[0]
    columns = ("against", f"its {first.metric}", f"{first.name}'s", "points", "95 % interval", "p", "over", "verdict")
    return TextTable(f"{first.name} against others, on the utterances that both have", columns, tuple(rows))


def systems_table(reports: Sequence[Report]) -> TextTable:
    """One row per system, such as the subnetworks of one encoder, with differences from the first.

    Args:
        reports: of the same utterances, all but the first built against the first.
    """
    first = reports[0]
    rows = []
    for report in reports:
        cells = [(f"{metric.errors.rate:.2%}", interval_text(metric.interval)) for metric in report.metrics]
        found = next((each for each in report.comparisons if each.other == first.name), None)
        points, *_ = difference_texts(None if found is None else found.difference)
        rows.append((report.name, *chain(*cells), points, "–" if found is None else found.verdict))
    names = [(metric.name, "95 % interval") for metric in first.metrics]
    utterances, drawn = counted(first.utterances, "utterance"), intervals_text(first.units)
    columns = ("", *chain(*names), "points from the first", "verdict")
    return TextTable(f"{len(reports)} systems, {utterances}; {drawn}", columns, tuple(rows))


def side_by_side(aligned: Aligned, width: int) -> list[str]:
    """An utterance's reference above its hypothesis, aligned token by token, in lines of at most `width` columns.

    S, D and I below mark substituted, deleted and inserted tokens. A token longer than a line gets its own.
    """
    about = [f"speaker {aligned.speaker}"] if aligned.speaker is not None else []
    about += [f"{aligned.seconds:.1f} s"] if aligned.seconds is not None else []
    about.append(f"{counted(aligned.errors.errors, 'error')} in {aligned.errors.tokens:,}")
    lines = [f"{aligned.id}: {', '.join(about)}"]
    rows, used = list(_HEADS), len(_HEADS[0])
    for step in steps(aligned.alignment):
        tokens = (step.reference, step.hypothesis, _MARKS[step.kind])
        size = max(map(terminal_columns, tokens))
        if used + size > width and rows[0] != _HEADS[0]:
            lines += _ended(rows)
            rows, used = list(_HEADS), len(_HEADS[0])
        for place, token in enumerate(tokens):
            rows[place] += token + " " * (size - terminal_columns(token) + 1)
        used += size + 1
    return lines + _ended(rows)


def _ended(rows: Sequence[str]) -> list[str]:
    return [row.rstrip() for row in rows if row.strip()]


def terminal_columns(text: str) -> int:
    """Width in a terminal: two columns for letters such as 中, none for marks that combine with the letter before."""
    return sum(
        0 if unicodedata.category(letter) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


def intervals_text(units: Units) -> str:
    """What a report's intervals are over, and their limits."""
    if not units.enough:
        return f"too few {units.over} for intervals ({units.count})"
    if units.one_speaker:
        return "intervals over utterances of one speaker, telling nothing of others"
    return f"intervals over {units}"


def difference_texts(difference: Difference | None, min_digits: int = 2) -> tuple[str, str, str]:
    """Signed points, their interval, and p; dashes for what is unknown."""
    if difference is None:
        return "–", "–", "–"
    interval = difference.interval
    points = [100 * value for value in (difference.value, *((interval.low, interval.high) if interval else ()))]
    digits = digits_apart(points, min_digits)
    value, *ends = (f"{value:+.{digits}f}" if value else f"{0:.{digits}f}" for value in points)
    p = p_text(difference.p_value, SIGNIFICANT).removeprefix("= ")
    return value, " to ".join(ends) or "–", p


def interval_text(interval: Interval | None) -> str:
    """Such as "45.3 to 54.1%", or a dash."""
    return "–" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}%"


def confusion_text(confusion: Confusion) -> str:
    """Such as "FOUR → FORE", or the single token that was deleted or inserted."""
    parts = [part for part in (confusion.reference, confusion.hypothesis) if part]
    return " → ".join(visible(part) for part in parts)


def visible(token: str) -> str:
    """A token with its spaces made visible."""
    return token.replace(" ", SPACE)


def _confusion_cells(confusion: Confusion | None) -> tuple[str, str]:
    return ("", "") if confusion is None else (confusion_text(confusion), f"{confusion.count:,} of {confusion.of:,}")
