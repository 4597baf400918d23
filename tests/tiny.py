"""A tiny world: an encoder of 20 thousand weights, and a corpus in which every letter is a tone of its own."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import soundfile
import torch

from parp_cli.config.finetune import Recipe
from parp_cli.config.load import load_recipe
from parp_cli.models.speech.config import Architecture, build
from parp_cli.models.speech.prunable import prunable_parameters
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Checkpoint, Metadata

TINY = Architecture(
    name="tiny",
    family="hubert",
    normalize_waveform=True,
    conv_layers=((16, 10, 5), (16, 8, 8), (16, 8, 8)),  # 320 samples a frame, as in the real ones
    conv_norm="layer",
    conv_bias=False,
    width=32,
    layers=2,
    heads=2,
    feed_forward=64,
    norm_first=True,
    positional_kernel=8,
    positional_groups=4,
)

WIDE = replace(TINY, name="wide", width=64, feed_forward=128)
"""So that sparse tensor cores take its matrices, but that of 16 channels."""

TRAINING = (
    "training.updates=12",
    "training.batch_seconds=5",
    "training.micro_batch_seconds=3",
    "training.learning_rate=1e-2",
    "training.time_mask_probability=0.05",
    "training.time_mask_length=1",
    "training.channel_mask_probability=0.02",
    "training.channel_mask_length=4",
    "training.validate_every=5",
    "pruning.interval=3",
)

PRETRAIN = """
architecture: tiny
data:
  - {{kind: manifest, path: {manifest}, split: train}}
crop_seconds: 0.6
batch_seconds: 1.8
mask_length: 4
stages:
  - {{targets: mfcc, clusters: 8, updates: {updates}}}
  - {{targets: layer-1, clusters: 6, updates: {updates}}}
"""
"""A recipe of pre-training for TINY, on a manifest."""

_RATE = 16_000
_TONES = {"A": 400.0, "B": 1100.0, "C": 2600.0}  # Hz
_PHONES = {"A": "AH0", "B": "B", "C": "S"}
_LETTER_SECONDS, _GAP_SECONDS = 0.16, 0.1

TEXTS = {
    "train": ["AB C", "CAB", "B A", "C BA", "ABC", "BAC A"],
    "valid": ["BA C", "CB A", "ACB"],
    "test": ["A BC", "CA B", "BCA"],
}


@dataclass(frozen=True)
class World:
    """Where the tiny things are."""

    folder: Path
    encoder: Path
    manifest: Path

    @property
    def settings(self) -> list[str]:
        """What `--set` needs for a run of a moment."""
        return [
            f"model={self.encoder}",
            "data.corpus=manifest",
            f"data.manifest={self.manifest}",
            "data.train=train",
            "data.valid=valid",
            "data.test=test",
            *TRAINING,
        ]

    def recipe(self, *overrides: str) -> Recipe:
        """A run of a moment, with overrides."""
        return load_recipe(None, [*self.settings, *overrides])


def make_world(folder: Path) -> World:
    """Write the encoder and the corpus."""
    write_encoder(folder / "encoder.safetensors")
    rows: list[dict[str, object]] = []
    for split, texts in TEXTS.items():
        for number, text in enumerate(texts):
            name = f"{split}-{number}"
            seconds = write_speech(folder / f"{name}.wav", text, seed=len(rows))
            phones = " | ".join(" ".join(_PHONES[letter] for letter in word) for word in text.split())
            rows.append(
                {"id": name, "audio": f"{name}.wav", "split": split, "text": text, "phones": phones, "seconds": seconds}
            )
    return World(folder, folder / "encoder.safetensors", write_manifest(folder / "manifest.jsonl", rows))


def write_manifest(path: Path, rows: list[dict[str, object]]) -> Path:
    """JSON Lines of utterances."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_encoder(path: Path, architecture: Architecture = TINY, seed: int = 0) -> None:
    """An encoder with random weights, as `parp pretrain` writes them."""
    torch.manual_seed(seed)
    model = build(architecture)
    metadata = Metadata(
        stage="pretrain", architecture=architecture.to_json(), prunable=tuple(prunable_parameters(model))
    )
    weights = {name: weight.half() for name, weight in model.state_dict().items()}
    checkpoint.write(path, Checkpoint(weights=weights, masks={}, metadata=metadata))


def write_speech(path: Path, text: str, seed: int = 0) -> float:
    """Each letter as its tone, with a little noise; the length in seconds."""
    rng = numpy.random.default_rng(seed)
    gap = numpy.zeros(round(_GAP_SECONDS * _RATE))
    time = numpy.arange(round(_LETTER_SECONDS * _RATE)) / _RATE
    parts = [gap]
    for letter in text:
        parts.append(gap if letter == " " else 0.4 * numpy.sin(2 * numpy.pi * _TONES[letter] * time))
        parts.append(gap[: len(gap) // 2])
    samples = numpy.concatenate(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples + 0.01 * rng.standard_normal(len(samples)), _RATE)
    return len(samples) / _RATE
