"""Utterances of random lengths, and their logits alone and in batches by the way that evaluation takes."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from parp_cli.data.labels import letters_vocabulary
from parp_cli.data.utterances import Utterance
from parp_cli.decoding.logits import Features, logits_of
from parp_cli.decoding.search import collapse
from parp_cli.models.speech.config import Architecture
from parp_cli.models.speech.forward import encode, pad

RATE = 16_000
SCALE = 5.0
"""Standard deviation of each label's logits over time. Those of a fine-tuned mini have 2 to 5."""

VOCABULARY = letters_vocabulary()


def sound(samples: int, generator: torch.Generator) -> Tensor:
    """(S,): tones that come and go, with noise; each utterance has a loudness and a mean of its own."""
    time = torch.arange(samples) / RATE
    result: Tensor = 0.1 * torch.randn(samples, generator=generator)
    for _ in range(6):
        pitch, pace, phase, start = torch.rand(4, generator=generator).tolist()
        carrier = (2 * math.pi * (80 * 64**pitch * time + phase)).sin()
        result += carrier * (2 * math.pi * ((0.5 + 6 * pace) * time + start)).sin().clamp(min=0)
    loudness, mean = torch.rand(2, generator=generator).tolist()
    return result.mul_(0.02 + 0.06 * loudness).add_(0.02 * (mean - 0.5))


def random_samples(count: int, *, shortest: float, longest: float, seed: int) -> list[int]:
    """Lengths between two in seconds, even on a logarithmic scale, the longest among them."""
    draws = torch.rand(count, generator=torch.Generator().manual_seed(seed)).tolist()
    draws[0] = 1.0
    return [round(RATE * shortest * (longest / shortest) ** draw) for draw in draws]


def write_utterances(folder: Path, samples: Sequence[int], seed: int) -> list[Utterance]:
    """Sound files of these lengths.

    All claim to last one second: then `logits_of` takes them in this order, as many at a time as `batch_seconds` says,
    and long ones share batches with short ones.
    """
    generator = torch.Generator().manual_seed(seed)
    utterances = []
    for number, length in enumerate(samples):
        path = folder / f"{number}.wav"
        soundfile.write(path, sound(length, generator).numpy(), RATE, subtype="FLOAT")
        utterances.append(Utterance(id=str(number), audio=path, split="", seconds=1.0))
    return utterances


def logits_in_batches(model: Any, features: Features, utterances: Sequence[Utterance], size: int) -> list[Tensor]:
    """Logits (T, V) of each utterance, recognised `size` at a time."""
    found = dict(logits_of(model, features, utterances, batch_seconds=size))
    return [found[index] for index in range(len(utterances))]


@torch.no_grad()
def scale_head(model: Any, features: Iterable[Tensor]) -> None:
    """Give the head's logits a mean of 0 and a deviation of `SCALE` for each label, over features (T, C) heard alone.

    Random heads have logits that hardly change in time, and nothing would change their transcripts.
    """
    logits = torch.cat([encode(model, *pad([item]))[0] for item in features])
    gain = SCALE / logits.std(0)
    model.aux.bias.sub_(logits.mean(0)).mul_(gain)
    model.aux.weight.mul_(gain[:, None])


def largest_difference(ours: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Of all logits (T, V) of all utterances."""
    return max(float((one - other).abs().max()) for one, other in zip(ours, others, strict=True))


def transcripts(logits: Sequence[Tensor]) -> list[str]:
    """Greedy ones."""
    return [VOCABULARY.decode(collapse(item.argmax(-1))) for item in logits]


def by_structure(architectures: Iterable[Architecture]) -> dict[str, Architecture]:
    """The architectures that differ in more than name, by the names of all that are alike."""
    alike: dict[str, list[Architecture]] = {}
    for architecture in architectures:
        structure = architecture.to_json() | {"name": ""}
        alike.setdefault(str(structure), []).append(architecture)
    return {", ".join(item.name for item in group): group[0] for group in alike.values()}
