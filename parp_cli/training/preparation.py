"""Everything a fine-tuning run needs before its first update, checked before anything is computed."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from parp_cli.config.finetune import Data, Recipe
from parp_cli.data.batching import sorted_batches
from parp_cli.data.check import Problem, check_utterances, notes_of, refusal, with_lengths
from parp_cli.data.corpora import load
from parp_cli.data.inspection import Inspected, inspect_files
from parp_cli.data.labels import Vocabulary, letters_vocabulary, phones_vocabulary
from parp_cli.data.utterances import Utterance
from parp_cli.errors import DataError, first_few
from parp_cli.models.speech.config import Architecture, frames
from parp_cli.pruning.methods import Settings
from parp_cli.runtime.progress import Notify, Progress
from parp_cli.training.masks import check_weights
from parp_cli.training.plan import (
    Round,
    Start,
    first_epoch,
    read_start,
    reprunings_of,
    rewound,
    round_sparsities,
    rounds_of,
    settings_of,
    sparsities_of,
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run in figures, as `--dry-run` shows it. Seconds are of audio.

    Attributes:
        rounds: the training runs of the method, with their updates; `updates` is of the last one.
        repruning_interval: in updates.
        reprunings: in all rounds.
    """

    start: str
    architecture: str
    method: str
    sparsity: float
    start_sparsity: float
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
        settings: of the method: how much is pruned, and when.
        skipped: why each utterance that is left out cannot be trained on.
        notes: what there is to say of the data that is no reason to refuse it.
    """

    start: Start
    train: tuple[Utterance, ...]
    valid: tuple[Utterance, ...]
    vocabulary: Vocabulary
    settings: Settings
    skipped: tuple[Problem, ...]
    notes: tuple[str, ...]

    def data_hash(self) -> str:
        """Of what is learnt from and judged on: names, lengths and labels of the utterances, in order."""
        spelt = [[u.id, u.seconds, self.vocabulary.reference(u)] for u in (*self.train, *self.valid)]
        return hashlib.sha256(json.dumps(spelt).encode()).hexdigest()


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
    start = read_start(recipe, init, notify)
    if recipe.pruning.rewind is not None:
        rewound(start, Path(recipe.pruning.rewind))  # what is wrong with it is said now, not after the first run
    sparsities = sparsities_of(recipe.pruning, start)
    check_weights(recipe, start)
    train = load(recipe.data, recipe.data.train, notify, lenient=True)
    valid = load(recipe.data, recipe.data.valid, notify, lenient=True)[: recipe.data.max_valid_utterances]
    vocabulary = _vocabulary(recipe.data, start, train)
    splits: Sequence[tuple[str, list[Utterance]]] = [(recipe.data.train, train), (recipe.data.valid, valid)]
    splits, skipped, notes = _check(splits, vocabulary, start.architecture, recipe.data, notify)
    train, valid = (_without(skipped, utterances, split) for split, utterances in splits)
    return Preparation(
        start=start,
        train=tuple(train),
        valid=tuple(valid),
        vocabulary=vocabulary,
        settings=settings_of(recipe, start, sparsities, [utterance.seconds for utterance in train]),
        skipped=tuple(skipped),
        notes=tuple(notes),
    )


def prepare_round(whole: Preparation, this: Round, start: Start) -> Preparation:
    """One of the training runs of a method: other pruning and length, another start, the same data.

    Args:
        whole: of the recipe that the run is part of.
        this: the run.
        start: what it begins from, with its masks.
    """
    sparsities = round_sparsities(whole.settings, this.recipe)
    lengths = [utterance.seconds for utterance in whole.train]
    return replace(whole, start=start, settings=settings_of(this.recipe, start, sparsities, lengths))


def _check(
    splits: Sequence[tuple[str, list[Utterance]]],
    vocabulary: Vocabulary,
    architecture: Architecture,
    data: Data,
    notify: Notify,
) -> tuple[Sequence[tuple[str, list[Utterance]]], list[Problem], list[str]]:
    """Decode all audio: the splits with all lengths, why utterances cannot be trained on, and what else is unusual.

    Raises:
        DataError: there are such utterances and the recipe refuses them: all of them are shown at once.
    """
    infos: dict[Path, Inspected] = {}
    for _, some in splits:
        infos |= inspect_files((utterance.audio for utterance in some), notify=notify)
    splits = [(split, with_lengths(some, infos)) for split, some in splits]
    problems: dict[Problem, None] = {}  # in order, once where a split is both trained and validated on
    for split, utterances in splits:
        found = check_utterances(utterances, split, infos, vocabulary, lambda samples: frames(architecture, samples))
        problems |= dict.fromkeys(found)
    notes = notes_of(splits, infos)
    if problems and data.unusable == "refuse":
        raise refusal(list(problems), notes)
    for note in notes:
        notify(Progress("checking audio", len(infos), len(infos), warning=note))
    return splits, list(problems), notes


def _without(problems: Iterable[Problem], utterances: list[Utterance], split: str) -> list[Utterance]:
    """The utterances of a split that can be trained on.

    Raises:
        DataError: there are none.
    """
    own = [problem for problem in problems if problem.split == split]
    bad = {problem.utterance_id for problem in own}
    left = [utterance for utterance in utterances if utterance.id not in bad]
    if not left:
        raise DataError(f"no usable utterance in {split}", details=first_few([problem.message for problem in own]))
    return left


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
    training = recipe.training
    lengths = [utterance.seconds for utterance in preparation.train]
    first, seconds = first_epoch(recipe, lengths)
    rounds = rounds_of(recipe)
    architecture = preparation.start.architecture
    return Plan(
        start=preparation.start.source,
        architecture=preparation.start.architecture.name,
        method=recipe.pruning.method,
        sparsity=preparation.settings.sparsity,
        start_sparsity=preparation.settings.sparsity_at_start,
        rounds=tuple((this.name, this.recipe.training.updates) for this in rounds),
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
        repruning_interval=preparation.settings.schedule.interval,
        reprunings=sum(reprunings_of(this, architecture, lengths) for this in rounds),
    )
