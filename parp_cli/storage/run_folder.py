"""The run folder: where stages leave their files and look for the newest one. Every name in it is written here, once.

mask.safetensors           after `parp mask`
pretrain.safetensors       after `parp pretrain`
finetune.safetensors       the best checkpoint of `parp finetune` on the validation split
finetune-last.safetensors  the checkpoint after the last update
finetune.jsonl             the log
finetune-finished.json     what the run recorded when it finished
reprune.safetensors        after `parp reprune`
small.safetensors          after `parp export --to small`; other targets leave export-hf/ and the like
state/                     what an interrupted run needs to resume
rounds/                    the runs that found a method's mask, each a folder like this one
features/                  features of a frozen feature encoder, which the cells of a sweep share
.lock                      held while a run trains here
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from parp_cli.errors import CheckpointError
from parp_cli.storage.atomic import forget_temporaries, numbered, set_aside, write_error
from parp_cli.storage.checkpoint import Metadata, read_metadata

_LAST = "-last.safetensors"

MASK, PRETRAINED, REPRUNED = "mask.safetensors", "pretrain.safetensors", "reprune.safetensors"
"""What `parp mask`, `parp pretrain` and `parp reprune` write."""

BEST, LAST = "finetune.safetensors", f"finetune{_LAST}"
"""Checkpoints of `parp finetune`: the best one on the validation split, and the one after the last update."""

JOURNAL, FINISHED = "finetune.jsonl", "finetune-finished.json"
"""The log of a run, and what it recorded when it finished."""

EXPORTS = {
    "hf": "export-hf",
    "torchaudio": "export-torchaudio.pt",
    "small": "small.safetensors",
    "packed": "packed.safetensors",
    "mask": "exported-mask.safetensors",
    "sparse": "sparse.safetensors",
    "sparse-int8": "sparse-int8.safetensors",
    "onnx": "model.onnx",
    "onnx-int8": "model-int8.onnx",
    "sherpa": "export-sherpa",
    "sherpa-int8": "export-sherpa-int8",
    "gguf": "model.gguf",
    "gguf-int8": "model-int8.gguf",
}
"""What `parp export` writes, by target."""

STATE, ROUNDS, FEATURES = "state", "rounds", "features"
"""Folders: of interrupted runs, of the runs that found a mask, and of cached features."""


def state_path(run: Path) -> Path:
    """The state that an interrupted run resumes from."""
    return run / STATE / BEST


def round_folder(run: Path, key: str) -> Path:
    """The folder of one of the runs that found a mask, by its key (a hash of its content)."""
    return run / ROUNDS / key


def last_beside(best: Path) -> Path:
    """The path of the checkpoint after the last update, next to that of the best one."""
    return best.with_name(best.stem + _LAST)


def finished(run: Path, best: Path | None = None) -> dict[str, Any] | None:
    """What the run in this folder recorded when it finished; None if none did, or its checkpoints are gone. `best` is
    the path of its best checkpoint, where that is outside the folder."""
    best = best or run / BEST
    if not all(path.exists() for path in (best, last_beside(best), run / FINISHED)):
        return None
    record: dict[str, Any] = json.loads((run / FINISHED).read_text(encoding="utf-8"))
    return record


def set_run_aside(run: Path, paths: Iterable[Path]) -> list[Path]:
    """Move those of a run's files and folders that exist out of the way of another run: into a new folder `run~1`
    beside the run folder, or where they lie elsewhere under new names beside themselves.

    Returns the new folder and names, in which nothing is lost. Raises as `write_error`: they cannot be moved.
    """
    run = run.absolute()
    folder, kept = numbered(run), dict[Path, None]()
    for path in filter(Path.exists, map(Path.absolute, paths)):
        if not path.is_relative_to(run):
            kept |= dict.fromkeys(set_aside(path))
            continue
        try:
            place = folder / path.relative_to(run)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
        except OSError as error:
            raise write_error(folder, error, "--run") from error
        kept[folder] = None
    return list(kept)


def tidy(run: Path, best: Path | None = None) -> None:
    """Remove what killed runs left behind, where none may be running: half-written files, and the state of a run that
    had just finished; `best` as of `finished`."""
    best = best or run / BEST
    for path in (best, last_beside(best), state_path(run), run / JOURNAL, run / FINISHED):
        forget_temporaries(path.parent, path.name)
    forget_temporaries(run / STATE)  # where nothing else writes
    if finished(run, best) is not None:
        state_path(run).unlink(missing_ok=True)


def newest_checkpoint(run: Path, *, but_not_by: Collection[str] = ()) -> Path | None:
    """The checkpoint in the run folder that was written last, but not by these stages; or None.

    Raises CheckpointError: a file there is damaged or was not written by parp.
    """
    files = [path for path in run.glob("*.safetensors") if not path.name.endswith(_LAST)]
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if path.name == EXPORTS["mask"]:  # without weights
            continue
        if not but_not_by or read_metadata(path).stage not in but_not_by:
            return path
    return None


def checkpoint_or_newest(named: Path | None, run: Path) -> Path:
    """The named checkpoint, by default the newest of the run folder; a CheckpointError if there is none."""
    path = named or newest_checkpoint(run)
    if path is None:
        raise CheckpointError(
            f"no checkpoint in run folder {run}",
            hint="make one with `parp mask` and `parp finetune`, name one, or name its folder with --run",
        )
    return path


def require_head(path: Path, metadata: Metadata) -> Mapping[str, Any]:
    """What the output head of a checkpoint was trained for; raises a CheckpointError where it has none."""
    if metadata.task is None:
        raise CheckpointError(
            f"{path} has no output head (stage {metadata.stage})",
            hint="fine-tune it first: `parp finetune recipe.yaml`",
        )
    return metadata.task


def shortest_labels(paths: Sequence[Path]) -> list[str]:
    """A short unique label per file: its stem, its folder, or as much of the path as tells it from the others."""
    parts = [(*path.absolute().parent.parts[1:], path.stem) for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        for chosen in (slice(-depth, -depth + 1 or None), slice(-depth, None)):
            labels = ["/".join(part[chosen]) for part in parts]
            if all(labels) and len(set(labels)) == len(labels):
                return labels
    return [f"{path} ({number})" for number, path in enumerate(paths, start=1)]
