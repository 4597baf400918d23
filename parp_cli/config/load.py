"""Reading recipes: pydantic turns a tree of YAML nodes into a dataclass of settings.

The types of `values.py` decide what the text of a scalar means. All problems are reported at once, each with its line
and, for an unknown key, the nearest valid name.
"""

import dataclasses
import functools
import json
import operator
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, cast

import yaml
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypeVar

from parp_cli.config import nodes
from parp_cli.config.finetune import RECIPES, Recipe
from parp_cli.config.nodes import Problem, child, shown
from parp_cli.config.values import CONFLICT, Text
from parp_cli.errors import RecipeError

T = TypeVar("T", default=Recipe)

_INVALID: Final = object()
"""Stands for a node that no field accepts."""

_UNKNOWN = "unexpected_keyword_argument"
"""pydantic's name for a key that a dataclass does not have."""


def load_recipe(path: Path | None, overrides: Sequence[str] = (), *, kind: type[T] | None = None) -> T:
    """Read and check a recipe.

    Args:
        path: the YAML file, whose folder its relative paths start at; None for all defaults.
        overrides: `section.key=value`, as `--set` takes them. They come after the file, and the last one wins. Entries
            of lists are numbered from 0: `stages.0.updates=10`. Their paths are relative to the working folder.
        kind: `PretrainRecipe` or another dataclass of settings; by default the recipe that `task` selects.

    Raises:
        RecipeError: no such file, not YAML, or with all problems as its details.
    """
    root = nodes.compose("{}", nodes.UNNAMED) if path is None else nodes.read_file(path)
    hint = "`parp finetune --keys` shows every key and what it means" if kind is None else None
    return read(root, path, overrides, kind=kind, hint=hint)


def recipe_to_dict(recipe: Any) -> dict[str, Any]:
    """All fields of a recipe as plain values for JSON, defaults too."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return plain


def recipe_from_dict(values: Mapping[str, Any], overrides: Sequence[str] = (), *, kind: type[T] | None = None) -> T:
    """Read back what `recipe_to_dict` returned, with the overrides and checks of `load_recipe`; paths stay as they are.

    Raises:
        RecipeError: with all problems as its details.
    """
    try:
        root = nodes.compose(nodes.dump(dict(values)), nodes.UNNAMED)
    except (yaml.YAMLError, Problem) as problem:
        raise RecipeError("the recipe is not made of plain values", details=[str(problem)]) from problem
    return read(root, None, overrides, kind=kind)


def dump_yaml(recipe: Any) -> str:
    """All fields of a recipe as YAML that `load_recipe` reads back to an equal one."""
    return nodes.dump(recipe_to_dict(recipe))


def read(
    root: Any, path: Path | None, overrides: Sequence[str] = (), *, kind: type[T] | None = None, hint: str | None = None
) -> T:
    """Read settings from a tree of nodes that may come from several files; arguments and errors as of `load_recipe`.

    Only problems of the file `path` have a line, and paths from elsewhere are relative to the working folder.
    """
    reader = _Reader(path, overrides)
    for override in overrides:
        try:
            root = nodes.with_override(root, override, schema_of(_selected(kind, root)).defaults)
        except Problem as problem:
            reader.note(nodes.at_start(nodes.override_place(override)), str(problem))
    settings = reader.read(_selected(kind, root), root)
    details = [text for _, text in sorted(reader.problems, key=lambda problem: problem[0])]
    raise_problems("recipe" if path is None else f"recipe {path}", details, hint)
    return cast(T, settings)


def _selected(kind: type[T] | None, root: Any) -> Any:
    """The dataclass to read: the kind that was asked for, else that of the task which the recipe names."""
    task = child(root, "task")
    return kind or RECIPES.get(task.value if isinstance(task, yaml.ScalarNode) else Recipe.task, Recipe)


def raise_problems(title: str, problems: Sequence[str], hint: str | None) -> None:
    """Raise a RecipeError that lists each problem once; nothing where there is none."""
    details = list(dict.fromkeys(problems))
    if details:
        count = "a problem" if len(details) == 1 else f"{len(details)} problems"
        raise RecipeError(f"{title} has {count}", details=details, hint=hint)


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _validated(kind: Any, plain: Any) -> tuple[Any, list[Any]]:
    """A dataclass and no errors, or None and pydantic's."""
    try:
        return _adapter(kind).validate_python(plain), []
    except ValidationError as error:
        return None, [*error.errors(include_url=False, include_input=False)]


class _Reader:
    """Turns nodes into a dataclass, noting every problem on the way."""

    def __init__(self, path: Path | None, overrides: Sequence[str]) -> None:
        self.file = None if path is None else str(path)
        self.folders = {nodes.UNNAMED: None} if path is None else {str(path): path.absolute().parent}
        """Where relative paths start, by the place that they are written at; elsewhere it is the working folder."""
        self.places = [self.file, *map(nodes.override_place, overrides)]
        self.problems: list[tuple[tuple[int, int], str]] = []
        """Each with what it is sorted by: first the file, then the command line."""

    def read(self, kind: Any, root: Any) -> Any:
        """A dataclass, None where there were problems."""
        plain = self._plain(root, "", {})
        settings, errors = _validated(kind, plain)
        for *section, key in [error["loc"] for error in errors if error["type"] == _UNKNOWN]:
            functools.reduce(operator.getitem, section, plain).pop(key, None)  # None: an alias, removed already
        # Beside an unknown key, pydantic does not get as far as the values that do not go together.
        errors += _validated(kind, plain)[1] if errors else []
        for error in errors:
            self._note_error(error["type"], error["loc"], error["msg"], root, schema_of(kind))
        return settings

    def note(self, mark: yaml.Mark, text: str) -> None:
        """Note a problem of a place."""
        order = self.places.index(mark.name) if mark.name in self.places else len(self.places)
        line = f":{mark.line + 1}" if mark.name == self.file else ""
        self.problems.append(((order, mark.index), f"{mark.name}{line}: {text}"))

    def _note_error(self, error: str, loc: tuple[int | str, ...], message: str, root: Any, schema: "Schema") -> None:
        """Note an error of pydantic's, whose `loc` leads to a node as it leads to a value."""
        if error == "missing" and isinstance(loc[-1], int):  # the list is too short
            loc, error = loc[:-1], "too_short"
        name, section, node = ".".join(map(str, loc)), root, root
        for part in loc:
            section, node = node, child(node, str(part)) or node
        if error == CONFLICT:
            self.note(node.start_mark, f"{name}: {message}")
        elif error == _UNKNOWN:
            key = next(key for key, _ in section.value if key.value == loc[-1])
            self.note(key.start_mark, f"unknown key {name}: {schema.suggestion(str(loc[-1]), loc[:-1])}")
        elif error == "missing":
            self.note(node.start_mark, f"{name} is missing: expected {schema.expected(loc)}")
        else:
            wanted = schema.expected(loc)
            remedies = {"text": " (in quotes)"} | ({wanted: " (write null)"} if wanted.endswith(_OR_NULL) else {})
            remedy = remedies.get(wanted, "") if nodes.spells_none(node) else ""
            where = f"{name} = {shown(node)}" if loc else f"found {shown(node)}"
            self.note(node.start_mark, f"{where}: expected {wanted}{remedy}")

    def _plain(self, node: Any, prefix: str, done: dict[int, Any]) -> Any:
        """Plain values for pydantic; notes duplicate keys. `done` keeps them by node: aliases may form circles."""
        if id(node) in done:
            return done[id(node)]
        if not nodes.is_standard(node) or nodes.spells_none(node):
            return _INVALID
        if isinstance(node, yaml.SequenceNode):
            items = done[id(node)] = []
            items += [self._plain(item, f"{prefix}{number}.", done) for number, item in enumerate(node.value)]
            return items
        if isinstance(node, yaml.MappingNode):
            values = done[id(node)] = {}
            lines: dict[str, int] = {}
            for key, value in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    self.note(key.start_mark, f"a key must be a name, not {shown(key)}")
                elif key.value in lines:
                    first = lines[key.value]
                    self.note(key.start_mark, f"duplicate key {prefix}{key.value}, first on line {first}")
                else:
                    lines[key.value] = key.start_mark.line + 1
                    values[key.value] = self._plain(value, f"{prefix}{key.value}.", done)
            return values
        if nodes.is_null(node):
            return None
        folder = self.folders.get(node.start_mark.name, Path())
        return Text(node.value, plain=node.style is None, folder=folder) if node.value.strip() else _INVALID


_TYPES = {"boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "text"}
_LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
_OR_NULL = ", or null"


class Schema:
    """The JSON schema of a dataclass of settings, in the words of messages.

    Attributes:
        fields: outside lists, by dotted name.
        defaults: of the outermost fields that have one.
    """

    def __init__(self, kind: Any) -> None:
        self._root: dict[str, Any] = _adapter(kind).json_schema()
        fields = self._root["properties"].items()
        self.defaults = {name: field["default"] for name, field in fields if "default" in field}
        self.fields: dict[str, Mapping[str, Any]] = {}
        self._add_fields(self._root, "")

    def _add_fields(self, section: Mapping[str, Any], prefix: str) -> None:
        for name, field in section["properties"].items():
            self.fields[prefix + name] = field
            if "properties" in self.bare(field):
                self._add_fields(self.bare(field), f"{prefix}{name}.")

    def bare(self, field: Mapping[str, Any]) -> Mapping[str, Any]:
        """A field without `| None`, its reference followed."""
        if "anyOf" in field:
            (field,) = (choice for choice in field["anyOf"] if choice.get("type") != "null")
        return self._root["$defs"][field["$ref"].rpartition("/")[2]] if "$ref" in field else field

    def at(self, place: Sequence[str | int]) -> Mapping[str, Any]:
        """The field at a place, such as `("stages", 0, "updates")`."""
        field: Mapping[str, Any] = self._root
        for part in place:
            field = self.bare(field)
            if isinstance(part, str):
                field = field["properties"][part]
            else:
                field = field["prefixItems"][part] if "prefixItems" in field else field["items"]
        return field

    def expected(self, place: Sequence[str | int]) -> str:
        """The type of a field in words: "a number, at least 0 and below 1, or null"."""
        field = self.at(place)
        bare = self.bare(field)
        if "enum" in bare or "const" in bare:
            words = f"one of {', '.join(bare.get('enum') or [bare['const']])}"
        elif bare["type"] == "array":
            words = f"a list of {len(bare['prefixItems'])}" if "prefixItems" in bare else "a list"
        elif bare["type"] == "object":
            names = list(bare.get("properties", ()))[:3]
            words = f"a mapping with keys such as {', '.join(names)}" if names else "a mapping"
        else:
            words = _TYPES[bare["type"]]
        limits = " and ".join(f"{word} {bare[limit]}" for limit, word in _LIMITS.items() if limit in bare)
        optional = any(choice.get("type") == "null" for choice in field.get("anyOf", ()))
        return words + (f", {limits}" if limits else "") + (_OR_NULL if optional else "")

    def suggestion(self, name: str, section: Sequence[str | int]) -> str:
        """What may have been meant by an unknown key of a section."""
        if "." in name and name in self.fields:
            parent, _, leaf = name.rpartition(".")
            return f"write {leaf} under {parent}"
        known = list(self.bare(self.at(section))["properties"])
        here = {key: ".".join(map(str, (*section, key))) for key in known}
        anywhere = {full: full for full in self.fields}
        for full in sorted(self.fields, key=lambda full: -full.count(".")):  # of equal names the outermost
            anywhere[full.rpartition(".")[2]] = full
        if name in anywhere:
            return f"did you mean {anywhere[name]}?"
        # A name of another section has to be closer to be meant.
        for choices, cutoff in ((here, 0.6), (anywhere, 0.75)):
            close = get_close_matches(name, choices, n=1, cutoff=cutoff)
            close = close or [key for key in choices if "".join(word[:1] for word in key.split("_")) == name]
            if close:
                return f"did you mean {choices[close[0]]}?"
        return f"the keys here are {', '.join(known)}"


@functools.cache
def schema_of(kind: Any) -> Schema:
    """The schema of a dataclass of settings."""
    return Schema(kind)
