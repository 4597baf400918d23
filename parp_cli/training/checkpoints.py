"""The files that a training run leaves, and that it must not overwrite."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import nn

from parp_cli.errors import CheckpointError, UsageError
from parp_cli.pruning.masks import Masks
from parp_cli.pruning.pruner import Pruner
from parp_cli.pruning.sharded import full_tensors
from parp_cli.runtime.processes import World
from parp_cli.storage import checkpoint
from parp_cli.storage.atomic import write_text
from parp_cli.storage.checkpoint import Checkpoint, Sparsity
from parp_cli.training.setup import RunFiles, RunSetup
from parp_cli.training.state import check_same_run, read_position


def write_checkpoint(
    path: Path,
    setup: RunSetup,
    network: nn.Module,
    pruner: Pruner,
    masks: Masks,
    metrics: Mapping[str, Any],
    world: World,
) -> None:
    """Write the network, whole however its weights are sharded: all processes put it together, the main one writes.

    Args:
        path: of the file.
        setup: of the run.
        network: as it is to be shipped.
        pruner: over the network's prunable weights.
        masks: of these; empty for none.
        metrics: for the file's header.
        world: processes that hold the network.
    """
    sparsity = None
    if masks:
        pruned, covered = pruner.counts(masks)
        sparsity = Sparsity(target=setup.target, pruned=pruned, total=covered)
    weights = full_tensors(network.state_dict(), keep=world.is_main)
    whole = pruner.whole(masks)
    if world.is_main:
        metadata = setup.metadata(tuple(pruner.weights), sparsity, metrics)
        checkpoint.write(path, Checkpoint(weights=setup.exported(weights), masks=whole, metadata=metadata))


def note_finished(files: RunFiles, position: Mapping[str, Any]) -> None:
    """Note at the end of a run what it came to, and where its checkpoints are."""
    paths = [os.path.relpath(path, files.finished.parent) for path in (files.best, files.last) if path is not None]
    write_text(files.finished, json.dumps({**position, "checkpoints": paths}, sort_keys=True) + "\n")


def read_finished(path: Path) -> dict[str, Any] | None:
    """What a run noted at its end; None where none has come to it."""
    if not path.exists():
        return None
    noted: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return noted


def check_not_lost(files: RunFiles, identity: Mapping[str, Any], *, replace_finished: bool) -> None:
    """Refuse to overwrite hours of work because --resume was forgotten.

    Args:
        files: of a run that is about to begin.
        identity: of that run.
        replace_finished: whether a finished run may be overwritten.

    Raises:
        UsageError: this very run was stopped, or has finished.
    """
    anew = "to begin anew, delete that folder or name another one with --run"
    with suppress(CheckpointError):  # no state, or of another run
        position = read_position(files.state)
        check_same_run(position, identity, files.state)
        raise UsageError(
            f"this run was stopped after update {position['update']}; its state is in {files.state.parent}",
            hint=f"go on with --resume; {anew}",
        )
    noted = None if replace_finished else read_finished(files.finished)
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
