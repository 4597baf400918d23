"""Seconds and memory of exact global magnitude selection, beside torch.nn.utils.prune.global_unstructured.

    python tests/benchmarks/bench_selection.py [--threads 2] [--repeat 5] [--without-2b] [--device cpu]

Prints two tables: both on the prunable weights of wav2vec 2.0 base and large (float32, half pruned), and this
project's alone from 85 million to 2 billion weights (bfloat16). Each line is measured in a process of its own, all
in one run. Extra memory is how far the resident set rose above where it was with the weights in place, the masks
included; the times are the best of the repeats, the memory that of the first run. On a busy machine processor seconds
(of all threads) say more than seconds. The last line takes about 7 GB, global_unstructured on large about 15 GB, and is
left out where less is free. With --device cuda the weights lie there, each time is that until the device has finished,
extra memory is the device's, and the second table says how many times longer it takes than to read all weights once.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import prune

from parp_cli.pruning.select import magnitude_masks

MODELS = {
    "base": (12, 768, 3072),
    "large": (24, 1024, 4096),
    "1 B": (48, 1280, 5120),
    "2 B": (48, 1920, 7680),
}
"""Layers, width and feed-forward width: wav2vec 2.0 base and large, XLS-R 1B and 2B."""


def make_weights(model: str, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    layers, width, inner = MODELS[model]
    square, up, down = (width, width), (inner, width), (width, inner)
    kinds = {"q_proj": square, "k_proj": square, "v_proj": square, "out_proj": square, "fc1": up, "fc2": down}
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for layer in range(layers):
        for number, (kind, shape) in enumerate(kinds.items()):
            weight = torch.empty(shape, dtype=dtype).normal_(0, 0.03 + 0.01 * number, generator=generator)
            weights[f"layers.{layer}.{kind}.weight"] = weight
            weights[f"layers.{layer}.{kind}.bias"] = torch.zeros(shape[0], dtype=dtype).normal_(0, 0.01)
    return {name: weight.to(device) for name, weight in weights.items()}


def masks_of_parp(weights: dict[str, Tensor], k: int) -> object:
    return magnitude_masks(weights, k)


def masks_of_torch(weights: dict[str, Tensor], k: int) -> object:
    modules = []
    for weight in weights.values():
        module = torch.nn.Module()
        module.weight = torch.nn.Parameter(weight)
        modules.append((module, "weight"))
    prune.global_unstructured(modules, prune.L1Unstructured, amount=k)
    return modules


TORCH_ON_LARGE = 16_000_000_000
"""Bytes that must be free for global_unstructured on large: 1.2 GB of weights and about 13 GB."""

METHODS: dict[str, Callable[[dict[str, Tensor], int], object]] = {
    "parp": masks_of_parp,
    "torch": masks_of_torch,
}


def resident() -> int:
    """Bytes of this process that are in memory now (Linux)."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def available() -> int:
    """Bytes that the machine could still hand out (Linux)."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))


def extra_memory(work: Callable[[], object], device: str) -> int:
    """How many bytes the resident set rises by while `work` runs, looked at every half millisecond; or the device's."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - held
    before = highest = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.0005):
            highest = max(highest, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = work()
    highest = max(highest, resident())
    done.set()
    watcher.join()
    del result
    return highest - before


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_to_read(weights: Mapping[str, Tensor], device: str, repeat: int) -> float:
    """The best time of a sum over every weight."""
    best = float("inf")
    for _ in range(repeat + 1):
        wait(device)
        began = time.perf_counter()
        for weight in weights.values():
            weight.sum()
        wait(device)
        best = min(best, time.perf_counter() - began)
    return best


def measure(method: str, model: str, dtype: str, threads: int, repeat: int, device: str) -> dict[str, float]:
    """One line of a table: how many weights, the best wall and processor seconds, extra bytes, seconds to read them."""
    torch.set_num_threads(threads)
    weights = make_weights(model, getattr(torch, dtype), device)
    total = sum(weight.numel() for weight in weights.values())
    METHODS[method]({"warm": torch.randn(100_000).to(device, getattr(torch, dtype))}, 50_000)  # libraries are loaded
    times: list[tuple[float, float]] = []

    def once() -> object:
        wait(device)
        wall, cpu = time.perf_counter(), time.process_time()
        result = METHODS[method](weights, total // 2)
        wait(device)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
        return result

    extra = extra_memory(once, device)
    for _ in range(repeat):
        once()
    best, least_cpu = (min(column) for column in zip(*times, strict=True))
    return {
        "total": total,
        "seconds": best,
        "cpu": least_cpu,
        "extra": extra,
        "read": seconds_to_read(weights, device, repeat),
    }


def measured_apart(*arguments: Any) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", json.dumps(arguments)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(run.stdout)
    return found


def compare(threads: int, repeat: int, models: list[str], device: str) -> None:
    print(
        f"| float32, 50 %, {where(device, threads)} | weights | seconds | processor s | extra MB | times faster"
        " | memory |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for model in models:
        ours = measured_apart("parp", model, "float32", threads, repeat, device)
        theirs = measured_apart("torch", model, "float32", threads, 0, device)
        for name, line in (("global_unstructured", theirs), ("parp", ours)):
            faster, memory = theirs["seconds"] / line["seconds"], line["extra"] / theirs["extra"]
            print(
                f"| {model}, {name} | {line['total']:,} | {line['seconds']:.3f} | {line['cpu']:.3f} |"
                f" {line['extra'] / 1e6:,.0f} | {faster:.0f} | {memory:.1%} |",
                flush=True,
            )


def where(device: str, threads: int) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else f"{threads} threads"


def scale(threads: int, repeat: int, models: list[str], device: str) -> None:
    print(
        f"\n| bfloat16, 50 %, {where(device, threads)} | weights | seconds | processor ns per weight"
        " | extra MB | bits per weight | times of reading them once |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for model in models:
        line = measured_apart("parp", model, "bfloat16", threads, repeat, device)
        print(
            f"| {model} | {line['total']:,} | {line['seconds']:.3f} | {line['cpu'] / line['total'] * 1e9:.2f} |"
            f" {line['extra'] / 1e6:,.0f} | {line['extra'] * 8 / line['total']:.2f} |"
            f" {line['seconds'] / line['read']:.1f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--without-2b", action="store_true", help="leave out the line that takes 5 GB")
    parser.add_argument("--only", choices=("compare", "scale"), help="one of the two tables")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # a line, in a process of its own
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(*options.one)))
        return
    if options.only != "scale":
        both = [name for name in ("base", "large") if name in options.models]
        if options.device == "cpu" and available() <= TORCH_ON_LARGE:
            both = ["base"]
        compare(options.threads, options.repeat, both, options.device)
    if options.only != "compare":
        models = [name for name in options.models if name != "2 B" or not options.without_2b]
        scale(options.threads, options.repeat, models, options.device)


if __name__ == "__main__":
    main()
