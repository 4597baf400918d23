"""The cells of a sweep: a recipe, and every combination of values for some of its keys.

    recipe: ../mini/10min.yaml          # the base, relative to this file; null is all defaults
    set: {training.updates: 600}        # of the base, for all cells
    grid:                               # every combination of these
      pruning.method: [dense, mpi, parp]
      pruning.sparsity: [0.5, 0.7]
      seed: [0, 1]
    splits: [test-clean]                # to judge each cell on; null is the recipe's data.test

All cells are checked whole before the first one runs. Cells that come to the same thing are one: there is one dense
cell a seed here, since a dense run has no sparsity.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import yaml

from parp_cli import strict_yaml, yaml_nodes
from parp_cli.environment import resolve_precision
from parp_cli.errors import ParpError, RecipeError
from parp_cli.recipe import Recipe, load_recipe, recipe_to_dict
from parp_cli.strict_yaml import IsPath
from parp_cli.training.rounds import Round, round_key, rounds_of, start_key

METHOD, SPARSITY, SEED = "pruning.method", "pruning.sparsity", "seed"
"""Keys that tables and figures know: lines, columns, and what means are taken over."""

_HINT = "recipes/sweeps/ has some to copy"


@dataclass(frozen=True, kw_only=True)
class SweepFile:
    """A sweep as it is written."""

    recipe: Annotated[str, IsPath()] | None = None
    """The recipe that cells differ from; null is all defaults."""

    set: yaml.Node | None = None
    """Values of recipe keys, dotted or nested, for all cells."""

    grid: yaml.Node
    """Lists of values of recipe keys: a cell for every combination."""

    splits: tuple[str, ...] | None = None
    """What each cell is judged on; null is its recipe's data.test."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Values that cannot be."""
        if self.splits is not None and not self.splits:
            yield "splits", "names none; write null for the recipe's data.test"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One recipe of a sweep.

    Attributes:
        values: of every grid key, as the recipe has them; None where they make no difference to it.
        recipe: to run, with its precision resolved.
        rounds: the training runs it is made of; the last one is the run proper.
        keys: of each round, from its content.
        splits: to judge it on.
    """

    values: Mapping[str, Any]
    recipe: Recipe
    rounds: tuple[Round, ...]
    keys: tuple[str, ...]
    splits: tuple[str, ...]

    @property
    def key(self) -> str:
        """Of the cell: that of its last round."""
        return self.keys[-1]

    @property
    def name(self) -> str:
        """For people: `parp, 0.5 sparse, seed 1`."""
        words: list[str] = [self.recipe.pruning.method]
        for key, value in self.values.items():
            if value is None or key == METHOD:
                continue
            leaf = key.rpartition(".")[2]
            words.append(f"{value:.6g} sparse" if key == SPARSITY else f"{leaf} {value}")
        return ", ".join(words)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All cells, in the order of the file: the first key's values change slowest.

    Attributes:
        file: it was read from.
        axes: the grid's keys.
    """

    file: Path
    axes: tuple[str, ...]
    cells: tuple[Cell, ...]


def load_sweep(path: Path, overrides: Sequence[str] = (), *, device: Any) -> Sweep:
    """Read a sweep file and check every cell.

    Args:
        path: the YAML file, to whose folder its relative paths belong.
        overrides: `section.key=value` for all cells, as `--set` takes them; the grid's own values win.
        device: a torch.device, which resolves the precision `auto`.

    Raises:
        RecipeError: no such file, not YAML, or with everything that is wrong in it and in its cells as details.
    """
    file = strict_yaml.load(SweepFile, path, hint=_HINT)
    base = load_recipe(None if file.recipe is None else Path(file.recipe))
    problems: list[str] = []
    settings, axes = _flat(file.set, problems, path), _axes(file.grid, problems, path)
    tree = yaml_nodes.compose(yaml_nodes.dump(recipe_to_dict(base)), yaml_nodes.UNNAMED)
    for key, mark, node in settings:
        tree = _with(tree, key.split("."), node, mark)
    for override in overrides:
        try:
            yaml_nodes.apply_override(override, tree, {})
        except yaml_nodes.Problem as problem:
            problems.append(f"{yaml_nodes.override_place(override)}: {problem}")
    cells: dict[str, Cell] = {}
    for choice in itertools.product(*(values for _, _, values in axes)) if not problems else ():
        recipe_tree = tree
        for (key, mark, _), node in zip(axes, choice, strict=True):
            recipe_tree = _with(recipe_tree, key.split("."), node, mark)
        try:
            recipe = strict_yaml.from_node(Recipe, recipe_tree, path)
            cell = _cell(recipe, [key for key, _, _ in axes], file.splits, device)
        except ParpError as error:
            problems += error.details if isinstance(error, RecipeError) else [error.message]
            continue
        cells[cell.key] = _merged(cells.get(cell.key, cell), cell)
    if problems:
        found = list(dict.fromkeys(problems))
        count = "a problem" if len(found) == 1 else f"{len(found)} problems"
        raise RecipeError(f"sweep {path} has {count}", details=found, hint=_HINT)
    return Sweep(file=path, axes=tuple(key for key, _, _ in axes), cells=tuple(cells.values()))


def _cell(recipe: Recipe, axes: Sequence[str], splits: tuple[str, ...] | None, device: Any) -> Cell:
    # As finetune does it, so that keys are the same there.
    precision = resolve_precision(recipe.training.precision, device)
    recipe = replace(recipe, training=replace(recipe.training, precision=precision))
    rounds = rounds_of(recipe)
    recipe = rounds[-1].recipe
    start = start_key(recipe)
    plain = recipe_to_dict(recipe)
    return Cell(
        values={key: _value(plain, key) for key in axes},
        recipe=recipe,
        rounds=rounds,
        keys=tuple(round_key(rounds[:count], start) for count in range(1, len(rounds) + 1)),
        splits=(recipe.data.test,) if splits is None else tuple(dict.fromkeys(splits)),
    )


def _merged(one: Cell, other: Cell) -> Cell:
    values = {key: value if value == other.values[key] else None for key, value in one.values.items()}
    return replace(one, values=values)


def _value(plain: Mapping[str, Any], key: str) -> Any:
    value: Any = plain
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


_Entry = tuple[str, Any, Any]
"""A dotted key, its mark in the file, and the node of its value."""


def _flat(node: Any, problems: list[str], path: Path, prefix: str = "") -> list[_Entry]:
    """The entries of a mapping node, those of nested mappings under dotted keys."""
    if node is None or yaml_nodes.is_null(node):
        return []
    if not isinstance(node, yaml.MappingNode):
        what = "a mapping of recipe keys"
        problems.append(f"{path}:{node.start_mark.line + 1}: found {yaml_nodes.shown(node)}: expected {what}")
        return []
    entries: list[_Entry] = []
    seen: set[str] = set()
    for key, value in node.value:
        name = prefix + str(key.value)
        if name in seen:
            problems.append(f"{path}:{key.start_mark.line + 1}: duplicate key {name}")
        seen.add(name)
        if isinstance(value, yaml.MappingNode):
            entries += _flat(value, problems, path, f"{name}.")
        else:
            entries.append((name, key.start_mark, value))
    return entries


def _axes(node: Any, problems: list[str], path: Path) -> list[tuple[str, Any, list[Any]]]:
    """The grid's keys, each with the nodes of its values."""
    axes = []
    for key, mark, values in _flat(node, problems, path):
        if not isinstance(values, yaml.SequenceNode) or not values.value:
            problems.append(f"{path}:{mark.line + 1}: grid: {key}: expected a list of values")
        else:
            axes.append((key, mark, list(values.value)))
    return axes


def _with(node: Any, parts: Sequence[str], value: Any, mark: Any) -> Any:
    """A copy of a tree with another value at a dotted place; what is unknown there is for the reader to refuse."""
    if not parts:
        return value
    first, *rest = parts
    tree = copy.copy(node) if isinstance(node, yaml.MappingNode) else yaml_nodes.empty_mapping(mark.name)
    tree.value = list(tree.value)
    for position, (key, child) in enumerate(tree.value):
        if key.value == first:
            tree.value[position] = (key, _with(child, rest, value, mark))
            return tree
    name = yaml.ScalarNode("tag:yaml.org,2002:str", first, mark, mark)
    section = yaml.MappingNode("tag:yaml.org,2002:map", [], mark, mark)
    tree.value.append((name, _with(section, rest, value, mark)))
    return tree
