"""Files of transcripts, written out by hand."""

import json
import os

from parp_cli.decoding.timing import Segment, Word, json_text, srt, vtt, word_lines

WORDS = (Word("HELLO", 0.0, 0.4204), Word("R&B", 59.9996, 60.5), Word("A<B-->C", 3661.0, 3662.25))
SEGMENTS = (Segment(WORDS[:1]), Segment(WORDS[1:2]), Segment(WORDS[2:]))


def test_srt() -> None:
    assert srt(SEGMENTS) == (
        "1\n00:00:00,000 --> 00:00:00,420\nHELLO\n\n"
        "2\n00:01:00,000 --> 00:01:00,500\nR&B\n\n"
        "3\n01:01:01,000 --> 01:01:02,250\nA<B-->C\n\n"
    )
    assert srt([]) == ""


def test_vtt() -> None:
    assert vtt(SEGMENTS) == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:00:00.420\nHELLO\n\n"
        "00:01:00.000 --> 00:01:00.500\nR&amp;B\n\n"
        "01:01:01.000 --> 01:01:02.250\nA&lt;B--&gt;C\n"
    )
    assert vtt([]) == "WEBVTT\n"


def test_words() -> None:
    assert word_lines(WORDS[:2]) == "0.000\t0.420\tHELLO\n60.000\t60.500\tR&B\n"


def test_json() -> None:
    line = json_text("a/é.wav", 2.00049, "HELLO", SEGMENTS[:1])
    assert line == (
        '{"file": "a/é.wav", "seconds": 2.0, "text": "HELLO", '
        '"segments": [{"start": 0.0, "end": 0.4204, "text": "HELLO"}]}\n'
    )
    words = json.loads(json_text("a", 2, "HELLO", SEGMENTS[:1], [Word("HELLO", 0.0, 0.42)]))["words"]
    assert words == [{"start": 0.0, "end": 0.42, "word": "HELLO"}]


def test_names_that_are_no_text() -> None:
    """As a file system that is not UTF-8 leaves them."""
    name = os.fsdecode(b"a\xff\xc3\xa9.wav")
    line = json_text(name, 2, "É", SEGMENTS[:1])
    assert '"a\\udcff' + 'é.wav"' in line
    assert os.fsencode(json.loads(line.encode())["file"]) == b"a\xff\xc3\xa9.wav"


def test_long_segments_have_lines_of_like_length() -> None:
    text = "THE TEACHER OF THE VILLAGE LIVES IN A HOUSE BY THE SEA"
    words = tuple(Word(word, 0.0, 1.0) for word in text.split())
    assert srt([Segment(words)]).splitlines()[2:] == [
        "THE TEACHER OF THE VILLAGE",
        "LIVES IN A HOUSE BY THE SEA",
        "",
    ]
    one = (Word("X" * 50, 0.0, 1.0),)
    assert srt([Segment(one)]).splitlines()[2] == "X" * 50
