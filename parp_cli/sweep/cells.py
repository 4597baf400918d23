"""One cell of a sweep: run what is left of it, and read its results.

    <run>/rounds/<key>/   one training run, named by its content, whichever cells need it
        finetune.safetensors, finetune-last.safetensors, finetune.jsonl, finetune-finished.json, state/
        eval-<split>.jsonl, eval-<split>.json
        training.json     cost of the cell of this key, with the runs before, which may then be deleted
        failed.json       why the cell of this key failed
    <run>/cells/<sweep>/<name>    link to the folder of a finished cell
    <run>/features/       outputs of the frozen feature encoder

Workers, on this machine and on others, share nothing but this folder.
"""

import json
import os
import re
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


@dataclass(frozen=True, kw_only=True)
class Task:
    """A cell to run, in this process or in another one: it can be pickled.

    Attributes:
        run: the sweep's folder.
        device: its name in torch.
        threads: of the CPU; None leaves their number unchanged.
    """

    cell: Cell
    run: Path
    device: str
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a cell could not be finished: what its error said.

    Attributes:
        round: the key of the training run that failed, and fails all cells that need it; None if none was training.
    """

    round: str | None
    message: str
    exit_code: int
    details: tuple[str, ...] = ()
    hint: str | None = None


def run_task(task: Task, notify: Notify = silent) -> Failure | None:
    """Run what is left of a cell: training, which is resumed if it had begun, then the evaluation of each split.

    Returns:
        Its failure, which is recorded in its folder too; or None.

    Raises:
        Interrupted: by the user; another call resumes.
    """
    cell, folder = task.cell, round_folder(task.run, task.cell.key)
    device = torch.device(task.device)
    training: str | None = None

    def listen(step: Progress) -> None:
        nonlocal training
        if is_training(step):
            training = running_round(task.run, cell)
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
                evaluation = evaluate(
                    best,
                    out=out,
                    data=cell.recipe.data,
                    options=Options(splits=(split,)),
                    device=device,
                    notify=notify,
                )
                if (error := evaluation.error()) is not None:
                    evaluation.as_it_is.outputs.figures.unlink()  # rates of a part of the split cannot be compared
                    raise error
    except Interrupted:
        raise
    except (ParpError, MemoryError, RuntimeError) as error:
        if not isinstance(error, ParpError) and not is_out_of_memory(error):
            raise
        failure = _failure(training if training in unfinished_rounds(task.run, cell) else None, error)
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
        resume=state_path(folder).exists(),  # runs before the last one are resumed in any case
        rounds_folder=folder.parent,
        features_folder=task.run / FEATURES,
        notify=notify,
    )


def _forget_foreign_states(run: Path, cell: Cell) -> bool:
    """Remove states that can never be resumed: the run before was deleted, and made again with another result.

    Returns:
        Whether there was such a state.
    """
    removed = False
    for before, key in pairwise(cell.keys):
        state, last = state_path(round_folder(run, key)), round_folder(run, before) / LAST
        if state.exists() and last.exists():
            parents = [parent["sha256"] for parent in read_position(state)["parents"]]
            if checkpoint.file_hash(last) not in parents:
                state.unlink()
                removed = True
    return removed


def is_training(step: Progress) -> bool:
    """Whether a cell reports an update of a training run."""
    return step.kind == "training" and not step.is_line


def lost_worker(task: Task, message: str, *, details: Sequence[str] = (), hint: str | None = None) -> Failure:
    """Record for a cell that the process that ran it is gone."""
    exit_code = ResourceError.exit_code
    failure = Failure(round=None, message=message, exit_code=exit_code, details=tuple(details), hint=hint)
    record_failure(task.run, task.cell, failure)
    return failure


def tidy(run: Path) -> None:
    """Remove temporary files of killed processes from a sweep's folder, where nothing may be running."""
    for folder in (run, *run.glob(f"{ROUNDS}/*"), *run.glob(f"{ROUNDS}/*/{STATE}"), *run.glob(f"{FEATURES}/*")):
        forget_temporaries(folder)


def name_folders(run: Path, sweep: str, cells: Sequence[Cell]) -> None:
    """Make `<run>/cells/<sweep>/` hold links to the folders of cells that are done, and no others."""
    place = run / "cells" / sweep
    links = {
        re.sub(r"[^\w.=+-]+", "-", cell.name): os.path.relpath(round_folder(run, cell.key), place) for cell in cells
    }
    with suppress(OSError):  # some file systems have no links; results name the folders too
        place.mkdir(parents=True, exist_ok=True)
        for link in place.iterdir():
            if link.is_symlink() and links.get(link.name) != os.readlink(link):
                link.unlink()
        for name, target in links.items():
            if not (place / name).is_symlink():
                (place / name).symlink_to(target, target_is_directory=True)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A cell whose training is finished.

    Attributes:
        cost: of all its training runs.
        sparsity: exact; 0 for dense.
    """

    cost: Cost
    sparsity: float


def trained(run: Path, cell: Cell) -> Trained | None:
    """Cost and sparsity of a cell whose training is finished; None if it is not."""
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
    """Record cost and sparsity in a trained cell's folder, so that the runs before can be deleted."""
    path = _kept(round_folder(run, cell.key))
    what = trained(run, cell)
    if what is not None and not path.exists():
        write_text(path, json.dumps(asdict(what)) + "\n")


def updates_done(run: Path, cell: Cell) -> dict[str, int]:
    """By key, how many updates of each of a cell's training runs need not be done again for it."""
    if trained(run, cell) is not None:
        return {key: training.recipe.training.updates for training, key in zip(cell.rounds, cell.keys, strict=True)}
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
    """The keys of a cell's training runs that are needed and not finished, in order."""
    if trained(run, cell) is not None:
        return []
    return [key for key in cell.keys if finished_cost(round_folder(run, key)) is None]


def running_round(run: Path, cell: Cell) -> str:
    """The key of the training run that a cell is at: the first that is not finished, or the last one."""
    return (*unfinished_rounds(run, cell), cell.key)[0]


def read_failure(run: Path, cell: Cell) -> Failure | None:
    """The failure of the last attempt at a cell, if it failed."""
    if is_done(run, cell):  # after another attempt, and a kill before the file was removed
        return None
    values = _read_json(_failed(round_folder(run, cell.key)))
    return None if values is None else Failure(**{**values, "details": tuple(values["details"])})


def record_failure(run: Path, cell: Cell, failure: Failure) -> None:
    """Record the failure of a cell in its folder."""
    write_text(_failed(round_folder(run, cell.key)), json.dumps(asdict(failure)) + "\n")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One line of the results: a cell on a split. Unknown values are None.

    Attributes:
        values: by grid key, None where the recipe has null; without keys that make no difference to the cell.
        sparsity_target, sparsity: requested, and exact; 0 for dense.
        wer, cer, per: error rates; None for labels of the other kind.
        updates, audio_seconds, wall_seconds: of training, with all runs that found the mask.
        checkpoint: relative to the sweep's folder.
        failed: why there is no result; None if there is one, or if the cell was not run yet.
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
    """The results of a cell on each of its splits."""
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


def _failure(training: str | None, error: BaseException) -> Failure:
    if not isinstance(error, ParpError):
        first = (str(error).splitlines() or [""])[0]
        hint = "make training.micro_batch_seconds smaller"
        error = ResourceError("out of memory", details=[first] if first else [], hint=hint)
    return Failure(
        round=training,
        message=error.message,
        exit_code=error.exit_code,
        details=error.details,
        hint=error.hint,
    )


def _kept(folder: Path) -> Path:
    return folder / "training.json"


def _failed(folder: Path) -> Path:
    return folder / "failed.json"


def _figures(folder: Path, split: str) -> Path:
    return folder / f"eval-{split}.json"


def _saved_update(state: Path) -> int:
    if not state.exists():
        return 0
    try:
        return int(read_position(state)["update"])
    except CheckpointError:  # it was finished meanwhile, and the state is gone
        return 0


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
