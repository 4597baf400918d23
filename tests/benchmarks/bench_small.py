"""What removing structures, and then 8-bit integers, save beside transformers on the dense network: `parp bench` of a
full-size encoder.

    OMP_NUM_THREADS=1 taskset -c 1 python -m tests.benchmarks.bench_small --folder bench-small [--json results.json]
        [--model wav2vec2-base] [--seconds 1 10 30] [--batch 1 8] [--rounds 3] [--processor] [--only 50-int8.onnx]

makes of random weights one network without half of its heads and feed-forward units, and one without 80 % of heads,
units and channels of the feature encoder; each as a checkpoint of parp and as ONNX files in float32 and with 8-bit
integers, which stay in the folder. Which are removed is random, and so is what they compute: neither matters to speed.
With --processor seconds are of the processor, which other work on the machine makes no longer. All models are in memory
together; where it is too small for that, --only measures some of them at a time, beside transformers if a checkpoint is
among them.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from parp_cli.console import jsonable, size
from parp_cli.exporters.measure import Pass, Worker
from parp_cli.exporters.onnx import export_onnx, quantize
from parp_cli.exporters.small import export_small, shrink
from parp_cli.models.sources.load import random_encoder
from parp_cli.models.speech.config import ARCHITECTURES
from parp_cli.pruning.masks import apply_, count_all, count_pruned
from parp_cli.pruning.patterns import Pattern
from parp_cli.stages.bench import Benched, BenchResult, bench
from parp_cli.storage.checkpoint import Metadata
from parp_cli.training.masks import first_scores

_SMALL = {"50": (0.5, ("heads", "units")), "80-channels": (0.8, ("heads", "units", "channels"))}
"""By name: the share of weights in structures that is pruned, and the kinds of structures that compete."""


def files(name: str, folder: Path) -> Iterator[Path]:
    """Those to measure, which are made if they are not there."""
    architecture, pattern = ARCHITECTURES[name], Pattern.parse("structures")
    for label, (sparsity, kinds) in _SMALL.items():
        path, plain, int8 = (folder / f"{label}{end}" for end in (".safetensors", ".onnx", "-int8.onnx"))
        if not int8.exists():
            weights = random_encoder(architecture).weights
            structures = [one for one in architecture.structures_of(weights) if one.kind in kinds]
            prunable = {part: weights[part] for one in structures for part in one.parts}
            scores = first_scores("random", weights, architecture, seed=0, pattern=pattern)
            masks = pattern.masks({part: scores[part] for part in prunable}, sparsity, {}, structures=structures)
            apply_(masks, weights)
            small = shrink(architecture, weights, masks, source=name)
            left = sum(weight.numel() for weight in small.weights.values())
            print(f"{label}: pruned {count_pruned(masks):,} of {count_all(masks):,}; {left:,} parameters are left")
            print(f"  channels {[one[0] for one in small.architecture.conv_layers]}, heads {small.architecture.heads}")
            metadata = Metadata(stage="mask", architecture=architecture.to_json(), prunable=tuple(masks))
            export_small(small, metadata, path)
            export_onnx(small.architecture, small.weights, None, plain, properties={})
            quantize(plain, int8)
        yield from (path, plain, int8)


def table(result: BenchResult) -> Iterator[str]:
    """In Markdown; times as fast as transformers in brackets."""
    first = result.all[0]
    work = [f"{speed.seconds:g} s × {speed.batch}" for speed in first.speeds]
    yield "| | MB | load | peak memory | " + " | ".join(work) + " |"
    yield "| --- |" + " ---: |" * (3 + len(work))
    for one in result.all:
        yield (
            f"| {named(one)} | {one.bytes / 1e6:.0f} | {one.loaded.load_seconds:.2f} s | "
            + " | ".join(
                [
                    "" if one.peak_bytes is None else size(one.peak_bytes),
                    *(
                        f"{speed.real_time_factor:.4f} ({before.real_time_factor / speed.real_time_factor:.1f} ×)"
                        for speed, before in zip(one.speeds, first.speeds, strict=True)
                    ),
                ]
            )
            + " |"
        )


def named(one: Benched) -> str:
    """What it is, without its folder."""
    return f"{one.runtime}: {one.model if one.runtime == 'transformers' else Path(one.model).name}"


class ByProcessor(Worker):
    """Tells the processor's seconds as its own."""

    def run(self, seconds: float, batch: int) -> Pass:
        one = super().run(seconds, batch)
        return replace(one, seconds=one.processor_seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", default="wav2vec2-base", choices=ARCHITECTURES)
    parser.add_argument("--seconds", type=float, nargs="+", default=[1.0, 10.0, 30.0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="FILE", help="names in the folder, such as 50-int8.onnx")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--processor", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    models = list(files(options.model, options.folder))
    if options.only is not None:
        if unknown := set(options.only) - {path.name for path in models}:
            parser.error(f"no {', '.join(sorted(unknown))} among {', '.join(path.name for path in models)}")
        models = [path for path in models if path.name in options.only]
    result = bench(
        models,
        lengths=options.seconds,
        batches=options.batch,
        rounds=options.rounds,
        dense=True,
        start=ByProcessor if options.processor else Worker,
        notify=lambda step: print(f"{step.task}: {step.done}/{step.total} {step.note}", flush=True),
    )
    print(f"{result.processor}, {torch.get_num_threads()} threads, load {result.load_average}")
    print("\n".join(table(result)))
    if options.json is not None:
        options.json.write_text(json.dumps(jsonable(result), indent=1))


if __name__ == "__main__":
    main()
