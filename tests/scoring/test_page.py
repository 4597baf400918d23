"""The page stands alone, is well formed whatever transcripts hold, and shows what the report says."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from parp_cli.scoring.class_report import Predicted, class_report
from parp_cli.scoring.classes import PairedTest, confusion, measure_classes, measure_numbers
from parp_cli.scoring.intervals import Interval, Units
from parp_cli.scoring.page import page, scale
from parp_cli.scoring.report import Report, build_report
from parp_cli.scoring.results import Recognition
from tests.scoring.worlds import garbled

HOSTILE = "<script>alert(1)</script> \"'&amp; <!-- ]]> </style>"
VOID = {"meta"}


class Reader(HTMLParser):
    """Checks that what is opened is closed, and gathers tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def report_of(recognitions: list[Recognition], **options: object) -> Report:
    options = {"labels": "letters", "name": "system", "resamples": 200, **options}
    return build_report(recognitions, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def report() -> Report:
    recognitions = [*garbled(0, 80, split="clean"), *garbled(1, 60, wrong=0.5, split="other")]
    other = [*garbled(0, 80, split="clean", noise=1), *garbled(1, 60, wrong=0.5, split="other", noise=1)]
    return report_of(recognitions, against={"another": other}, origin=[("sha256", "0123abcd")])


def test_nothing_is_fetched_and_nothing_is_run(report: Report) -> None:
    text = page(report)
    reader = read(text)
    assert not {"script", "link", "img", "iframe", "object", "a", "form"} & set(reader.tags)
    names = {name for name, _ in reader.attributes}
    assert not {"src", "href", "xlink:href", "srcset", "action"} & names
    assert not [name for name in names if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?:", text)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in reader.attributes


def test_a_system_that_has_learned_nothing_is_told_so(report: Report) -> None:
    words = "the model has not learned to spell yet"
    empty = report_of([replace(this, hypothesis="") for this in garbled(0, 8)])
    assert words in " ".join(read(page(empty)).texts)
    assert words not in " ".join(read(page(report)).texts)


def test_the_same_report_gives_the_same_bytes(report: Report) -> None:
    assert page(report) == page(report)


def test_what_the_report_says_is_shown(report: Report) -> None:
    reader = read(page(report))
    shown = " ".join(reader.texts).replace("\u00a0", " ")
    for metric in report.metrics:
        assert f"{metric.errors.rate:.1%}" in shown
    words = report.comparisons[0].words
    assert words[1:] in shown
    assert "over 8 speakers" in words
    for group in (*report.by_speaker, *report.by_duration, *report.by_split):
        assert f"{group.errors.rate:.1%}" in shown
        assert group.name in reader.texts
    for this in report.worst:
        assert this.id in reader.texts
    assert "0123abcd" in reader.texts
    for section in ("Against others", "Splits", "Speakers", "Durations", "Utterances", "Most frequent errors"):
        assert section in reader.texts
    assert "Worst utterances" in reader.texts
    every = sum(this.errors.tokens + this.errors.insertions for this in report.worst)
    assert sum(value.startswith("pair ") for name, value in reader.attributes if name == "class" and value) == every


@pytest.mark.parametrize("labels", ["letters", "phones"])
def test_hostile_names_and_transcripts_stay_text(labels: str) -> None:
    def world(text: str) -> Reader:
        recognitions = [
            Recognition(
                id=f"{text}{number}",
                reference=text,
                hypothesis=f"{text} {text}",
                speaker=f"{text}{number % 2}",
                seconds=1.0,
                split=f"{text}{number % 2}",
            )
            for number in range(6)
        ]
        options = {"labels": labels, "name": text, "origin": [(text, text)], "against": {text: recognitions}}
        return read(page(report_of(recognitions, **options)))

    hostile, harmless = world(HOSTILE), world("plain words and many more of them")
    assert set(hostile.tags) == set(harmless.tags)
    assert {name for name, _ in hostile.attributes} == {name for name, _ in harmless.attributes}
    for name in (HOSTILE, f"{HOSTILE}0", f"{HOSTILE}1", "<script>alert(1)</script>"):
        assert name in hostile.texts


@pytest.mark.parametrize(
    "recognitions",
    [
        [Recognition(id="1", reference="A", hypothesis="A")],
        [Recognition(id="1", reference="", hypothesis="")],
        [Recognition(id="1", reference="", hypothesis="A B", seconds=0.0, speaker="1", split="x")],
        [Recognition(id=str(n), reference="A", hypothesis="A", speaker=str(n), seconds=99.0) for n in range(9)],
        [Recognition(id=str(n), reference="中文 É", hypothesis="中 شكرا", speaker=str(n)) for n in range(9)],
    ],
    ids=["one", "silence", "noise", "perfect", "scripts"],
)
def test_pages_of_odd_results(recognitions: list[Recognition]) -> None:
    for labels in ("letters", "phones"):
        text = page(report_of(recognitions, labels=labels, against={"same": recognitions}))
        read(text)
        assert not re.search(r"\b(nan|inf|None)\b", re.sub(r"<style>.*</style>", "", text, flags=re.DOTALL))


@pytest.mark.parametrize(
    ("speakers", "words"),
    [
        (1, ("over 60 utterances of one speaker, and says nothing about other speakers", "for that speaker alone")),
        (3, ("too few speakers for an interval (3)", "too few speakers for intervals (3)")),
        (6, ("over 6 speakers", "here 6 speakers, each with all their utterances")),
        (None, ("over 60 utterances", "here 60 utterances, as speakers are unknown")),
    ],
)
def test_what_was_drawn_is_told(speakers: int | None, words: tuple[str, ...]) -> None:
    some = garbled(0, 60, speakers=speakers or 2)
    if speakers is None:
        some = [replace(this, speaker=None) for this in some]
    shown = " ".join(read(page(report_of(some))).texts)
    for told in words:
        assert told in shown


def test_the_same_rate_everywhere_has_no_interval_and_no_error_has_a_bound() -> None:
    nothing, perfect = (
        [replace(this, hypothesis="" if empty else this.reference) for this in garbled(0, 60)]
        for empty in (True, False)
    )
    assert "no interval: the same rate in all 8 speakers" in page(report_of(nothing))
    assert "95 % interval 0.0 to 31.2%, over 8 speakers" in page(report_of(perfect))


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 0.0), (0.0, 0.004), (0.02, 0.031), (0.4, 1.3), (-0.4, 0.02), (-3.0, 9.0)]
)
def test_scales_hold_what_they_show(low: float, high: float) -> None:
    found = scale([(low + high) / 2], [Interval(low=low, high=high, units=Units(over="utterances", count=9)), None])
    assert found.low <= 100 * low + 1e-9
    assert found.high >= 100 * high - 1e-9
    assert found.low <= 0 <= found.high
    assert found.ticks[0] == found.low < found.ticks[-1] == found.high
    assert 2 <= len(found.ticks) <= 9
    assert found.place(low) <= found.place(high)
    assert found.place(-1e9) == found.place(found.low / 100)


def class_page(*, hostile: str = "") -> str:
    """Of 40 texts of two classes, five of which are taken for the other."""
    names = ["bad", f"good{hostile}"]
    predictions = [
        Predicted(
            id=str(item),
            split="dev",
            text=f"text {item}{hostile}",
            text_b=None,
            reference=names[item % 2],
            prediction=names[(item + (item < 5)) % 2],
            probability=0.5 + item / 100,
        )
        for item in range(40)
    ]
    table = confusion([i % 2 for i in range(40)], [(i + (i < 5)) % 2 for i in range(40)], 2)
    test = PairedTest(
        name="ours", other=f"theirs{hostile}", difference=-0.1, low=-0.2, high=-0.01, p_value=0.01, better=5, worse=1
    )
    return page(
        class_report(
            predictions,
            name=f"system{hostile}",
            origin=[("checkpoint", f"a{hostile}")],
            metrics=measure_classes(table),
            names=names,
            confusion=table.tolist(),
            comparisons=[test],
        )
    )


def test_a_page_of_classes() -> None:
    found = read(class_page())
    text = " ".join(found.texts)
    for words in (
        "87.5%",
        "accuracy",
        "Matthews",
        "bad",
        "good",
        "Surest mistakes",
        "text 4",
        "+10.0 points",
        "better",
    ):
        assert words in text, words
    assert "text 5" not in text, "which is right"
    surest = [each for each in found.texts if each.startswith("text ")]
    assert surest == [f"text {item}" for item in (4, 3, 2, 1, 0)]
    assert class_page() == class_page()


def test_a_page_of_classes_shows_whatever_texts_hold() -> None:
    found = read(class_page(hostile=HOSTILE))
    assert "script" not in found.tags
    assert any(HOSTILE in each for each in found.texts)


def test_a_page_of_numbers() -> None:
    predictions = [
        Predicted(
            id=str(i),
            split="dev",
            text="t",
            text_b="u",
            reference=str(i),
            prediction=str(i * (1 + i % 2)),
            probability=None,
        )
        for i in range(8)
    ]
    metrics = measure_numbers([float(i) for i in range(8)], [float(one.prediction) for one in predictions])
    report = class_report(
        predictions, name="system", origin=[], metrics=metrics, names=[], confusion=[], comparisons=[]
    )
    found = read(page(report))
    assert "Farthest predictions" in found.texts
    assert next(each for each in found.texts if "taken for" in each).startswith("7 taken for 14")
