"""What a fine-tuning run begins from, the training runs of its method, and when they prune how much."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from parp_cli.config.finetune import AnyRecipe, Distillation, Pruning
from parp_cli.errors import CheckpointError, UsageError
from parp_cli.models.network import SMALL, Architecture, read_architecture
from parp_cli.models.sources.load import is_name, load_encoder, load_masks
from parp_cli.pruning.masks import check_fit, recorded_setting, sparsity
from parp_cli.pruning.methods import Schedule, Settings, spec_of
from parp_cli.pruning.methods.spec import FIRST_MASKS, FOUND_MASKS
from parp_cli.pruning.patterns import DEFAULT_SCOPE, DEFAULT_SPARSITY, Pattern, same_sparsity
from parp_cli.runtime.progress import Notify, Progress
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Metadata, Parent, lineage
from parp_cli.tasks.task import RecipeTask

DENSE = "dense"
"""The method that does not prune, and `distil.teacher` for a run of it."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One training run of a method: a `Run` with the whole recipe of it alone, settled.

    One that `teaches` makes the teacher of the last run, and has nothing to do with its mask or what it begins from.
    """

    name: str
    recipe: AnyRecipe
    prune_to: float | None = None
    teaches: bool = False


def settle(recipe: AnyRecipe, init: Path | None = None) -> AnyRecipe:
    """The recipe as it will run, so that equal runs have equal recipes.

    Keys that its method does not read are reset to their defaults; scope, biases and pattern, where they are left
    open, are those of the mask that the run, from the checkpoint `init` or from its model, starts from.

    Raises CheckpointError where the checkpoint, or that of the first mask, cannot be read.
    """
    pruning, spec = recipe.pruning, spec_of(recipe.pruning.method)
    defaults = {"scope": DEFAULT_SCOPE, "biases": True, "pattern": spec.pattern}
    reads = spec.reads
    if "initial" in reads and pruning.initial == "parp":
        reads += spec_of("parp").reads  # of the run that finds the mask
    settled = {key: getattr(pruning, key) for key in ("method", *defaults, *reads)}
    given = mask_file(pruning.initial)
    masked = init or masked_model(recipe) or (given if given is not None and checkpoint.is_checkpoint(given) else None)
    recorded = None if masked is None else checkpoint.read_metadata(masked).recipe
    for key, default in defaults.items():
        if settled[key] is None:
            settled[key] = recorded_setting(recorded, key, default)
    distil = Distillation() if recipe.distil.teacher is None else recipe.distil
    return replace(recipe, pruning=Pruning(**settled), distil=distil)


def mask_file(initial: str | None) -> Path | None:
    """The file that a recipe's first mask is of; None for a new mask."""
    return None if initial is None or initial in (*FIRST_MASKS, *FOUND_MASKS) else Path(initial)


def masked_model(recipe: AnyRecipe) -> Path | None:
    """The recipe's model where it is a checkpoint whose mask the run begins under, as if `--init` named it."""
    pruning, spec = recipe.pruning, spec_of(recipe.pruning.method)
    path = Path(recipe.model or "")
    if recipe.model is None or is_name(recipe.model) or not path.is_file() or not checkpoint.is_checkpoint(path):
        return None
    metadata = checkpoint.read_metadata(path)
    asked = pruning.start_sparsity if "start_sparsity" in spec.reads else pruning.sparsity
    if metadata.sparsity is None or pruning.initial is not None or spec.starts_from == "nothing":
        return None
    differs = asked is not None and not same_sparsity(asked, metadata.sparsity.target)
    return None if differs or not spec.accepts((metadata.recipe or {}).get("method")) else path


def rounds_of(recipe: AnyRecipe, init: Path | None = None) -> tuple[Round, ...]:
    """The runs that a recipe's method is made of; the last one is the run proper, under the whole recipe, settled.

    All of them begin from the same weights (the recipe's model, or the rounds after the first from
    `pruning.rewind`), and a run's first mask comes from the run before. Where the teacher is to be a dense run, that is
    the first. Raises as `target_sparsity` and `settle`.
    """
    recipe = settle(recipe, init)
    spec = spec_of(recipe.pruning.method)
    alone = replace(recipe, distil=Distillation())
    rounds = []
    if recipe.distil.teacher == DENSE:
        dense = settle(replace(alone, pruning=Pruning(method=DENSE)))
        rounds.append(Round(name="teacher", recipe=dense, teaches=True))
    if recipe.pruning.initial in FOUND_MASKS:
        # The mask of PARP is as sparse as it is needed; after a dense run it is chosen.
        prune_to = sparsity_at_start(recipe.pruning) if recipe.pruning.initial == "omp" else None
        return (*rounds, _finding(alone), Round(name=spec.name, recipe=recipe, prune_to=prune_to))
    if spec.runs is None:
        return (*rounds, Round(name=spec.name, recipe=recipe))
    for run in spec.runs(recipe, target_sparsity(recipe.pruning)):
        own = recipe
        if run.method is not None:
            own = settle(replace(alone, pruning=replace(recipe.pruning, method=run.method)))
            pruning, training = replace(own.pruning, **run.pruning), replace(own.training, **run.training)
            own = replace(own, pruning=pruning, training=training)
        rounds.append(Round(name=run.name, recipe=own, prune_to=run.prune_to))
    return tuple(rounds)


def _finding(recipe: AnyRecipe) -> Round:
    """The training run that finds the first mask of a settled recipe whose `initial` is in `FOUND_MASKS`."""
    pruning, data = recipe.pruning, recipe.data
    where = ""
    if pruning.found_on is not None:
        data = data.on(pruning.found_on)
        where = f" on {', '.join(data.domain)}"
    method = "dense" if pruning.initial == "omp" else "parp"
    own = replace(
        pruning, method=method, initial=None, found_on=None, sparsity=sparsity_at_start(pruning), start_sparsity=None
    )
    return Round(name=method + where, recipe=settle(replace(recipe, data=data, pruning=own)))


@dataclass(frozen=True)
class Start:
    """What a run begins from.

    Attributes:
        weights: of the encoder, with a head if there is a task.
        task: what the head is for, as `Metadata.task`; None without a head.
        parents: the checkpoint and what it descends from.
        source: names it for people.
        masks: of the checkpoint; empty if it has none, or if the run begins from a model.
        target: sparsity the masks were made for, or None.
        chosen_by: how the masks were chosen, where a `parp mask` says it; or None.
    """

    architecture: Architecture
    weights: Mapping[str, Tensor]
    task: Mapping[str, Any] | None
    parents: tuple[Parent, ...]
    source: str
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    target: float | None = None
    chosen_by: str | None = None

    def without_weights(self) -> Start:
        """What is left to know once a network has copied the weights."""
        return replace(self, weights={})


def read_start(recipe: AnyRecipe, init: Path | None, notify: Notify) -> Start:
    """The model or the checkpoint, under the mask of another checkpoint where `pruning.initial` names one.

    Raises:
        CheckpointError: one of them cannot be read, or the checkpoint is not of the recipe's model.
        MaskError: the mask is of another model.
        UsageError: there are two first masks, or `pruning.initial` names none.
    """
    initial = recipe.pruning.initial
    path = init or masked_model(recipe)
    if path is None:
        model = recipe.model or recipe.default_model
        encoder = load_encoder(model, notify=notify)
        start = Start(encoder.architecture, encoder.weights, encoder.task, encoder.parents, model)
        if encoder.masks:
            note = (
                f"the mask of {model}, which prunes {sparsity(encoder.masks):.1%}, is not used by this recipe; to "
                f"begin under it, give what `parp mask --from {model}` writes to --init"
            )
            notify(Progress("reading", 1, 1, warning=note))
    else:
        content = checkpoint.read(path)
        metadata = content.metadata
        if init is not None and not _made_from(recipe.model, metadata):
            raise CheckpointError(
                f"{init} is a {metadata.architecture['name']}, the recipe wants {recipe.model}",
                hint="name another checkpoint with --init, another --run folder, or --set model=null",
            )
        architecture = read_architecture(metadata.architecture)
        start = Start(architecture, content.weights, metadata.task, lineage(path, metadata), str(path))
        start = _masked(start, content.masks, metadata)
        if start.masks and initial is not None:
            raise UsageError(
                f"the recipe's first mask is {initial}, but {path} has one of its own",
                hint="set pruning.initial to null to keep that, or name another checkpoint with --init",
            )
    path = mask_file(initial)
    if path is None:
        return start
    if not path.exists():
        raise UsageError(
            f"there is no first mask {initial}",
            hint=f"pruning.initial is {', '.join((*FIRST_MASKS, *FOUND_MASKS))}, or the path of a checkpoint or mask",
        )
    if checkpoint.is_checkpoint(path) and checkpoint.read_metadata(path).sparsity is None:
        raise CheckpointError(f"{path} has no mask to start from", hint="make one with `parp mask`")
    masks, metadata = load_masks(path)
    check_fit(masks, start.weights, what=start.source)
    start = _masked(start, masks, metadata)
    parents = (*start.parents, *(lineage(path, metadata) if path.is_file() else ()))
    return replace(start, source=f"{start.source} under the mask of {path}", parents=parents)


def _masked(start: Start, masks: Mapping[str, Tensor], metadata: Metadata) -> Start:
    """The start under the masks of the checkpoint with this metadata."""
    target = None if metadata.sparsity is None else metadata.sparsity.target
    return replace(start, masks=masks, target=target, chosen_by=(metadata.recipe or {}).get("method"))


def _made_from(model: str | None, metadata: Metadata) -> bool:
    """Whether a checkpoint may descend from the model that a recipe names."""
    if model is None:
        return True
    if is_name(model):
        return bool(model == metadata.architecture["name"].removesuffix(SMALL))
    recorded = (metadata.recipe or {}).get("model")
    # What was made from another checkpoint may descend from anything; a folder may be named in two ways.
    same_folder = os.path.isdir(model) and os.path.abspath(str(recorded)) == os.path.abspath(model)
    return same_folder or recorded in (None, model) or str(recorded).endswith(".safetensors")


def rewound(start: Start, path: Path) -> Start:
    """The start with the weights of an earlier checkpoint, of the same architecture (or CheckpointError)."""
    content = checkpoint.read(path)
    if read_architecture(content.metadata.architecture) != start.architecture:
        raise CheckpointError(
            f"{path} is not a {start.architecture.name}", hint="pruning.rewind is a checkpoint of the model itself"
        )
    parents = (*start.parents, *lineage(path, content.metadata))
    return replace(start, weights=content.weights, task=content.metadata.task, parents=parents)


def round_start(start: Start, each: Round, before: Path | None) -> Start:
    """What a run begins from: the first one from the method's start, later ones from rewound weights and a new mask,
    by the last checkpoint of the run before."""
    if before is None:
        return start
    trained = checkpoint.read(before)
    masks = trained.masks
    if each.prune_to is not None:
        weights = {name: trained.weights[name] for name in trained.metadata.prunable}
        layers, structures = start.architecture.layers_of(weights), start.architecture.structures_of(weights)
        masks = pattern_in(each.recipe.pruning).masks(weights, each.prune_to, layers, structures=structures)
    if each.recipe.pruning.rewind is not None:
        start = rewound(start, Path(each.recipe.pruning.rewind))
    parents = tuple(dict.fromkeys((*start.parents, *lineage(before, trained.metadata))))
    return replace(start, masks=masks, target=each.prune_to, parents=parents)


def teacher_file(recipe: AnyRecipe) -> Path | None:
    """The checkpoint that a recipe names as its teacher; None where it names none, or a run that is yet to be made."""
    teacher = recipe.distil.teacher
    return None if teacher in (None, DENSE) else Path(str(teacher))


def check_teacher(path: Path, task: RecipeTask[Any]) -> None:
    """Refuse a teacher that a run of the task cannot learn from (CheckpointError)."""
    metadata = checkpoint.read_metadata(path)
    check_same_layers(str(path), read_architecture(metadata.architecture), task.architecture)
    if not task.same_outputs(metadata.task):
        what = "other outputs than the run" if metadata.task else "no outputs"
        raise CheckpointError(
            f"the teacher {path} has {what}",
            hint="distil.teacher is a checkpoint of `parp finetune` on the same labels, or dense to make one first",
        )


def check_same_layers(teacher: str, theirs: Architecture, ours: Architecture) -> None:
    """Refuse a teacher whose layers are not as many and as wide (CheckpointError)."""
    if (theirs.kind, theirs.layers, theirs.width) != (ours.kind, ours.layers, ours.width):
        raise CheckpointError(
            f"the teacher {teacher} has other layers than {ours.name}",
            details=[f"{each.name}: {each.layers} layers, {each.width} features" for each in (theirs, ours)],
            hint="learn from a checkpoint of the same model: distil.teacher; layers may have lost heads and units",
        )


def pattern_in(pruning: Pruning) -> Pattern:
    """Which weights compete with which; a recipe that was not settled may leave it open."""
    return Pattern.parse(pruning.pattern or spec_of(pruning.method).pattern)


def target_sparsity(pruning: Pruning) -> float:
    """The sparsity at the end of a run that does not start from a mask; 0 of a method that does not prune.

    Raises UsageError where the sparsity is not that of the N:M pattern, or there is no such pattern.
    """
    if not spec_of(pruning.method).prunes:
        return 0.0
    pattern = pattern_in(pruning)
    if pattern.sparsity is None:
        return DEFAULT_SPARSITY if pruning.sparsity is None else pruning.sparsity
    if pruning.sparsity is not None and not same_sparsity(pruning.sparsity, pattern.sparsity):
        raise UsageError(
            f"pattern {pattern} prunes {pattern.sparsity:g} of the weights, the recipe asks for {pruning.sparsity:g}",
            hint=f"set pruning.sparsity to {pattern.sparsity:g} or null, or take another pattern",
        )
    return pattern.sparsity


def sparsity_at_start(pruning: Pruning) -> float:
    """The sparsity of a first mask that is still to be made; raises as `target_sparsity`."""
    spec, target = spec_of(pruning.method), target_sparsity(pruning)
    first = pruning.start_sparsity if "start_sparsity" in spec.reads else None
    return target * spec.start_share if first is None else first


def settings_of(recipe: AnyRecipe, start: Start, task: RecipeTask[Any]) -> Settings:
    """What the method of a training run works with, from a settled recipe and its task.

    Raises UsageError where the method would never re-prune, and as `sparsities_of`.
    """
    pruning, spec = recipe.pruning, spec_of(recipe.pruning.method)
    sparsity, start_sparsity = sparsities_of(pruning, start)
    schedule = schedule_of(recipe, task)
    if spec.reprunes and not schedule.times:
        raise UsageError(
            f"method {spec.name} would not re-prune once: every {schedule.interval} updates, of {schedule.updates}",
            hint="make pruning.interval smaller, or look at pruning.start, end and final",
        )
    return Settings(
        sparsity=sparsity,
        start_sparsity=start_sparsity,
        schedule=schedule,
        pattern=pattern_in(pruning),
        growth=pruning.growth,
        drop_fraction=pruning.drop_fraction,
    )


def sparsities_of(pruning: Pruning, start: Start) -> tuple[float, float]:
    """The sparsity a run ends with, and that of its first mask; UsageError where the start's mask has another."""
    spec, source = spec_of(pruning.method), start.source
    grows, first = "start_sparsity" in spec.reads, pruning.start_sparsity
    masked, asked = start.target, first if grows else pruning.sparsity
    if masked is None:
        target = target_sparsity(pruning)
        if first is not None and first > target:
            raise UsageError(
                f"the recipe's sparsity starts at {first:g}, above the {target:g} it is to grow to",
                hint="set pruning.sparsity, or a smaller pruning.start_sparsity",
            )
        return target, target * spec.start_share if first is None else first
    differs = asked is not None and not same_sparsity(asked, masked)
    if grows:
        target = target_sparsity(pruning)
        if masked > target or differs:
            raise UsageError(
                f"the recipe's sparsity grows from {masked if asked is None else asked:g} to {target:g}, but {source} "
                f"is pruned to {masked:g}",
                hint="set pruning.start_sparsity to null, and pruning.sparsity to more than that of the mask",
            )
        return target, masked
    if differs:
        raise UsageError(
            f"the recipe asks for sparsity {asked:g}, but {source} is pruned to {masked:g}",
            hint=f"prune it again (`parp reprune {source} --sparsity {asked:g}`), or --set pruning.sparsity={masked:g}",
        )
    own = pattern_in(pruning).sparsity
    if spec.reprunes and own is not None and not same_sparsity(own, masked):
        raise UsageError(
            f"pattern {pruning.pattern} prunes {own:g} of the weights, but {source} is pruned to {masked:g}",
            hint=f"make its mask with `parp mask --pattern {pruning.pattern}`, or take another pattern",
        )
    return masked, masked


def schedule_of(recipe: AnyRecipe, task: RecipeTask[Any]) -> Schedule:
    """When a training run re-prunes, in updates."""
    pruning, training = recipe.pruning, recipe.training
    spec = spec_of(pruning.method)
    if pruning.interval is None:
        interval: float = task.default_interval()
    elif pruning.interval_unit == "updates":
        interval = pruning.interval
    else:
        size = pruning.interval * (sum(map(task.size, task.train)) if pruning.interval_unit == "epochs" else 1.0)
        interval = size / task.batches().mean_size(training.updates)
    end = pruning.end
    if not spec.reprunes:
        end = 0
    elif end is None and spec.end_share < 1:
        end = max(1, int(training.updates * spec.end_share))
    return Schedule(
        interval=max(1, round(interval)),
        updates=training.updates,
        start=pruning.start,
        end=end,
        final=pruning.final and spec.reprunes and "final" in spec.reads,
    )
