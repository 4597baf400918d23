"""What a run has come to, and its files: to go on when it was stopped, and at its end.

The state is one safetensors file: `model/<name>`, `optimizer/<parameter index>/<moment>`, `extra/<name>` for whatever
else the run keeps in tensors, and JSON in the metadata.
"""

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from parp_cli.errors import CheckpointError, UsageError
from parp_cli.pruning.sharded import full_tensors, shard_like
from parp_cli.storage.atomic import write_text
from parp_cli.storage.run_folder import BEST, LAST, set_run_aside
from parp_cli.storage.tensors import write_tensors
from parp_cli.tasks.task import UpdateLoss, Validation

STATE_VERSION = 2
"""Version of what a run records about itself, in its state and at its end."""


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """Where a run writes: checkpoints, the state a stopped run goes on from, what it notes at its end, and its log."""

    best: Path | None
    last: Path
    state: Path
    finished: Path
    journal: Path
    scratch: Path  # a folder that is deleted at the end
    tensorboard: Path | None = None  # a folder


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What training took: updates, seconds of audio in them (or the size of their items), seconds of wall time."""

    updates: int = 0
    audio_seconds: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(**{key: value + getattr(other, key) for key, value in asdict(self).items()})


class Record:
    """What a run has come to, over all its starts: updates done and their items' size in the task's unit, updates
    skipped without a finite loss and gradient, and validations."""

    def __init__(self) -> None:
        self.update, self.size = 0, 0.0
        self.skipped = self.skipped_in_a_row = 0
        self.validations: list[Validation] = []
        self._recent: list[list[float]] = []  # loss and metrics of each update since the last validation
        self._began, self._seconds_before = time.monotonic(), 0.0

    @property
    def best(self) -> Validation:
        """The validation with the best score, the first of equal ones."""
        return min(self.validations, key=lambda validation: validation.score)

    @property
    def cost(self) -> Cost:
        """So far."""
        seconds = self._seconds_before + time.monotonic() - self._began
        return Cost(updates=self.update, audio_seconds=self.size, seconds=seconds)

    def learned(self, loss: UpdateLoss[Any]) -> None:
        """An update had a finite loss and gradient."""
        self.skipped_in_a_row = 0
        self._recent.append([loss.mean, *loss.metrics])

    def train_means(self, metrics: int) -> list[float | None]:
        """Loss and so many metrics, means over the updates since this was asked before; None where there were none."""
        means: list[float | None] = [sum(column) / len(column) for column in zip(*self._recent, strict=True)]
        self._recent.clear()
        return means or [None] * (1 + metrics)

    def to_json(self) -> dict[str, Any]:
        """All of it, in plain values."""
        return {
            "update": self.update,
            "skipped_updates": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "cost": asdict(self.cost),
            "recent": self._recent,
            "validations": [asdict(validation) for validation in self.validations],
        }

    def load_json(self, values: Mapping[str, Any]) -> None:
        """Go on from what `to_json` gave."""
        cost = Cost(**values["cost"])
        self.update, self.size, self._seconds_before = values["update"], cost.audio_seconds, cost.seconds
        self.skipped, self.skipped_in_a_row = values["skipped_updates"], values["skipped_in_a_row"]
        self._recent = [list(row) for row in values["recent"]]
        self.validations = [Validation(**{**one, "score": tuple(one["score"])}) for one in values["validations"]]


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Mapping[str, Any],
    extra: Mapping[str, Tensor] | None = None,
    *,
    writes: bool = True,
) -> None:
    """Write the state, whole or not at all; `position` is anything JSON can hold.

    The file does not depend on the number of processes: sharded tensors are put together, for which all must call this,
    and one `writes`. Raises ResourceError on a full disk, and UsageError where the place cannot be written to.
    """
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"extra/{name}": value for name, value in (extra or {}).items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for key, value in moments.items():
            tensors[f"optimizer/{index}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    copies = {name: whole.contiguous().clone() for name, whole in full_tensors(tensors, keep=writes).items()}
    if writes:
        write_tensors(path, copies, {"parp": json.dumps(position, sort_keys=True)})


def read_position(path: Path) -> dict[str, Any]:
    """The `position` that `save_state` wrote, without reading any tensor.

    Raises CheckpointError where the file is missing or was not written by `save_state`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            position: dict[str, Any] = json.loads(file.metadata()["parp"])
            return position
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not the state of a run", details=[str(error)], hint="start over without --resume"
        ) from error


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Put a saved state back into `model` and `optimizer`; return its position and extra tensors.

    Raises CheckpointError where the file is missing, broken, or of another model.
    """
    position = read_position(path)
    there = model.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    weights: dict[str, Tensor] = {}
    extra: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    with safe_open(path, framework="pt") as file:
        for full_name in file.keys():  # noqa: SIM118 (no mapping)
            part, _, name = full_name.partition("/")
            value = file.get_tensor(full_name)
            # Tensor by tensor: where they are sharded, no process needs memory for all.
            if part == "model":
                weights[name] = _placed(value, there.get(name))
            elif part == "optimizer":
                index, _, key = name.partition("/")
                place = parameters[int(index)] if int(index) < len(parameters) else None
                moments.setdefault(int(index), {})[key] = _placed(value, place)
            else:
                extra[name] = value
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} is the state of another model",
            details=str(error).splitlines()[1:6],
            hint="resume with the recipe the run began with",
        ) from error
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return position, extra


def _placed(value: Tensor, place: Tensor | None) -> Tensor:
    """A tensor sharded like the one it replaces; what fits nothing as it is, which `load_state_dict` reports."""
    return value if place is None or value.shape != place.shape else shard_like(value, place)


def check_same_run(position: Mapping[str, Any], identity: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on from another run than noted its position at `path`.

    Raises CheckpointError, which names what of the `identity` differs; or another version of parp noted it.
    """
    if position.get("version") != STATE_VERSION:
        raise CheckpointError(
            f"{path} was written by another version of parp",
            hint="finish that run with the version it began with, or start over without --resume",
        )
    for key, value in identity.items():
        if position[key] != value:
            raise CheckpointError(
                f"{path} is of a run with another {key.rstrip('s')}",
                details=_differences(position[key], value) if key == "recipe" else [],
                hint="resume with the recipe, --init and data the run began with, or start over without --resume",
            )


def note_finished(files: RunFiles, position: Mapping[str, Any]) -> None:
    """Note at the end of a run what it came to, and where its checkpoints are."""
    paths = [os.path.relpath(path, files.finished.parent) for path in (files.best, files.last) if path is not None]
    write_text(files.finished, json.dumps({**position, "checkpoints": paths}, sort_keys=True) + "\n")


def read_finished(path: Path) -> dict[str, Any] | None:
    """What a run noted at its end; None where none has come to it."""
    noted: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return noted


def keep_other_run(files: RunFiles) -> list[Path]:
    """Move what another run left here out of the way; where it is then, nothing where there was none."""
    # What a resumed run would take for its own goes first.
    run = files.journal.parent
    results = (files.finished, files.state, files.best, files.last, run / BEST, run / LAST)
    if not any(path is not None and path.exists() for path in results):
        return []
    moved = dict.fromkeys((*results, files.journal, files.tensorboard))
    return set_run_aside(run, [path for path in moved if path is not None])


def check_not_lost(files: RunFiles, identity: Mapping[str, Any]) -> None:
    """Refuse to start over because --resume was forgotten.

    Raises UsageError where this very run was stopped, or has finished.
    """
    anew = "to start over, rename that folder or name another one with --run"
    with suppress(CheckpointError):  # no state, or of another run
        position = read_position(files.state)
        check_same_run(position, identity, files.state)
        raise UsageError(
            f"this run was stopped after update {position['update']}; its state is in {files.state.parent}",
            hint=f"go on with --resume; {anew}",
        )
    noted = read_finished(files.finished)
    if noted is None:
        return
    with suppress(CheckpointError):
        check_same_run(noted, identity, files.finished)
        paths = [files.finished.parent / path for path in noted["checkpoints"]]
        if all(path.exists() for path in paths):  # else there is no whole result to lose
            raise UsageError(
                f"this run has finished, after update {noted['update']}; {paths[0]} would be overwritten",
                hint=f"see its results with --resume; {anew}",
            )


def _differences(before: Any, after: Any, key: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        prefix = f"{key}." if key else ""
        return [
            line
            for name in sorted({*before, *after})
            for line in _differences(before.get(name), after.get(name), prefix + name)
        ]
    return [] if before == after else [f"{key}: {before} before, {after} now"]
