"""Changes of speed: drawn evenly, the same from the same seed, and never too fast for the labels."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from parp_cli.data.utterances import Utterance
from parp_cli.tasks.ctc.augmentation import Augmentation


def utterance(name: str = "u", split: str = "train") -> Utterance:
    return Utterance(id=name, audio=Path("u.wav"), split=split, seconds=1.0, text="A")


def augmentation(speed_change: float = 0.1, *, seed: int = 0, needed: int = 1) -> Augmentation:
    return Augmentation(
        speed_change=speed_change, seed=seed, frames=lambda samples: samples // 320, frames_needed=lambda _: needed
    )


@pytest.mark.parametrize("share", [0.0, 0.01, 0.07, 0.1, 0.29, 0.5])
def test_each_speed_is_drawn_as_often(share: float) -> None:
    change = augmentation(share)
    most = round(100 * share)
    counts = Counter(change.percent(utterance(), 16_000, update) for update in range(200 * (2 * most + 1)))
    assert sorted(counts) == list(range(100 - most, 101 + most))
    assert all(abs(count - 200) < 5 * 200**0.5 for count in counts.values())


def test_it_follows_from_seed_update_and_utterance() -> None:
    def drawn(seed: int = 0, name: str = "u", split: str = "train") -> list[int]:
        return [augmentation(seed=seed).percent(utterance(name, split), 16_000, update) for update in range(50)]

    assert drawn() == drawn()
    assert len({tuple(these) for these in (drawn(), drawn(seed=1), drawn(name="v"), drawn(split="dev"))}) == 4
    assert drawn()[:4] == [107, 100, 106, 92], "on every machine"


def test_labels_fit_into_the_frames_that_are_left() -> None:
    fast = augmentation(0.5, needed=40)  # of 50: at most a quarter faster
    speeds = {fast.percent(utterance(), 16_000, update) for update in range(500)}
    assert max(speeds) == 125
    assert min(speeds) == 50
    impossible = augmentation(0.5, needed=60)  # not even as it is
    assert max(impossible.percent(utterance(), 16_000, update) for update in range(500)) == 100
    for update in range(20):
        assert len(fast(utterance(), torch.randn(16_000), update)) // 320 >= 40


def test_pitch_and_length_change_together() -> None:
    time = torch.arange(32_000) / 16_000
    tone = torch.sin(2 * torch.pi * 500 * time)
    change = augmentation(0.2)
    for update in range(6):
        percent = change.percent(utterance(), len(tone), update)
        altered = change(utterance(), tone, update)
        assert len(altered) == -(-100 * len(tone) // percent)
        peak = int(torch.fft.rfft(altered).abs().argmax()) * 16_000 / len(altered)
        assert peak == pytest.approx(5 * percent, abs=1.0)
    assert torch.equal(augmentation(0.0)(utterance(), tone, 0), tone)
