"""Adjust and re-prune: fine-tune a pruned encoder while its mask may change (PARP, steps 2 and 3)."""

import gc
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from parp_cli.config.finetune import AnyRecipe
from parp_cli.config.load import recipe_to_dict
from parp_cli.models.network import outputs_of
from parp_cli.models.recognizer import rebuild
from parp_cli.pruning.methods import Settings
from parp_cli.pruning.pruner import Repruning
from parp_cli.runtime.device import deterministic_algorithms, tensor_cores, versions, with_resolved_precision
from parp_cli.runtime.interrupts import Stop, stopping
from parp_cli.runtime.processes import SINGLE, World
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage import checkpoint
from parp_cli.storage.atomic import require_writable
from parp_cli.storage.checkpoint import Metadata, Sparsity
from parp_cli.storage.lock import only_one
from parp_cli.storage.run_folder import (
    BEST,
    FEATURES,
    FINISHED,
    JOURNAL,
    LAST,
    ROUNDS,
    finished,
    last_beside,
    state_path,
    tidy,
)
from parp_cli.tasks.task import RecipeTask, Validation, task_class
from parp_cli.training.journal import require_tensorboard
from parp_cli.training.keys import round_key, start_key, trained_on
from parp_cli.training.masks import calibration_examples, cannot_come_back, check_start, first_masks, pruner
from parp_cli.training.optimizer import learning_rate_schedule
from parp_cli.training.plan import (
    Round,
    Start,
    check_same_layers,
    check_teacher,
    read_start,
    rewound,
    round_start,
    rounds_of,
    schedule_of,
    settings_of,
    teacher_file,
)
from parp_cli.training.run import TrainingRun
from parp_cli.training.setup import RunSetup
from parp_cli.training.state import Cost, RunFiles


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run in numbers, as `--dry-run` shows it. Sizes are in the unit of the task's items; the interval is in updates.

    The rounds are the training runs of the method, with their updates; `updates` is of the last one, and the
    re-prunings are those of all.
    """

    start: str
    architecture: str
    method: str
    sparsity: float
    start_sparsity: float
    rounds: tuple[tuple[str, int], ...]
    item_name: str
    size_unit: str
    outputs: int
    train_items: int
    train_size: float
    valid_items: int
    valid_size: float
    skipped: int
    updates: int
    size_per_update: float
    micro_batches_per_update: int
    epochs: float
    repruning_interval: int
    reprunings: int


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A run that can begin: what it begins from, what is pruned and when, and the task with its data."""

    start: Start
    settings: Settings
    task: RecipeTask[Any]


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What `parp finetune` wrote and how it went.

    Attributes:
        path, best: the best checkpoint on the validation split, pruned as evaluated, and the validation that chose it.
        last: the one after the last update.
        skipped: why each item that was left out cannot be trained on.
        shown: metrics of validations that people read, by their short names.
        skipped_updates: of the run proper, without a finite loss or gradient.
        cost: of the method in all, with the runs that found its mask, wherever they were made.
        own_cost: of the run proper alone.
        advice: what to do where it has learned nothing; None where it has.
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
    shown: Mapping[str, str]
    skipped_updates: int
    cost: Cost
    own_cost: Cost
    advice: str | None


def plan(recipe: AnyRecipe, *, init: Path | None = None, notify: Notify = silent) -> Plan:
    """What `finetune` would do, without training."""
    rounds = rounds_of(recipe, init)
    return plan_of(rounds, prepare(rounds[-1].recipe, init, notify))


def prepare(recipe: AnyRecipe, init: Path | None, notify: Notify) -> Preparation:
    """Read what a settled recipe's run begins from (`init`, or its model) and its data; check that they go together.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is not of the recipe's model.
        UsageError: its mask has another sparsity than the recipe asks for, or does not suit the recipe's method.
        DataError: the data is missing, or holds utterances that cannot be trained on.
    """
    start = read_start(recipe, init, notify)
    if recipe.pruning.rewind is not None:
        rewound(start, Path(recipe.pruning.rewind))  # what is wrong with it is said now, not after the first run
    check_start(recipe, start)
    task = task_class(recipe.task).load(recipe, start.architecture, start.weights, start.task, notify)
    if (teacher := teacher_file(recipe)) is not None:
        check_teacher(teacher, task)
    return Preparation(start=start, settings=settings_of(recipe, start, task), task=task)


def _prepare_teacher(whole: Preparation, each: Round, notify: Notify) -> Preparation:
    """The dense run that makes a teacher: from the recipe's model, whatever the others begin from; the same data."""
    start = read_start(each.recipe, None, notify)
    check_start(each.recipe, start)
    check_same_layers(start.source, start.architecture, whole.start.architecture)
    task = replace(whole.task, recipe=each.recipe, architecture=start.architecture)
    return Preparation(start=start, settings=settings_of(each.recipe, start, task), task=task)


def _prepare_round(
    whole: Preparation, each: Round, before: Path | None, teacher: Path | None, notify: Notify
) -> Preparation:
    """One of the training runs of a method: its own pruning and length, start and teacher, and perhaps other data."""
    start, task = round_start(whole.start, each, before), replace(whole.task, recipe=each.recipe)
    if each.recipe.data != whole.task.recipe.data:
        loaded = type(task).load(each.recipe, start.architecture, start.weights, start.task, notify)
        task = replace(loaded, shared=whole.task.shared)
    if each.recipe.distil.teacher is not None and (path := teacher_file(each.recipe) or teacher) is not None:
        check_teacher(path, task)
        content = checkpoint.read(path)
        # Without kernels, which are for one device: it goes where the run goes.
        _, network = rebuild(replace(content, kernels={}), torch.device("cpu"), source=str(path))
        parents = (*start.parents, *checkpoint.lineage(path, content.metadata))
        task, start = replace(task, teacher=network), replace(start, parents=tuple(dict.fromkeys(parents)))
    return Preparation(start=start, settings=settings_of(each.recipe, start, task), task=task)


def _data_key(task: RecipeTask[Any], each: Round, notify: Notify) -> str:
    """The name of the content of a training run's data, which the task has read unless it is other data."""
    data = each.recipe.data
    return task.own_data_key(notify) if data == task.recipe.data else task.data_key(data, notify)


def plan_of(rounds: Sequence[Round], preparation: Preparation) -> Plan:
    """The training runs of a method in numbers, the last one's recipe settled."""
    recipe, task, settings = rounds[-1].recipe, preparation.task, preparation.settings
    training, batches = recipe.training, task.batches()
    size, train_size = batches.mean_size(training.updates), sum(map(task.size, task.train))
    schedules = [schedule_of(each.recipe, replace(task, recipe=each.recipe)) for each in rounds]
    return Plan(
        start=preparation.start.source,
        architecture=preparation.start.architecture.name,
        method=recipe.pruning.method,
        sparsity=settings.sparsity,
        start_sparsity=settings.sparsity_at_start,
        rounds=tuple((each.name, each.recipe.training.updates) for each in rounds),
        item_name=task.item_name,
        size_unit=task.size_unit,
        outputs=outputs_of(task.describe()) or 0,
        train_items=len(task.train),
        train_size=train_size,
        valid_items=len(task.valid),
        valid_size=sum(map(task.size, task.valid)),
        skipped=len(task.left_out()),
        updates=training.updates,
        size_per_update=size,
        micro_batches_per_update=len(task.grouped(batches.take(), training.pass_size)),
        epochs=training.updates * size / train_size,
        repruning_interval=settings.schedule.interval,
        reprunings=sum(len(schedule.times) for schedule in schedules),
    )


def finetune(
    recipe: AnyRecipe,
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
        run: the run folder, for the state that `resume` needs, the log, and results without `out`.
        init: the checkpoint to begin from; None for the recipe's model, which is then pruned first.
        out: where the best checkpoint goes; the last one goes beside it.
        resume: go on from what the run folder holds: nothing, the state of a stopped run, or a finished one.
        rounds_folder: where the runs are kept that find a method's mask (`training.plan`), each in a folder named
            by its content; finished ones are not run again. By default in the run folder.
        features_folder: for what runs on the same data can share, such as features of a frozen part of the network; by
            default nothing is.
        tensorboard: log to the folder `tensorboard` of each run folder too.
        world: processes that train together, on machines that all see the run folder. Each calls with the same; the
            main one writes and notifies, and all return the same.

    Raises:
        CheckpointError, DataError, UsageError: as `prepare`; or the state is of another run, or another process is
            training in the run folder.
        Interrupted: by the user; the state is saved.
        ResourceError: the disk is full, and the last files written are whole; or memory does not suffice.
    """
    if tensorboard:
        require_tensorboard()
    require_writable(run / FINISHED, "--run")
    require_writable(last_beside(out or run / BEST), "--out")
    device = device or torch.device("cpu")
    recipe = replace(recipe, training=with_resolved_precision(recipe.training, device))
    rounds = rounds_of(recipe, init)
    recipe = rounds[-1].recipe
    with world.main_first():
        whole = prepare(recipe, init, notify)
    if cannot_come_back(recipe, whole.start):
        why = "are zero, inputs and outputs, where no gradient reaches them: none will come back"
        what = "from a model without a mask this method chooses one itself, and they may"
        notify(Progress("fine-tuning", 0, 1, warning=f"pruned heads and units of {whole.start.source} {why}; {what}"))
    whole = replace(whole, task=replace(whole.task, shared=features_folder))
    start, parent = start_key(recipe, init, device=device), rounds_folder or run / ROUNDS
    with world.main_first():
        data = [_data_key(whole.task, each, notify) for each in rounds[:-1]]
    folders = [parent / round_key(rounds[:count], start, data[:count]) for count in range(1, len(rounds))]
    if resume and not any(folder.exists() for folder in (*folders, state_path(run))) and finished(run, out) is None:
        notify(Progress("fine-tuning", 0, 1, warning=f"nothing to resume in {run}: beginning"))

    # Before any trains, so that what is wrong is said now.
    teachers = {each.name: _prepare_teacher(whole, each, notify) for each in rounds if each.teaches}
    runs = _Runs(whole, teachers, device, tensorboard, world, notify)
    whole = replace(whole, start=whole.start.without_weights())
    computing = tensor_cores(recipe.training.precision)
    with computing, deterministic_algorithms(recipe.training.deterministic), runs.held(run), stopping() as stop:
        cost = sum((runs.find(each, folder, stop) for each, folder in zip(rounds, folders, strict=False)), Cost())
        training = runs.run_of(rounds[-1], run, out)
        del runs  # the network has weights of its own now, and memory is for training
        noted = world.from_main(finished(run, out) if resume else None)
        if noted is not None:
            training.recall(noted)
        else:
            goes_on = world.from_main(resume and state_path(run).exists())
            training.train(stop, resume=goes_on, keeps=True)
        own = finished_cost(run, out, world) or training.record.cost
    best, validations = out or run / BEST, tuple(training.record.validations)
    sparsity = checkpoint.read_metadata(best).sparsity
    return FinetuneResult(
        path=best,
        last=last_beside(best),
        sha256=checkpoint.file_hash(best),
        best=training.record.best,
        validations=validations,
        reprunings=tuple(training.pruner.history),
        sparsity=sparsity,
        plan=plan_of(rounds, whole),
        skipped=whole.task.left_out(),
        shown=whole.task.shown,
        skipped_updates=training.record.skipped,
        cost=cost + own,
        own_cost=own,
        advice=whole.task.advise(validations, sparsity=0.0 if sparsity is None else sparsity.exact),
    )


@dataclass
class _Runs:
    """The training runs of a method, one after another: `before` and `teacher` are what earlier ones left."""

    whole: Preparation
    teachers: dict[str, Preparation]
    device: torch.device
    tensorboard: bool
    world: World
    notify: Notify
    before: Path | None = None
    teacher: Path | None = None

    def held(self, folder: Path) -> AbstractContextManager[None]:
        """Keeps other processes from training in a folder."""
        return only_one(folder, "fine-tuning") if self.world.is_main else nullcontext()

    def run_of(self, each: Round, folder: Path, out: Path | None = None) -> TrainingRun:
        """A run that is ready to train; its best checkpoint goes to `out` if not into the folder."""
        if self.world.is_main:
            tidy(folder, out)
        prepared = self.teachers.pop(each.name, None)
        prepared = prepared or _prepare_round(self.whole, each, self.before, self.teacher, self.notify)
        files = _files(folder, out, tensorboard=self.tensorboard)
        return TrainingRun(_setup(each, prepared), files, device=self.device, world=self.world, notify=self.notify)

    def find(self, each: Round, folder: Path, stop: Stop) -> Cost:
        """Make a run before the last one, unless it is finished, and return its cost."""
        cost = finished_cost(folder, world=self.world)
        if cost is None:
            with self.held(folder):
                training = self.run_of(each, folder)
                # It is named by its content, so that a state there can only be of the same run.
                goes_on = self.world.from_main(state_path(folder).exists())
                training.train(stop, resume=goes_on, keeps=False)
                cost = finished_cost(folder, world=self.world) or training.record.cost
            del training
            gc.collect()  # models are part of reference cycles, and the next run needs their memory
        elif self.world.is_main:
            tidy(folder)
        if each.teaches:
            self.teacher = folder / BEST
        else:
            self.before = folder / LAST
        return cost


def _files(folder: Path, out: Path | None, *, tensorboard: bool) -> RunFiles:
    best = out or folder / BEST
    return RunFiles(
        best=best,
        last=last_beside(best),
        state=state_path(folder),
        finished=folder / FINISHED,
        journal=folder / JOURNAL,
        scratch=state_path(folder).parent / FEATURES,
        tensorboard=folder / "tensorboard" if tensorboard else None,
    )


def _setup(each: Round, preparation: Preparation) -> RunSetup:
    """The training run of a round."""
    recipe, start, task, settings = each.recipe, preparation.start, preparation.task, preparation.settings
    training = recipe.training
    torch.manual_seed(recipe.seed)
    network = task.network(start.weights, start.task, start.source)
    start = start.without_weights()  # which the run would otherwise keep
    return RunSetup(
        name=each.name,
        doing=f"fine-tuning ({each.name})",
        seed=recipe.seed,
        training=training,
        schedule=learning_rate_schedule(training),
        save_every=training.validate_every,
        task=task,
        network=network,
        masks=lambda network: first_masks(recipe, start, settings, network),
        pruner=lambda network, masks, group: pruner(recipe, settings, network, masks, group),
        metadata=Metadata(
            stage="finetune",
            architecture=start.architecture.to_json(),
            task=task.describe(),
            recipe=recipe_to_dict(recipe),
            seed=recipe.seed,
            parents=start.parents,
            versions=versions(start.architecture.libraries),
        ),
        target=settings.sparsity,
        exported=task.kept,
        micro_batch_key=task.pass_key,
        calibration=calibration_examples(recipe, task.train),
        identity={
            "recipe": trained_on(recipe),
            "parents": [asdict(parent) for parent in start.parents],
            "data": task.data_hash(),
        },
    )


def finished_cost(run: Path, best: Path | None = None, world: World = SINGLE) -> Cost | None:
    """What the training run in a folder took; None where it has not come to its end.

    `best` is where its best checkpoint went, if elsewhere. The main process of the `world` looks: what one sees the
    others may not see yet.
    """
    noted = world.from_main(finished(run, best))
    return None if noted is None else Cost(**noted["cost"])
