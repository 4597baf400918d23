"""What removing structures, and then 8-bit integers, save: one utterance through each network in turn, in one process.

    python -m tests.benchmarks.bench_small [--model wav2vec2-base] [--sparsity 0.5] [--seconds 10] [--rounds 5]

prints parameters, megabytes and median seconds of the network with its weights masked, of the small one, of both in
onnxruntime, and with 8-bit integers; and of transformers with the same weights, if it is installed. Weights are random
(which says nothing of error rates, and nothing else matters to speed), and so is the choice of heads and units.
"""

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parp_cli.exporters.check import network
from parp_cli.exporters.huggingface import export_huggingface
from parp_cli.exporters.onnx import OnnxNetwork, export_onnx, quantize
from parp_cli.exporters.small import shrink
from parp_cli.models.sources.load import random_encoder
from parp_cli.models.speech.config import ARCHITECTURES
from parp_cli.pruning.masks import apply_, count_all, count_pruned
from parp_cli.pruning.patterns import Pattern
from parp_cli.training.masks import first_scores

Run = Callable[[], Any]


def contenders(name: str, sparsity: float, sound: Tensor, folder: Path) -> dict[str, tuple[int, float, Run]]:
    """By name: parameters, megabytes of float32 or of the file, and what to time."""
    architecture = ARCHITECTURES[name]
    weights = random_encoder(architecture).weights
    structures, pattern = architecture.structures_of(weights), Pattern.parse("structures")
    prunable = pattern.among(weights, where=name, structures=structures)
    scores = first_scores("random", prunable, architecture, seed=0, pattern=pattern)
    masks = pattern.masks(scores, sparsity, {}, structures=structures)
    apply_(masks, weights)
    print(f"pruned {count_pruned(masks):,} of {count_all(masks):,}")
    small = shrink(architecture, weights, masks, source=name)
    found: dict[str, tuple[int, float, Run]] = {}
    if importlib.util.find_spec("transformers") is not None:
        import transformers

        export_huggingface(architecture, weights, None, folder / "hf")
        theirs = transformers.AutoModel.from_pretrained(folder / "hf").eval()
        total = sum(parameter.numel() for parameter in theirs.parameters())
        found["transformers"] = total, 4e-6 * total, lambda: theirs(sound[None])
    for label, one, own in (("masked", architecture, weights), ("small", small.architecture, small.weights)):
        run, total = network(one, own), sum(weight.numel() for weight in own.values())
        found[f"parp, {label}"] = total, 4e-6 * total, lambda run=run: run([sound])
        path = folder / f"{label}.onnx"
        export_onnx(one, own, None, path, properties={})
        for kind in ("float32", "int8"):
            if kind == "int8":
                plain, path = path, folder / f"{label}-int8.onnx"
                quantize(plain, path)
            session = OnnxNetwork(path)
            found[f"onnxruntime {kind}, {label}"] = (
                total,
                path.stat().st_size / 1e6,
                lambda session=session: session([sound]),
            )
    return found


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="wav2vec2-base", choices=ARCHITECTURES)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    sound = 0.1 * torch.randn(round(16_000 * options.seconds))
    with tempfile.TemporaryDirectory() as folder:
        found = contenders(options.model, options.sparsity, sound, Path(folder))
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in found}
        for number in range(options.rounds + 1):  # the first warms up
            for name, (_, _, run) in found.items():
                wall, processor = time.perf_counter(), time.process_time()
                run()
                if number:
                    taken[name].append((time.perf_counter() - wall, time.process_time() - processor))
    load = os.getloadavg()[0]
    print(f"{options.model}, {options.seconds:g} s, {torch.get_num_threads()} threads, load {load:.1f}")
    for name, (total, megabytes, _) in found.items():
        wall, processor = (statistics.median(column) for column in zip(*taken[name], strict=True))
        print(f"{name:28} {total:>11,} {megabytes:7.1f} MB  {wall:6.2f} s  {processor:6.2f} s of the processor")


if __name__ == "__main__":
    main()
