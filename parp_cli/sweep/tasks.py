"""One cell of a sweep: run what is left of it, and read what it came to.

    <run>/rounds/<key>/   one training run, named by its content: of a cell, or one that several cells need
        finetune.safetensors, finetune-last.safetensors, finetune.jsonl, finetune-finished.json, state/
        eval-<split>.jsonl, eval-<split>.json
        training.json     what training the cell of this key took, with the runs before, which may then be deleted
        failed.json       why the cell of this key could not be finished
        progress.json     how far a worker elsewhere is with the cell of this key
    <run>/cells/<sweep>/<name>    leads to a finished cell's folder
    <run>/features/       what the frozen front end makes of each sound

Workers, here and on other machines, share nothing but this folder.
"""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from parp_cli.errors import CheckpointError, Interrupted, ParpError, ResourceError
from parp_cli.runtime.device import is_out_of_memory
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.stages.evaluate import Options, evaluate
from parp_cli.stages.finetune import finetune, finished_cost
from parp_cli.storage import checkpoint
from parp_cli.storage.atomic import forget_temporaries, write_text
from parp_cli.storage.run_folder import BEST, FEATURES, LAST, ROUNDS, STATE, round_folder, state_path
from parp_cli.sweep.grid import Cell
from parp_cli.training.plan import target_sparsity
from parp_cli.training.records import Cost
from parp_cli.training.state import read_position

_TELL_SECONDS = 2.0
"""Between two words from a worker elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A cell to run, wherever: all of it can be sent to another process.

    Attributes:
        run: the sweep's folder.
        device: as torch names it.
        threads: of the CPU; None leaves them as they are.
    """

    cell: Cell
    run: Path
    device: str
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a cell could not be finished, as the error said it.

    Attributes:
        round: the training run that broke off, which no other cell can have then; None if none was training.
    """

    round: str | None
    message: str
    exit_code: int
    details: tuple[str, ...] = ()
    hint: str | None = None


def run_task(task: Task, notify: Notify = silent) -> Failure | None:
    """Run what is left of a cell: training, then the judgement of each split. What was begun goes on.

    Returns:
        Why it could not be finished, which is in its folder too; or None.

    Raises:
        Interrupted: by the user; everything goes on from here another time.
    """
    cell, folder = task.cell, round_folder(task.run, task.cell.key)
    device = torch.device(task.device)
    heard: str | None = None

    def listen(step: Progress) -> None:
        nonlocal heard
        if is_training(step):
            heard = running_round(task.run, cell)
        notify(step)

    if task.threads is not None:
        torch.set_num_threads(task.threads)
    if device.index is not None:
        torch.cuda.set_device(device)
    try:
        if trained(task.run, cell) is None:
            try:
                _train(task, listen)
            except CheckpointError:
                if not _forget_foreign_states(task.run, cell):
                    raise
                _train(task, listen)
        for split in cell.splits:
            if _read_json(_figures(folder, split)) is None:
                best, out = folder / BEST, folder / f"eval-{split}.jsonl"
                judged = evaluate(
                    best,
                    out=out,
                    data=cell.recipe.data,
                    options=Options(splits=(split,)),
                    device=device,
                    notify=notify,
                )
                if (error := judged.error()) is not None:
                    judged.as_it_is.outputs.figures.unlink()  # of a part of the split, they are not to be compared
                    raise error
    except Interrupted:
        raise
    except (ParpError, MemoryError, RuntimeError) as error:
        if not isinstance(error, ParpError) and not is_out_of_memory(error):
            raise
        failure = _failure(heard if heard in unfinished_rounds(task.run, cell) else None, error)
        record_failure(task.run, cell, failure)
        return failure
    _failed(folder).unlink(missing_ok=True)
    return None


def _train(task: Task, notify: Notify) -> None:
    folder = round_folder(task.run, task.cell.key)
    _kept(folder).unlink(missing_ok=True)
    finetune(
        task.cell.recipe,
        run=folder,
        device=torch.device(task.device),
        resume=state_path(folder).exists(),  # runs before the last one go on by themselves
        rounds_folder=folder.parent,
        features_folder=task.run / FEATURES,
        notify=notify,
    )


def _forget_foreign_states(run: Path, cell: Cell) -> bool:
    """Remove states that training refuses for ever, since the run before was deleted and then came out otherwise.

    Returns:
        Whether there was one.
    """
    found = False
    for before, key in pairwise(cell.keys):
        state, last = state_path(round_folder(run, key)), round_folder(run, before) / LAST
        if state.exists() and last.exists():
            parents = [parent["sha256"] for parent in read_position(state)["parents"]]
            if checkpoint.file_hash(last) not in parents:
                state.unlink()
                found = True
    return found


def is_training(step: Progress) -> bool:
    """Whether a cell tells that an update is done."""
    return step.kind == "training" and not step.is_line


def run_remote_task(task: Task) -> Failure | None:
    """`run_task` for another process: now and then it leaves in the cell's folder how far it is."""
    path = _progress(round_folder(task.run, task.cell.key))
    path.unlink(missing_ok=True)  # of one that was killed
    told = 0.0

    def notify(step: Progress) -> None:
        nonlocal told
        if is_training(step) and time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            write_text(path, json.dumps({"round": running_round(task.run, task.cell), "update": step.done}) + "\n")

    try:
        return run_task(task, notify)
    finally:
        path.unlink(missing_ok=True)


def lost_worker(task: Task, message: str, *, details: Sequence[str] = (), hint: str | None = None) -> Failure:
    """Note for a cell that what ran it elsewhere is gone."""
    told = remote_progress(task.run, task.cell)
    failure = Failure(
        round=told[0] if told is not None and told[0] in unfinished_rounds(task.run, task.cell) else None,
        message=message,
        exit_code=ResourceError.exit_code,
        details=tuple(details),
        hint=hint,
    )
    record_failure(task.run, task.cell, failure)
    return failure


def remote_progress(run: Path, cell: Cell) -> tuple[str, int] | None:
    """The training run that a worker elsewhere is at, and the update there, if it has told."""
    told = _read_json(_progress(round_folder(run, cell.key)))
    return None if told is None else (told["round"], told["update"])


def tidy(run: Path) -> None:
    """Remove what killed processes were writing in a sweep's folder. Nothing may be running there."""
    for folder in (run, *run.glob(f"{ROUNDS}/*"), *run.glob(f"{ROUNDS}/*/{STATE}"), *run.glob(f"{FEATURES}/*")):
        forget_temporaries(folder)


def name_folders(run: Path, sweep: str, cells: Sequence[Cell]) -> None:
    """Let `<run>/cells/<sweep>/<name>` lead to each of some cells' folders, which have keys for names, and to no other.

    Args:
        run: the sweep's folder.
        sweep: its name.
        cells: that are done.
    """
    place = run / "cells" / sweep
    links = {
        re.sub(r"[^\w.=+-]+", "-", cell.name): os.path.relpath(round_folder(run, cell.key), place) for cell in cells
    }
    with suppress(OSError):  # some file systems have no links, and results name the folder too
        place.mkdir(parents=True, exist_ok=True)
        for link in place.iterdir():
            if link.is_symlink() and links.get(link.name) != os.readlink(link):
                link.unlink()
        for name, target in links.items():
            if not (place / name).is_symlink():
                (place / name).symlink_to(target, target_is_directory=True)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What the training of a cell came to.

    Attributes:
        cost: of all its training runs.
        sparsity: exact; 0 for dense.
    """

    cost: Cost
    sparsity: float


def trained(run: Path, cell: Cell) -> Trained | None:
    """What the training of a cell came to; None where it has not come to its end."""
    folder = round_folder(run, cell.key)
    if finished_cost(folder) is None:
        return None
    kept = _read_json(_kept(folder))
    if kept is not None:
        return Trained(cost=Cost(**kept["cost"]), sparsity=kept["sparsity"])
    costs = [cost for key in cell.keys if (cost := finished_cost(round_folder(run, key))) is not None]
    if len(costs) < len(cell.keys):
        return None
    measured = checkpoint.read_metadata(folder / BEST).sparsity
    return Trained(cost=sum(costs, Cost()), sparsity=0.0 if measured is None else measured.exact)


def keep_training(run: Path, cell: Cell) -> None:
    """Write down in a trained cell's folder what its training came to, so that the runs before can be deleted."""
    path = _kept(round_folder(run, cell.key))
    what = trained(run, cell)
    if what is not None and not path.exists():
        write_text(path, json.dumps(asdict(what)) + "\n")


def updates_done(run: Path, cell: Cell) -> dict[str, int]:
    """Updates of each of a cell's training runs that need not be done again for it, by key."""
    if trained(run, cell) is not None:
        return {key: this.recipe.training.updates for this, key in zip(cell.rounds, cell.keys, strict=True)}
    done = {}
    for key in cell.keys:
        folder = round_folder(run, key)
        cost = finished_cost(folder)
        done[key] = cost.updates if cost is not None else _saved_update(state_path(folder))
    return done


def is_done(run: Path, cell: Cell) -> bool:
    """Whether nothing of a cell is left to do."""
    folder = round_folder(run, cell.key)
    return trained(run, cell) is not None and all(_read_json(_figures(folder, split)) for split in cell.splits)


def unfinished_rounds(run: Path, cell: Cell) -> list[str]:
    """The keys of a cell's training runs that have not come to their end and are needed, in order."""
    if trained(run, cell) is not None:
        return []
    return [key for key in cell.keys if finished_cost(round_folder(run, key)) is None]


def running_round(run: Path, cell: Cell) -> str:
    """The key of the training run a cell is at: the first that has not come to its end, or the last one."""
    return (*unfinished_rounds(run, cell), cell.key)[0]


def read_failure(run: Path, cell: Cell) -> Failure | None:
    """Why the last attempt at a cell failed, if it did."""
    if is_done(run, cell):  # after another attempt, and a kill before the file was removed
        return None
    values = _read_json(_failed(round_folder(run, cell.key)))
    return None if values is None else Failure(**{**values, "details": tuple(values["details"])})


def record_failure(run: Path, cell: Cell, failure: Failure) -> None:
    """Note for a cell why it could not be finished."""
    write_text(_failed(round_folder(run, cell.key)), json.dumps(asdict(failure)) + "\n")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One line of the results: a cell on a split. What is not known (yet) is None.

    Attributes:
        values: of the grid's keys, None where the recipe has null; a key that makes no difference to the cell is
            not there.
        sparsity_target, sparsity: asked for, and exact; 0 for dense.
        wer, cer, per: error rates; None where labels are of the other kind.
        updates, audio_seconds, wall_seconds: of training, with all runs that found the mask.
        checkpoint: relative to the sweep's folder.
        failed: why there is no result; None where there is one, or the cell was not run yet.
    """

    cell: str
    key: str
    method: str
    sparsity_target: float
    sparsity: float | None = None
    seed: int
    split: str
    wer: float | None = None
    cer: float | None = None
    per: float | None = None
    updates: int | None = None
    audio_seconds: float | None = None
    wall_seconds: float | None = None
    checkpoint: str | None = None
    values: Mapping[str, Any]
    failed: str | None = None

    @property
    def error_rate(self) -> float | None:
        """Of words, or of phones."""
        return self.wer if self.per is None else self.per


def outcomes(run: Path, cell: Cell) -> list[Outcome]:
    """What a cell came to, on each of its splits."""
    pruning = cell.recipe.pruning
    target = target_sparsity(pruning)
    known: dict[str, Any] = {
        "cell": cell.name,
        "key": cell.key,
        "method": pruning.method,
        "sparsity_target": target,
        "seed": cell.recipe.seed,
        "values": cell.values,
    }
    folder = round_folder(run, cell.key)
    failure = read_failure(run, cell)
    why = None if failure is None else failure.message
    training = trained(run, cell)
    if training is None:
        return [Outcome(**known, split=split, failed=why) for split in cell.splits]
    known |= {
        "sparsity": training.sparsity,
        "updates": training.cost.updates,
        "audio_seconds": training.cost.audio_seconds,
        "wall_seconds": training.cost.seconds,
        "checkpoint": str((folder / BEST).relative_to(run)),
    }
    rows = []
    for split in cell.splits:
        figures = _read_json(_figures(folder, split))
        if figures is None:
            rows.append(Outcome(**known, split=split, failed=why))
            continue
        rates = {"wer": figures["words"], "cer": figures["characters"], "per": figures["phones"]}
        rows.append(Outcome(**known, split=split, **{name: rate and rate["rate"] for name, rate in rates.items()}))
    return rows


def _failure(broken_off: str | None, error: BaseException) -> Failure:
    if not isinstance(error, ParpError):
        first = (str(error).splitlines() or [""])[0]
        hint = "make training.micro_batch_seconds smaller"
        error = ResourceError("out of memory", details=[first] if first else [], hint=hint)
    return Failure(
        round=broken_off,
        message=error.message,
        exit_code=error.exit_code,
        details=error.details,
        hint=error.hint,
    )


def _kept(folder: Path) -> Path:
    return folder / "training.json"


def _failed(folder: Path) -> Path:
    return folder / "failed.json"


def _progress(folder: Path) -> Path:
    return folder / "progress.json"


def _figures(folder: Path, split: str) -> Path:
    return folder / f"eval-{split}.json"


def _saved_update(state: Path) -> int:
    if not state.exists():
        return 0
    try:
        return int(read_position(state)["update"])
    except CheckpointError:  # it was just finished, and the state is gone
        return 0


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
