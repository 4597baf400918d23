"""Which cells of sweeps fit into a time."""

import json
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from parp_cli.errors import ParpError, UsageError
from parp_cli.runtime.progress import Notify, silent
from parp_cli.storage.atomic import write_text
from parp_cli.sweep.cells import evaluation_seconds, read_failure, run_cell, trained
from parp_cli.sweep.differences import PARP
from parp_cli.sweep.grid import METHOD, Cell, shown
from parp_cli.training.observe import Observer, observing
from parp_cli.training.plan import DENSE, rounds_of
from parp_cli.training.run import TrainingRun

_PROBE_UPDATES = 6
_UNITS = {"h": 3600, "m": 60, "s": 1}


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds of an update, and of the evaluation of a cell on one split."""

    update: float
    evaluation: float


def parse_time(text: str) -> float:
    """Seconds of such as `2h`, `1h30m` or `45m`.

    Raises UsageError: it is no time.
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(map("".join, parts)) != text or not seconds:
        raise UsageError(f"--budget {text}: expected a time", hint="write it as 2h, 45m or 1h30m")
    return seconds


def groups_of(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells in groups that are to be run as a whole, the most informative first.

    All of a seed comes before the next one. Of a seed PARP comes first, each time with the dense networks that it is to
    be compared with, then every other method. Where there are several languages, a network for all of them comes with
    the first one, and each comes with the masks that are carried between it and those before it.
    """
    seeds = list(dict.fromkeys(cell.recipe.seed for cell in cells))
    languages = list(dict.fromkeys(name for cell in cells for name in _languages(cell)))

    def rank(cell: Cell) -> tuple[int, int, bool, bool]:
        method = cell.recipe.pruning.method
        reach = max(map(languages.index, _languages(cell)), default=0)
        return seeds.index(cell.recipe.seed), reach, method not in (DENSE, PARP), method == DENSE

    groups: list[list[Cell]] = []
    for cell in sorted(cells, key=rank):
        if len(languages) > 1:
            home = next((some for some in groups if rank(some[0])[:2] == rank(cell)[:2]), None)
        elif cell.recipe.pruning.method == DENSE:
            home = next((some for some in groups if _are_comparable(some[0], cell)), None)
        else:
            home = None
        groups.append([cell]) if home is None else home.append(cell)
    return groups


def _languages(cell: Cell) -> tuple[str, ...]:
    """Those (of texts their task) that a cell is of, with that of its mask; none of a network for several."""
    own, found_on = cell.recipe.data.domain, cell.recipe.pruning.found_on
    return (*own, *(() if found_on is None else cell.recipe.data.on(found_on).domain)) if len(own) == 1 else ()


def _are_comparable(parp: Cell, dense: Cell) -> bool:
    """Whether no key that makes a difference to both has another value."""
    shared = (parp.values.keys() & dense.values.keys()) - {METHOD}
    return parp.recipe.pruning.method == PARP and all(parp.values[key] == dense.values[key] for key in shared)


def select(cells: Sequence[Cell], pace: Pace, seconds: float) -> list[Cell]:
    """The first groups of cells that fit, in the order of `cells`; training that several need is counted once.

    Raises UsageError: not even the first group fits.
    """
    paid: set[str] = set()
    kept: set[str] = set()
    total = 0.0
    for group in groups_of(cells):
        rounds = [each for cell in group for each in zip(cell.keys, cell.rounds, strict=True)]
        lengths = {key: each.recipe.training.updates for key, each in rounds}
        total += pace.update * sum(updates for key, updates in lengths.items() if key not in paid)
        total += pace.evaluation * sum(len(cell.splits) for cell in group)
        if total > seconds:
            break
        paid |= lengths.keys()
        kept |= {cell.key for cell in group}
    if not kept:
        names = ", ".join(cell.name for cell in groups_of(cells)[0])
        raise UsageError(
            f"the budget of {seconds / 60:.3g} minutes is too short for a single comparison",
            details=[f"it takes about {total / 60:.3g} minutes: {names}"],
            hint="give it more, or make it shorter with --set training.updates=…",
        )
    return [cell for cell in cells if cell.key in kept]


def left_out(cells: Sequence[Cell], kept: Sequence[Cell]) -> str:
    """What a selection lacks, in words; "" where it is whole."""
    if len(kept) == len(cells):
        return ""
    missing = []
    for key in dict.fromkeys(key for cell in cells for key in cell.values):
        there, all_ = (dict.fromkeys(shown(c.values[key]) for c in some if key in c.values) for some in (kept, cells))
        if gone := [value for value in all_ if value not in there]:
            missing.append(f"{key.split('.')[-1]} {', '.join(gone)}")
    text = f"{len(cells) - len(kept)} of {len(cells)} cells left out"
    return f"{text}; nothing of {'; '.join(missing)}" if missing else text


def find_pace(run: Path, cells: Sequence[Cell], name: str, device: torch.device, notify: Notify = silent) -> Pace:
    """The pace of this machine: that of an earlier call, so that the same budget selects the same cells; or of cells
    that are done; or of a few updates and an evaluation that are made for it."""
    path = run / f"{name}-pace.json"
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known.pop("first") == cells[0].key:
            return Pace(**known)
    pace = _of_done(run, cells) or _measured(cells, device, notify)
    write_text(path, json.dumps({"first": cells[0].key, **asdict(pace)}) + "\n")
    return pace


def _of_done(run: Path, cells: Sequence[Cell]) -> Pace | None:
    costs = [training[0] for cell in cells if (training := trained(run, cell)) is not None]
    evaluations = [seconds for cell in cells if (seconds := evaluation_seconds(run, cell)) is not None]
    if not costs or not evaluations:
        return None
    updates = sum(cost.seconds for cost in costs) / sum(cost.updates for cost in costs)
    return Pace(update=updates, evaluation=statistics.median(evaluations))


@dataclass
class _Clock(Observer):
    times: list[float] = field(default_factory=list)

    def update_ends(self, run: TrainingRun) -> None:
        self.times.append(time.monotonic())


def _measured(cells: Sequence[Cell], device: torch.device, notify: Notify) -> Pace:
    cell = min(cells, key=lambda cell: (len(cell.rounds), cell.recipe.training.freeze_encoder_updates))
    training = replace(
        cell.recipe.training, updates=_PROBE_UPDATES, validate_every=_PROBE_UPDATES, freeze_encoder_updates=0
    )
    pruning = replace(cell.recipe.pruning, interval=1, interval_unit="updates")
    recipe = replace(cell.recipe, training=training, pruning=pruning)
    short, clock = replace(cell, recipe=recipe, rounds=rounds_of(recipe), data=()), _Clock()
    with tempfile.TemporaryDirectory(prefix="parp-pace-") as folder, observing(clock):
        run_cell(Path(folder), short, str(device), notify)
        failure, evaluation = read_failure(Path(folder), short), evaluation_seconds(Path(folder), short)
    if failure is not None or evaluation is None:
        error = ParpError(f"{cell.name}: {failure.message if failure else 'no result'}")
        error.exit_code = failure.exit_code if failure else 1
        raise error
    steps = clock.times[-_PROBE_UPDATES:]
    return Pace(update=(steps[-1] - steps[0]) / (len(steps) - 1), evaluation=evaluation)
