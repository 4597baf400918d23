"""Some speech to try a network on."""

import math

import torch
from torch import Tensor

from parp_cli.config.finetune import Data
from parp_cli.data.audio import SAMPLE_RATE, read_audio
from parp_cli.data.corpora import load
from parp_cli.errors import ParpError
from parp_cli.runtime.progress import Notify

_MOST, _MOST_SECONDS = 12, 20.0
"""How many utterances are taken of a split, and how long they may be."""

_SECONDS = (1.0, 4.0, 10.0)
_FORMANTS = ((730.0, 1090.0), (270.0, 2290.0), (300.0, 870.0), (530.0, 1840.0), (570.0, 840.0))  # of vowels, in Hz
_SYLLABLE_SECONDS = 0.22


def some_speech(data: Data | None, notify: Notify) -> list[Tensor]:
    """Waveforms (S,) at 16 kHz, three or more, the shortest first: of the data's validation split, imitations of speech
    where there is none that can be read."""
    found: list[Tensor] = []
    if data is not None:
        try:
            utterances = [one for one in load(data, data.valid, notify, lenient=True) if one.seconds <= _MOST_SECONDS]
            step = max(1, len(utterances) // _MOST)
            found = [read_audio(one.audio) for one in utterances[::step][:_MOST]]
        except ParpError:  # moved, or of another machine
            found = []
    return sorted(found, key=len) if len(found) >= len(_SECONDS) else [imitation(seconds) for seconds in _SECONDS]


def imitation(seconds: float) -> Tensor:
    """A waveform (S,) like speech: a voice's harmonics under two moving formants, syllables and pauses, some noise."""
    time = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = 120 + 15 * torch.sin(2 * math.pi * 0.7 * time)
    phase = 2 * math.pi * torch.cumsum(pitch, 0) / SAMPLE_RATE
    syllable = (time / _SYLLABLE_SECONDS).long()
    first, second = torch.tensor(_FORMANTS)[syllable * 3 % len(_FORMANTS)].T
    voice = torch.zeros_like(time)
    for harmonic in range(1, 30):
        frequency = harmonic * pitch
        level = 1 / (1 + ((frequency - first) / 90) ** 2) + 0.5 / (1 + ((frequency - second) / 130) ** 2)
        voice += level * torch.sin(harmonic * phase)
    loudness = torch.sin(math.pi * (time / _SYLLABLE_SECONDS % 1)) * (syllable % 6 != 5)
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    return 0.1 * voice * loudness + 0.003 * noise
