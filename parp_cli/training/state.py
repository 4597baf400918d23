"""What a stopped run needs to go on: weights, the optimizer's moments, and where it was.

One safetensors file: `model/<name>`, `optimizer/<parameter index>/<moment>`, `extra/<name>` for whatever else the run
keeps in tensors, and JSON in the metadata.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from parp_cli.errors import CheckpointError
from parp_cli.pruning.sharded import full_tensors, shard_like
from parp_cli.storage.tensors import write_tensors

STATE_VERSION = 2
"""Of what a run notes of itself, in its state and at its end."""


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
    and one `writes`.

    Raises:
        ResourceError: no space is left on the disk.
        UsageError: the place cannot be written to.
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

    Raises:
        CheckpointError: the file is missing or was not written by `save_state`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            position: dict[str, Any] = json.loads(file.metadata()["parp"])
            return position
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not the state of a run", details=[str(error)], hint="start anew without --resume"
        ) from error


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Put a saved state back into `model` and `optimizer`; return its position and extra tensors.

    Raises:
        CheckpointError: the file is missing, broken, or of another model.
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
            # Tensor by tensor: where processes divide them, none needs memory for all.
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
    """Refuse to go on from another run.

    Args:
        position: what the run noted.
        identity: what it must have in common with this one, by key.
        path: where it was noted.

    Raises:
        CheckpointError: names what differs; or another version of parp noted it.
    """
    if position.get("version") != STATE_VERSION:
        raise CheckpointError(
            f"{path} was written by another version of parp",
            hint="finish that run with the version it began with, or start anew without --resume",
        )
    for key, value in identity.items():
        if position[key] != value:
            raise CheckpointError(
                f"{path} is of a run with another {key.rstrip('s')}",
                details=_differences(position[key], value) if key == "recipe" else [],
                hint="resume with the recipe, --init and data the run began with, or start anew without --resume",
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
