"""One cell of a sweep: run what is left of it, and read its results.

    <run>/rounds/<key>/   one training run, named by its content, whichever cells need it
        finetune.safetensors, finetune-last.safetensors, finetune.jsonl, finetune-finished.json, state/
        eval-<split>.jsonl, eval-<split>.json, and eval-<split>.key, which names the content of the split
        training.json     cost of the cell of this key, with the runs before, which may then be deleted
        failed.json       why the cell of this key failed
    <run>/cells/<sweep>/<name>    link to the folder of a finished cell
    <run>/features/       outputs of the frozen feature encoder

Workers, on this machine and on others, share nothing but this folder.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from parp_cli.errors import CheckpointError, DataError, Interrupted, ParpError, ResourceError
from parp_cli.runtime.device import is_out_of_memory
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.stages.evaluate import Options, evaluate
from parp_cli.stages.finetune import finetune, finished_cost
from parp_cli.storage import checkpoint
from parp_cli.storage.atomic import is_text, require_writable, write_text
from parp_cli.storage.run_folder import BEST, FEATURES, round_folder, state_path
from parp_cli.sweep.grid import Cell
from parp_cli.training.plan import target_sparsity
from parp_cli.training.state import Cost, read_position


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


def run_cell(run: Path, cell: Cell, device: str, notify: Notify = silent) -> None:
    """Run what is left of a cell of the sweep in `run`: training, which is resumed if it had begun, then the evaluation
    of each split. A failure is recorded in its folder.

    Raises Interrupted: by the user; another call resumes.
    """
    folder, training = round_folder(run, cell.key), None
    if torch.device(device).index is not None:
        torch.cuda.set_device(device)

    def listen(step: Progress) -> None:
        nonlocal training
        if is_training(step):
            training = running_round(run, cell)
        notify(step)

    try:
        for split in cell.splits:
            require_writable(_metrics(folder, split), "--run")
        if trained(run, cell) is None:
            (folder / _TRAINED).unlink(missing_ok=True)
            finetune(
                cell.recipe,
                run=folder,
                device=torch.device(device),
                resume=state_path(folder).exists(),  # runs before the last one are resumed in any case
                rounds_folder=folder.parent,
                features_folder=run / FEATURES,
                notify=listen,
            )
        if (what := trained(run, cell)) is not None and not (folder / _TRAINED).exists():
            write_text(folder / _TRAINED, json.dumps({"cost": asdict(what[0]), "sparsity": what[1]}) + "\n")
        for split in cell.splits:
            if not _is_evaluated(run, cell, split):
                error = _evaluate(folder, cell, split, torch.device(device), notify)
                if error is not None:
                    _metrics(folder, split).unlink()  # rates of a part of the split cannot be compared
                    raise error
                write_text(_evaluated_key(folder, split), cell.split_keys.get(split, ""))
        (folder / _FAILED).unlink(missing_ok=True)
    except Interrupted:
        raise
    except (ParpError, MemoryError, RuntimeError) as error:
        if not isinstance(error, ParpError):
            if not is_out_of_memory(error):
                raise
            hint = "make training.micro_batch_seconds smaller"
            error = ResourceError("out of memory", details=str(error).splitlines()[:1], hint=hint)
        record_failure(run, cell, error, training if training in unfinished_rounds(run, cell) else None)


def _evaluate(folder: Path, cell: Cell, split: str, device: torch.device, notify: Notify) -> DataError | None:
    """Evaluate a cell's checkpoint on a split, and what to raise if some of it could not be."""
    out, data, options = folder / f"eval-{split}.jsonl", cell.recipe.data, Options(splits=(split,))
    return evaluate(folder / BEST, out=out, data=data, options=options, device=device, notify=notify).error()


def is_training(step: Progress) -> bool:
    """Whether a cell reports an update of a training run."""
    return step.kind == "training" and not step.is_line


def trained(run: Path, cell: Cell) -> tuple[Cost, float] | None:
    """Of a cell whose training is finished, the cost of all its training runs, and its exact sparsity (0 for dense)."""
    folder = round_folder(run, cell.key)
    if finished_cost(folder) is None:
        return None
    kept = _read_json(folder / _TRAINED)
    if kept is not None:
        return Cost(**kept["cost"]), kept["sparsity"]
    costs = [cost for key in cell.keys if (cost := finished_cost(round_folder(run, key))) is not None]
    if len(costs) < len(cell.keys):
        return None
    sparsity = checkpoint.read_metadata(folder / BEST).sparsity
    return sum(costs, Cost()), 0.0 if sparsity is None else sparsity.exact


def updates_done(run: Path, cell: Cell) -> dict[str, int]:
    """By key, how many updates of each of a cell's training runs need not be done again for it."""
    done, whole = {}, trained(run, cell) is not None
    for key, training in zip(cell.keys, cell.rounds, strict=True):
        folder = round_folder(run, key)
        done[key] = 0
        if whole or finished_cost(folder) is not None:
            done[key] = training.recipe.training.updates
        elif state_path(folder).exists():
            with suppress(CheckpointError):  # it was finished meanwhile, and the state is gone
                done[key] = int(read_position(state_path(folder))["update"])
    return done


def is_done(run: Path, cell: Cell) -> bool:
    """Whether nothing of a cell is left to do."""
    return trained(run, cell) is not None and all(_is_evaluated(run, cell, split) for split in cell.splits)


def _is_evaluated(run: Path, cell: Cell, split: str) -> bool:
    """Whether there is a result for a split as it is now."""
    folder = round_folder(run, cell.key)
    return _metrics(folder, split).exists() and is_text(_evaluated_key(folder, split), cell.split_keys.get(split, ""))


def evaluation_seconds(run: Path, cell: Cell) -> float | None:
    """What an evaluation of a finished cell took on average, by the times of its files; None if it is not done."""
    if not is_done(run, cell):
        return None
    folder = round_folder(run, cell.key)
    began = (folder / _TRAINED).stat().st_mtime
    ended = max(_evaluated_key(folder, split).stat().st_mtime for split in cell.splits)
    return (ended - began) / len(cell.splits)


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
    values = _read_json(round_folder(run, cell.key) / _FAILED)
    return None if values is None else Failure(**{**values, "details": tuple(values["details"])})


def record_failure(run: Path, cell: Cell, error: ParpError | Failure, training: str | None = None) -> None:
    """Record in a cell's folder why it failed; `training` is the key of the training run that did, if one did."""
    names = ("message", "exit_code", "details", "hint")
    values = {"round": training} | {name: getattr(error, name) for name in names}
    write_text(round_folder(run, cell.key) / _FAILED, json.dumps(values) + "\n")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One line of the results: a cell on a split. Unknown values are None.

    Attributes:
        values: by grid key, None where the recipe has null; without keys that make no difference to the cell.
        sparsity_target, sparsity: requested, and exact; 0 for dense.
        wer, cer, per: error rates; None for labels of the other kind, and for texts.
        languages: of the speech that it was trained on, () where none is named; of texts their task.
        part: the language of those utterances of the split that this is of; None for all of them.
        found_on: those that the first mask was found on, as the recipe names them; ().
        initial: the first mask, as in the recipe.
        metric, score: of texts, the one that decides, such as accuracy.
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
    metric: str | None = None
    score: float | None = None
    updates: int | None = None
    audio_seconds: float | None = None
    wall_seconds: float | None = None
    checkpoint: str | None = None
    values: Mapping[str, Any]
    languages: tuple[str, ...] = ()
    part: str | None = None
    found_on: tuple[str, ...] = ()
    initial: str | None = None
    failed: str | None = None

    @property
    def result(self) -> float | None:
        """The error rate of words, or of phones; of texts the score."""
        return next((value for value in (self.score, self.per, self.wer) if value is not None), None)


def outcomes(run: Path, cell: Cell) -> list[Outcome]:
    """The results of a cell on each of its splits, and on the utterances of each language where there are several."""
    folder = round_folder(run, cell.key)
    found_on = cell.recipe.pruning.found_on
    known: dict[str, Any] = {
        "cell": cell.name,
        "key": cell.key,
        "method": cell.recipe.pruning.method,
        "sparsity_target": target_sparsity(cell.recipe.pruning),
        "seed": cell.recipe.seed,
        "values": cell.values,
        "languages": cell.recipe.data.domain,
        "found_on": () if found_on is None else cell.recipe.data.on(found_on).domain,
        "initial": cell.recipe.pruning.initial,
    }
    if (training := trained(run, cell)) is not None:
        cost, known["sparsity"] = training
        known |= {"updates": cost.updates, "audio_seconds": cost.audio_seconds, "wall_seconds": cost.seconds}
        known["checkpoint"] = str((folder / BEST).relative_to(run))
    failure = read_failure(run, cell)
    rows = []
    for split in cell.splits:
        is_there = training is not None and _is_evaluated(run, cell, split)
        metrics = _read_json(_metrics(folder, split)) if is_there else None
        if metrics is None:
            rows.append(Outcome(**known, split=split, failed=None if failure is None else failure.message))
        else:
            if "metric" in metrics:
                score = metrics["metrics"][metrics["metric"]]["value"]
                rows.append(Outcome(**known, split=split, metric=metrics["metric"], score=score))
                continue
            kinds = {"wer": "words", "cer": "characters", "per": "phones"}
            rates = {name: rate and rate["rate"] for name, kind in kinds.items() for rate in [metrics[kind]]}
            rows.append(Outcome(**known, split=split, **rates))
            parts = metrics["report"]["by_language"]
            main = "per" if metrics["phones"] else "wer"
            for each in parts if len(parts) > 1 else ():
                rows.append(Outcome(**known, split=split, part=each["name"], **{main: each["errors"]["rate"]}))
    return rows


_TRAINED, _FAILED = "training.json", "failed.json"


def _metrics(folder: Path, split: str) -> Path:
    return folder / f"eval-{split}.json"


def _evaluated_key(folder: Path, split: str) -> Path:
    return folder / f"eval-{split}.key"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
