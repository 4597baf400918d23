"""Everything a fine-tuning run needs before its first update, checked before anything is computed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from parp_cli import checkpoint
from parp_cli.checkpoint import Metadata, Parent, lineage
from parp_cli.data.batching import sorted_batches
from parp_cli.data.corpora import load_split
from parp_cli.data.labels import (
    Problem,
    Vocabulary,
    check_utterances,
    letters_vocabulary,
    phones_vocabulary,
    recorded_vocabulary,
)
from parp_cli.data.problems import shown
from parp_cli.data.utterances import Utterance
from parp_cli.errors import CheckpointError, DataError, UsageError
from parp_cli.models.architectures import ARCHITECTURES, Architecture, frames
from parp_cli.models.sources import load_encoder
from parp_cli.progress import Notify, Progress
from parp_cli.pruning.methods import METHODS, Schedule, Settings
from parp_cli.pruning.patterns import Pattern
from parp_cli.recipe import Data, Recipe
from parp_cli.training.rounds import Round, rounds_of, target_sparsity

_PUBLISHED_INTERVALS = {"10min": (50, 10), "1h": (150, 25), "10h": (115, 48)}
"""Updates between re-prunings by split, for base and for large: the epochs of the paper's release in its updates."""

_DEFAULT_INTERVAL = 50
_LARGE_LAYERS = 24


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run begins from.

    Attributes:
        weights: of the encoder, with a CTC head if there is a vocabulary.
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
    vocabulary: Vocabulary | None
    parents: tuple[Parent, ...]
    source: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run in figures, as `--dry-run` shows it. Seconds are of audio.

    Attributes:
        rounds: the training runs of the method, with their updates; `updates` is of the last one.
        repruning_interval: in updates.
    """

    start: str
    architecture: str
    method: str
    sparsity: float
    rounds: tuple[tuple[str, int], ...]
    labels: int
    train_utterances: int
    train_seconds: float
    valid_utterances: int
    valid_seconds: float
    skipped: int
    updates: int
    seconds_per_update: float
    micro_batches_per_update: int
    epochs: float
    repruning_interval: int
    reprunings: int


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A run that can begin.

    Attributes:
        sparsity: to prune to in the end.
        start_sparsity: of the first mask.
    """

    start: Start
    train: tuple[Utterance, ...]
    valid: tuple[Utterance, ...]
    vocabulary: Vocabulary
    sparsity: float
    start_sparsity: float
    schedule: Schedule
    skipped: tuple[Problem, ...]


def prepare(recipe: Recipe, init: Path | None, notify: Notify) -> Preparation:
    """Read what the run begins from and its data, and check that they go together.

    Args:
        recipe: of the run.
        init: the checkpoint to begin from; None for the recipe's model.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is not of the recipe's model.
        UsageError: its mask has another sparsity than the recipe asks for, or is none for the recipe's method.
        DataError: the data is missing, or holds utterances that cannot be trained on.
    """
    start = _start(recipe, init, notify)
    if recipe.pruning.rewind is not None:
        rewound(start, Path(recipe.pruning.rewind))  # what is wrong with it is said now, not after the first run
    sparsity, start_sparsity = _sparsities(recipe, start)
    train = load(recipe.data, recipe.data.train, notify)
    valid = load(recipe.data, recipe.data.valid, notify)[: recipe.data.max_valid_utterances]
    vocabulary = _vocabulary(recipe.data, start, train)
    train, skipped = usable(train, vocabulary, start.architecture, recipe.data, recipe.data.train)
    valid, skipped_valid = usable(valid, vocabulary, start.architecture, recipe.data, recipe.data.valid)
    return Preparation(
        start=start,
        train=tuple(train),
        valid=tuple(valid),
        vocabulary=vocabulary,
        sparsity=sparsity,
        start_sparsity=start_sparsity,
        schedule=_schedule(recipe, start.architecture, [utterance.seconds for utterance in train]),
        skipped=(*skipped, *skipped_valid),
    )


def prepare_round(whole: Preparation, this: Round, start: Start) -> Preparation:
    """One of the training runs of a method: other pruning and length, another start, the same data.

    Args:
        whole: of the recipe that the run is part of.
        this: the run.
        start: what it begins from, with its masks.
    """
    asked = this.recipe.pruning.sparsity
    sparsity = whole.sparsity if asked is None else asked
    if this.recipe.pruning.method == "dense":
        sparsity = 0.0
    lengths = [utterance.seconds for utterance in whole.train]
    return replace(
        whole,
        start=start,
        sparsity=sparsity,
        start_sparsity=sparsity,
        schedule=_schedule(this.recipe, start.architecture, lengths),
    )


def rewound(start: Start, path: Path) -> Start:
    """The start with the weights of an earlier checkpoint.

    Raises:
        CheckpointError: it cannot be read, or is of another architecture.
    """
    content = checkpoint.read(path)
    if content.metadata.architecture != start.architecture.to_json():
        raise CheckpointError(
            f"{path} is not a {start.architecture.name}", hint="pruning.rewind is a checkpoint of the model itself"
        )
    return replace(
        start,
        weights=content.weights,
        vocabulary=recorded_vocabulary(content.metadata.vocabulary, content.metadata.labels),
        parents=(*start.parents, *lineage(path, content.metadata)),
    )


def load(data: Data, split: str, notify: Notify) -> list[Utterance]:
    """The utterances of a recipe's corpus; the same for every seed, so that runs can be compared."""
    return load_split(
        data.corpus,
        split,
        root=None if data.root is None else Path(data.root),
        manifest=None if data.manifest is None else Path(data.manifest),
        download=data.download,
        progress=lambda done, total: notify(Progress(f"preparing {split}", done, total)),
    )


def usable(
    utterances: list[Utterance], vocabulary: Vocabulary, architecture: Architecture, data: Data, split: str
) -> tuple[list[Utterance], list[Problem]]:
    """Those that can be trained on, and why the others cannot.

    Raises:
        DataError: there are others and the recipe refuses them, or none is left.
    """
    problems = check_utterances(utterances, vocabulary, lambda samples: frames(architecture, samples))
    if problems and data.unusable == "refuse":
        raise DataError(
            f"{len(problems)} problems with the utterances of {split}",
            details=shown([problem.message for problem in problems]),
            hint="correct them, or leave such utterances out with --set data.unusable=skip",
        )
    bad = {problem.utterance_id for problem in problems}
    left = [utterance for utterance in utterances if utterance.id not in bad]
    if not left:
        raise DataError(f"no usable utterance in {split}", details=shown([p.message for p in problems]))
    return left, problems


def _start(recipe: Recipe, init: Path | None, notify: Notify) -> Start:
    if init is None:
        encoder = load_encoder(recipe.model or "mini", notify=notify)
        start = Start(
            architecture=encoder.architecture,
            weights={name: w for name, w in encoder.weights.items() if not name.startswith("aux.")},
            masks={},
            target=None,
            chosen_by=None,
            vocabulary=None,
            parents=encoder.parents,
            source=recipe.model or "mini",
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
        vocabulary=recorded_vocabulary(metadata.vocabulary, metadata.labels),
        parents=lineage(init, metadata),
        source=str(init),
    )
    return start if start.masks else _with_mask_of(recipe.pruning.initial, start)


def _with_mask_of(initial: str | None, start: Start) -> Start:
    """The start under another checkpoint's mask, where the recipe's first mask is one."""
    if initial in (None, "magnitude", "random", "random-weights"):
        return start
    path = Path(str(initial))
    if not path.is_file():
        raise UsageError(
            f"there is no first mask {initial}",
            hint="pruning.initial is magnitude, random, random-weights, or the path of a checkpoint",
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


def _sparsities(recipe: Recipe, start: Start) -> tuple[float, float]:
    """The sparsity a run ends with, and that of its first mask.

    Raises:
        UsageError: the start has a mask that does not go with the recipe.
    """
    pruning = recipe.pruning
    _check_start(recipe, start)
    if pruning.method == "dense":
        return 0.0, 0.0
    if start.target is None:
        target = target_sparsity(pruning)
        if pruning.method != "parp-p":
            return target, target
        return target, target / 2 if pruning.start_sparsity is None else pruning.start_sparsity
    if pruning.method == "parp-p":
        target = target_sparsity(pruning) if pruning.sparsity is None else pruning.sparsity
        if pruning.start_sparsity not in (None, start.target) or start.target > target:
            raise UsageError(
                f"the recipe's sparsity grows from {pruning.start_sparsity or start.target:g} to {target:g}, but "
                f"{start.source} is pruned to {start.target:g}",
                hint="set pruning.start_sparsity to null, and pruning.sparsity to more than that of the mask",
            )
        return target, start.target
    if pruning.sparsity not in (None, start.target):
        raise UsageError(
            f"the recipe asks for sparsity {pruning.sparsity:g}, but {start.source} is pruned to {start.target:g}",
            hint=f"prune it anew (`parp reprune {start.source} --sparsity {pruning.sparsity:g}`), or --set "
            f"pruning.sparsity={start.target:g}",
        )
    fixed_by_pattern = Pattern.parse(pruning.pattern).sparsity
    if pruning.method == "parp" and fixed_by_pattern not in (None, start.target):
        raise UsageError(
            f"pattern {pruning.pattern} prunes {fixed_by_pattern:g} of the weights, but {start.source} is pruned to "
            f"{start.target:g}",
            hint=f"make its mask with `parp mask --pattern {pruning.pattern}`, or take another pattern",
        )
    return start.target, start.target


def _check_start(recipe: Recipe, start: Start) -> None:
    """Refuse a mask that the method would not use, or that is not what the method's name says."""
    method = recipe.pruning.method
    if not start.masks:
        return
    if method in ("dense", "omp", "imp", "pap"):
        why = "is dense" if method == "dense" else f"({method}) finds its own mask"
        raise UsageError(
            f"the recipe {why}, but {start.source} is pruned",
            hint="name another checkpoint with --init, or another --run folder",
        )
    wanted = {"mpi": "magnitude", "rp": "random"}.get(method)
    if wanted and not (start.chosen_by or "").startswith(wanted):
        raise UsageError(
            f"method {method} has a {wanted} mask, but that of {start.source} is of another kind",
            hint="--set pruning.method=fixed keeps any mask, or name another --run folder",
        )


def _vocabulary(data: Data, start: Start, train: list[Utterance]) -> Vocabulary:
    """The checkpoint's own where it spells all of the corpus, so that its head is of use; else the corpus's."""
    own = start.vocabulary
    if own is not None and own.labels == data.labels and not any(own.outside(utterance) for utterance in train):
        return own
    if data.labels == "letters":
        return letters_vocabulary(train if data.alphabet == "found" else None)
    return phones_vocabulary(train, strip_stress=data.strip_stress)


def plan(recipe: Recipe, preparation: Preparation) -> Plan:
    """The run in figures."""
    training, pruning = recipe.training, recipe.pruning
    lengths = [utterance.seconds for utterance in preparation.train]
    first, seconds = _updates(recipe, lengths)
    settings = Settings(sparsity=preparation.sparsity, schedule=preparation.schedule)
    method = METHODS[pruning.method](settings)
    return Plan(
        start=preparation.start.source,
        architecture=preparation.start.architecture.name,
        method=pruning.method,
        sparsity=preparation.sparsity,
        rounds=tuple((this.name, this.recipe.training.updates) for this in rounds_of(recipe)),
        labels=len(preparation.vocabulary),
        train_utterances=len(lengths),
        train_seconds=sum(lengths),
        valid_utterances=len(preparation.valid),
        valid_seconds=sum(utterance.seconds for utterance in preparation.valid),
        skipped=len(preparation.skipped),
        updates=training.updates,
        seconds_per_update=seconds,
        micro_batches_per_update=len(sorted_batches([lengths[i] for i in first], training.micro_batch_seconds)),
        epochs=training.updates * seconds / sum(lengths),
        repruning_interval=preparation.schedule.interval,
        reprunings=sum(method.reprunes(update) for update in range(1, training.updates + 1)),
    )


def _updates(recipe: Recipe, lengths: list[float]) -> tuple[list[int], float]:
    """The first update's utterances, and the mean seconds of audio in the updates of the first epoch."""
    from parp_cli.training.ctc import UpdateBatches

    training = recipe.training
    batches = UpdateBatches(
        lengths,
        batch_seconds=training.batch_seconds,
        micro_batch_seconds=training.micro_batch_seconds,
        seed=recipe.seed,
    )
    first = batches.take()
    seen, passes = sum(lengths[i] for i in first), 1
    while batches.epoch == 0 and passes < training.updates:
        seen += sum(lengths[i] for i in batches.take())
        passes += 1
    return first, seen / passes


def _schedule(recipe: Recipe, architecture: Architecture, lengths: list[float]) -> Schedule:
    """When to re-prune, in updates."""
    pruning = recipe.pruning
    if pruning.interval is None:
        split = recipe.data.train.removeprefix("train-").split("/")[0]
        base, large = _PUBLISHED_INTERVALS.get(split, (_DEFAULT_INTERVAL, _DEFAULT_INTERVAL))
        interval: float = large if architecture.builder["encoder_num_layers"] >= _LARGE_LAYERS else base
    elif pruning.interval_unit == "updates":
        interval = pruning.interval
    else:
        seconds = pruning.interval * (sum(lengths) if pruning.interval_unit == "epochs" else 1.0)
        interval = seconds / _updates(recipe, lengths)[1]
    return Schedule(
        interval=max(1, round(interval)),
        updates=recipe.training.updates,
        start=pruning.start,
        end=pruning.end,
        final=pruning.final,
    )
