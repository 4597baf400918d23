"""The run folder: where stages leave their files and look for the newest one.

mask.safetensors           after `parp mask`
finetune.safetensors       the best checkpoint of `parp finetune` on the validation split
finetune-last.safetensors  its last one
finetune.jsonl             its log
finetune-finished.json     what it noted at its end
reprune.safetensors        after `parp reprune`
state/                     what an interrupted run needs to go on
rounds/                    the runs that found a method's mask, each a folder like this one
.lock                      held while a run trains here
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from parp_cli.errors import CheckpointError
from parp_cli.storage.checkpoint import Metadata, read_metadata

_LAST = "-last.safetensors"


def newest_checkpoint(run: Path, *, but_not_by: Collection[str] = ()) -> Path | None:
    """The checkpoint of the run folder that was written last, or None.

    Args:
        run: the folder; need not exist.
        but_not_by: stages whose files do not count.

    Raises:
        CheckpointError: a file there is broken or foreign.
    """
    files = [path for path in run.glob("*.safetensors") if not path.name.endswith(_LAST)]
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if not but_not_by or read_metadata(path).stage not in but_not_by:
            return path
    return None


def checkpoint_or_newest(named: Path | None, run: Path) -> Path:
    """The checkpoint that was named, else the newest of the run folder.

    Raises:
        CheckpointError: there is none.
    """
    if named is not None:
        return named
    found = newest_checkpoint(run)
    if found is None:
        raise CheckpointError(
            f"no checkpoint in run folder {run}",
            hint="make one with `parp mask` and `parp finetune`, name one, or name its folder with --run",
        )
    return found


def require_head(path: Path, metadata: Metadata) -> None:
    """Refuse a checkpoint that cannot recognise anything yet.

    Raises:
        CheckpointError: it has no output head.
    """
    if metadata.task is None:
        raise CheckpointError(
            f"{path} has no output head (stage {metadata.stage})",
            hint="fine-tune it first: `parp finetune recipe.yaml`",
        )


def shortest_labels(paths: Sequence[Path]) -> list[str]:
    """A short unique label per file: its stem, its folder, or as much of the path as tells it from the others."""
    parts = [(*path.absolute().parent.parts[1:], path.stem) for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        for chosen in (slice(-depth, -depth + 1 or None), slice(-depth, None)):
            labels = ["/".join(part[chosen]) for part in parts]
            if all(labels) and len(set(labels)) == len(labels):
                return labels
    return [f"{path} ({number})" for number, path in enumerate(paths, start=1)]
