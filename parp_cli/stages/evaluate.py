"""Evaluate a checkpoint of any task: one system, or the same weights under several masks, on the same items."""

from pathlib import Path
from typing import Any

import torch

from parp_cli.config.finetune import AnyData
from parp_cli.runtime.device import tensor_cores
from parp_cli.runtime.processes import SINGLE, World
from parp_cli.runtime.progress import Notify, silent
from parp_cli.storage.checkpoint import read_metadata
from parp_cli.storage.run_folder import require_head
from parp_cli.tasks.evaluation import Evaluation, Options
from parp_cli.tasks.task import task_class

__all__ = ["Evaluation", "Options", "evaluate"]


def evaluate(
    source: Path,
    *,
    out: Path,
    data: AnyData | None = None,
    options: Options | None = None,
    device: torch.device | None = None,
    world: World = SINGLE,
    notify: Notify = silent,
) -> Evaluation[Any]:
    """Predict all items of splits that can be read, and compare with their references, as the head's task does it.

    Args:
        source: a checkpoint with an output head.
        out: where the results go (JSON Lines); the metrics go beside it, as `.json`. Under a mask, its label is added
            to all names.
        data: by default what the checkpoint was fine-tuned on.
        world: processes that work together. Each calls with the same arguments; the main one writes, and all return
            the same except for the time it took.

    Raises:
        CheckpointError: the checkpoint cannot be read, or has no head.
        MaskError: a file has no mask, or one of another model.
        UsageError: options do not go together or with the task, or the extra `lm` is not installed.
        DataError: there is no such split, none of its items can be evaluated, or another system's results have none of
            its items, or other references.
    """
    options, metadata = options or Options(), read_metadata(source, with_weights=True)
    task = task_class(require_head(source, metadata)["kind"])
    data = data or task.recorded(metadata).data
    with tensor_cores(options.precision):
        return task.evaluate(
            source,
            out=out,
            data=data,
            options=options,
            device=device or torch.device("cpu"),
            world=world,
            notify=notify,
        )
