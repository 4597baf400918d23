"""When each word was said: from the frames of CTC's labels to words, and from words to subtitles.

A label's time is its peak: the frames in which it is the likeliest. For a greedy transcript that is the forced
alignment too: the best path is the likeliest of all paths, so that of those which spell its text none is likelier.

T frames.
"""

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from parp_cli.data.labels import BLANK_ID, BOUNDARY, Vocabulary


@dataclass(frozen=True)
class Span:
    """A label in consecutive frames.

    Attributes:
        label: its id.
        start, end: first frame, and the frame after the last.
    """

    label: int
    start: int
    end: int


@dataclass(frozen=True)
class Word:
    """A word, or a phone where the labels are phones.

    Attributes:
        text: as spelt.
        start, end: seconds.
    """

    text: str
    start: float
    end: float


@dataclass(frozen=True)
class Segment:
    """Words that are read together.

    Attributes:
        words: one at least.
        start, end: seconds; the end may be later than the last word's, to leave time to read.
    """

    words: tuple[Word, ...]
    start: float
    end: float

    @property
    def text(self) -> str:
        """The words, divided by spaces."""
        return _text(self.words)


class SpanReader:
    """Collects the spans of a path that comes in pieces (T_i,): labels that go on in the next piece are one."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._blank_frames = 0
        self.frames = 0

    def add(self, path: Tensor) -> None:
        """Take in the likeliest labels (T,) of the next frames."""
        labels, counts = torch.unique_consecutive(path, return_counts=True)
        for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
            start, end = self.frames, self.frames + count
            before = self._spans[-1] if self._spans else None
            if before is not None and (before.label, before.end) == (label, start):
                self._spans[-1] = Span(label, before.start, end)
            elif label != BLANK_ID:
                self._spans.append(Span(label, start, end))
            self.frames = end

    @property
    def spans(self) -> list[Span]:
        """Of all labels but the blank, in order."""
        return list(self._spans)


def words_of(spans: Iterable[Span], vocabulary: Vocabulary, frame_seconds: float) -> list[Word]:
    """Words with their times. Their texts are what `Vocabulary.decode` makes of the labels.

    Args:
        spans: in order.
        frame_seconds: from one frame to the next.
    """
    letters = vocabulary.labels == "letters"
    words: list[Word] = []
    spelt: list[tuple[str, Span]] = []

    def end_word() -> None:
        if spelt:
            text = "".join(symbol for symbol, _ in spelt)
            words.append(
                Word(text, _seconds(spelt[0][1].start, frame_seconds), _seconds(spelt[-1][1].end, frame_seconds))
            )
            spelt.clear()

    for span in spans:
        symbol = vocabulary.decode([span.label])  # "" for a boundary, and for what stands for no sound
        if symbol:
            spelt.append((symbol, span))
        if not letters or vocabulary.symbols[span.label] == BOUNDARY:
            end_word()
    end_word()
    return words


def _seconds(frame: int, frame_seconds: float) -> float:
    return round(frame * frame_seconds, 3)


LINE_CHARACTERS = 42
"""Most in a line of a subtitle, by the usual guidelines; a longer word has a line of its own."""

_LINES = 2
"""Most that are shown at a time."""


@dataclass(frozen=True, kw_only=True)
class SubtitleRules:
    """What can be read in time; the usual figures of subtitling guidelines.

    Attributes:
        pause: seconds without a word that end a segment.
        longest, shortest: seconds that a segment is shown; the latter where the next one leaves the time.
        reading_speed: characters a second; a segment is shown longer for it where the next one leaves the time.
        gap: seconds between a segment that is shown longer and the next.
    """

    pause: float = 0.8
    longest: float = 7.0
    shortest: float = 1.0
    reading_speed: float = 17.0
    gap: float = 0.08


def wrapped(text: str, characters: int = LINE_CHARACTERS) -> list[str]:
    """Text in as few lines of so many characters as it takes; words stay whole."""
    return textwrap.wrap(text, characters, break_long_words=False, break_on_hyphens=False)


def segments_of(words: Sequence[Word], rules: SubtitleRules, *, seconds: float = math.inf) -> list[Segment]:
    """Cut words into segments: at pauses, and where one is too long at its longest pause near the middle.

    A segment is too long where it takes more than two lines, or more than `rules.longest` seconds.

    Args:
        seconds: length of the recording, beyond which nothing is shown.
    """
    groups: list[list[Word]] = []
    for word in words:
        if not groups or word.start - groups[-1][-1].end >= rules.pause:
            groups.append([])
        groups[-1].append(word)
    parts = [part for group in groups for part in _divided(group, rules)]
    segments = []
    limits = [*(part[0].start - rules.gap for part in parts[1:]), seconds]
    for part, limit in zip(parts, limits, strict=False):  # without parts there is a limit all the same
        start, end = part[0].start, part[-1].end
        wanted = max(rules.shortest, len(_text(part)) / rules.reading_speed)
        end = max(end, min(start + min(wanted, rules.longest), limit))
        segments.append(Segment(tuple(part), start, round(end, 3)))
    return segments


def _divided(words: Sequence[Word], rules: SubtitleRules) -> list[Sequence[Word]]:
    """Parts of words without a pause between them that are each short enough to be shown."""
    written = [0, *accumulate(len(word.text) + 1 for word in words)]  # characters before each word, spaces included

    def fits(begin: int, end: int) -> bool:
        return (
            words[end - 1].end - words[begin].start <= rules.longest
            and written[end] - written[begin] <= _LINES * (LINE_CHARACTERS + 1)
            and len(wrapped(_text(words[begin:end]))) <= _LINES
        )

    def cut(begin: int, end: int) -> int:
        total = written[end] - written[begin] - 1

        def worth(place: int) -> float:
            # A pause of half the longest there can be outweighs a cut at the very edge.
            off_centre = abs((written[place] - written[begin] - 1) / total - 0.5)
            return words[place].start - words[place - 1].end - rules.pause * off_centre

        return max(range(begin + 1, end), key=worth)

    parts, left = [], [(0, len(words))]
    while left:
        begin, end = left.pop()
        if end - begin == 1 or fits(begin, end):
            parts.append(words[begin:end])
        else:
            place = cut(begin, end)
            left += [(place, end), (begin, place)]  # what comes first is taken first
    return parts


def _text(words: Iterable[Word]) -> str:
    return " ".join(word.text for word in words)
