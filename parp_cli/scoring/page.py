"""A report as one HTML page that needs nothing else: no network, no scripts, and the same bytes each time."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources

from parp_cli.scoring.charts import Scale, heat_map, histogram, scale, strip, strip_axis
from parp_cli.scoring.comparison import Comparison
from parp_cli.scoring.confusions import Confusion, Confusions, steps
from parp_cli.scoring.intervals import Units
from parp_cli.scoring.metrics import ErrorRate
from parp_cli.scoring.report import Aligned, Group, Metric, Report
from parp_cli.scoring.tables import difference_texts, interval_text, visible
from parp_cli.scoring.wording import counted

# Nothing may be fetched or run, whatever a transcript holds.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_CONFUSIONS = 12
"""Of a kind; the JSON has more."""

_KINDS = (("substitute", "substituted"), ("delete", "deleted"), ("insert", "inserted"))


def page(report: Report) -> str:
    """The whole page."""
    sections = [
        _headline(report),
        _comparisons(report.comparisons),
        _groups("Splits", "", report.by_split if len(report.by_split) > 1 else (), report),
        _groups("Speakers", "From worst to best; the interval of one speaker is over their utterances.", *_by(report)),
        _groups("Durations", "Whether short or long utterances are hard.", report.by_duration, report),
        _histogram(report),
        _confusions(report),
        _matrix(report),
        _worst(report),
        _origin(report),
        _method(report),
    ]
    style = (resources.files("parp_cli") / "scoring" / "page.css").read_text(encoding="utf-8")
    title = escape(f"{report.name}: {report.metrics[0].name} {report.metrics[0].errors.rate:.1%}")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


def _by(report: Report) -> tuple[Sequence[Group], Report]:
    return report.by_speaker if len(report.by_speaker) > 1 else (), report


_TOLD_AT_ONCE = ("corpus", "decoding")
"""Of a report's origin: without these its figures mean nothing."""


def _headline(report: Report) -> str:
    facts = [("utterances", f"{report.utterances:,}")]
    if report.seconds is not None:
        facts.append(("audio", _length(report.seconds)))
    if report.speakers:
        facts.append(("speakers", f"{report.speakers:,}"))
    facts.append(("without an error", f"{report.faultless:,} ({report.faultless / report.utterances:.1%})"))
    if report.empty:
        facts.append(("nothing recognised", f"{report.empty:,} ({report.empty / report.utterances:.1%})"))
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    about = "; ".join(value for name, value in report.origin if name in _TOLD_AT_ONCE)
    return (
        f"<header>\n<h1>{escape(report.name)}</h1>\n"
        + (f"<p>{escape(about)}</p>\n" if about else "")
        + f'<div class="cards">{"".join(_card(metric, report.units) for metric in report.metrics)}</div>\n'
        f'<dl class="facts">{listed}</dl>\n</header>'
    )


def _card(metric: Metric, units: Units) -> str:
    errors = metric.errors
    counts = (errors.substitutions, errors.deletions, errors.insertions)
    bars = "".join(
        f'<span class="{kind}" style="flex:{count}"></span>'
        for (kind, _), count in zip(_KINDS, counts, strict=True)
        if count
    )
    legend = "".join(
        f'<span><i class="{kind}"></i>{count:,} {name}</span>'
        for (kind, name), count in zip(_KINDS, counts, strict=True)
    )
    return (
        f'<div class="card"><div class="name">{_LONG_NAMES[metric.name]}</div>'
        f'<div class="figure">{errors.rate:.1%}</div><div class="soft">{_reach(metric, units)}</div>'
        f'<div class="kinds">{bars}</div><div class="legend">{legend}</div>'
        f'<div class="soft small">of {errors.tokens:,} {metric.unit}</div></div>'
    )


def _reach(metric: Metric, units: Units) -> str:
    if not units.enough:
        return f"too few {units.over} for an interval ({units.count})"
    if metric.interval is None:
        return f"no interval: the same rate in all {units}"
    caveat = ", and tells nothing of other speakers" if units.one_speaker else ""
    return f"95 % interval {interval_text(metric.interval)}, over {units}{caveat}"


_LONG_NAMES = {"WER": "Word error rate (WER)", "CER": "Character error rate (CER)", "PER": "Phone error rate (PER)"}


def _comparisons(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return ""
    verdicts = "".join(f'<p class="verdict {this.verdict}">{_sentence(this.words)}</p>' for this in comparisons)
    first = comparisons[0]
    on = scale(
        [this.difference.value for this in comparisons if this.difference is not None],
        [this.difference.interval for this in comparisons if this.difference is not None],
    )
    rows = [_comparison_row(this, on) for this in comparisons]
    heads = (
        ("against", ""),
        (f"its {first.metric}", ""),
        (f"{first.metric} here", ""),
        ("points", ""),
        ("95 % interval", ""),
        (f"← better, worse → {strip_axis(on)}", "strip"),
        ("p", ""),
        ("better on", ""),
        ("worse on", ""),
    )
    return _section(
        "Against others",
        "On the utterances that both have. Points are hundredths of the error rate; fewer are better. Interval and p "
        "are of each comparison alone, and better and worse are said where both tell a difference.",
        verdicts + _table(heads, rows),
    )


def _comparison_row(this: Comparison, on: Scale) -> str:
    cells = [_cell(escape(this.other), "name"), _cell(f"{this.theirs.rate:.1%}"), _cell(f"{this.ours.rate:.1%}")]
    value, reach, p = map(escape, difference_texts(this.difference, least_digits=1))
    drawn = "" if this.difference is None else strip(this.difference.value, this.difference.interval, on, 0.0)
    cells += [_cell(value), _cell(reach), _cell(drawn, "strip"), _cell(p)]
    cells += [_cell(f"{this.better_utterances:,}"), _cell(f"{this.worse_utterances:,}")]
    return f"<tr>{''.join(cells)}</tr>"


def _groups(title: str, about: str, groups: Sequence[Group], report: Report) -> str:
    if not groups:
        return ""
    metric = report.metrics[0]
    on = scale([group.errors.rate for group in groups], [group.interval for group in groups])
    with_audio = all(group.seconds is not None for group in groups)
    heads = [
        ("", ""),
        (metric.name, ""),
        ("95 % interval", ""),
        (strip_axis(on), "strip"),
        *((short, "") for short in ("sub", "del", "ins")),
        (metric.unit, ""),
        ("utterances", ""),
        *([("audio", "")] if with_audio else []),
    ]
    rows = []
    for group in groups:
        cells = [
            _cell(escape(group.name), "name"),
            _cell(f"{group.errors.rate:.1%}"),
            _cell(interval_text(group.interval)),
            _cell(strip(group.errors.rate, group.interval, on, metric.errors.rate), "strip"),
            *_counts(group.errors),
            _cell(f"{group.utterances:,}"),
            *([_cell(_length(group.seconds or 0))] if with_audio else []),
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    dashed = f"The dashed line is the {metric.name} of the whole."
    return _section(title, f"{about} {dashed}".strip(), _table(heads, rows))


def _counts(errors: ErrorRate) -> list[str]:
    counts = (errors.substitutions, errors.deletions, errors.insertions, errors.tokens)
    return [_cell(f"{count:,}") for count in counts]


def _histogram(report: Report) -> str:
    return _section(
        "Utterances",
        "How many have which error rate; “none” are without an error, “more” have more errors than "
        f"there are {report.metrics[0].unit}.",
        histogram(report.histogram),
    )


def _confusions(report: Report) -> str:
    every = [report.confusions, *([report.symbols] if report.symbols is not None else [])]
    blocks = "".join(_kinds(confusions) for confusions in every)
    if not blocks:
        return ""
    about = "How often, of how often the token occurs: in the references, or of an insertion in what was recognised."
    return _section("Most frequent errors", about, blocks)


def _kinds(confusions: Confusions) -> str:
    tables = [
        (f"{confusions.unit.capitalize()} {name}", kind, some)
        for (kind, name), some in zip(
            _KINDS, (confusions.substitutions, confusions.deletions, confusions.insertions), strict=True
        )
        if some
    ]
    blocks = []
    for title, kind, some in tables:
        rows = "".join(_confusion_row(this, kind, some[0].count) for this in some[:_CONFUSIONS])
        blocks.append(f"<div><h3>{title}</h3><table>{rows}</table></div>")
    return f'<div class="three">{"".join(blocks)}</div>' if blocks else ""


def _confusion_row(this: Confusion, kind: str, most: int) -> str:
    tokens = " → ".join(f"<bdi>{escape(visible(part))}</bdi>" for part in (this.reference, this.hypothesis) if part)
    bar = f'<span class="{kind}" style="width:{100 * this.count / most:.0f}%"></span>'
    return (
        f'<tr><td class="token">{tokens}</td><td class="share">{bar}</td>'
        f'<td>{this.count:,}</td><td class="soft">of {this.of:,}</td></tr>'
    )


def _matrix(report: Report) -> str:
    if not any(map(any, report.matrix.counts)):
        return ""
    return _section(
        f"Which {report.matrix.unit} are taken for which",
        "Rows were said, columns recognised; ∅ is none: what is in its row was inserted, in its column deleted. The "
        "stronger the colour, the larger the share of the symbol.",
        f'<div class="scroll">{heat_map(report.matrix)}</div>',
    )


def _worst(report: Report) -> str:
    if not report.worst:
        return ""
    return _section(
        "Worst utterances",
        f"By {report.metrics[0].name}, and of equal ones the longer first. S is substituted, D deleted, I inserted.",
        "".join(_utterance(this, len(report.by_split) > 1) for this in report.worst),
    )


def _utterance(this: Aligned, with_split: bool) -> str:
    facts = [f"{this.errors.rate:.0%}", f"{counted(this.errors.errors, 'error')} in {this.errors.tokens:,}"]
    if this.speaker is not None:
        facts.append(f"speaker {escape(this.speaker)}")
    if with_split:
        facts.append(escape(this.split))
    if this.seconds is not None:
        facts.append(f"{this.seconds:.1f} s")
    pairs = "".join(
        f'<span class="pair {step.kind}"><span class="ref">{escape(step.reference)}</span>'
        f'<span class="hyp">{escape(step.hypothesis)}</span>'
        f'<span class="eval">{"" if step.kind == "equal" else step.kind[0].upper()}</span></span>'
        for step in steps(this.alignment)
    )
    # A right-to-left script runs from the right, as its first letter tells.
    return (
        f'<article><b>{escape(this.id)}</b> <span class="soft small">{" · ".join(facts)}</span>'
        '<div class="aligned" dir="auto"><span class="lines"><bdi>said</bdi><bdi>heard</bdi></span>'
        f"{pairs}</div></article>"
    )


def _origin(report: Report) -> str:
    if not report.origin:
        return ""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in report.origin)
    return _section("Where this comes from", "", f'<table class="origin">{rows}</table>')


def _method(report: Report) -> str:
    return (
        '<footer class="soft small"><p>Errors are counted by jiwer: the fewest substitutions, deletions and insertions '
        "that lie between the reference and what was recognised, summed over utterances and divided by the tokens of "
        f"all references.</p><p>{_drawn(report)}</p></footer>"
    )


def _drawn(report: Report) -> str:
    """How intervals and p come about, and what of."""
    units = report.units
    if not units.enough:
        return (
            f"There are too few {units.over} for intervals ({units.count}): that few do not tell how unlike they are."
        )
    whole = "utterances, for it is not known who speaks"
    if units.one_speaker:
        whole = "utterances of one speaker: what they tell is of that speaker alone"
    elif units.over == "speakers":
        whole = "speakers, each with all their utterances; a group of 2 to 4 speakers has no interval"
    return (
        "Intervals are bootstrapped, and meant to hold the true value 95 times of 100: as many as there are, drawn "
        f"with replacement, {report.resamples:,} times; here {units.count:,} {whole}. Without a single error the "
        f"interval is the bound that {counted(units.count, units.over.removesuffix('s'))} without one give. Two "
        "systems are drawn together, and p is how often their difference would be as large if each of these went to "
        "either system by the toss of a coin."
    )


def _section(title: str, about: str, content: str) -> str:
    told = f'<p class="soft small">{about}</p>' if about else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{told}{content}\n</section>"


def _table(heads: Iterable[tuple[str, str]], rows: Iterable[str]) -> str:
    head = "".join(f'<th class="{kind}">{name}</th>' if kind else f"<th>{name}</th>" for name, kind in heads)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _cell(content: str, kind: str = "") -> str:
    return f'<td class="{kind}">{content}</td>' if kind else f"<td>{content}</td>"


def _sentence(words: str) -> str:
    """A comparison's words, as they stand alone; a system's name keeps its case."""
    words = f"N{words[1:]}." if words.startswith("no ") else f"{words}."
    text = escape(words)
    for apart, joined in (("p &lt; ", "p\u00a0&lt;\u00a0"), ("p = ", "p\u00a0=\u00a0"), (" %", "\u00a0%")):
        text = text.replace(apart, joined)  # no line ends within a figure
    return text


def _length(seconds: float) -> str:
    """A length of audio: 45 s, 3:20 min, 2:05 h."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60}:{total % 60:02} min"
    return f"{total // 3600}:{total % 3600 // 60:02} h"
