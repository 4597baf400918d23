"""A report's tables as text: columns and rows, for any renderer."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from parp_cli.data.text import columns_of
from parp_cli.scoring.comparison import SIGNIFICANT, p_text
from parp_cli.scoring.intervals import Difference, Interval, Units, counted
from parp_cli.scoring.metrics import Confusion, steps
from parp_cli.scoring.report import Aligned, Group, Metric, Report

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
    """All tables that have something to show, with at most so many speakers (the worst) and confusions."""
    metric, speakers = report.metrics[0].name, report.by_speaker
    worst = f"Worst of {len(speakers)} speakers" if len(speakers) > limit else "Speakers"
    title = f"{report.name}, {counted(report.utterances, 'utterance')}; {intervals_text(report.units)}"
    rows = [(each.name, *_rate_cells(each, 2)) for each in report.metrics]
    tables = [TextTable(title, ("", "rate", *_COUNTED), tuple(rows))]
    for title, groups in (
        ("Splits", report.by_split),
        ("Languages", report.by_language),
        ("Durations", report.by_duration),
        (worst, speakers[:limit]),
    ):
        rows = [(each.name, *_rate_cells(each, 1), f"{each.utterances:,}") for each in groups]
        if len(rows) > 1:
            tables.append(TextTable(title, ("", metric, *_COUNTED, "utterances"), tuple(rows)))
    for some in filter(None, (report.confusions, report.symbols)):
        kinds = [_confusion_cells(each[:limit]) for each in (some.substitutions, some.deletions, some.insertions)]
        title = f"Most frequent errors: {some.unit} substituted, deleted, inserted"
        rows = [tuple(chain(*row)) for row in zip_longest(*kinds, fillvalue=("", ""))]
        tables.append(TextTable(title, ("substituted", "times", "", "times", "", "times"), tuple(rows)))
    title = f"{report.name} against others, on the utterances that both have"
    columns = ("against", f"its {metric}", f"{report.name}'s", "points", "95 % interval", "p", "over", "verdict")
    rows = [
        (
            each.other,
            f"{each.theirs.rate:.2%}",
            f"{each.ours.rate:.2%}",
            *difference_texts(each.difference),
            str(each.units),
            each.verdict,
        )
        for each in report.comparisons
    ]
    return [table for table in (*tables, TextTable(title, columns, tuple(rows))) if table.rows]


def _rate_cells(measured: Metric | Group, digits: int) -> list[str]:
    errors = measured.errors
    counts = (errors.substitutions, errors.deletions, errors.insertions, errors.tokens)
    return [f"{errors.rate:.{digits}%}", interval_text(measured.interval), *(f"{count:,}" for count in counts)]


def _confusion_cells(confusions: Sequence[Confusion]) -> list[tuple[str, str]]:
    """Such as "FOUR → FORE", or the single token that was deleted or inserted, and how often."""
    texts = [" → ".join(map(visible, filter(None, (each.reference, each.hypothesis)))) for each in confusions]
    return [(text, f"{each.count:,} of {each.of:,}") for text, each in zip(texts, confusions, strict=True)]


def systems_table(reports: Sequence[Report]) -> TextTable:
    """One row per system, such as the subnetworks of one encoder; all but the first are built against the first."""
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
        size = max(map(columns_of, tokens))
        if used + size > width and rows[0] != _HEADS[0]:
            lines += rows
            rows, used = list(_HEADS), len(_HEADS[0])
        for place, token in enumerate(tokens):
            rows[place] += token + " " * (size - columns_of(token) + 1)
        used += size + 1
    return [line.rstrip() for line in (*lines, *rows) if line.strip()]


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
    digits = difference.digits(min_digits)
    value, *ends = (f"{value:+.{digits}f}" if value else f"{0:.{digits}f}" for value in difference.points())
    p = p_text(difference.p_value, SIGNIFICANT).removeprefix("= ")
    return value, " to ".join(ends) or "–", p


def interval_text(interval: Interval | None) -> str:
    """Such as "45.3 to 54.1%", or a dash."""
    return "–" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}%"


def visible(token: str) -> str:
    """A token with its spaces made visible."""
    return token.replace(" ", SPACE)
