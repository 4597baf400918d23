"""A report as one HTML page that needs nothing else: no network, no scripts, and the same bytes each time.

`page.html` is the template for speech and `classes.html` that for texts; they escape whatever a transcript or a text
holds. `marks.html` has what both draw with, and `page.css` their style.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import jinja2

from parp_cli.scoring.class_report import ClassReport
from parp_cli.scoring.classes import NAMES
from parp_cli.scoring.intervals import Interval, counted
from parp_cli.scoring.metrics import steps
from parp_cli.scoring.report import Report
from parp_cli.scoring.tables import difference_texts, interval_text, visible

_MARGIN = 14  # pixels left and right of a scale, for half of a label


def page(report: Report | ClassReport) -> str:
    """The whole page."""
    folder = resources.files("parp_cli") / "scoring"

    def read(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(read),
    )
    environment.filters |= {
        "interval": interval_text,
        "length_of": _length,
        "number": "{:,}".format,
        "percent": "{:.1%}".format,
        "px": "{:.1f}".format,
        "sentence": _sentence,
        "visible": visible,
    }
    environment.tests["with_errors"] = lambda some: some and (some.substitutions or some.deletions or some.insertions)
    environment.globals |= {
        "columns": lambda counts: [sum(column) for column in zip(*counts, strict=True)],
        "counted": counted,
        "difference_texts": difference_texts,
        "metric_names": NAMES,
        "scale_of": scale,
        "steps": steps,
    }
    template = environment.get_template("page.html" if isinstance(report, Report) else "classes.html")
    return template.render(report=report, style=read("page.css"))


@dataclass(frozen=True)
class Scale:
    """The horizontal axis that the strips of one table share: its ends and ticks, in per cent."""

    low: float
    high: float
    ticks: tuple[float, ...]
    width: int = 220  # of a strip, in pixels

    def place(self, rate: float) -> float:
        """Pixels from the left of an error rate; rates beyond the scale are at its end."""
        share = (100 * rate - self.low) / (self.high - self.low)
        return _MARGIN + min(1.0, max(0.0, share)) * (self.width - 2 * _MARGIN)


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


def _sentence(words: str) -> str:
    """A comparison's words as a sentence of their own; a system's name keeps its case."""
    words = f"N{words[1:]}." if words.startswith("no ") else f"{words}."
    for apart, joined in (("p < ", "p\u00a0<\u00a0"), ("p = ", "p\u00a0=\u00a0"), (" %", "\u00a0%")):
        words = words.replace(apart, joined)  # no line ends within a number
    return words


def _length(seconds: float) -> str:
    """A length of audio: 45 s, 3:20 min, 2:05 h."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"
