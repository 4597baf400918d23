"""Waveforms altered in training: the same utterance sounds different in each update. S samples at 16 kHz."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from parp_cli.data.audio import resample
from parp_cli.data.utterances import Utterance


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Speech a little faster or slower, and as much higher or lower, as a tape would play it.

    The factor depends on seed, update and utterance alone, so that a resumed run, or one on other devices, gets the
    same.

    Attributes:
        speed_change: the largest change of speed, as a share: 0.1 is for factors from 0.9 to 1.1, in steps of 0.01.
        frames: how many frames the model makes of so many samples.
        frames_needed: the fewest that an utterance's labels fit into; it is not made faster than that.
    """

    speed_change: float
    seed: int
    frames: Callable[[int], int]
    frames_needed: Callable[[Utterance], int]

    def __call__(self, utterance: Utterance, waveform: Tensor, update: int) -> Tensor:
        """The waveform (S,) of an utterance for the update with this number."""
        percent = self.percent(utterance, len(waveform), update)
        return resample(waveform, percent, 100)

    def percent(self, utterance: Utterance, samples: int, update: int) -> int:
        """The speed of an utterance of so many samples in an update: 100 is as it was, and more is faster."""
        most = math.floor(100 * self.speed_change + 1e-6)
        # Only random() is promised to give the same numbers in every version of Python.
        drawn = random.Random(f"{self.seed}/{update}/{utterance.split}/{utterance.id}").random()
        percent = 100 - most + math.floor(drawn * (2 * most + 1))
        needed = self.frames_needed(utterance)
        while percent > 100 and self.frames(-(-100 * samples // percent)) < needed:
            percent -= 1
        return percent
