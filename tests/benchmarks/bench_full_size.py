"""What a full-size recipe costs, without its weights and corpus: some updates on random weights and generated speech.

    python -m tests.benchmarks.bench_full_size recipes/librispeech/base-10min.yaml [--updates 3] [--seconds 80]
                                               [--set training.precision=float32] [--device auto]

runs `parp finetune` on the recipe, but for a random network of its architecture, generated speech in recordings as long
as LibriSpeech's, fewer updates, and one re-pruning and one validation, at their end. --seconds makes an update that
small where the recipe's is too large to wait for: nearly all of its time goes to forward and backward passes.

Prints how much audio the passes take per second, the seconds of what an update does once however large it is (gradient,
optimizer, masks), of a re-pruning, the peak memory, and how long the recipe's updates take at most, were they full of
audio. The first update is not counted: in it the feature encoder computes what is then kept.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import soundfile
import torch

from parp_cli.config.finetune import Recipe
from parp_cli.config.load import load_recipe
from parp_cli.data.audio import SAMPLE_RATE, decode_audio
from parp_cli.data.corpora import generated_speech
from parp_cli.runtime.device import select_device, with_resolved_precision
from parp_cli.stages.finetune import finetune
from parp_cli.training.observe import Observer, observing
from parp_cli.training.run import TrainingRun

_MINUTES = 10
_RECORDING_SECONDS = 12.5
"""The mean of Libri-light limited's ten minutes."""

_VALIDATED = 10
_FILLED = 0.9
"""Share of an update that its audio fills; the rest is padding."""


@dataclass
class Clock(Observer):
    """Seconds of each update's passes, and of what follows them."""

    passes: list[float] = field(default_factory=list)
    rest: list[float] = field(default_factory=list)
    _at: float = 0.0

    def update_begins(self, run: TrainingRun) -> None:
        self._since()

    def gradients(self, run: TrainingRun) -> None:
        self.passes.append(self._since())

    def update_ends(self, run: TrainingRun) -> None:
        self.rest.append(self._since())

    def _since(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        before, self._at = self._at, time.perf_counter()
        return self._at - before


def write_corpus(folder: Path, seconds: float) -> Path:
    """A manifest of so much generated speech to train on, and some to validate on, several sentences per recording."""
    lines = []
    for split, source, wanted in (
        ("train", "train-10min", seconds),
        ("valid", "dev-clean", _VALIDATED * _RECORDING_SECONDS),
    ):
        written = 0.0
        for _, group in groupby(generated_speech(source, ["en"]), key=lambda utterance: utterance.speaker):
            samples, texts = [], []
            for utterance in group:
                if written >= wanted:
                    break
                audio, rate = decode_audio(utterance.audio)
                assert rate == SAMPLE_RATE
                samples.append(audio)
                texts.append(utterance.text or "")
                if (length := sum(map(len, samples)) / SAMPLE_RATE) >= _RECORDING_SECONDS - 2:
                    path = folder / f"{split}-{len(lines)}.flac"
                    soundfile.write(path, torch.cat(samples).numpy(), SAMPLE_RATE)
                    lines.append(json.dumps({"audio": path.name, "split": split, "text": " ".join(texts)}))
                    written += length
                    samples, texts = [], []
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def shortened(path: Path, manifest: Path, updates: int, seconds: float, settings: Sequence[str]) -> Recipe:
    """The recipe on a random network and this speech, `updates` long, with one re-pruning, at the end."""
    whole = load_recipe(path, settings)
    changed = {
        "model": f"random:{whole.model}",
        "data.corpus": "manifest",
        "data.manifest": manifest,
        "data.train": "train",
        "data.valid": "valid",
        "pruning.interval": updates,
        "training.updates": updates,
        "training.validate_every": updates,
        "training.batch_seconds": seconds,
        "training.micro_batch_seconds": min(seconds, whole.training.micro_batch_seconds),
    }
    return load_recipe(path, [*settings, *(f"{key}={value}" for key, value in changed.items())])


def peak_bytes(device: torch.device) -> int:
    """Of the device's memory, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def audio_of(journal: Path) -> list[float]:
    """Seconds of audio in each update."""
    events: list[dict[str, Any]] = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
    return [event["audio_seconds"] for event in events if event["event"] == "update"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--updates", type=int, default=3)
    parser.add_argument("--seconds", type=float, help="of audio in an update, with padding; by default the recipe's")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    if options.updates < 3:
        parser.error("--updates: at least 3, of which the first warms up and the last re-prunes")
    device = select_device(options.device)
    whole = load_recipe(options.recipe, options.settings).training
    seconds, clock = options.seconds or whole.batch_seconds, Clock()
    with tempfile.TemporaryDirectory() as folder, observing(clock):
        manifest = write_corpus(Path(folder), min(_FILLED * seconds, 60 * _MINUTES))
        recipe = shortened(options.recipe, manifest, options.updates, seconds, options.settings)
        result = finetune(recipe, run=Path(folder) / "run", device=device)
        audio = audio_of(Path(folder) / "run" / "finetune.jsonl")
    passes = sum(clock.passes[1:]) / sum(audio[1:])
    once = statistics.median(clock.rest[1:-1])
    update = whole.batch_seconds * passes + once
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    precision = with_resolved_precision(recipe.training, device).precision
    print(f"{options.recipe.stem}, {result.plan.architecture}, {where}, {precision}:")
    print(f"  passes: {1 / passes:.2f} s of audio per second, in updates of {statistics.mean(audio):.0f} s")
    print(f"  once per update {once:.2f} s, a re-pruning {clock.rest[-1] - once:.2f} s")
    micro = recipe.training.micro_batch_seconds
    print(f"  peak memory with passes of {micro:g} s: {peak_bytes(device) / 1e9:.1f} GB")
    print(
        f"  at most {update:,.1f} s for the recipe's update of {whole.batch_seconds:,.0f} s, and "
        f"{whole.updates * update / 3600:,.1f} hours for {whole.updates:,} of them"
    )


if __name__ == "__main__":
    main()
