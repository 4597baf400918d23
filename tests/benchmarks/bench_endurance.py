"""Whether a long fine-tuning run keeps its pace and its memory: both sampled over as many updates as hours would hold.

    python -m tests.benchmarks.bench_endurance [--updates 35000] [--mini]

trains a tiny encoder, as many updates as the bundled one makes in three hours, with all that a run does: re-prunings,
validations, states and checkpoints written, the log. --mini trains the bundled encoder on generated speech instead.
Prints the resident memory, Python's objects, the wall and processor time of an update in windows of equal length (with
the same number of validations in each), and of the windows after the first fifth: how memory grows by the least
squares, and the pace of the last ones against the first ones.
"""

import argparse
import gc
import os
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from parp_cli.config.finetune import Recipe
from parp_cli.config.load import load_recipe
from parp_cli.runtime.progress import Progress
from parp_cli.stages.finetune import finetune
from tests.tiny import make_world

_WINDOWS = 25
_WARM_UP = _WINDOWS // 5
_COMPARED = 4
"""Windows at each end whose pace is compared."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Some updates: the last one, memory in kB and objects after it, and seconds of an update."""

    update: int
    memory: float
    objects: int
    wall: float
    processor: float


@dataclass
class Sampler:
    """Told of every update, it measures at the end of each window of `length` updates."""

    length: int
    windows: list[Window] = field(default_factory=list)
    _wall: float = field(default_factory=time.perf_counter)
    _processor: float = field(default_factory=time.process_time)

    def __call__(self, step: Progress) -> None:
        if not step.task.startswith("fine-tuning") or step.done == 0 or step.done % self.length or step.warning:
            return
        if self.windows and self.windows[-1].update == step.done:
            return
        wall, processor = time.perf_counter(), time.process_time()
        self.windows.append(
            Window(
                update=step.done,
                memory=resident_kilobytes(),
                objects=len(gc.get_objects()),
                wall=(wall - self._wall) / self.length,
                processor=(processor - self._processor) / self.length,
            )
        )
        print(row(self.windows[-1]), flush=True)
        self._wall, self._processor = time.perf_counter(), time.process_time()


def resident_kilobytes() -> float:
    """Memory of this process; at its peak where the system does not tell what it is now."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def row(window: Window) -> str:
    return (
        f"{window.update:8,}{window.memory / 1024:12.1f} MB{window.objects:12,}"
        f"{window.wall * 1000:12.2f} ms{window.processor * 1000:12.2f} ms"
    )


def recipe(folder: Path, updates: int, validate_every: int, mini: bool) -> Recipe:
    """With as many states as validations."""
    length = (f"training.updates={updates}", f"training.validate_every={validate_every}", "pruning.interval=50")
    return load_recipe(None, length) if mini else make_world(folder).recipe(*length)


def ratio(windows: list[Window], clock: str) -> float:
    """The pace of the last windows against that of the first ones."""
    first, last = windows[:_COMPARED], windows[-_COMPARED:]
    return statistics.mean(getattr(w, clock) for w in first) / statistics.mean(getattr(w, clock) for w in last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=35_000)
    parser.add_argument("--mini", action="store_true", help="the bundled encoder: hours")
    options = parser.parse_args()
    length = max(1, options.updates // _WINDOWS)
    print(f"{'update':>8}{'memory':>15}{'objects':>12}{'wall':>15}{'processor':>15}")
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        sampler = Sampler(length)
        validate_every = max(1, length // 3)
        settings = recipe(Path(folder), length * _WINDOWS, validate_every, options.mini)
        finetune(settings, run=run, notify=sampler)
        noted, log = (run / name for name in ("finetune-finished.json", "finetune.jsonl"))
        sizes = f"log {log.stat().st_size / 1024:,.0f} kB, position in the state {noted.stat().st_size / 1024:,.0f} kB"
    windows = sampler.windows[_WARM_UP:]
    growth = statistics.linear_regression([w.update / 1000 for w in windows], [w.memory for w in windows]).slope
    print(f"memory grows by {growth:,.1f} kB in 1,000 updates, {growth * length * _WINDOWS / 1000:,.0f} kB in all")
    print(
        f"pace at the end: {ratio(windows, 'wall'):.3f} of that at the beginning, by processor time "
        f"{ratio(windows, 'processor'):.3f}"
    )
    print(sizes)


if __name__ == "__main__":
    main()
