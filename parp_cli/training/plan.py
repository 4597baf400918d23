"""What a fine-tuning run begins from, the training runs of its method, and when they prune how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from parp_cli.config.finetune import DEFAULT_MODEL, Pruning, Recipe
from parp_cli.errors import CheckpointError, UsageError
from parp_cli.models.sources.load import load_encoder
from parp_cli.models.speech.config import ARCHITECTURES, Architecture
from parp_cli.models.speech.prunable import layers_of
from parp_cli.pruning.limits import DEFAULT_SCOPE, DEFAULT_SPARSITY, same_sparsity
from parp_cli.pruning.masks import recorded_setting
from parp_cli.pruning.methods import MethodSpec, Run, Schedule, Settings, spec_of
from parp_cli.pruning.methods.spec import FIRST_MASKS
from parp_cli.pruning.patterns import Pattern
from parp_cli.runtime.progress import Notify
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Metadata, Parent, lineage
from parp_cli.tasks.batches import UpdateBatches

_PUBLISHED_INTERVALS = {"10min": (50, 10), "1h": (150, 25), "10h": (115, 48)}
"""Updates between re-prunings by split, for base and for large: the epochs of the paper's release in its updates."""

_DEFAULT_INTERVAL = 50
_LARGE_LAYERS = 24


# ------------------------------------------------------------------------------------------- the runs of a method


@dataclass(frozen=True, kw_only=True)
class Round:
    """One training run of a method.

    Attributes:
        name: for people.
        recipe: of this run alone; its method says what happens to the mask meanwhile.
        prune_to: where the first mask comes from the round before: the sparsity that its last weights are pruned to.
            None for the mask that round ended with, or without a round before.
    """

    name: str
    recipe: Recipe
    prune_to: float | None = None


def settle(recipe: Recipe, init: Path | None = None) -> Recipe:
    """The recipe as it will run, so that equal runs have equal recipes.

    Keys that its method does not read are reset to their defaults; scope, biases and pattern, where they are left
    open, are those of the mask the run starts from.

    Args:
        recipe: as it was written.
        init: the checkpoint to begin from.

    Raises:
        CheckpointError: the checkpoint, or that of the first mask, cannot be read.
    """
    pruning, spec = recipe.pruning, spec_of(recipe.pruning.method)
    defaults = {"scope": DEFAULT_SCOPE, "biases": True, "pattern": spec.pattern}
    settled = {key: getattr(pruning, key) for key in ("method", *defaults, *spec.reads)}
    masked = init
    if pruning.initial not in (None, *FIRST_MASKS) and Path(str(pruning.initial)).is_file():
        masked = masked or Path(str(pruning.initial))
    metadata = None if masked is None else checkpoint.read_metadata(masked)
    for key, default in defaults.items():
        if settled[key] is None:
            recorded = None if metadata is None else recorded_setting(metadata.recipe, key)
            settled[key] = default if recorded is None else recorded
    return replace(recipe, pruning=Pruning(**settled))


def rounds_of(recipe: Recipe, init: Path | None = None) -> tuple[Round, ...]:
    """The runs that a recipe's method is made of; the last one is the run proper, under the whole recipe, settled.

    All of them begin from the same weights (the recipe's model, or the rounds after the first from
    `pruning.rewind`), and a run's first mask comes from the run before.

    Args:
        recipe: as it was written.
        init: the checkpoint to begin from.

    Raises:
        UsageError, CheckpointError: as `target_sparsity` and `settle`.
    """
    recipe = settle(recipe, init)
    spec = spec_of(recipe.pruning.method)
    if spec.runs is None:
        return (Round(name=spec.name, recipe=recipe),)
    return tuple(_round(recipe, run) for run in spec.runs(recipe, target_sparsity(recipe.pruning)))


def _round(recipe: Recipe, run: Run) -> Round:
    if run.method is not None:
        recipe = settle(replace(recipe, pruning=replace(recipe.pruning, method=run.method)))
        pruning, training = replace(recipe.pruning, **run.pruning), replace(recipe.training, **run.training)
        recipe = replace(recipe, pruning=pruning, training=training)
    return Round(name=run.name, recipe=recipe, prune_to=run.prune_to)


# ------------------------------------------------------------------------------------------ what a run begins from


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run begins from.

    Attributes:
        weights: of the encoder, with a head if there is a task.
        task: what the head is for, as `Metadata.task`; None without a head.
        masks: of the checkpoint; empty if it has none, or if the run begins from a model.
        target: sparsity the masks were made for, or None.
        chosen_by: how the masks were chosen, where a `parp mask` says it; or None.
        parents: the checkpoint and what it descends from.
        source: names it for people.
    """

    architecture: Architecture
    weights: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    target: float | None
    chosen_by: str | None
    task: Mapping[str, Any] | None
    parents: tuple[Parent, ...]
    source: str


def read_start(recipe: Recipe, init: Path | None, notify: Notify) -> Start:
    """The model or the checkpoint, under the mask of another checkpoint where `pruning.initial` names one.

    Raises:
        CheckpointError: one of them cannot be read, or the checkpoint is not of the recipe's model.
        UsageError: there are two first masks, or `pruning.initial` names none.
    """
    if init is None:
        encoder = load_encoder(recipe.model or DEFAULT_MODEL, notify=notify)
        start = Start(
            architecture=encoder.architecture,
            weights={name: w for name, w in encoder.weights.items() if not name.startswith("aux.")},
            masks={},
            target=None,
            chosen_by=None,
            task=None,
            parents=encoder.parents,
            source=recipe.model or DEFAULT_MODEL,
        )
        return _with_mask_of(recipe.pruning.initial, start)
    content = checkpoint.read(init)
    metadata = content.metadata
    architecture = Architecture.from_json(metadata.architecture)
    if not _made_from(recipe.model, metadata):
        raise CheckpointError(
            f"{init} is a {architecture.name}, the recipe wants {recipe.model}",
            hint="name another checkpoint with --init, another --run folder, or --set model=null",
        )
    start = Start(
        architecture=architecture,
        weights=content.weights,
        masks=content.masks,
        target=None if metadata.sparsity is None else metadata.sparsity.target,
        chosen_by=(metadata.recipe or {}).get("method"),
        task=metadata.task,
        parents=lineage(init, metadata),
        source=str(init),
    )
    if start.masks and recipe.pruning.initial is not None:
        raise UsageError(
            f"the recipe's first mask is {recipe.pruning.initial}, but {init} has one of its own",
            hint="set pruning.initial to null to keep that, or name another checkpoint with --init",
        )
    return _with_mask_of(recipe.pruning.initial, start)


def _with_mask_of(initial: str | None, start: Start) -> Start:
    """The start under another checkpoint's mask, where the recipe's first mask is one."""
    if initial in (None, *FIRST_MASKS):
        return start
    path = Path(str(initial))
    if not path.is_file():
        raise UsageError(
            f"there is no first mask {initial}",
            hint=f"pruning.initial is {', '.join(FIRST_MASKS)}, or the path of a checkpoint",
        )
    metadata = checkpoint.read_metadata(path)
    if metadata.sparsity is None:
        raise CheckpointError(f"{path} has no mask to start from", hint="make one with `parp mask`")
    return replace(
        start,
        masks=checkpoint.read_masks(path),
        target=metadata.sparsity.target,
        chosen_by=(metadata.recipe or {}).get("method"),
        source=f"{start.source} under the mask of {path}",
        parents=(*start.parents, *lineage(path, metadata)),
    )


def _made_from(model: str | None, metadata: Metadata) -> bool:
    """Whether a checkpoint may descend from the model that a recipe names."""
    if model is None:
        return True
    if model in ARCHITECTURES:
        return bool(model == metadata.architecture["name"])
    recorded = (metadata.recipe or {}).get("model")
    # What was made from another checkpoint may descend from anything.
    return recorded in (None, model) or str(recorded).endswith(".safetensors")


def rewound(start: Start, path: Path) -> Start:
    """The start with the weights of an earlier checkpoint.

    Raises:
        CheckpointError: it cannot be read, or is of another architecture.
    """
    content = checkpoint.read(path)
    if Architecture.from_json(content.metadata.architecture) != start.architecture:
        raise CheckpointError(
            f"{path} is not a {start.architecture.name}", hint="pruning.rewind is a checkpoint of the model itself"
        )
    return replace(
        start,
        weights=content.weights,
        task=content.metadata.task,
        parents=(*start.parents, *lineage(path, content.metadata)),
    )


def round_start(start: Start, each: Round, before: Path | None) -> Start:
    """What a run begins from: the first one from the method's start, later ones from rewound weights and a new mask.

    Args:
        start: of the method.
        each: the run.
        before: the last checkpoint of the run before; None for the first run.
    """
    if before is None:
        return start
    trained = checkpoint.read(before)
    masks = trained.masks
    if each.prune_to is not None:
        weights = {name: trained.weights[name] for name in trained.metadata.prunable}
        masks = dict(pattern_in(each.recipe.pruning).masks(weights, each.prune_to, layers_of(weights)))
    if each.recipe.pruning.rewind is not None:
        start = rewound(start, Path(each.recipe.pruning.rewind))
    parents = tuple(dict.fromkeys((*start.parents, *lineage(before, trained.metadata))))
    return replace(start, masks=masks, target=each.prune_to, parents=parents)


# ------------------------------------------------------------------------------------------- when, and how much


def pattern_in(pruning: Pruning) -> Pattern:
    """Which weights compete with which; a recipe that was not settled may leave it open."""
    return Pattern.parse(pruning.pattern or spec_of(pruning.method).pattern)


def target_sparsity(pruning: Pruning) -> float:
    """The sparsity at the end of a run that does not start from a mask; 0 of a method that does not prune.

    Raises:
        UsageError: the sparsity is not that of the N:M pattern, or there is no such pattern.
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


def settings_of(
    recipe: Recipe, start: Start, sparsities: tuple[float, float], item_seconds: Sequence[float]
) -> Settings:
    """What the method of a training run works with.

    Args:
        recipe: settled.
        start: what the run begins from.
        sparsities: from `sparsities_of`, or `round_sparsities`.
        item_seconds: of audio, of each training utterance.

    Raises:
        UsageError: the method would never re-prune.
    """
    pruning, spec = recipe.pruning, spec_of(recipe.pruning.method)
    schedule = schedule_of(recipe, start.architecture, item_seconds)
    if spec.reprunes and not schedule.times:
        raise UsageError(
            f"method {spec.name} would not re-prune once: every {schedule.interval} updates, of {schedule.updates}",
            hint="make pruning.interval smaller, or look at pruning.start, end and final",
        )
    return Settings(
        sparsity=sparsities[0],
        start_sparsity=sparsities[1],
        schedule=schedule,
        pattern=pattern_in(pruning),
        growth=pruning.growth,
        drop_fraction=pruning.drop_fraction,
    )


def round_sparsities(whole: Settings, recipe: Recipe) -> tuple[float, float]:
    """As `sparsities_of`, of one of several runs: its own, or where that is open the target of the whole."""
    if not spec_of(recipe.pruning.method).prunes:
        return 0.0, 0.0
    own = recipe.pruning.sparsity
    return (whole.sparsity, whole.sparsity) if own is None else (own, own)


def _check_start(spec: MethodSpec, start: Start) -> None:
    """Refuse a mask that the method would not use, or that is not what the method's name says."""
    if not start.masks or spec.accepts(start.chosen_by):
        return
    if spec.starts_from == "nothing":
        why = f"({spec.name}) finds its own mask" if spec.prunes else f"is {spec.name}"
        raise UsageError(
            f"the recipe {why}, but {start.source} is pruned",
            hint="name another checkpoint with --init, or another --run folder",
        )
    raise UsageError(
        f"method {spec.name} has a {spec.starts_from} mask, but that of {start.source} is of another kind",
        hint="--set pruning.method=fixed keeps any mask, or name another --run folder",
    )


def sparsities_of(pruning: Pruning, start: Start) -> tuple[float, float]:
    """The sparsity a run ends with, and that of its first mask.

    Raises:
        UsageError: the start has a mask that does not go with the recipe.
    """
    spec = spec_of(pruning.method)
    _check_start(spec, start)
    grows = "start_sparsity" in spec.reads
    if start.target is None:
        target = target_sparsity(pruning)
        if pruning.start_sparsity is not None and pruning.start_sparsity > target:
            raise UsageError(
                f"the recipe's sparsity starts at {pruning.start_sparsity:g}, above the {target:g} it is to grow to",
                hint="set pruning.sparsity, or a smaller pruning.start_sparsity",
            )
        return target, target * spec.start_share if pruning.start_sparsity is None else pruning.start_sparsity
    masked, asked = start.target, pruning.start_sparsity if grows else pruning.sparsity
    if grows:
        target = target_sparsity(pruning)
        if masked > target or (asked is not None and not same_sparsity(asked, masked)):
            raise UsageError(
                f"the recipe's sparsity grows from {masked if asked is None else asked:g} to {target:g}, but "
                f"{start.source} is pruned to {masked:g}",
                hint="set pruning.start_sparsity to null, and pruning.sparsity to more than that of the mask",
            )
        return target, masked
    if asked is not None and not same_sparsity(asked, masked):
        raise UsageError(
            f"the recipe asks for sparsity {asked:g}, but {start.source} is pruned to {masked:g}",
            hint=f"prune it anew (`parp reprune {start.source} --sparsity {asked:g}`), or --set "
            f"pruning.sparsity={masked:g}",
        )
    own = pattern_in(pruning).sparsity
    if spec.reprunes and own is not None and not same_sparsity(own, masked):
        raise UsageError(
            f"pattern {pruning.pattern} prunes {own:g} of the weights, but {start.source} is pruned to {masked:g}",
            hint=f"make its mask with `parp mask --pattern {pruning.pattern}`, or take another pattern",
        )
    return masked, masked


def schedule_of(recipe: Recipe, architecture: Architecture, item_seconds: Sequence[float]) -> Schedule:
    """When a training run re-prunes, in updates; arguments as of `settings_of`."""
    pruning, updates = recipe.pruning, recipe.training.updates
    spec = spec_of(pruning.method)
    if pruning.interval is None:
        split = recipe.data.train.removeprefix("train-").split("/")[0]
        base, large = _PUBLISHED_INTERVALS.get(split, (_DEFAULT_INTERVAL, _DEFAULT_INTERVAL))
        interval: float = large if architecture.layers >= _LARGE_LAYERS else base
    elif pruning.interval_unit == "updates":
        interval = pruning.interval
    else:
        seconds = pruning.interval * (sum(item_seconds) if pruning.interval_unit == "epochs" else 1.0)
        training = recipe.training
        batches = UpdateBatches(
            item_seconds,
            item_seconds,
            batch_size=training.batch_seconds,
            micro_batch_size=training.micro_batch_seconds,
            seed=recipe.seed,
        )
        interval = seconds / batches.mean_size(training.updates)
    end = pruning.end
    if end is None and spec.end_share < 1:
        end = max(1, int(updates * spec.end_share))
    final = pruning.final and "final" in spec.reads
    return Schedule(interval=max(1, round(interval)), updates=updates, start=pruning.start, end=end, final=final)


def reprunings_of(each: Round, architecture: Architecture, item_seconds: Sequence[float]) -> int:
    """How often a training run re-prunes."""
    reprunes = spec_of(each.recipe.pruning.method).reprunes
    return len(schedule_of(each.recipe, architecture, item_seconds).times) if reprunes else 0
