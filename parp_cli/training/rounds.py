"""A method as training runs: most are one; OMP, IMP and PAP train to find a mask, go back, and train again."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import parp_cli
from parp_cli.checkpoint import file_hash
from parp_cli.errors import UsageError
from parp_cli.models.sources import BUNDLED
from parp_cli.pruning.patterns import Pattern
from parp_cli.recipe import Pruning, Recipe, SearchRounds, recipe_to_dict

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


def rounds_of(recipe: Recipe) -> tuple[Round, ...]:
    """The runs that a recipe's method is made of; the last one is the run proper, under the whole recipe.

    All of them begin from the same weights (the recipe's model, or the rounds after the first from
    `pruning.rewind`), and a run's first mask comes from the run before.
    """
    method = recipe.pruning.method
    if method == "dense":
        return (Round(name=method, recipe=_dense(recipe)),)
    sparsity = target_sparsity(recipe.pruning)
    if method == "omp":
        search = _dense(recipe)
        return Round(name="dense", recipe=search), Round(name=method, recipe=recipe, take=sparsity)
    if method == "imp":
        return _iterative(recipe, sparsity)
    if method == "pap":
        search = replace(recipe, pruning=replace(_without_search(recipe.pruning), method="parp"))
        return Round(name="parp", recipe=search), Round(name=method, recipe=recipe)
    return (Round(name=method, recipe=recipe),)


def target_sparsity(pruning: Pruning) -> float:
    """What a run prunes to that does not start from a mask.

    Raises:
        UsageError: the sparsity is not that of the N:M pattern, or there is no such pattern.
    """
    pattern = Pattern.parse(pruning.pattern)
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
    runs = [[recipe_to_dict(r.recipe), r.take, _hash_or_name(str(r.recipe.pruning.rewind))] for r in rounds]
    content = [parp_cli.__version__, start, runs]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def start_key(recipe: Recipe, init: Path | None = None) -> str:
    """Names what a method's first run begins from: the hashes of its files; of a model that is no file, its name.

    Of a manifest the list itself is hashed, not the sound it names.
    """
    model = recipe.model or BUNDLED
    if model == BUNDLED:
        with resources.as_file(resources.files("parp_cli") / "assets" / f"{BUNDLED}.safetensors") as path:
            names = [file_hash(path)]
    else:
        names = [_hash_or_name(model)]
    names += [_hash_or_name(str(source)) for source in (init, recipe.pruning.initial)]
    if recipe.data.manifest is not None:
        names.append(_hash_or_name(recipe.data.manifest))
    return " ".join(names)


def _hash_or_name(source: str) -> str:
    path = Path(source)
    if path.is_dir():  # a model of transformers
        return " ".join(file_hash(file) for file in sorted(path.iterdir()) if file.is_file())
    return file_hash(path) if path.is_file() else source


def _dense(recipe: Recipe) -> Recipe:
    """Dense, whatever the other pruning keys say, so that all who need the dense run need the same one."""
    kept = recipe.pruning
    return replace(recipe, pruning=Pruning(method="dense", scope=kept.scope, biases=kept.biases, pattern=kept.pattern))


def _without_search(pruning: Pruning) -> Pruning:
    return replace(pruning, rewind=None, rounds=SearchRounds())


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
