"""A method as training runs: most are one; OMP, IMP and PAP train to find a mask, go back, and train again."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import parp_cli
from parp_cli.config.finetune import Pruning, Recipe
from parp_cli.config.load import recipe_to_dict
from parp_cli.errors import UsageError
from parp_cli.models.sources.load import BUNDLED
from parp_cli.models.speech.config import ARCHITECTURES
from parp_cli.pruning.masks import recorded_setting
from parp_cli.pruning.patterns import Pattern
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import file_hash

DEFAULT_SPARSITY = 0.5
"""Where neither the recipe nor the checkpoint nor the pattern says how much to prune."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """One training run of a method.

    Attributes:
        name: for people.
        recipe: of this run alone; its method says what happens to the mask meanwhile.
        take: where the first mask comes from the round before: the sparsity to prune its last weights to. None for
            the mask that round ended with, or without a round before.
    """

    name: str
    recipe: Recipe
    take: float | None = None


_TIMES = ("interval", "interval_unit", "start", "end")
_PARP = ("sparsity", "initial", *_TIMES, "final")
_READ: Mapping[str, tuple[str, ...]] = {
    "dense": (),
    "fixed": ("sparsity", "initial"),
    "mpi": ("sparsity", "initial"),
    "rp": ("sparsity", "initial"),
    "omp": ("sparsity", "rewind"),
    "imp": ("sparsity", "rewind", "rounds"),
    "parp": _PARP,
    "parp-p": (*_PARP, "start_sparsity", "growth"),
    "pap": (*_PARP, "rewind"),
    "rigl": ("sparsity", "initial", *_TIMES, "drop_fraction"),
}
"""By method, what it reads of a recipe's pruning besides scope, biases and pattern."""

_DEFAULTS: Mapping[str, Any] = {"scope": "transformer", "biases": True, "pattern": "global"}

_NO_DIFFERENCE: Mapping[str, tuple[str, ...]] = {
    "data": ("test", "download"),
    "training": ("save_minutes", "most_skipped_updates", "checkpoint_activations", "shard_weights"),
}
"""Keys that make no difference to training."""

FIRST_MASKS = ("magnitude", "random", "random-weights")
"""Values of `pruning.initial` that are no path."""


def settle(recipe: Recipe, init: Path | None = None) -> Recipe:
    """The recipe as it will run, so that equal runs have equal recipes.

    What its method does not read is as if it were not there; scope, biases and pattern are those of the mask the run
    starts from, where they are left open.

    Args:
        recipe: as it was written.
        init: the checkpoint to begin from.

    Raises:
        CheckpointError: the checkpoint, or that of the first mask, cannot be read.
    """
    pruning = recipe.pruning
    kept = {key: getattr(pruning, key) for key in ("method", *_DEFAULTS, *_READ[pruning.method])}
    masked = init
    if pruning.initial not in (None, *FIRST_MASKS) and Path(str(pruning.initial)).is_file():
        masked = masked or Path(str(pruning.initial))
    metadata = None if masked is None else checkpoint.read_metadata(masked)
    for key, default in _DEFAULTS.items():
        if kept[key] is None:
            recorded = None if metadata is None else recorded_setting(metadata.recipe, key)
            kept[key] = default if recorded is None else recorded
    return replace(recipe, pruning=Pruning(**kept))


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
    method = recipe.pruning.method
    if method not in ("omp", "imp", "pap"):
        return (Round(name=method, recipe=recipe),)
    sparsity = target_sparsity(recipe.pruning)
    if method == "omp":
        search = _dense(recipe)
        return Round(name="dense", recipe=search), Round(name=method, recipe=recipe, take=sparsity)
    if method == "imp":
        return _iterative(recipe, sparsity)
    search = replace(recipe, pruning=replace(recipe.pruning, method="parp", rewind=None))
    return Round(name="parp", recipe=search), Round(name=method, recipe=recipe)


def pattern_in(pruning: Pruning) -> Pattern:
    """Which weights compete with which; a recipe that was not settled may leave it open."""
    return Pattern.parse(pruning.pattern or _DEFAULTS["pattern"])


def target_sparsity(pruning: Pruning) -> float:
    """What a run prunes to that does not start from a mask.

    Raises:
        UsageError: the sparsity is not that of the N:M pattern, or there is no such pattern.
    """
    pattern = pattern_in(pruning)
    if pattern.sparsity is None:
        return DEFAULT_SPARSITY if pruning.sparsity is None else pruning.sparsity
    if pruning.sparsity not in (None, pattern.sparsity):
        raise UsageError(
            f"pattern {pattern} prunes {pattern.sparsity:g} of the weights, the recipe asks for {pruning.sparsity:g}",
            hint=f"set pruning.sparsity to {pattern.sparsity:g} or null, or take another pattern",
        )
    return pattern.sparsity


def round_key(rounds: Sequence[Round], start: str) -> str:
    """Names the last of `rounds` by content: equal keys, equal files.

    Args:
        rounds: a method's runs, from the first one up to the one that is named.
        start: from `start_key`.
    """
    runs = [[trained_on(this.recipe), this.take, _hash_or_name(this.recipe.pruning.rewind)] for this in rounds]
    content = [parp_cli.__version__, start, runs]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def trained_on(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe makes a difference to training, as plain values for JSON."""
    values = recipe_to_dict(recipe)
    for section, without in _NO_DIFFERENCE.items():
        values[section] = {key: value for key, value in values[section].items() if key not in without}
    return values


def start_key(recipe: Recipe, init: Path | None = None) -> str:
    """Names what a method's first run begins from: the hashes of its files; of a model that is no file, its name.

    Of a manifest the list itself is hashed, not the sound it names.
    """
    model, initial = recipe.model or BUNDLED, recipe.pruning.initial
    if model == BUNDLED:
        with resources.as_file(resources.files("parp_cli") / "assets" / f"{BUNDLED}.safetensors") as path:
            names = [file_hash(path)]
    else:
        names = [model if model in ARCHITECTURES else _hash_or_name(model)]
    names += [_hash_or_name(init), str(initial) if initial in FIRST_MASKS else _hash_or_name(initial)]
    return " ".join([*names, _hash_or_name(recipe.data.manifest)])


def _hash_or_name(source: str | Path | None) -> str:
    if source is None:
        return ""
    path = Path(source)
    if path.is_dir():  # a model of transformers
        return " ".join(file_hash(file) for file in sorted(path.iterdir()) if file.is_file())
    return file_hash(path) if path.is_file() else str(source)


def _dense(recipe: Recipe) -> Recipe:
    return settle(replace(recipe, pruning=replace(recipe.pruning, method="dense")))


def _iterative(recipe: Recipe, target: float) -> tuple[Round, ...]:
    """IMP: each round trains under the mask so far, prunes by the outcome, and goes back.

    A round's recipe does not say what the target is, so that a sparser run's first rounds are this one's.
    """
    pruning, training = recipe.pruning, recipe.training
    settings = pruning.rounds
    short = replace(
        recipe,
        training=replace(
            training,
            updates=settings.updates or max(1, round(training.updates / 6)),
            learning_rate=settings.learning_rate or training.learning_rate,
            head_learning_rate=training.head_learning_rate if settings.learning_rate is None else None,
            freeze_encoder_updates=0,
        ),
    )
    dense = _dense(short)
    count = max(1, math.ceil(target / settings.step - 1e-9))
    rounds = [Round(name=f"round 1 of {count}", recipe=dense)]
    for done in range(1, count):
        sparsity = round(done * settings.step, 12)
        fixed = replace(dense.pruning, method="fixed", sparsity=sparsity, rewind=pruning.rewind)
        name = f"round {done + 1} of {count}"
        rounds.append(Round(name=name, recipe=replace(short, pruning=fixed), take=sparsity))
    return (*rounds, Round(name="imp", recipe=recipe, take=target))
