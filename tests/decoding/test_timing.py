"""Times of labels, words and subtitles."""

import textwrap
from itertools import pairwise

import torch

from parp_cli.data.labels import Vocabulary
from parp_cli.decoding.search import collapse
from parp_cli.decoding.timing import (
    MAX_SEGMENT_SECONDS,
    PAUSE_SECONDS,
    Segment,
    Word,
    segments_of,
    srt,
    text_of,
    words_of,
)

LETTERS = Vocabulary(("<blank>", "|", "A", "B", "<unk>"), "letters", special={"<unk>": "unk"})
PHONES = Vocabulary(("<blank>", "AH", "B"), "phones")


def test_words_with_their_frames() -> None:
    path = torch.tensor([0, 2, 2, 0, 2, 3, 3, 1, 1, 0, 3])
    assert words_of(path, LETTERS, 0.02) == [Word("AAB", 0.02, 0.14), Word("B", 0.2, 0.22)]
    assert words_of(path[:0], LETTERS, 0.02) == words_of(path[:1], LETTERS, 0.02) == []
    assert words_of(torch.tensor([1, 1, 0, 0, 1, 2]), PHONES, 0.02) == [
        Word("AH", 0.0, 0.04),
        Word("AH", 0.08, 0.1),
        Word("B", 0.1, 0.12),
    ]


def test_words_are_what_is_decoded() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        path = torch.randint(5, (40,), generator=generator)
        words = words_of(path, LETTERS, 0.02)
        assert " ".join(word.text for word in words) == LETTERS.decode(collapse(path))
        times = [time for word in words for time in (word.start, word.end)]
        assert times == sorted(times)
        of_phones = path % 3
        words = words_of(of_phones, PHONES, 0.02)
        assert " ".join(word.text for word in words) == PHONES.decode(collapse(of_phones))


def test_without_spaces_letters_are_timed_and_fill_the_lines() -> None:
    outputs = ("<blank>", "你", "好", "世", "界", "\u0301", "e")
    vocabulary = Vocabulary(outputs, "letters", delimiter=None)
    path = torch.tensor([0, 1, 1, 0, 2, 6, 5, 0])
    words = words_of(path, vocabulary, 0.02)
    assert [(word.text, word.start, word.end) for word in words] == [
        ("你", 0.02, 0.06),
        ("好", 0.08, 0.1),
        ("é", 0.1, 0.14),
    ]
    assert text_of(words) == vocabulary.decode(collapse(path)) == "你好é"
    # 50 letters a fifth of a second apart, with a pause of a second in the middle.
    spoken = torch.zeros(50 * 10 + 50, dtype=torch.long)
    places = torch.arange(50) * 10 + 50 * (torch.arange(50) >= 25)
    spoken[places] = torch.arange(50) % 4 + 1
    for labels in (vocabulary, Vocabulary((*outputs[:5], "|"), "letters", separator="")):
        segments = segments_of(words_of(spoken, labels, 0.02))
        assert [segment.text for segment in segments] == [labels.decode(spoken[at].tolist()) for at in places.split(25)]
        lines = srt(segments).splitlines()
        assert [len(line) for line in lines if "你" in line] == [13, 12, 13, 12], "21 are as wide as 42 letters"


def said(*starts: float, text: str = "WORD", length: float = 0.3) -> list[Word]:
    return [Word(text, start, round(start + length, 3)) for start in starts]


def test_a_pause_ends_a_segment() -> None:
    words = said(1.0, 1.4, 4.0, 5.3)
    segments = segments_of(words)
    assert segments == [Segment(tuple(words[:2])), Segment((words[2],)), Segment((words[3],))]
    assert [(segment.start, segment.end) for segment in segments] == [(1.0, 1.7), (4.0, 4.3), (5.3, 5.6)]


def test_long_speech_is_cut_at_its_longest_pause_near_the_middle() -> None:
    starts = (0.0, 0.4, 0.8, 1.2, 1.9, 2.3, 2.7, 3.1)  # 0.4 s without a word before the fifth
    assert [len(segment.words) for segment in segments_of(said(*starts))] == [8]
    long = said(*starts, text="A-LONGER-WORD")  # in all 111 characters
    assert [len(segment.words) for segment in segments_of(long)] == [4, 4]
    slow = said(*(3 * start for start in starts), length=1.1)  # 10.4 s
    assert [len(segment.words) for segment in segments_of(slow)] == [4, 4]


def test_what_is_shown_takes_two_lines() -> None:
    """Few characters can take three, where words are long."""
    words = [Word("x" * 22, start, start + 0.3) for start in (0.0, 0.4, 0.8)]
    assert len(" ".join(word.text for word in words)) == 68
    assert [len(segment.words) for segment in segments_of(words)] in ([1, 2], [2, 1])
    full = [Word("x" * 20 + "y", start, start + 0.3) for start in (0.0, 0.4, 0.8)] + [Word("z" * 20, 1.2, 1.5)]
    assert [len(segment.words) for segment in segments_of(full)] == [2, 2], "43 and 42 characters"
    full[0], full[2] = Word("x" * 20, 0.0, 0.3), Word("x" * 21, 0.8, 1.1)
    assert [len(segment.words) for segment in segments_of(full)] == [4], "42 and 42"


class Counted(Word):
    """A word that counts how often it is looked at."""

    looks = 0

    def __getattribute__(self, name: str) -> object:
        if name in ("text", "start", "end"):
            Counted.looks += 1
        return super().__getattribute__(name)


def test_speech_without_pauses_costs_no_more_the_longer_it_is() -> None:
    looks = []
    for count in (250, 1000):
        Counted.looks = 0
        segments = segments_of([Counted("WORD", 0.4 * n, 0.4 * n + 0.3) for n in range(count)])
        assert len(segments) > count / 20
        looks.append(Counted.looks / count)
    # Each further halving looks at each word some times more.
    assert looks[1] < 1.5 * looks[0]


def test_rules_hold_for_any_speech() -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        time, words = 0.0, []
        for gap, length, letters in torch.rand(60, 3, generator=generator).tolist():
            time += gap**4 * 1.2
            words.append(Word("x" * (1 + int(12 * letters)), round(time, 3), round(time + 0.1 + length / 2, 3)))
            time += 0.1 + length / 2
        segments = segments_of(words)
        assert [word for segment in segments for word in segment.words] == words
        for segment in segments:
            assert len(textwrap.wrap(segment.text, 42)) <= 2
            assert segment.end - segment.start <= MAX_SEGMENT_SECONDS
            assert (segment.start, segment.end) == (segment.words[0].start, segment.words[-1].end)
            pauses = [right.start - left.end for left, right in pairwise(segment.words)]
            assert max(pauses, default=0.0) < PAUSE_SECONDS
        for left, right in pairwise(segments):
            assert left.end <= right.start + 1e-9


def test_a_word_longer_than_a_segment_stays_whole() -> None:
    word = Word("x" * 100, 0.0, 9.0)
    assert segments_of([word]) == [Segment((word,))]
    assert segments_of([]) == []
