"""The cells of a sweep: a recipe, and every combination of values for some of its keys.

    recipe: ../mini/10min.yaml          # the base, relative to this file; null is all defaults
    set: {training.updates: 600}        # of the base, for all cells
    grid:                               # every combination of these
      pruning.method: [dense, mpi, parp]
      pruning.sparsity: [0.5, 0.7]
      seed: [0, 1]
    except:                             # combinations to leave out: cells that match every key of an entry
      - {pruning.method: mpi, pruning.sparsity: [0.7], seed: 1}
    splits: [test-clean]                # to evaluate each cell on; null is the recipe's data.test

All cells are checked completely before the first one runs. Cells with the same training are one cell: there is one
dense cell per seed here, since a dense run has no sparsity.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from parp_cli.config import tree
from parp_cli.config.finetune import Recipe
from parp_cli.config.load import load_recipe, raise_problems, read, recipe_to_dict
from parp_cli.config.values import FilePath, Section
from parp_cli.errors import ParpError, RecipeError
from parp_cli.runtime.device import with_resolved_precision
from parp_cli.training.keys import round_key, start_key
from parp_cli.training.plan import Round, rounds_of, target_sparsity

METHOD, SPARSITY, SEED = "pruning.method", "pruning.sparsity", "seed"
"""Keys with a meaning in tables and figures: rows, columns, and what means are taken over."""

_EXCEPT = "except"
"""The key of combinations to leave out; no field of a dataclass can have that name."""

_HINT = "recipes/sweeps/ has some to copy"


@dataclass(frozen=True, kw_only=True)
class SweepFile(Section):
    """A sweep as it is written."""

    recipe: FilePath | None = None
    """The recipe that cells differ from; null is all defaults."""

    set: dict[str, Any] | None = None
    """Values of recipe keys, dotted or nested, for all cells."""

    grid: dict[str, Any]
    """Lists of values of recipe keys: one cell per combination."""

    except_: Annotated[Any, Field(alias=_EXCEPT)] = None
    """Combinations of the grid's values to leave out: lists of mappings."""

    splits: tuple[str, ...] | None = None
    """What each cell is evaluated on; null is its recipe's data.test."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Invalid values."""
        if self.splits is not None and not self.splits:
            yield "splits", "names none; write null for the recipe's data.test"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One recipe of a sweep.

    Attributes:
        values: by grid key, as in the recipe, without keys that make no difference to it.
        recipe: to run, with its precision resolved.
        rounds: its training runs; the last one is the run proper.
        keys: of the rounds, from their content.
        splits: to evaluate it on.
    """

    values: Mapping[str, Any]
    recipe: Recipe
    rounds: tuple[Round, ...]
    keys: tuple[str, ...]
    splits: tuple[str, ...]

    @property
    def key(self) -> str:
        """The key of the last round."""
        return self.keys[-1]

    @property
    def name(self) -> str:
        """A readable name such as `parp, 0.5 sparse, seed 1`."""
        words: list[str] = [self.recipe.pruning.method]
        for key, value in self.values.items():
            if key == METHOD:
                continue
            leaf = key.rpartition(".")[2]
            words.append(f"{value:.6g} sparse" if key == SPARSITY and value is not None else f"{leaf} {shown(value)}")
        return ", ".join(words)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All cells, in the order of the file: the first key's values change slowest.

    Attributes:
        file: that it was read from.
        axes: the grid's keys.
    """

    file: Path
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]


def shown(value: Any) -> str:
    """A grid value as YAML writes it: `null`, `true`, `[0.9, 0.98]`, text without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def load_sweep(path: Path, overrides: Sequence[str] = (), *, device: Any) -> Sweep:
    """Read a sweep file and check every cell.

    Args:
        path: the YAML file; its relative paths start at its folder.
        overrides: `section.key=value` for all cells, as `--set` takes them; the grid's own keys cannot be set.
        device: a torch.device, which resolves the precision `auto`.

    Raises:
        RecipeError: no such file, not YAML, or with all problems of the file and its cells as details.
    """
    root = tree.read_file(path)
    file = read(root, path, kind=SweepFile, hint=_HINT)
    base = load_recipe(None if file.recipe is None else Path(file.recipe))
    problems: list[str] = []
    axes = _axes(root["grid"], problems, path)
    exceptions = _exceptions(root.get(_EXCEPT), axes, problems, path)
    settings = tree.compose(tree.dump(recipe_to_dict(base)), tree.UNNAMED)
    for entry in _flat(root.get("set"), problems, path):
        settings = _with(settings, entry, problems, path)
    for override in overrides:
        try:
            _refuse_gridded(override, [key for key, _, _ in axes])
            settings = tree.with_override(settings, override)
        except tree.Problem as problem:
            problems.append(f"{tree.override_place(override)}: {problem}")
    cells: dict[str, Cell] = {}
    starts: dict[tuple[str | None, ...], str] = {}
    for choice in itertools.product(*(values for _, _, values in axes)) if not problems else ():
        chosen = {key: _plain(value) for (key, _, _), value in zip(axes, choice, strict=True)}
        if any(all(chosen[key] in values for key, values in exception.items()) for exception in exceptions):
            continue
        recipe_tree = settings
        for (key, mark, _), value in zip(axes, choice, strict=True):
            recipe_tree = _with(recipe_tree, (key, mark, value), problems, path)
        try:
            recipe = read(recipe_tree, path)
            cell = _cell(recipe, list(chosen), file.splits, device, starts)
        except ParpError as error:
            problems += error.details if isinstance(error, RecipeError) else [error.message]
            continue
        cells[cell.key] = _merged(cells.get(cell.key, cell), cell)
    if not cells and not problems:
        problems.append(f"{path}: {_EXCEPT} leaves nothing of the grid")
    raise_problems(f"sweep {path}", problems, _HINT)
    return Sweep(file=path, axes=tuple(key for key, _, _ in axes), cells=tuple(cells.values()))


def _cell(
    recipe: Recipe,
    axes: Sequence[str],
    splits: tuple[str, ...] | None,
    device: Any,
    starts: dict[tuple[str | None, ...], str],
) -> Cell:
    """The cell of a recipe; `starts` caches hashes of the files that cells start from."""
    # As finetune does it, so that keys are the same there.
    recipe = replace(recipe, training=with_resolved_precision(recipe.training, device))
    rounds = rounds_of(recipe)
    asked, settled = recipe_to_dict(recipe), recipe_to_dict(rounds[-1].recipe)
    recipe = rounds[-1].recipe
    target_sparsity(recipe.pruning)  # which raises if it contradicts the pattern
    sources = (recipe.model, recipe.pruning.initial, recipe.data.manifest)
    if sources not in starts:
        starts[sources] = start_key(recipe, device=device)
    return Cell(
        values={key: _value(settled, key) for key in axes if _makes_a_difference(key, asked, settled)},
        recipe=recipe,
        rounds=rounds,
        keys=tuple(round_key(rounds[:count], starts[sources]) for count in range(1, len(rounds) + 1)),
        splits=(recipe.data.test,) if splits is None else tuple(dict.fromkeys(splits)),
    )


def _makes_a_difference(key: str, asked: Mapping[str, Any], settled: Mapping[str, Any]) -> bool:
    """Whether the value of a key was kept: keys that a method does not read are reset to their defaults."""
    value = _value(settled, key)
    return bool(value == _value(asked, key) or value != _value(recipe_to_dict(Recipe()), key))


def _merged(one: Cell, other: Cell) -> Cell:
    """Two cells with the same training as one: a key whose values differ makes no difference."""
    values = {key: value for key, value in one.values.items() if (key, value) in other.values.items()}
    return replace(one, values=values, splits=tuple(dict.fromkeys((*one.splits, *other.splits))))


def _value(plain: Mapping[str, Any], key: str) -> Any:
    value: Any = plain
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


_Entry = tuple[str, Any, Any]
"""A dotted key, its mark in the file, and its value."""


def _flat(value: Any, problems: list[str], path: Path, prefix: str = "") -> list[_Entry]:
    """The entries of a mapping; those of nested mappings have dotted keys."""
    if value is None:
        return []
    if not isinstance(value, dict):
        what = "a mapping of recipe keys"
        problems.append(f"{path}:{value.mark.line + 1}: found {tree.shown(value)}: expected {what}")
        return []
    entries: list[_Entry] = []
    for key, below in value.items():
        name = prefix + key
        if isinstance(below, dict):
            entries += _flat(below, problems, path, f"{name}.")
        else:
            entries.append((name, key.mark, below))
    return entries


def _axes(grid: Any, problems: list[str], path: Path) -> list[tuple[str, Any, list[Any]]]:
    """The grid's keys, each with its values."""
    axes = []
    for key, mark, values in _flat(grid, problems, path):
        if not isinstance(values, list) or not values:
            problems.append(f"{path}:{mark.line + 1}: grid: {key}: expected a list of values")
        else:
            axes.append((key, mark, values))
    if not axes and not problems:
        problems.append(f"{path}:{grid.mark.line + 1}: grid: names no recipe key")
    return axes


def _exceptions(
    entries: Any, axes: Sequence[tuple[str, Any, list[Any]]], problems: list[str], path: Path
) -> list[dict[str, list[Any]]]:
    """Combinations to leave out, each as lists of values by grid key."""
    if entries is None:
        return []
    if not isinstance(entries, list):
        problems.append(f"{path}:{entries.mark.line + 1}: {_EXCEPT}: expected a list of mappings of grid keys")
        return []
    known = {key: [_plain(value) for value in values] for key, _, values in axes}
    found = []
    for entry in entries:
        exception: dict[str, list[Any]] = {}
        for key, mark, value in _flat(entry, problems, path):
            values = value if isinstance(value, list) else [value]
            exception[key] = [_plain(one) for one in values]
            place = f"{path}:{mark.line + 1}: {_EXCEPT}: {key}"
            if key not in known:
                problems.append(f"{place} is not in the grid: its keys are {', '.join(known)}")
                continue
            wrong = [tree.shown(one) for one in values if _plain(one) not in known[key]]
            problems += [f"{place} = {text}: the grid has no such value" for text in wrong]
        if exception:
            found.append(exception)
        elif isinstance(entry, tree.Entries):
            problems.append(f"{path}:{entry.mark.line + 1}: {_EXCEPT}: an entry without keys")
    return found


def _plain(value: Any) -> Any:
    """A value to compare; 0.5 and 5e-1 are equal."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return str(value)


def _refuse_gridded(override: str, axes: Sequence[str]) -> None:
    """Raise a Problem where an override is of a key that the grid has values for."""
    name = override.partition("=")[0].strip()
    for key in axes:
        if f"{name}.".startswith(f"{key}.") or key.startswith(f"{name}."):
            raise tree.Problem(f"the grid has values for {key}: change them in the file")


def _with(settings: Any, entry: _Entry, problems: list[str], path: Path) -> Any:
    """A copy of a recipe's tree with the value of an entry."""
    key, mark, value = entry
    try:
        return tree.put(settings, key.split("."), value, mark)
    except tree.Problem as problem:
        problems.append(f"{path}:{mark.line + 1}: {key}: {problem}")
        return settings
