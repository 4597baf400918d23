"""Transcripts as files: plain text, words with their times, SubRip (.srt), WebVTT (.vtt), JSON."""

import json
from collections.abc import Sequence
from typing import Literal, get_args

from parp_cli.decoding.timing import LINE_CHARACTERS, Segment, Word, wrapped

Format = Literal["text", "json", "srt", "vtt"]

FORMATS: tuple[Format, ...] = get_args(Format)

SUFFIXES: dict[Format, str] = {"text": ".txt", "json": ".json", "srt": ".srt", "vtt": ".vtt"}


def srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbers from 1, times as 00:00:01,500, an empty line after each segment."""
    return "".join(
        f"{number}\n{_time(segment.start, ',')} --> {_time(segment.end, ',')}\n{_lines(segment.text)}\n\n"
        for number, segment in enumerate(segments, start=1)
    )


def vtt(segments: Sequence[Segment]) -> str:
    """WebVTT (W3C): times as 00:00:01.500; &, < and > escaped, which also keeps "-->" out of the text."""
    cues = [
        f"{_time(segment.start, '.')} --> {_time(segment.end, '.')}\n{_escaped(_lines(segment.text))}\n"
        for segment in segments
    ]
    return "\n".join(["WEBVTT\n", *cues])


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


def _time(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{mark}{rest % 1000:03}"


def _lines(text: str) -> str:
    """In as few lines as it takes, those as even as can be."""
    lines = wrapped(text)
    for width in range(-(-len(text) // max(1, len(lines))), LINE_CHARACTERS):
        if len(even := wrapped(text, width)) <= len(lines):
            return "\n".join(even)
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
