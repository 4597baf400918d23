"""Recognition of a corpus beside transformers: the same weights and files, on the same machine.

    python tests/benchmarks/bench_recognition.py [--model base|large] [--precision float32 bfloat16]
                                                 [--batch-seconds 60] [--rounds 1] [--device cpu]

The corpus is of FLAC files with the lengths of LibriSpeech's utterances (log-normal around 6 s, between 2 and 20 s), a
quarter of them at 44.1 kHz, of noise with the rhythm of syllables. The weights are random, and exported for the peers
by parp. Ours is what `parp eval` does: files read, front end, encoder, greedy transcripts. The peers do as much:

pipeline: transformers' pipeline("automatic-speech-recognition", batch_size=8) over the files in the corpus' order, read
    with soundfile, as its own reading asks for the program ffmpeg;
loop: processor(padding=True) and model(...).logits under inference_mode, by eight in the corpus' order;
sorted: the same by eight in the order of length, longest first.

First our logits of single utterances must be the peer's. Then each side recognises the corpus in a process of its own,
one after the other, after two utterances to warm up. It prints:

- seconds of audio a second, reading included (medians of the rounds; processor seconds are of all threads, and say more
  where the machine is busy with something else);
- the share of the arithmetic limit: the time that the matrix products and convolutions of the model would take for each
  utterance alone, at the best rate at which this machine multiplied matrices of the feed-forward layer's shape;
- the padded sound of the largest batch, and the share of padding in all batches, with which parp's front end and layers
  have no work;
- the peak of the process' memory, and how much of it came with recognising; with --device cuda the device's;
- how many transcripts are ours: with such weights the peers' change with the batch, by padding.

With bfloat16 parp's front end stays in float32, the peers' does not.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torchaudio
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from parp_cli.data.audio import read_audio
from parp_cli.data.batching import sorted_batches
from parp_cli.data.labels import Vocabulary
from parp_cli.data.utterances import Utterance
from parp_cli.decoding.recognizer import Precision, Recognizer
from parp_cli.decoding.search import GreedySearch
from parp_cli.exporters.huggingface import export_huggingface
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, build
from parp_cli.models.speech.forward import encode, front_end, pad
from parp_cli.tasks.ctc.features import FrontEndFeatures

MODELS = {"base": "wav2vec2-base", "large": "wav2vec2-large-lv60k"}
SIDES = ("pipeline", "loop", "sorted", "ours")
LABELS = {
    "pipeline": "transformers' pipeline",
    "loop": "transformers by hand",
    "sorted": "transformers, sorted",
    "ours": "parp",
}
TOGETHER = 8
"""Utterances in a batch of the peers."""

VOCABULARY = Vocabulary(symbols=("<blank>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ'"), labels="letters")
RATE, OTHER_RATE = 16_000, 44_100


def write_corpus(folder: Path, count: int) -> list[Utterance]:
    """Files of noise, the same each time."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    utterances = []
    for index in range(count):
        seconds = round(float(np.clip(generator.lognormal(np.log(6.0), 0.6), 2.0, 20.0)), 2)
        rate = OTHER_RATE if index % 4 == 3 else RATE
        samples = round(seconds * rate)
        syllables = np.interp(np.arange(samples) / rate, np.arange(0, 21, 0.1), generator.random(210))
        path = folder / f"{index:03}.flac"
        soundfile.write(path, 0.2 * syllables * generator.standard_normal(samples).clip(-4, 4), rate)
        utterances.append(Utterance(id=path.stem, audio=path, split="test", seconds=samples / rate))
    return utterances


def our_model(name: str) -> Any:
    torch.manual_seed(0)
    model = build(ARCHITECTURES[name], vocabulary_size=len(VOCABULARY)).eval()
    for layer in model.feature_extractor.conv_layers:  # as transformers does; torch's default lets sound fade away
        torch.nn.init.kaiming_normal_(layer.conv.weight)
    with torch.no_grad():
        model.aux.weight.mul_(5.0)  # or blanks alone would be found
    return model


class Ours:
    """parp's recognition."""

    def __init__(self, name: str, precision: Precision, batch_seconds: float, device: str) -> None:
        model = our_model(name).to(device)
        self.batch_seconds = batch_seconds
        self.recognizer = Recognizer(
            model=model,
            features=FrontEndFeatures(model, ARCHITECTURES[name], frozen=True, device_bytes=0, memory_bytes=0),
            precision=precision,
            batch_seconds=batch_seconds,
        )

    def batches(self, utterances: Sequence[Utterance]) -> list[list[int]]:
        return sorted_batches([utterance.seconds for utterance in utterances], self.batch_seconds)

    def transcripts(self, utterances: Sequence[Utterance]) -> list[str]:
        return self.recognizer.texts(utterances, GreedySearch(VOCABULARY))


class Loop:
    """transformers' model and processor, by eight."""

    def __init__(self, folder: Path, precision: Precision, device: str, *, by_length: bool) -> None:
        self.by_length, self.device = by_length, device
        self.model, self.processor = their_model(folder)
        self.model.to(device)
        if precision == "bfloat16":  # of the model alone: the pipeline's resampling cannot do with it
            self.model.forward = torch.autocast(device, torch.bfloat16)(self.model.forward)

    def batches(self, utterances: Sequence[Utterance]) -> list[list[int]]:
        order = list(range(len(utterances)))
        if self.by_length:
            order.sort(key=lambda index: -utterances[index].seconds)
        return [order[first : first + TOGETHER] for first in range(0, len(order), TOGETHER)]

    def transcripts(self, utterances: Sequence[Utterance]) -> list[str]:
        texts = [""] * len(utterances)
        for batch in self.batches(utterances):
            sounds = [self._read(utterances[index].audio) for index in batch]
            inputs = self.processor(sounds, sampling_rate=RATE, padding=True, return_tensors="pt").to(self.device)
            with torch.inference_mode():
                logits = self.model(**inputs).logits
            for index, text in zip(batch, self.processor.batch_decode(logits.argmax(-1)), strict=True):
                texts[index] = text
        return texts

    @staticmethod
    def _read(path: Path) -> Any:
        samples, rate = soundfile.read(path, dtype="float32")
        if rate == RATE:
            return samples
        return torchaudio.functional.resample(torch.from_numpy(samples), rate, RATE).numpy()


class Pipeline(Loop):
    """transformers' pipeline."""

    def __init__(self, folder: Path, precision: Precision, device: str) -> None:
        from transformers import pipeline

        super().__init__(folder, precision, device, by_length=False)
        self.pipeline = pipeline(
            "automatic-speech-recognition",
            model=self.model,
            tokenizer=self.processor.tokenizer,
            feature_extractor=self.processor.feature_extractor,
            batch_size=TOGETHER,
            device=device,
        )

    def transcripts(self, utterances: Sequence[Utterance]) -> list[str]:
        return [found["text"] for found in self.pipeline(self._sounds(utterances))]

    @staticmethod
    def _sounds(utterances: Iterable[Utterance]) -> Iterator[dict[str, Any]]:
        for utterance in utterances:
            samples, rate = soundfile.read(utterance.audio, dtype="float32")
            yield {"raw": samples, "sampling_rate": rate}


def their_model(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCTC, Wav2Vec2Processor
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return AutoModelForCTC.from_pretrained(folder).eval(), Wav2Vec2Processor.from_pretrained(folder)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one side: seconds of audio and of the padded batches; time; bytes."""

    batch: float
    padded: float
    wall: float
    processor: float
    peak: int
    risen: int
    texts: list[str]


def measure(
    side: str,
    name: str,
    folder: Path,
    utterances: list[Utterance],
    precision: Precision,
    batch_seconds: float,
    device: str,
) -> Measured:
    """Time and memory of one side; transcripts are text, so that whoever has them has waited for the device."""
    one: Ours | Loop
    if side == "ours":
        one = Ours(name, precision, batch_seconds, device)
    elif side == "pipeline":
        one = Pipeline(folder, precision, device)
    else:
        one = Loop(folder, precision, device, by_length=side == "sorted")
    batches = [[utterances[index].seconds for index in batch] for batch in one.batches(utterances)]
    padded = [max(batch) * len(batch) for batch in batches]
    one.transcripts(sorted(utterances, key=lambda utterance: utterance.seconds)[:2])
    before = torch.cuda.memory_allocated() if device == "cuda" else resident("VmRSS")
    began, worked = time.perf_counter(), time.process_time()
    texts = one.transcripts(utterances)
    wall, processor = time.perf_counter() - began, time.process_time() - worked
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")
    return Measured(
        batch=max(padded),
        padded=sum(padded),
        wall=wall,
        processor=processor,
        peak=peak,
        risen=peak - before,
        texts=texts,
    )


def resident(key: str) -> int:
    """VmRSS, the process' memory in bytes, or VmHWM, the most so far (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def check_same(name: str, folder: Path, utterances: Sequence[Utterance]) -> None:
    """Both sides find the same logits of single utterances, the shortest, the longest and some between.

    Raises:
        AssertionError: they do not.
    """
    ours, architecture = our_model(name), ARCHITECTURES[name]
    theirs, processor = their_model(folder)
    ordered = sorted(utterances, key=lambda utterance: utterance.seconds)
    greatest = scale = 0.0
    for utterance in ordered[:: len(ordered) - 1] + ordered[len(ordered) // 2 :][:2]:
        sound = read_audio(utterance.audio)
        with torch.inference_mode():
            found = encode(ours, *pad([front_end(ours, architecture, sound)]))
            inputs = processor(sound.numpy(), sampling_rate=RATE, return_tensors="pt")
            expected: Tensor = theirs(**inputs).logits
        greatest = max(greatest, float((found - expected).abs().max()))
        scale = max(scale, float(expected.std()))
    print(f"single utterances: logits differ by {greatest:.1e} at most, of a standard deviation of {scale:.1f}")
    assert greatest < 1e-4 * max(1.0, scale), greatest


def operations(architecture: Architecture, utterances: Sequence[Utterance]) -> int:
    """Operations of the matrix products and convolutions for each utterance alone, in torchaudio's ways."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = build(architecture, vocabulary_size=len(VOCABULARY)).eval()
        for utterance in utterances:
            model(torch.empty(1, round(utterance.seconds * RATE)))
    return counter.get_total_flops()


def matrix_rate(architecture: Architecture, precision: str, device: str) -> float:
    """Operations per second of the feed-forward layer's product for 60 s."""
    width, (_, _, inner) = architecture.width, architecture.sizes_of_layer(0)
    dtype = getattr(torch, precision)
    values, weight = (torch.randn(rows, width, dtype=dtype, device=device) for rows in (3000, inner))
    best, calls = float("inf"), 20 if device == "cuda" else 1  # there one is too short for the clock
    with torch.inference_mode():
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(calls):
                torch.nn.functional.linear(values, weight)
            if device == "cuda":
                torch.cuda.synchronize()
            best = min(best, (time.perf_counter() - began) / calls)
    return 2 * values.numel() * inner / best


def compare(options: argparse.Namespace, folder: Path, utterances: list[Utterance], precision: str) -> None:
    """Print one precision's lines."""
    rounds: dict[str, list[Measured]] = {side: [] for side in options.sides}
    rates = []
    for _ in range(options.rounds):
        for side, found in rounds.items():
            rates.append(matrix_rate(ARCHITECTURES[MODELS[options.model]], precision, options.device))
            command = [sys.executable, __file__, "--measure", side, "--folder", str(folder), "--model", options.model]
            command += ["--precision", precision, "--batch-seconds", str(options.batch_seconds)]
            command += ["--threads", str(options.threads), "--device", options.device]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found.append(Measured(**json.loads(result.stdout.splitlines()[-1])))
    seconds = sum(utterance.seconds for utterance in utterances)
    limit = operations(ARCHITECTURES[MODELS[options.model]], utterances) / max(rates)
    ours = rounds.get("ours", [])
    for side, found in rounds.items():
        wall = statistics.median(one.wall for one in found)
        processor = statistics.median(one.processor for one in found)
        ratio = statistics.median(one.wall / mine.wall for one, mine in zip(found, ours, strict=True)) if ours else 1.0
        of_processor = processor / statistics.median(one.processor for one in ours) if ours else 1.0
        one = found[0]
        same = sum(text == mine for text, mine in zip(one.texts, ours[0].texts, strict=True)) if ours else 0
        print(
            f"| {precision}, {LABELS[side]} | {wall:.1f} | {processor:.1f} | {seconds / wall:.2f} | {ratio:.2f} |"
            f" {of_processor:.2f} | {limit / wall:.0%} | {one.batch:.0f} | {1 - seconds / one.padded:.0%} |"
            f" {max(one.peak for one in found) / 1e9:.2f} | {max(one.risen for one in found) / 1e9:.2f} | {same} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="base")
    parser.add_argument("--precision", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--utterances", type=int, default=48)
    parser.add_argument("--batch-seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--measure", choices=SIDES, help=argparse.SUPPRESS)  # one side, in a process of its own
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    name = MODELS[options.model]
    if options.measure is not None:
        lines = (options.folder / "corpus.json").read_text(encoding="utf-8")
        utterances = [Utterance(**one | {"audio": Path(one["audio"])}) for one in json.loads(lines)]
        found = measure(
            options.measure,
            name,
            options.folder / "model",
            utterances,
            options.precision[0],
            options.batch_seconds,
            options.device,
        )
        print(json.dumps(asdict(found)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        utterances = write_corpus(folder / "sounds", options.utterances)
        lines = json.dumps([asdict(one) for one in utterances], default=str)
        (folder / "corpus.json").write_text(lines, encoding="utf-8")
        state = our_model(name).state_dict()
        export_huggingface(ARCHITECTURES[name], state, VOCABULARY, folder / "model")
        check_same(name, folder / "model", utterances)
        total = sum(utterance.seconds for utterance in utterances)
        where = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} threads"
        print(
            f"{len(utterances)} utterances, {total:.0f} s; {where}\n\n"
            f"| {name} | s | processor s | audio s / s | ours is faster | by processor s | of the limit | batch, s"
            " | padding | peak GB | risen GB | texts as ours |\n| --- |" + " ---: |" * 11
        )
        for precision in options.precision:
            compare(options, folder, utterances, precision)


if __name__ == "__main__":
    main()
