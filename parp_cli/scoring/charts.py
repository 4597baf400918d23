"""Small drawings as inline SVG. Colours and type are the page's: `page.css` styles the classes.

All take error rates, and draw per cent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from parp_cli.scoring.confusions import Matrix
from parp_cli.scoring.intervals import Interval
from parp_cli.scoring.report import Bin
from parp_cli.scoring.tables import visible

_WIDTH, _HEIGHT = 220, 24  # of a strip
_MARGIN = 14  # left and right of a strip's scale, for half of a label
_CELL = 17  # of a matrix


@dataclass(frozen=True)
class Scale:
    """What the strips of one table share: where they begin and end, in per cent, and where the ticks are."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, rate: float) -> float:
        """Pixels from the left of an error rate; what is beyond the scale is at its end."""
        share = (100 * rate - self.low) / (self.high - self.low)
        return _MARGIN + min(1.0, max(0.0, share)) * (_WIDTH - 2 * _MARGIN)


def scale(rates: Sequence[float], intervals: Sequence[Interval | None]) -> Scale:
    """A scale from 0 (or below, for differences) that holds all of these, with a handful of round ticks."""
    ends = [end for interval in intervals if interval is not None for end in (interval.low, interval.high)]
    low, high = 100 * min((0.0, *rates, *ends)), 100 * max((0.0, *rates, *ends))
    span = max(high - low, 0.1)
    magnitude = 10.0 ** math.floor(math.log10(span))
    step = next(step for step in (0.2, 0.5, 1, 2, 5) if span / (step * magnitude) <= 6) * magnitude
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    return Scale(first * step, last * step, tuple(place * step for place in range(first, last + 1)))


def strip(rate: float, interval: Interval | None, on: Scale, whole: float) -> str:
    """One row of a table: the error rate as a dot, its interval as a line, and the whole's rate dashed."""
    middle = _HEIGHT / 2
    lines = [_line("whole", on.place(whole), 0, on.place(whole), _HEIGHT)]
    if interval is not None:
        lines.append(_line("reach", on.place(interval.low), middle, on.place(interval.high), middle))
    dot = f'<circle class="dot" cx="{on.place(rate):.1f}" cy="{middle:g}" r="4"/>'
    return _svg(_WIDTH, _HEIGHT, "".join(lines) + dot, f"{rate:.1%}")


def strip_axis(on: Scale) -> str:
    """The head of a column of strips."""
    ticks = [
        f'<text x="{on.place(tick / 100):.1f}" y="11" text-anchor="middle">{tick:g}</text>'
        + _line("rule", on.place(tick / 100), 15, on.place(tick / 100), 19)
        for tick in on.ticks
    ]
    return _svg(_WIDTH, 19, "".join(ticks), f"{on.low:g} to {on.high:g} %")


def histogram(bins: Sequence[Bin]) -> str:
    """Utterances by error rate: a bar each for none wrong, every tenth, and more errors than there are tokens."""
    wide, tall, bottom = 640, 190, 150
    most = max(1, *(each.utterances for each in bins))
    step = (wide - 20) / len(bins)
    parts = [_line("rule", 10, bottom, wide - 10, bottom)]
    for place, each in enumerate(bins):
        left = 10 + place * step
        height = (bottom - 24) * each.utterances / most
        middle = left + step / 2
        # The first and the last are of another kind than the tenths between them, and stand apart.
        label = "none" if each.high == 0 else "more" if each.high is None else f"{100 * each.low:g}–{100 * each.high:g}"
        parts.append(
            f'<rect class="bar" x="{left + 3:.1f}" y="{bottom - height:.1f}" width="{step - 6:.1f}" '
            f'height="{height:.1f}" rx="2"/>'
            f'<text x="{middle:.1f}" y="{bottom - height - 5:.1f}" text-anchor="middle">{each.utterances:,}</text>'
            f'<text x="{middle:.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>'
        )
    parts.append(f'<text x="{wide / 2:g}" y="{tall - 6}" text-anchor="middle">error rate of the utterance (%)</text>')
    return _svg(wide, tall, "".join(parts), "histogram of utterances by error rate")


def heat_map(matrix: Matrix) -> str:
    """Rows said, columns recognised; the stronger, the larger the share of the symbol said. Zeros stay blank."""
    symbols = [visible(symbol) or "∅" for symbol in matrix.symbols]
    widest = max(map(len, symbols))
    margin = 14 + 7 * widest
    parts = []
    for place, symbol in enumerate(symbols):
        middle = margin + (place + 0.5) * _CELL
        turned = f'transform="rotate(-90 {middle + 4:g} {margin - 5})" x="{middle + 4:g}"'
        upright = f'x="{middle:g}" text-anchor="middle"'
        parts.append(f'<text {turned if widest > 1 else upright} y="{margin - 5}">{escape(symbol)}</text>')
        parts.append(f'<text x="{margin - 5}" y="{middle + 4:g}" text-anchor="end">{escape(symbol)}</text>')
    recognised = [sum(column) for column in zip(*matrix.counts, strict=True)]
    for row, counts in enumerate(matrix.counts):
        for column, count in enumerate(counts):
            # An insertion has no symbol said: its share is of how often the symbol was recognised.
            total = sum(counts) if row else recognised[column]
            if count:
                parts.append(_heat_cell(margin, row, column, count / total, f"{count:,} of {total:,}", symbols))
    side = _CELL * len(symbols)
    parts.append(f'<rect class="cell" x="{margin}" y="{margin}" width="{side}" height="{side}"/>')
    return _svg(margin + side + 1, margin + side + 1, "".join(parts), "what was recognised for what was said")


def _heat_cell(margin: int, row: int, column: int, share: float, amount: str, symbols: Sequence[str]) -> str:
    # Most confusions are a few per cent: the root lets them be seen.
    return (
        f'<rect class="{"right" if row == column else "wrong"}" x="{margin + column * _CELL}" '
        f'y="{margin + row * _CELL}" width="{_CELL}" height="{_CELL}" opacity="{max(0.04, math.sqrt(share)):.2f}">'
        f"<title>{escape(symbols[row])} → {escape(symbols[column])}: {amount}</title></rect>"
    )


def _svg(width: float, height: float, content: str, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
        f'aria-label="{escape(label)}">{content}</svg>'
    )


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:g}" x2="{x2:.1f}" y2="{y2:g}"/>'
