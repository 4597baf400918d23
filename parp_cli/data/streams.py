"""Unlabelled speech as one long waveform per speaker, from which pre-training cuts crops without padding."""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parp_cli.data.audio import SAMPLE_RATE, read_audio
from parp_cli.data.utterances import Utterance
from parp_cli.errors import DataError
from parp_cli.runtime.progress import Notify, Progress

FRAME = 320
"""Stride of the feature encoder in samples (20 ms)."""

OVERHANG = 80
"""Samples by which the feature encoder's receptive field (400) exceeds its stride."""


@dataclass(frozen=True)
class Stream:
    """All utterances of one speaker, concatenated."""

    name: str
    samples: Tensor
    """(S,) int16, half the memory of floats; full scale is 32768."""

    @property
    def frames(self) -> int:
        """Frames T that the feature encoder makes of the stream."""
        return max(0, (len(self.samples) - OVERHANG) // FRAME)

    def cut(self, first: int, frames: int) -> Tensor:
        """The waveform (S,) in [-1, 1] of `frames` frames from frame `first` on."""
        start = first * FRAME
        return self.samples[start : start + frames * FRAME + OVERHANG].float() / 32768


def read_streams(utterances: Sequence[Utterance], notify: Notify) -> list[Stream]:
    """Read all audio of one source, concatenated by speaker; an utterance without a speaker is its own stream."""
    pieces: dict[str, list[Tensor]] = {}
    for done, utterance in enumerate(utterances, start=1):
        samples = (read_audio(utterance.audio) * 32767).round().clamp(-32768, 32767).to(torch.int16)
        pieces.setdefault(utterance.speaker or utterance.id, []).append(samples)
        if done % 100 == 0 or done == len(utterances):
            notify(Progress("reading audio", done, len(utterances)))
    return [Stream(name, torch.cat(parts)) for name, parts in pieces.items()]


def seconds_of(streams: Iterable[Stream]) -> float:
    """Total length."""
    return sum(len(stream.samples) for stream in streams) / SAMPLE_RATE


class Crops:
    """Random windows of `frames` frames, uniform over all `streams` that are long enough.

    Raises DataError: no stream is as long as a crop.
    """

    def __init__(self, streams: Sequence[Stream], frames: int) -> None:
        self.frames = frames
        self.streams = [stream for stream in streams if stream.frames >= frames]
        if not self.streams:
            raise DataError(
                f"no speaker has {(frames * FRAME + OVERHANG) / SAMPLE_RATE:g} s of speech to cut a crop from",
                hint="make crop_seconds shorter, or add speech",
            )
        self._weights = [stream.frames - frames + 1 for stream in self.streams]

    def places(self, count: int, rng: random.Random) -> list[tuple[int, int]]:
        """Draw `count` crops: the index of the stream in `streams` and the first frame of each."""
        chosen = rng.choices(range(len(self.streams)), self._weights, k=count)
        return [(index, rng.randrange(self._weights[index])) for index in chosen]

    def cut(self, stream: int, first: int) -> Tensor:
        """The waveform (S,) of a crop, given the index of its stream and its first frame."""
        return self.streams[stream].cut(first, self.frames)
