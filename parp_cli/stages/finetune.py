"""Adjust and re-prune: fine-tune a pruned encoder with CTC while its mask may change (PARP, steps 2 and 3)."""

import gc
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from parp_cli.config.finetune import Recipe
from parp_cli.pruning.pruner import Repruning
from parp_cli.runtime.device import deterministic_algorithms, tensor_cores, with_resolved_precision
from parp_cli.runtime.interrupts import Stop, stopping
from parp_cli.runtime.processes import SINGLE, World
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Sparsity
from parp_cli.storage.lock import only_one
from parp_cli.storage.run_folder import LAST, ROUNDS, finished, state_path, tidy
from parp_cli.training import preparation as preparing
from parp_cli.training.journal import require_tensorboard
from parp_cli.training.keys import round_key, start_key
from parp_cli.training.plan import round_start, rounds_of
from parp_cli.training.preparation import Plan, prepare, prepare_round
from parp_cli.training.records import Cost, Validation
from parp_cli.training.run import TrainingRun

_WHAT = "fine-tuning"


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What `parp finetune` wrote and how it went.

    Attributes:
        path: the best checkpoint on the validation split, pruned as evaluated.
        last: the one after the last update.
        best: the validation that chose `path`.
        reprunings: in order, the last one at the end of the run.
        skipped: why each utterance that was left out cannot be trained on.
        skipped_updates: of the run proper, since their loss or gradient was not finite.
        cost: of the method in all, with the runs that found its mask, wherever they were made.
        own_cost: of the run proper alone.
    """

    path: Path
    last: Path
    sha256: str
    best: Validation
    validations: tuple[Validation, ...]
    reprunings: tuple[Repruning, ...]
    sparsity: Sparsity | None
    plan: Plan
    skipped: tuple[str, ...]
    skipped_updates: int
    cost: Cost
    own_cost: Cost


def plan(recipe: Recipe, *, init: Path | None = None, notify: Notify = silent) -> Plan:
    """What `finetune` would do, without training."""
    recipe = rounds_of(recipe, init)[-1].recipe
    return preparing.plan(recipe, prepare(recipe, init, notify))


def finetune(
    recipe: Recipe,
    *,
    run: Path,
    init: Path | None = None,
    out: Path | None = None,
    device: torch.device | None = None,
    resume: bool = False,
    rounds_folder: Path | None = None,
    features_folder: Path | None = None,
    tensorboard: bool = False,
    world: World = SINGLE,
    notify: Notify = silent,
) -> FinetuneResult:
    """Fine-tune as the recipe says.

    Args:
        recipe: the whole run.
        run: the run folder, for the state that `resume` needs, the log, and results without `out`.
        init: the checkpoint to begin from; None for the recipe's model, which is then pruned first.
        out: where the best checkpoint goes; the last one goes beside it.
        device: by default the CPU.
        resume: go on from what the run folder holds: nothing, the state of a stopped run, or a finished one.
        rounds_folder: where the runs are kept that find a method's mask (`training.plan`), each in a folder named
            by its content; finished ones are not run again. By default in the run folder.
        features_folder: where front-end features are kept between runs; by default they are not.
        tensorboard: log to the folder `tensorboard` of each run folder too.
        world: that train together, on machines that all see the run folder. Each calls with the same; the first
            writes and notifies, and all return the same.

    Raises:
        CheckpointError, DataError, UsageError: as `training.preparation.prepare`; or the state is of another run; or
            another process is training in the run folder.
        Interrupted: by the user; the state is saved.
        ResourceError: the disk is full, and the last files written are whole; or memory does not suffice.
    """
    if tensorboard:
        require_tensorboard()
    device = device or torch.device("cpu")
    recipe = replace(recipe, training=with_resolved_precision(recipe.training, device))
    rounds = rounds_of(recipe, init)
    recipe = rounds[-1].recipe
    with world.main_first():
        whole = prepare(recipe, init, notify)
    start = start_key(recipe, init, device=device)
    folders = [(rounds_folder or run / ROUNDS) / round_key(rounds[:count], start) for count in range(1, len(rounds))]
    if resume and not any(folder.exists() for folder in (*folders, state_path(run))) and finished(run, out) is None:
        notify(Progress("fine-tuning", 0, 1, warning=f"nothing to resume in {run}: beginning"))

    def held(folder: Path) -> AbstractContextManager[None]:
        return only_one(folder, _WHAT) if world.is_main else nullcontext()

    before: Path | None = None
    cost = own = Cost()
    computing = tensor_cores(recipe.training.precision)
    with computing, deterministic_algorithms(recipe.training.deterministic), held(run), stopping() as stop:
        for this, folder in zip(rounds, (*folders, run), strict=True):
            last = folder == run
            found = None if last else _agreed_cost(world, folder)
            if found is None:
                with nullcontext() if last else held(folder):
                    if world.is_main:
                        tidy(folder, out if last else None)
                    begins = whole
                    if len(rounds) > 1:
                        begins = prepare_round(whole, this, round_start(whole.start, this, before))
                    training = TrainingRun(
                        this,
                        begins,
                        run=folder,
                        out=out if last else None,
                        device=device,
                        features_folder=features_folder,
                        tensorboard=(folder / "tensorboard") if tensorboard else None,
                        world=world,
                        notify=notify,
                    )
                    # Rounds are named by their content, so that a state there can only be of the same run.
                    goes_on = world.from_main((resume or not last) and state_path(folder).exists())
                    noted = world.from_main(finished(folder, out) if last and resume else None)
                    _run(training, noted, goes_on, stop)
                    found = _agreed_cost(world, folder, out if last else None) or training.cost
                if not last:
                    del training
                    gc.collect()  # models are part of reference cycles, and the next run needs their memory
            elif world.is_main:
                tidy(folder)
            before, own = folder / LAST, found
            cost += own
    written = checkpoint.read_metadata(training.best_path)
    return FinetuneResult(
        path=training.best_path,
        last=training.last_path,
        sha256=checkpoint.file_hash(training.best_path),
        best=training.best,
        validations=tuple(training.validations),
        reprunings=tuple(training.reprunings),
        sparsity=written.sparsity,
        plan=preparing.plan(recipe, whole),
        skipped=tuple(problem.message for problem in whole.skipped),
        skipped_updates=training.skipped_updates,
        cost=cost,
        own_cost=own,
    )


def _run(training: TrainingRun, noted: Mapping[str, Any] | None, goes_on: bool, stop: Stop) -> None:
    """Do what is left of a training run: nothing where its end was noted."""
    if noted is not None:
        training.recall(noted)
        return
    if goes_on:
        training.resume()
    else:
        training.begin()
    training.train(stop)


def finished_cost(run: Path, best: Path | None = None) -> Cost | None:
    """What the training run in a folder took; None where it has not come to its end.

    Args:
        run: the run folder.
        best: where its best checkpoint went, if elsewhere.
    """
    noted = finished(run, best)
    return None if noted is None else Cost(**noted["cost"])


def _agreed_cost(world: World, run: Path, best: Path | None = None) -> Cost | None:
    """As `finished_cost`, seen by the first process: what one sees the others may not see yet."""
    noted = world.from_main(finished(run, best))
    return None if noted is None else Cost(**noted["cost"])
