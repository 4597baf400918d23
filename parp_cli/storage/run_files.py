"""What a training run keeps in its run folder, and whether it came to its end."""

import json
from pathlib import Path
from typing import Any

from parp_cli.storage.atomic import forget_temporaries

BEST, LAST = "finetune.safetensors", "finetune-last.safetensors"
"""Checkpoints in a run folder: the best one on the validation split, and the one after the last update."""

JOURNAL, FINISHED = "finetune.jsonl", "finetune-finished.json"
"""The log, and what a run notes at its end."""


def state_path(run: Path) -> Path:
    """Where a run that is not finished keeps what it needs to go on."""
    return run / "state" / "finetune.safetensors"


def finished(run: Path, best: Path | None = None) -> dict[str, Any] | None:
    """What a run in this folder noted at its end; None where none has come to it, or its checkpoints are gone.

    Args:
        run: the run folder.
        best: where its best checkpoint went, if elsewhere.
    """
    best = best or run / BEST
    if not all(path.exists() for path in (best, last_beside(best), run / FINISHED)):
        return None
    noted: dict[str, Any] = json.loads((run / FINISHED).read_text(encoding="utf-8"))
    return noted


def tidy(run: Path, best: Path | None = None) -> None:
    """Remove what killed runs left in a run folder: files half written, and the state of one that had just ended.

    Args:
        run: the run folder, in which nobody is training.
        best: where the best checkpoint goes, if elsewhere.
    """
    best = best or run / BEST
    for path in (best, last_beside(best), state_path(run), run / JOURNAL, run / FINISHED):
        forget_temporaries(path.parent, path.name)
    if finished(run, best) is not None:
        state_path(run).unlink(missing_ok=True)


def last_beside(best: Path) -> Path:
    """Where the checkpoint after the last update goes, by where the best one goes."""
    return best.with_name(best.stem + "-last.safetensors")
