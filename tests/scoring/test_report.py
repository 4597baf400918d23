"""Every part of a report adds up to its whole, as JSON and as tables too."""

import json
from dataclasses import asdict, replace

import jiwer
import pytest

from parp_cli.errors import DataError
from parp_cli.scoring.intervals import Units
from parp_cli.scoring.metrics import pooled, word_errors
from parp_cli.scoring.report import Aligned, Bin, Report, build_report
from parp_cli.scoring.results import Recognition
from parp_cli.scoring.tables import side_by_side, systems_table, terminal_tables
from tests.scoring.worlds import garbled

RECOGNITIONS = [*garbled(0, 120, split="test-clean"), *garbled(1, 90, wrong=0.6, split="test-other")]


def report_of(recognitions: list[Recognition], **options: object) -> Report:
    return build_report(recognitions, labels="letters", name="system", resamples=200, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def report() -> Report:
    others = {"worse": [replace(this, hypothesis="") for this in RECOGNITIONS], "same": RECOGNITIONS}
    return report_of(RECOGNITIONS, against=others, origin=[("checkpoint", "x.safetensors")])


def test_metrics_are_jiwers(report: Report) -> None:
    references, hypotheses = ([this.reference for this in RECOGNITIONS], [this.hypothesis for this in RECOGNITIONS])
    assert [metric.name for metric in report.metrics] == ["WER", "CER"]
    assert report.metrics[0].errors.rate == jiwer.wer(references, hypotheses)
    assert report.metrics[1].errors.rate == jiwer.cer(references, hypotheses)
    for metric in report.metrics:
        assert metric.interval is not None
        assert metric.interval.low < metric.errors.rate < metric.interval.high
        assert metric.interval.units == report.units == Units(over="speakers", count=8)
    (phones,) = build_report(RECOGNITIONS, labels="phones", name="system", resamples=200).metrics
    assert (phones.name, phones.errors) == ("PER", report.metrics[0].errors)


def test_groups_are_sums_over_their_utterances(report: Report) -> None:
    for groups, key in (
        (report.by_speaker, lambda this: this.speaker),
        (report.by_split, lambda this: this.split),
    ):
        assert pooled(group.errors for group in groups) == report.metrics[0].errors
        for group in groups:
            members = [this for this in RECOGNITIONS if key(this) == group.name]
            texts = [this.reference for this in members], [this.hypothesis for this in members]
            assert group.errors == word_errors(*texts)
            assert (group.utterances, group.seconds) == (
                len(members),
                pytest.approx(sum(this.seconds or 0 for this in members)),
            )
    assert [group.name for group in report.by_split] == ["test-clean", "test-other"]
    rates = [group.errors.rate for group in report.by_speaker]
    assert rates == sorted(rates, reverse=True)
    assert (report.utterances, report.speakers) == (210, 8)
    assert report.faultless == sum(this.reference == this.hypothesis for this in RECOGNITIONS)
    assert report.empty == sum(not this.hypothesis for this in RECOGNITIONS)


def test_bands_of_durations(report: Report) -> None:
    assert pooled(group.errors for group in report.by_duration) == report.metrics[0].errors
    names = ["0 to 1 s", "1 to 2 s", "2 to 3 s", "3 to 5 s"]
    assert [group.name for group in report.by_duration] == names
    lengths = {"0 to 1 s": (0, 1), "1 to 2 s": (1, 2), "2 to 3 s": (2, 3), "3 to 5 s": (3, 5)}
    for group in report.by_duration:
        low, high = lengths[group.name]
        assert group.utterances == sum(low <= (this.seconds or 0) < high for this in RECOGNITIONS)
    edges = [replace(RECOGNITIONS[0], id=str(seconds), seconds=seconds) for seconds in (0.0, 1.0, 29.99, 30.0, 999.0)]
    found = [(group.name, group.utterances) for group in report_of(edges).by_duration]
    assert found == [("0 to 1 s", 1), ("1 to 2 s", 1), ("20 to 30 s", 1), ("30 s and more", 2)]


def test_the_histogram_counts_every_utterance_once() -> None:
    texts = [(10, 0), (10, 1), (10, 3), (10, 10), (10, 11), (3, 1), (1000, 1), (0, 0), (0, 2)]
    recognitions = [
        Recognition(id=str(n), reference="A " * tokens, hypothesis="A " * max(0, tokens - errors) + "B " * errors)
        for n, (tokens, errors) in enumerate(texts)
    ]
    histogram = report_of(recognitions).histogram
    assert sum(each.utterances for each in histogram) == len(texts)
    assert histogram[0] == Bin(low=0.0, high=0.0, utterances=2)
    counts = {(each.low, each.high): each.utterances for each in histogram[1:]}
    # 1 of 10 and 1 of 1000; 3 of 10; 1 of 3; 10 of 10, and what has no reference; 11 of 10
    assert [counts[place] for place in ((0.0, 0.1), (0.2, 0.3), (0.3, 0.4), (0.9, 1.0), (1.0, None))] == [2, 1, 1, 1, 2]


def test_worst_utterances(report: Report) -> None:
    assert len(report.worst) == 20
    order = [(-this.errors.rate, -this.errors.tokens) for this in report.worst]
    assert order == sorted(order)
    by_id = {(this.split, this.id): this for this in RECOGNITIONS}
    for this in report.worst:
        source = by_id[this.split, this.id]
        assert this.errors == word_errors([source.reference], [source.hypothesis])
        assert " ".join(word for stretch in this.alignment for word in stretch.reference) == source.reference
    lowest = report.worst[-1].errors.rate
    assert sum(word_errors([this.reference], [this.hypothesis]).rate > lowest for this in RECOGNITIONS) <= 20
    assert report_of([replace(this, hypothesis=this.reference) for this in RECOGNITIONS]).worst == ()


def test_a_system_that_has_learned_nothing_is_told_so(report: Report) -> None:
    assert report.nothing_learned is None
    words = "the model has not learned to spell yet; train it longer (training.updates)"
    empty = report_of([replace(this, hypothesis="") for this in RECOGNITIONS]).nothing_learned
    assert empty is not None
    assert empty.startswith(f"every hypothesis is empty: {words}")
    few = [replace(this, reference="ABCDEFGHIJ", hypothesis="A") for this in RECOGNITIONS]
    nearly = report_of(few).nothing_learned
    assert nearly is not None
    assert nearly.startswith(f"90.0% of the characters are left out: {words}")
    assert (
        report_of([replace(this, reference="ABCDEFGHI", hypothesis="A") for this in RECOGNITIONS]).nothing_learned
        is None
    )


def test_what_is_not_known_is_left_out() -> None:
    partly = [
        replace(this, speaker=None, seconds=None, split="") if n == 0 else this for n, this in enumerate(RECOGNITIONS)
    ]
    report = report_of(partly)
    assert report.by_speaker == report.by_duration == report.by_split == ()
    assert report.seconds is None
    assert report.metrics[0].interval is not None
    assert report.metrics[0].interval.units == report.units == Units(over="utterances", count=210)


def test_json_is_one_object_and_the_same_each_time(report: Report) -> None:
    def written(this: Report) -> str:
        return json.dumps(asdict(this), allow_nan=False, sort_keys=True)

    told = json.loads(written(report))
    assert told["metrics"][0]["errors"]["rate"] == report.metrics[0].errors.rate
    assert told["comparisons"][0]["verdict"] == "better"
    assert told["by_speaker"][0]["interval"]["high"] == report.by_speaker[0].interval.high  # type: ignore[union-attr]
    assert told["units"] == {"over": "speakers", "count": 8, "one_speaker": False}
    assert written(report_of(RECOGNITIONS)) == written(report_of(list(RECOGNITIONS)))


def test_nothing_to_report() -> None:
    with pytest.raises(DataError, match="nothing to report"):
        report_of([])


def test_tables_have_a_cell_for_each_column(report: Report) -> None:
    tables = terminal_tables(report, limit=5)
    assert len(tables) == 7
    for table in tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
    titles = [table.title for table in tables]
    assert titles[0] == "system, 210 utterances; intervals over 8 speakers"
    assert "Worst of 8 speakers" in titles
    metrics = tables[0].rows
    assert metrics[0][:2] == ("WER", f"{report.metrics[0].errors.rate:.2%}")
    assert [row[-2:] for row in tables[-1].rows] == [("8 speakers", "better"), ("8 speakers", "undecided")]
    assert tables[-1].rows[1][3:6] == ("0.00", "–", "1.000")
    spaces = [cell for row in tables[5].rows for cell in row]
    assert any("␣" in cell for cell in spaces)


def test_tables_of_almost_nothing() -> None:
    one = report_of([Recognition(id="1", reference="A", hypothesis="A")])
    (table,) = terminal_tables(one)
    assert table.title == "system, 1 utterance; too few utterances for intervals (1)"
    assert table.rows == (("WER", "0.00%", "–", "0", "0", "0", "1"), ("CER", "0.00%", "–", "0", "0", "0", "1"))


def test_many_systems_in_one_table() -> None:
    worse = [replace(this, hypothesis="") for this in RECOGNITIONS]
    first = build_report(RECOGNITIONS, labels="letters", name="first", resamples=200)
    second = build_report(worse, labels="letters", name="second", resamples=200, against={"first": RECOGNITIONS})
    table = systems_table([first, second])
    assert {len(row) for row in table.rows} == {len(table.columns)}
    assert [row[0] for row in table.rows] == ["first", "second"]
    assert table.title == "2 systems, 210 utterances; intervals over 8 speakers"
    assert table.rows[0][-2:] == ("–", "–")
    points = 100 * (1 - first.metrics[0].errors.rate)
    assert table.rows[1][1] == "100.00%"
    assert table.rows[1][-2:] == (f"{points:+.2f}", "worse")


@pytest.mark.parametrize(
    ("speakers", "title"),
    [
        (1, "intervals over utterances of one speaker, telling nothing of others"),
        (2, "too few speakers for intervals (2)"),
        (4, "too few speakers for intervals (4)"),
        (5, "intervals over 5 speakers"),
    ],
)
def test_tables_say_what_was_drawn(speakers: int, title: str) -> None:
    some = garbled(0, 60, speakers=speakers)
    found = report_of(some, against={"other": garbled(0, 60, speakers=speakers, noise=1)})
    tables = terminal_tables(found)
    assert tables[0].title == f"system, 60 utterances; {title}"
    assert (found.metrics[0].interval is None) == (speakers in (2, 4)) == ("–" in tables[0].rows[0])
    over = "60 utterances of one speaker" if speakers == 1 else f"{speakers} speakers"
    assert tables[-1].rows[0][tables[-1].columns.index("over")] == over


def test_what_only_one_system_has() -> None:
    found = report_of(RECOGNITIONS, against={"part": RECOGNITIONS[:50], "all": RECOGNITIONS})
    assert [(this.utterances, this.only_ours) for this in found.comparisons] == [(50, 160), (210, 0)]


def laid_out(said: str, heard: str, width: int = 80) -> list[str]:
    """The lines below the first."""
    (worst,) = report_of([Recognition(id="1", reference=said, hypothesis=heard)]).worst
    return side_by_side(worst, width)[1:]


def test_side_by_side() -> None:
    said, heard = "ONE TWO THREE FOUR SIX", "ONE THREE FOR SIX SEVEN"
    recognitions = [
        Recognition(id="a-1", reference=said, hypothesis=heard, speaker="a", seconds=1.25),
        Recognition(id="a-2", reference="ONE", hypothesis=""),
    ]
    worst: dict[str, Aligned] = {this.id: this for this in report_of(recognitions).worst}
    assert side_by_side(worst["a-1"], 80) == [
        "a-1: speaker a, 1.2 s, 3 errors in 5",
        "  ref    ONE TWO THREE FOUR SIX",
        "  hyp    ONE     THREE FOR  SIX SEVEN",
        "             D         S        I",
    ]
    assert side_by_side(worst["a-1"], 24) == [
        "a-1: speaker a, 1.2 s, 3 errors in 5",
        "  ref    ONE TWO THREE",
        "  hyp    ONE     THREE",
        "             D",
        "  ref    FOUR SIX",
        "  hyp    FOR  SIX SEVEN",
        "         S        I",
    ]
    assert side_by_side(worst["a-2"], 80) == ["a-2: 1 error in 1", "  ref    ONE", "  hyp", "         D"]


def test_long_utterances_go_on_below() -> None:
    said, heard = "THE BIG CAT SAT ON IT", "THE CAT SET ON IT NOW"
    lines = laid_out(said, heard, width=24)
    assert max(map(len, lines)) <= 24
    for row, text in (("  ref  ", said), ("  hyp", heard)):
        assert " ".join(" ".join(line[9:].split()) for line in lines if line.startswith(row)).strip() == text
    long = laid_out(f"{'A' * 50} B", "B", width=24)
    assert len(long) == 5, "a token longer than a line has one of its own"


def test_wide_letters_and_marks_keep_the_columns() -> None:
    assert laid_out("中文 Q\u0301 B", "A X C") == ["  ref    中文 Q\u0301 B", "  hyp    A    X C", "         S    S S"]
    # Marks that join without being of a combining class (Devanagari, Thai), and a joiner.
    assert laid_out("कु B", "AB C") == ["  ref    कु  B", "  hyp    AB C", "         S  S"]
    assert laid_out("ที่ B", "AB C") == ["  ref    ที่  B", "  hyp    AB C", "         S  S"]
    assert laid_out("A\u200dB B", "X C") == ["  ref    A\u200dB B", "  hyp    X  C", "         S  S"]
    wide = laid_out("中文字 中文字 中文字", "A B C", width=24)
    assert wide[::3] == ["  ref    中文字 中文字", "  ref    中文字"], "7 + 7 columns after the head fit, 21 do not"


def test_tokens_keep_their_case() -> None:
    assert laid_out("Straße IST", "straße ist") == ["  ref    Straße IST", "  hyp    straße ist", "         S      S"]
