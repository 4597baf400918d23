"""Everything a fine-tuning run needs before its first update, checked before anything is computed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
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
from parp_cli.recipe import Data, Recipe

DEFAULT_SPARSITY = 0.5
"""Where neither the recipe nor the checkpoint says how much to prune."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run begins from.

    Attributes:
        weights: of the encoder, with a CTC head if there is a vocabulary.
        masks: of the checkpoint; empty if it has none, or if the run begins from a model.
        target: sparsity the masks were made for, or None.
        parents: the checkpoint and what it descends from.
        source: names it for people.
    """

    architecture: Architecture
    weights: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    target: float | None
    vocabulary: Vocabulary | None
    parents: tuple[Parent, ...]
    source: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run in figures, as `--dry-run` shows it. Seconds are of audio."""

    start: str
    architecture: str
    mode: str
    sparsity: float
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
    """A run that can begin."""

    start: Start
    train: tuple[Utterance, ...]
    valid: tuple[Utterance, ...]
    vocabulary: Vocabulary
    sparsity: float
    skipped: tuple[Problem, ...]
    plan: Plan


def prepare(recipe: Recipe, init: Path | None, notify: Notify) -> Preparation:
    """Read what the run begins from and its data, and check that they go together.

    Args:
        recipe: of the run.
        init: the checkpoint to begin from; None for the recipe's model.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is not of the recipe's model.
        UsageError: its mask has another sparsity than the recipe asks for.
        DataError: the data is missing, or holds utterances that cannot be trained on.
    """
    start = _start(recipe, init, notify)
    sparsity = _sparsity(recipe, start)
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
        skipped=(*skipped, *skipped_valid),
        plan=_plan(recipe, start, sparsity, vocabulary, train, valid, len(skipped) + len(skipped_valid)),
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
        weights = {name: w for name, w in encoder.weights.items() if not name.startswith("aux.")}
        return Start(
            architecture=encoder.architecture,
            weights=weights,
            masks={},
            target=None,
            vocabulary=None,
            parents=encoder.parents,
            source=recipe.model or "mini",
        )
    content = checkpoint.read(init)
    metadata = content.metadata
    architecture = Architecture.from_json(metadata.architecture)
    if not _made_from(recipe.model, metadata):
        raise CheckpointError(
            f"{init} is a {architecture.name}, the recipe wants {recipe.model}",
            hint="name another checkpoint with --init, another --run folder, or --set model=null",
        )
    return Start(
        architecture=architecture,
        weights=content.weights,
        masks=content.masks,
        target=None if metadata.sparsity is None else metadata.sparsity.target,
        vocabulary=recorded_vocabulary(metadata.vocabulary, metadata.labels),
        parents=lineage(init, metadata),
        source=str(init),
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


def _sparsity(recipe: Recipe, start: Start) -> float:
    asked = recipe.pruning.sparsity
    if recipe.pruning.mode == "dense":
        if start.masks:
            raise UsageError(
                f"the recipe is dense, but {start.source} is pruned",
                hint="name another checkpoint with --init, or another --run folder",
            )
        return 0.0
    if asked is not None and start.target is not None and asked != start.target:
        raise UsageError(
            f"the recipe asks for sparsity {asked:g}, but {start.source} is pruned to {start.target:g}",
            hint=f"prune it anew (`parp reprune {start.source} --sparsity {asked:g}`), or --set pruning.sparsity="
            f"{start.target:g}",
        )
    if asked is not None:
        return asked
    return DEFAULT_SPARSITY if start.target is None else start.target


def _vocabulary(data: Data, start: Start, train: list[Utterance]) -> Vocabulary:
    """The checkpoint's own where it spells all of the corpus, so that its head is of use; else the corpus's."""
    own = start.vocabulary
    if own is not None and own.labels == data.labels and not any(own.outside(utterance) for utterance in train):
        return own
    if data.labels == "letters":
        return letters_vocabulary(train if data.alphabet == "found" else None)
    return phones_vocabulary(train, strip_stress=data.strip_stress)


def _plan(
    recipe: Recipe,
    start: Start,
    sparsity: float,
    vocabulary: Vocabulary,
    train: list[Utterance],
    valid: list[Utterance],
    skipped: int,
) -> Plan:
    from parp_cli.training.ctc import UpdateBatches

    training, pruning = recipe.training, recipe.pruning
    lengths = [utterance.seconds for utterance in train]
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
    reprunings = 0
    if pruning.mode == "parp":
        reprunings = math.ceil(training.updates / pruning.interval)
    return Plan(
        start=start.source,
        architecture=start.architecture.name,
        mode=pruning.mode,
        sparsity=sparsity,
        labels=len(vocabulary),
        train_utterances=len(train),
        train_seconds=sum(lengths),
        valid_utterances=len(valid),
        valid_seconds=sum(utterance.seconds for utterance in valid),
        skipped=skipped,
        updates=training.updates,
        seconds_per_update=seen / passes,
        micro_batches_per_update=len(sorted_batches([lengths[i] for i in first], training.micro_batch_seconds)),
        epochs=training.updates * seen / passes / sum(lengths),
        repruning_interval=pruning.interval,
        reprunings=reprunings,
    )
