"""The cells of a sweep: a recipe, and every combination of values for some of its keys.

    recipe: ../mini/10min.yaml          # the base, relative to this file; null is all defaults
    set: {training.updates: 600}        # of the base, for all cells
    grid:                               # every combination of these
      pruning.method: [dense, mpi, parp]
      pruning.sparsity: [0.5, 0.7]
      seed: [0, 1]
    except:                             # combinations to leave out: cells that match every key of an entry
      - {pruning.method: mpi, pruning.sparsity: [0.7], seed: 1}
    vary:                               # and with each of them, one at a time, the others as in the base
      training.learning_rate: [1e-3, 4e-3]
    where:                              # settings of the cells that match every key of `cells`; later entries win
      - {cells: {pruning.method: parp}, set: {training.freeze_encoder_updates: 0}}
    splits: [test-clean]                # to evaluate each cell on; null is data.test, and so is --set data.test=...

All cells are checked completely before the first one runs. Cells with the same training are one cell: there is one
dense cell per seed here, since a dense run has no sparsity.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from parp_cli.config import tree
from parp_cli.config.finetune import AnyRecipe
from parp_cli.config.load import load_recipe, raise_problems, read, recipe_to_dict
from parp_cli.config.values import FilePath, Section
from parp_cli.errors import ParpError, RecipeError
from parp_cli.runtime.device import with_resolved_precision
from parp_cli.runtime.progress import Notify, silent
from parp_cli.tasks.task import task_class
from parp_cli.training.keys import round_key, start_key
from parp_cli.training.plan import Round, rounds_of, target_sparsity

METHOD, SPARSITY, SEED = "pruning.method", "pruning.sparsity", "seed"
"""Keys with a meaning in tables and figures: rows, columns, and what means are taken over."""

_EXCEPT = "except"  # the key of combinations to leave out; no field of a dataclass can have that name

_HINT = "recipes/sweeps/ has some to copy"


@dataclass(frozen=True, kw_only=True)
class Where(Section):
    """Settings of some cells."""

    cells: dict[str, Any]
    """Values of keys of the grid or of `vary`, or lists of them; a cell has to match all."""

    set: dict[str, Any]
    """Values of recipe keys, dotted or nested, for these cells: instead of the grid's, where it has some."""


@dataclass(frozen=True, kw_only=True)
class SweepFile(Section):
    """A sweep as it is written."""

    recipe: FilePath | None = None
    """The recipe that cells differ from; null is all defaults."""

    set: dict[str, Any] | None = None
    """Values of recipe keys, dotted or nested, for all cells."""

    grid: dict[str, Any]
    """Lists of values of recipe keys: one cell per combination."""

    vary: dict[str, Any] | None = None
    """Lists of values of more recipe keys. Each combination of the grid is run as it is, and with each of these values
    alone, as in an ablation."""

    except_: Annotated[list[dict[str, Any]] | None, Field(alias=_EXCEPT)] = None
    """Combinations of the grid's values to leave out."""

    where: list[Where] | None = None
    """Settings of the cells that match, in this order."""

    splits: tuple[str, ...] | None = None
    """What each cell is evaluated on; null is its recipe's data.test, and so is a data.test set on the command line."""

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
        start: names what they begin from.
        splits: to evaluate it on.
        data: names the content of what each round trains on, and `split_keys` that of each split; empty before
            `with_data`.
    """

    values: Mapping[str, Any]
    recipe: AnyRecipe
    rounds: tuple[Round, ...]
    start: str
    splits: tuple[str, ...]
    data: tuple[str, ...] = ()
    split_keys: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Of the rounds, from their content."""
        data = self.data or ("",) * len(self.rounds)
        counts = range(1, len(self.rounds) + 1)
        return tuple(round_key(self.rounds[:count], self.start, data[:count]) for count in counts)

    @property
    def key(self) -> str:
        """The key of the last round."""
        return self.keys[-1]

    @property
    def name(self) -> str:
        """A readable name such as `parp, 0.5 sparse, seed 1`."""
        words = (
            f"{value:.6g} sparse" if key == SPARSITY and value is not None else f"{key.split('.')[-1]} {shown(value)}"
            for key, value in self.values.items()
            if key != METHOD
        )
        return ", ".join((self.recipe.pruning.method, *words))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """All cells, in the order of the file it was read from: the first key's values change slowest."""

    file: Path
    cells: tuple[Cell, ...]


def shown(value: Any) -> str:
    """A grid value as YAML writes it: `null`, `true`, `[0.9, 0.98]`, text without quotes."""
    return value if isinstance(value, str) else json.dumps(value)


def load_sweep(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    device: Any,
    choices: Sequence[str] = (),
    recipe: Path | None = None,
) -> Sweep:
    """Read a sweep file and check every cell.

    Args:
        path: the YAML file; its relative paths start at its folder.
        overrides: `section.key=value` for all cells, as `--set` takes them; the grid's own keys cannot be set.
            A data.test takes the place of the file's `splits`.
        device: a torch.device, which resolves the precision `auto`.
        choices: `section.key=[value, ...]`, instead of the values that the grid, or `vary`, has for the key.
        recipe: instead of the file's `recipe`, `set` and `splits`.

    Raises RecipeError: no such file, not YAML, or with all problems of the file and its cells as details.
    """
    root = tree.read_file(path)
    file = read(root, path, kind=SweepFile, hint=_HINT)
    named = recipe or (None if file.recipe is None else Path(file.recipe))
    # Defaults are those of a task.
    task = (file.set or {}).get("task") if named is None and recipe is None else None
    base = load_recipe(named, () if task is None else [f"task={task}"])
    splits = file.splits if recipe is None else None
    grid, vary = _flat(root["grid"]), _flat(root.get("vary") or {})
    exceptions = [_flat(entry) for entry in root.get(_EXCEPT) or ()]
    rules = [(_flat(entry["cells"]), _flat(entry["set"])) for entry in root.get("where") or ()]
    problems = [f"{path}:{line}: {problem}" for line, problem in _problems(root, grid, vary, exceptions, rules)]
    problems += _choose(grid, vary, choices)
    taken = dict.fromkeys(map(str, grid), "the grid has")
    taken |= {str(key): "`where` has" for _, values in rules for key in values if key not in taken}
    settings = tree.compose(tree.dump(recipe_to_dict(base)), tree.UNNAMED)
    for key, value in _flat((root.get("set") or {}) if recipe is None else {}).items():
        settings = _put(settings, key, value, problems)
    for override in overrides:
        name = override.partition("=")[0].strip() + "."
        try:
            for reserved, who_has in taken.items():
                by_option = ", or by --grid" if reserved in grid else ""
                if name.startswith(f"{reserved}.") or reserved.startswith(name):
                    raise tree.Problem(f"{who_has} values for {reserved}: change them in the file{by_option}")
            settings = tree.with_override(settings, override)
            splits = None if "data.test.".startswith(name) else splits
        except tree.Problem as problem:
            problems.append(f"{tree.override_place(override)}: {problem}")
    cells: dict[str, Cell] = {}
    starts: dict[tuple[str | None, ...], str] = {}
    for chosen, one in _combinations(grid, vary) if not problems else ():
        if any(_matches(chosen | one, entry) for entry in exceptions):
            continue
        own = {key: value for cells, values in rules if _matches(chosen | one, cells) for key, value in values.items()}
        written = settings
        for key, value in {**chosen, **one, **own}.items():
            written = _put(written, key, value, problems)
        # What the grid has for a key makes no difference to a cell with a value of its own.
        axes = [str(key) for key in (*grid, *vary) if key not in own]
        try:
            cell = _cell(read(written, path), axes, splits, device, starts)
        except ParpError as error:
            problems += error.details if isinstance(error, RecipeError) else [error.message]
            continue
        cells[cell.key] = _merged(cells.get(cell.key, cell), cell)
    if not cells and not problems:
        problems.append(f"{path}: {_EXCEPT} leaves nothing of the grid")
    raise_problems(f"sweep {path}", problems, _HINT)
    return Sweep(file=path, cells=tuple(cells.values()))


def _combinations(
    grid: Mapping[Any, Any], vary: Mapping[Any, Any]
) -> Iterator[tuple[dict[tree.Text, Any], dict[tree.Text, Any]]]:
    """The values of the grid's keys, and those of at most one more key."""
    for choice in itertools.product(*grid.values()):
        chosen = dict(zip(grid, choice, strict=True))
        yield chosen, {}
        for key, values in vary.items():
            yield from ((chosen, {key: value}) for value in values)


def _choose(grid: dict[tree.Text, Any], vary: dict[tree.Text, Any], choices: Sequence[str]) -> Iterator[str]:
    """Replace values; what is wrong with the replacements."""
    for choice in choices:
        name, _, text = (part.strip() for part in choice.partition("="))
        section = next((each for each in (grid, vary) if name in map(str, each)), {})
        key = next((key for key in section if key == name), None)
        try:
            values = tree.compose(text, f"--grid {choice}", Path())
        except tree.Problem as problem:
            yield f"--grid {choice}: {problem}"
            continue
        if key is None:
            yield f"--grid {choice}: the grid has no key {name}: its keys are {', '.join((*grid, *vary))}"
        elif not isinstance(values, list) or not values:
            yield f"--grid {choice}: expected a list of values, such as {name}=[{tree.shown(section[key][0])}]"
        else:
            section[key] = values


def with_data(sweep: Sweep, notify: Notify = silent) -> Sweep:
    """The sweep, in which the keys of cells are of the content of their data too; all of it is read, and generated or
    downloaded where it is not there.

    Raises DataError: a split does not exist, or its data is missing or broken. Items that cannot be trained on are
    reported by each run.
    """
    data: dict[Any, str] = {}
    splits: dict[Any, str] = {}
    cells = []
    for cell in sweep.cells:
        task, source = task_class(cell.recipe.task), cell.recipe.data
        trained_on = [each.recipe.data for each in cell.rounds]
        for other in trained_on:
            if other not in data:
                data[other] = task.data_key(other, notify)
        for split in cell.splits:
            if (source, split) not in splits:
                splits[source, split] = task.split_key(source, split, notify)
        own = {split: splits[source, split] for split in cell.splits}
        cells.append(replace(cell, data=tuple(data[other] for other in trained_on), split_keys=own))
    return replace(sweep, cells=tuple(cells))


def _cell(
    recipe: AnyRecipe,
    axes: Sequence[str],
    splits: tuple[str, ...] | None,
    device: Any,
    starts: dict[tuple[str | None, ...], str],
) -> Cell:
    """The cell of a recipe; `starts` caches hashes of the files that cells start from."""
    # As finetune does it, so that keys are the same there.
    recipe = replace(recipe, training=with_resolved_precision(recipe.training, device))
    rounds = rounds_of(recipe)
    asked, settled, default = map(
        recipe_to_dict, (recipe, rounds[-1].recipe, load_recipe(None, [f"task={recipe.task}"]))
    )
    recipe = rounds[-1].recipe
    target_sparsity(recipe.pruning)  # which raises if it contradicts the pattern
    sources = (recipe.model, recipe.pruning.initial)
    if sources not in starts:
        starts[sources] = start_key(recipe, device=device)
    values = {key: _value(settled, key) for key in axes}
    return Cell(
        # Keys that a method does not read are reset to their defaults, and make no difference.
        values={k: v for k, v in values.items() if v == _value(asked, k) or v != _value(default, k)},
        recipe=recipe,
        rounds=rounds,
        start=starts[sources],
        splits=(recipe.data.test,) if splits is None else tuple(dict.fromkeys(splits)),
    )


def _merged(one: Cell, other: Cell) -> Cell:
    """Two cells with the same training as one: a key whose values differ makes no difference."""
    values = {key: value for key, value in one.values.items() if (key, value) in other.values.items()}
    return replace(one, values=values, splits=tuple(dict.fromkeys((*one.splits, *other.splits))))


def _value(plain: Any, key: str) -> Any:
    for part in key.split("."):
        plain = plain[int(part) if isinstance(plain, list) else part]
    return plain


def _flat(section: Mapping[Any, Any], prefix: str = "") -> dict[tree.Text, Any]:
    """The values of a mapping by dotted key, whatever is nested."""
    flat: dict[tree.Text, Any] = {}
    for key, value in section.items():
        nested = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if nested else {tree.Text(prefix + key, key.mark): value}
    return flat


def _put(settings: Any, key: tree.Text, value: Any, problems: list[str]) -> Any:
    """A copy of a recipe's tree with another value."""
    try:
        return tree.put(settings, key.split("."), value, key.mark)
    except tree.Problem as problem:
        problems.append(f"{key.mark.name}:{key.mark.line + 1}: {key}: {problem}")
        return settings


def _matches(chosen: Mapping[Any, Any], entry: Mapping[Any, Any]) -> bool:
    """Whether a combination of values has all those of an entry."""
    return all(key in chosen and _is_in(chosen[key], values) for key, values in entry.items())


def _is_in(value: Any, values: Any) -> bool:
    """Whether a value is another one, or in a list of them; 0.5 and 5e-1 are equal."""
    return _comparable(value) in map(_comparable, values if isinstance(values, list) else [values])


def _comparable(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_comparable, value))
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _problems(
    root: Any,
    grid: Mapping[Any, Any],
    vary: Mapping[Any, Any],
    exceptions: Sequence[Mapping[Any, Any]],
    rules: Sequence[tuple[Mapping[Any, Any], Mapping[Any, Any]]],
) -> Iterator[tuple[int, str]]:
    """What is wrong with the values of a grid, or else with what entries select of them; each with its line."""
    wrong = False
    for section, written in (("grid", grid), ("vary", vary)):
        for key, values in written.items():
            if not isinstance(values, list) or not values:
                wrong = True
                yield key.mark.line + 1, f"{section}: {key}: expected a list of values"
    for key in vary:
        if key in grid:
            yield key.mark.line + 1, f"vary: {key} is in the grid too"
    if not grid:
        yield root["grid"].mark.line + 1, "grid: names no recipe key"
    if wrong:
        return
    known = {**grid, **vary}
    selections = [(_EXCEPT, root[_EXCEPT][number], entry) for number, entry in enumerate(exceptions)]
    selections += [("where", root["where"][number], cells) for number, (cells, _) in enumerate(rules)]
    for number, (_, values) in enumerate(rules):
        if not values:
            yield root["where"][number].mark.line + 1, "where: set names no recipe key"
    for section, written, entry in selections:
        if not entry:
            yield written.mark.line + 1, f"{section}: an entry without keys"
        for key, values in entry.items():
            if key not in known:
                yield key.mark.line + 1, f"{section}: {key} is not in the grid: its keys are {', '.join(known)}"
                continue
            for value in values if isinstance(values, list) else [values]:
                if not _is_in(value, known[key]):
                    problem = f"{section}: {key} = {tree.shown(value)}: the grid has no such value"
                    yield key.mark.line + 1, problem
