"""A report's tables as text: columns and rows, for whoever draws them."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from parp_cli.scoring.comparison import SIGNIFICANT, Comparison
from parp_cli.scoring.confusions import Confusion, Confusions, steps
from parp_cli.scoring.intervals import Difference, Interval, Units
from parp_cli.scoring.report import Aligned, Group, Report
from parp_cli.scoring.wording import counted, digits_apart, p_text

_HEADS = ("  ref    ", "  hyp    ", "         ")
_MARKS = {"equal": "", "substitute": "S", "delete": "D", "insert": "I"}

SPACE = "␣"
"""A space where it is the letter spoken of."""


@dataclass(frozen=True)
class TextTable:
    """Columns but the first are of numbers, unless they have no name."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def terminal_tables(report: Report, most: int = 10) -> list[TextTable]:
    """All tables that have something to show.

    Args:
        most: rows of speakers (the worst) and of confusions.
    """
    tables = [metrics_table(report)]
    for title, groups in (("Splits", report.by_split), ("Durations", report.by_duration)):
        if len(groups) > 1:
            tables.append(groups_table(title, report.metrics[0].name, groups))
    if len(report.by_speaker) > 1:
        title = "Speakers" if len(report.by_speaker) <= most else f"Worst of {len(report.by_speaker)} speakers"
        tables.append(groups_table(title, report.metrics[0].name, report.by_speaker[:most]))
    tables += [confusions_table(this, most) for this in (report.confusions, report.symbols) if this is not None]
    if report.comparisons:
        tables.append(comparisons_table(report.comparisons))
    return [table for table in tables if table.rows]


def metrics_table(report: Report) -> TextTable:
    """The figures of the whole; the title says what the intervals are over."""
    rows = [
        (
            metric.name,
            f"{metric.errors.rate:.2%}",
            interval_text(metric.interval),
            *(
                f"{count:,}"
                for count in (
                    metric.errors.substitutions,
                    metric.errors.deletions,
                    metric.errors.insertions,
                    metric.errors.tokens,
                )
            ),
        )
        for metric in report.metrics
    ]
    columns = ("", "rate", "95 % interval", "substituted", "deleted", "inserted", "of")
    title = f"{report.name}, {counted(report.utterances, 'utterance')}; {intervals_text(report.units)}"
    return TextTable(title, columns, tuple(rows))


def groups_table(title: str, metric: str, groups: Sequence[Group]) -> TextTable:
    """One row a speaker, band of durations or split."""
    rows = [
        (
            group.name,
            f"{group.errors.rate:.1%}",
            interval_text(group.interval),
            *(
                f"{count:,}"
                for count in (
                    group.errors.substitutions,
                    group.errors.deletions,
                    group.errors.insertions,
                    group.errors.tokens,
                    group.utterances,
                )
            ),
        )
        for group in groups
    ]
    columns = ("", metric, "95 % interval", "substituted", "deleted", "inserted", "of", "utterances")
    return TextTable(title, columns, tuple(rows))


def confusions_table(confusions: Confusions, most: int) -> TextTable:
    """The most frequent errors, the three kinds side by side."""
    kinds = (confusions.substitutions[:most], confusions.deletions[:most], confusions.insertions[:most])
    rows = [
        tuple(cell for kind in kinds for cell in _confusion_cells(kind[place] if place < len(kind) else None))
        for place in range(max(map(len, kinds)))
    ]
    columns = ("substituted", "times", "", "times", "", "times")
    return TextTable(f"Most frequent errors: {confusions.unit} substituted, deleted, inserted", columns, tuple(rows))


def comparisons_table(comparisons: Sequence[Comparison]) -> TextTable:
    """One row a system compared with; the sentence of each says more."""
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
    """One row a system, such as the subnetworks of one encoder; differences are from the first, where it was given.

    Args:
        reports: of the same utterances, all but the first built against the first.
    """
    metrics = reports[0].metrics
    rows = []
    for report in reports:
        cells = [
            cell for metric in report.metrics for cell in (f"{metric.errors.rate:.2%}", interval_text(metric.interval))
        ]
        found = next((this for this in report.comparisons if this.other == reports[0].name), None)
        points, *_ = difference_texts(None if found is None else found.difference)
        cells += [points, "–" if found is None else found.verdict]
        rows.append((report.name, *cells))
    figures = [column for metric in metrics for column in (metric.name, "95 % interval")]
    columns = ("", *figures, "points from the first", "verdict")
    utterances, drawn = counted(reports[0].utterances, "utterance"), intervals_text(reports[0].units)
    return TextTable(f"{len(reports)} systems, {utterances}; {drawn}", columns, tuple(rows))


def side_by_side(aligned: Aligned, width: int) -> list[str]:
    """An utterance's reference over its hypothesis, token under token, in lines of at most `width` columns.

    S, D and I below them stand where a token was substituted, deleted or inserted. A token that is longer than a line
    has one of its own.
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
    """How wide a terminal draws it: two columns for letters such as 中, none for marks that join the letter before."""
    return sum(
        0 if unicodedata.category(letter) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


def intervals_text(units: Units) -> str:
    """What a report's intervals are over, and what they don't tell."""
    if not units.enough:
        return f"too few {units.over} for intervals ({units.count})"
    if units.one_speaker:
        return "intervals over utterances of one speaker, telling nothing of others"
    return f"intervals over {units}"


def difference_texts(difference: Difference | None, least_digits: int = 2) -> tuple[str, str, str]:
    """Points with their sign, their interval, and p; dashes for what is not known."""
    if difference is None:
        return "–", "–", "–"
    interval = difference.interval
    points = [100 * value for value in (difference.value, *((interval.low, interval.high) if interval else ()))]
    digits = digits_apart(points, least_digits)
    value, *ends = (f"{value:+.{digits}f}" if value else f"{0:.{digits}f}" for value in points)
    p = p_text(difference.p_value, SIGNIFICANT).removeprefix("= ")
    return value, " to ".join(ends) or "–", p


def interval_text(interval: Interval | None) -> str:
    """Such as "45.3 to 54.1%", or a dash."""
    return "–" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}%"


def confusion_text(confusion: Confusion) -> str:
    """Such as "FOUR → FORE", or the one token that was deleted or inserted."""
    parts = [part for part in (confusion.reference, confusion.hypothesis) if part]
    return " → ".join(visible(part) for part in parts)


def visible(token: str) -> str:
    """A token, spaces to be seen."""
    return token.replace(" ", SPACE)


def _confusion_cells(confusion: Confusion | None) -> tuple[str, str]:
    return ("", "") if confusion is None else (confusion_text(confusion), f"{confusion.count:,} of {confusion.of:,}")
