from dataclasses import replace
from pathlib import Path

import pytest

from parp_cli.data.utterances import Utterance
from parp_cli.tasks.ctc.data import evened_out, spread


def of(*speakers: str | None) -> list[Utterance]:
    return [
        Utterance(id=f"{number}", audio=Path(), split="valid", seconds=1.0, speaker=speaker)
        for number, speaker in enumerate(speakers)
    ]


def chosen(limit: int | None, *speakers: str | None) -> str:
    return "".join(utterance.id for utterance in spread(of(*speakers), limit))


def test_speakers_take_turns() -> None:
    assert chosen(3, "a", "a", "a", "b", "b", "c") == "035"
    assert chosen(4, "a", "a", "a", "b", "b", "c") == "0135"
    assert chosen(5, "a", "a", "a", "b", "b", "c") == "01345"
    assert chosen(1, "a", "a", "b") == "0"


def test_all_of_them() -> None:
    assert chosen(None, "a", "a") == chosen(2, "a", "a") == chosen(9, "a", "a") == "01"


def test_without_speakers_it_is_the_first_ones() -> None:
    assert chosen(2, None, None, None) == "01"


def test_languages_are_evened_out() -> None:
    """16 s of one language and 1 s of another: at temperature 2 the shares are as 4 to 1."""
    known = [replace(each, language="aa") for each in of(*[None] * 16)] + [replace(of(None)[0], language="bb")]
    repeats = evened_out(known, 2.0)
    assert repeats == pytest.approx([1.0] * 16 + [4.0])
    assert evened_out(known, 1.0) is evened_out(known, None) is None
