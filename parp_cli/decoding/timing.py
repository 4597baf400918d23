"""When each word is spoken: from the frames of CTC's labels to words, to subtitles, and to files with their times.

A label's time is its peak: the frames in which it is the likeliest. For a greedy transcript that is also the forced
alignment: the best path is the likeliest of all, so also of those that spell its text.

T frames.
"""

import html
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor

from parp_cli.data.labels import BLANK_ID, Vocabulary
from parp_cli.data.text import columns_of


@dataclass(frozen=True)
class Word:
    """A word and its times in seconds; a phone where the labels are phones, and a letter where nothing divides words.

    `before` separates it from the word before it.
    """

    text: str
    start: float
    end: float
    before: str = " "


@dataclass(frozen=True)
class Segment:
    """Words that are shown together, at least one, with their times in seconds."""

    words: tuple[Word, ...]

    @property
    def start(self) -> float:
        return self.words[0].start

    @property
    def end(self) -> float:
        return self.words[-1].end

    @property
    def text(self) -> str:
        return text_of(self.words)


def text_of(words: Sequence[Word]) -> str:
    """The words with what separates them."""
    return "".join(word.before + word.text for word in words).removeprefix(words[0].before if words else "")


def words_of(path: Tensor, vocabulary: Vocabulary, frame_seconds: float) -> list[Word]:
    """Words with their times, of the likeliest labels (T,). Together they are what `Vocabulary.decode` makes of these.

    What is longer than a line is taken to be of a script without spaces, and is divided into letters.
    """
    labels, counts = torch.unique_consecutive(path, return_counts=True)
    ends = counts.cumsum(0)
    groups: list[list[_Timed]] = [[]]
    for label, start, end in zip(labels.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True):
        if label != BLANK_ID and (vocabulary.labels == "phones" or vocabulary.symbols[label] == vocabulary.delimiter):
            groups.append([])
        if vocabulary.decode([label]):  # not the blank, a boundary or a special symbol
            groups[-1].append((label, start, end))
    words = []
    separator = " " if vocabulary.labels == "phones" else vocabulary.separator
    for group in filter(None, groups):
        whole = vocabulary.decode(label for label, _, _ in group)
        divided = vocabulary.labels == "letters" and (vocabulary.delimiter is None or columns_of(whole) > LINE_COLUMNS)
        for number, part in enumerate(_letters(group, vocabulary) if divided else [group]):
            begin, end = part[0][1] * frame_seconds, part[-1][2] * frame_seconds
            text = vocabulary.decode(label for label, _, _ in part)
            words.append(Word(text, round(begin, 3), round(end, 3), "" if number else separator))
    return words


_Timed = tuple[int, int, int]  # a label, and the first frame of it and after it


def _letters(group: list[_Timed], vocabulary: Vocabulary) -> list[list[_Timed]]:
    """Labels divided into letters, with the marks that combine with them."""
    letters: list[list[_Timed]] = []
    for timed in group:
        combines = all(unicodedata.category(character)[0] == "M" for character in vocabulary.decode([timed[0]]))
        if letters and combines:
            letters[-1].append(timed)
        else:
            letters.append([timed])
    return letters


Format = Literal["text", "json", "srt", "vtt"]

SUFFIXES: dict[Format, str] = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}

LINE_COLUMNS = 42
"""Maximum per line of a subtitle, by the usual guidelines (wide characters have two); a longer word has its own."""

_MAX_LINES = 2  # shown at a time

PAUSE_SECONDS = 0.8
"""Without a word; ends a segment."""

MAX_SEGMENT_SECONDS = 7.0
"""Of a segment of several words."""


def wrapped(words: Sequence[Word], columns: int = LINE_COLUMNS) -> list[str]:
    """Words in as few lines of so many columns as possible; words stay whole."""
    lines: list[str] = []
    left = 0
    for word in words:
        width = columns_of(word.text)
        if lines and columns_of(word.before) + width <= left:
            lines[-1] += word.before + word.text
            left -= columns_of(word.before) + width
        else:
            lines.append(word.text)
            left = columns - width
    return lines


def segments_of(words: Sequence[Word]) -> list[Segment]:
    """Words as subtitles: cut at pauses, and where a segment is too long, at its longest pause near the middle.

    A segment of several words is too long if it takes more than two lines, or more than `MAX_SEGMENT_SECONDS`.
    """
    pauses = [n for n, (before, word) in enumerate(pairwise(words), 1) if word.start - before.end >= PAUSE_SECONDS]
    groups = [words[start:end] for start, end in pairwise((0, *pauses, len(words)))][::-1] if words else []
    segments = []
    while groups:
        group = groups.pop()
        segment = Segment(tuple(group))
        short = segment.end - segment.start <= MAX_SEGMENT_SECONDS and len(wrapped(segment.words)) <= _MAX_LINES
        if short or len(group) == 1:
            segments.append(segment)
        else:
            place = _longest_pause(group)
            groups += [group[place:], group[:place]]
    return segments


def _longest_pause(words: Sequence[Word]) -> int:
    """The number of the word before which to cut."""
    written = list(accumulate(len(word.text) for word in words))

    def worth(place: int) -> float:
        pause = words[place].start - words[place - 1].end
        # A pause of half the longest there can be outweighs a cut at the very edge.
        return pause - PAUSE_SECONDS * abs(written[place - 1] / written[-1] - 0.5)

    return max(range(1, len(words)), key=worth)


def srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbers from 1, times as 00:00:01,500, an empty line after each segment."""
    return "".join(f"{number}\n{_cue(segment, ',')}\n" for number, segment in enumerate(segments, start=1))


def vtt(segments: Sequence[Segment]) -> str:
    """WebVTT (W3C): times as 00:00:01.500; &, < and > escaped, which also keeps "-->" out of the text."""
    return "\n".join(["WEBVTT\n", *(_cue(segment, ".", escaped=True) for segment in segments)])


def word_lines(words: Sequence[Word]) -> str:
    """Start and end in seconds and the word, divided by tabs: what Audacity reads as labels."""
    return "".join(f"{word.start:.3f}\t{word.end:.3f}\t{word.text}\n" for word in words)


def json_text(
    name: str, seconds: float, text: str, segments: Sequence[Segment], words: Sequence[Word] | None = None
) -> str:
    """One JSON object in one line. What of the audio file's name is no text, as `os.fsdecode` gives it, is escaped."""
    value: dict[str, object] = {
        "file": name,
        "seconds": round(seconds, 3),
        "text": text,
        "segments": [{"start": item.start, "end": item.end, "text": item.text} for item in segments],
    }
    if words is not None:
        value["words"] = [{"start": word.start, "end": word.end, "word": word.text} for word in words]
    line = json.dumps(value, ensure_ascii=False) + "\n"
    # Surrogates alone have no UTF-8; escaped so, they are as JSON has it.
    return line.encode("utf-8", "backslashreplace").decode()


def _cue(segment: Segment, mark: str, *, escaped: bool = False) -> str:
    text = _lines(segment.words)
    text = html.escape(text, quote=False) if escaped else text
    return f"{_time(segment.start, mark)} --> {_time(segment.end, mark)}\n{text}\n"


def _time(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


def _lines(words: Sequence[Word]) -> str:
    """In as few lines as it takes, those as even as can be."""
    lines = wrapped(words)
    least = -(-columns_of(text_of(words)) // max(1, len(lines)))
    narrower = (wrapped(words, width) for width in range(least, LINE_COLUMNS))
    return "\n".join(next((made for made in narrower if len(made) <= len(lines)), lines))
