"""Strict YAML for frozen dataclasses: all mistakes are found in one go, each with its line and the nearest valid name.

The dataclass is the schema: nested dataclasses, `tuple[X, ...]`, `tuple[X, Y]`, `list[X]`, `Literal` of strings,
`X | None`, `bool`, `int`, `float` and `str`. Limits stand in the annotation, so that they are declared once:

    Probability = Annotated[float, Range(at_least=0, at_most=1)]

A dataclass may also have a method `conflicts(self) -> Iterator[tuple[str, str]]` that yields (field, message) for
values that are right alone but wrong together; it runs once every field of its section is valid.

The type of the field decides what a scalar is: `2e-5` is a number and the language code `no` is text, where PyYAML
would give a string and False. A field of type `yaml.Node` takes what is written there as it is.
"""

import dataclasses
import difflib
import json
import math
import os
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from parp_cli.config import yaml_nodes
from parp_cli.config.yaml_nodes import UNNAMED, Problem, is_standard, shown
from parp_cli.errors import RecipeError

T = TypeVar("T")

_INVALID: Final = object()
"""Stands for a value whose problem has been noted already."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """The limits of a number, for use inside `Annotated`; None is no limit."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        limits = (f"{f.name.replace('_', ' ')} {getattr(self, f.name)}" for f in dataclasses.fields(self))
        return " and ".join(limit for limit in limits if not limit.endswith("None"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class IsPath:
    """Marks a `str` as a path, for use inside `Annotated`: `~` is the home folder.

    A relative path starts at the recipe file's folder, or, given by `--set`, at the working folder.
    """

    only_if_dotted: bool = False
    """The text may also be a name: it is a path only where it begins with `.` or `~`."""

    def resolve(self, text: str, folder: Path) -> str:
        """The absolute path that `text` means in a recipe of `folder`."""
        if self.only_if_dotted and not text.startswith((".", "~")):
            return text
        return os.path.abspath(folder / os.path.expanduser(text))


def load(kind: type[T], path: Path | None, overrides: Sequence[str] = (), *, hint: str | None = None) -> T:
    """Read settings of type `kind`.

    Args:
        kind: the dataclass to fill.
        path: the YAML file; None for all defaults.
        overrides: `key.sub=value`, as `--set` takes them. They come after the file, and a later one wins. Entries
            of lists are numbered from 0: `stages.0.updates=10`.
        hint: of the error, should there be one.

    Raises:
        RecipeError: with all problems as its details.
    """
    root = yaml_nodes.empty_mapping(UNNAMED) if path is None else yaml_nodes.read_file(path)
    return _read(kind, root, path, overrides, hint)


def from_dict(kind: type[T], values: Mapping[str, Any], overrides: Sequence[str] = ()) -> T:
    """Read back what `to_dict` gave, with the overrides and checks of `load`; its paths are left as they are.

    Raises:
        RecipeError: with all problems as its details.
    """
    try:
        root = yaml_nodes.compose(yaml_nodes.dump(dict(values)), UNNAMED)
    except (yaml.YAMLError, Problem) as problem:
        raise RecipeError("the recipe is not made of plain values", details=[str(problem)]) from problem
    return _read(kind, root, None, overrides, None)


def from_node(kind: type[T], root: Any, path: Path, overrides: Sequence[str] = ()) -> T:
    """Read settings from a tree that was put together from several files (see `yaml_nodes.py`).

    Args:
        kind: the dataclass to fill.
        root: a mapping node, which overrides may change.
        path: the file that problems are told with the line of, and to whose folder its relative paths belong. Paths
            from elsewhere are relative to the working folder.
        overrides: as of `load`.

    Raises:
        RecipeError: with all problems as its details.
    """
    return _read(kind, root, path, overrides, None)


def _read(kind: type[T], root: Any, path: Path | None, overrides: Sequence[str], hint: str | None) -> T:
    reader = _Reader(kind, path)
    defaults = _defaults(kind)
    for override in overrides:
        try:
            yaml_nodes.apply_override(override, root, defaults)
        except Problem as problem:
            reader.problems.append((math.inf, f"{yaml_nodes.override_place(override)}: {problem}"))
    return reader.read(kind, root, hint)


def to_dict(settings: Any) -> dict[str, Any]:
    """All fields of a dataclass, nested ones too, as plain values for JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    return plain


def dump(settings: Any) -> str:
    """All fields of a dataclass as YAML that `load` reads back to an equal one."""
    return yaml_nodes.dump(to_dict(settings))


def _defaults(kind: Any) -> dict[str, Any]:
    try:
        return to_dict(kind())
    except TypeError:  # a field without a default
        return {}


class _Reader:
    """Turns nodes into a dataclass, noting every problem on the way."""

    def __init__(self, kind: Any, path: Path | None) -> None:
        self.file = None if path is None else str(path)
        self.folder = None if path is None else path.absolute().parent
        self.names = list(_dotted_names(kind))
        self.problems: list[tuple[float, str]] = []
        """Place in the file (infinite for an override), and text."""

    def read(self, kind: type[T], root: Any, hint: str | None) -> T:
        settings: T = self.section(kind, root, "")
        if self.problems:
            details = [text for _, text in sorted(self.problems, key=lambda problem: problem[0])]
            title = "recipe" if self.file is None else f"recipe {self.file}"
            count = "a problem" if len(details) == 1 else f"{len(details)} problems"
            raise RecipeError(f"{title} has {count}", details=details, hint=hint)
        return settings

    def note(self, node: Any, text: str) -> None:
        """Note a problem, with the place that `node` stands at."""
        mark = node.start_mark
        if mark.name == self.file:
            self.problems.append((mark.index, f"{mark.name}:{mark.line + 1}: {text}"))
        else:
            self.problems.append((math.inf, f"{mark.name}: {text}"))

    def section(self, kind: Any, node: Any, key: str) -> Any:
        """A dataclass from a mapping."""
        if not isinstance(node, yaml.MappingNode) or not is_standard(node):
            where = f"{key} = {shown(node)}" if key else f"found {shown(node)}"
            self.note(node, f"{where}: expected a mapping with keys such as {_first_names(kind)}")
            return _INVALID
        prefix = f"{key}." if key else ""
        nodes = self.entries(node, prefix, [field.name for field in dataclasses.fields(kind)])
        types_of_fields = get_type_hints(kind, include_extras=True)
        values: dict[str, Any] = {}
        complete = True
        for field in dataclasses.fields(kind):
            if field.name in nodes:
                values[field.name] = self.value(types_of_fields[field.name], nodes[field.name], prefix + field.name)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                self.note(node, f"{prefix}{field.name} is missing: expected {expected(types_of_fields[field.name])}")
                complete = False
        if not complete or any(value is _INVALID for value in values.values()):
            return _INVALID
        settings = kind(**values)
        conflicts: Callable[[], Iterator[tuple[str, str]]] = getattr(settings, "conflicts", lambda: iter(()))
        for name, message in conflicts():
            self.note(nodes.get(name, node), f"{prefix}{name}: {message}")
        return settings

    def entries(self, node: yaml.MappingNode, prefix: str, known: list[str]) -> dict[str, Any]:
        """The value nodes of a mapping by key; notes unknown keys and those that come twice."""
        first: dict[str, Any] = {}
        values: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.note(key, f"a key must be a name, not {shown(key)}")
            elif key.value in first:
                line = first[key.value].start_mark.line + 1
                self.note(key, f"duplicate key {prefix}{key.value}, first on line {line}")
            else:
                first[key.value] = key
                if key.value in known:
                    values[key.value] = value
                else:
                    self.note(key, f"unknown key {prefix}{key.value}: {self.suggestion(key.value, prefix, known)}")
        return values

    def suggestion(self, name: str, prefix: str, known: list[str]) -> str:
        """What may have been meant by an unknown key."""
        if "." in name and name in self.names:
            section, _, leaf = name.rpartition(".")
            return f"write {leaf} under {section}"
        here = {sibling: prefix + sibling for sibling in known}
        anywhere: dict[str, str] = {}
        for dotted in sorted(self.names, key=lambda dotted: dotted.count(".")):  # of equal names the outermost
            anywhere.setdefault(dotted.rpartition(".")[2], dotted)
        if name in anywhere:
            return f"did you mean {anywhere[name]}?"
        # A name of another section has to be closer to be meant.
        for choices, cutoff in ((here, 0.6), (anywhere | {dotted: dotted for dotted in self.names}, 0.75)):
            close = difflib.get_close_matches(name, choices, n=1, cutoff=cutoff)
            close = close or [choice for choice in choices if _initials(choice) == name]
            if close:
                return f"did you mean {choices[close[0]]}?"
        return f"the keys here are {', '.join(known)}"

    def value(self, kind: Any, node: Any, key: str) -> Any:
        """A value of any type that a field may have."""
        bare, notes, optional = _unwrap(kind)
        if optional and yaml_nodes.is_null(node):
            return None
        if bare is yaml.Node:
            return node
        if dataclasses.is_dataclass(bare):
            return self.section(bare, node, key)
        if isinstance(node, yaml.SequenceNode) and is_standard(node):
            items = _item_types(bare, len(node.value))
            if items is not None:
                return self.sequence(get_origin(bare), items, node, key)
        wrote_none = optional and yaml_nodes.spells_none(node)
        if isinstance(node, yaml.ScalarNode) and is_standard(node) and not wrote_none:
            try:
                value = _scalar(bare, node.value, plain=node.style is None)
            except ValueError:
                pass
            else:
                if all(value in note for note in notes if isinstance(note, Range)):
                    return self.resolved(value, notes, node)
        remedy = " (write null)" if wrote_none else ""
        self.note(node, f"{key} = {shown(node)}: expected {expected(kind)}{remedy}")
        return _INVALID

    def sequence(self, kind: Any, items: list[Any], node: yaml.SequenceNode, key: str) -> Any:
        """A tuple or list; `items` has the type of each entry."""
        pairs = zip(items, node.value, strict=True)
        values = [self.value(item, entry, f"{key}.{number}") for number, (item, entry) in enumerate(pairs)]
        return _INVALID if any(value is _INVALID for value in values) else kind(values)

    def resolved(self, value: Any, notes: tuple[Any, ...], node: Any) -> Any:
        """The value itself, or, of a path, where it leads."""
        place = node.start_mark.name
        if self.file is None and place == UNNAMED:  # read back: it was resolved when it was first read
            return value
        folder = self.folder if self.folder is not None and place == self.file else Path.cwd()
        for note in notes:
            if isinstance(note, IsPath):
                return note.resolve(value, folder)
        return value


def _unwrap(kind: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """The type without `Annotated` and `| None`, the notes of `Annotated`, and whether None is allowed."""
    notes: tuple[Any, ...] = ()
    optional = False
    while True:
        if get_origin(kind) is Annotated:
            kind, *extra = get_args(kind)
            notes += tuple(extra)
        elif get_origin(kind) in (Union, types.UnionType):
            choices = [choice for choice in get_args(kind) if choice is not types.NoneType]
            if len(choices) != 1:
                raise TypeError(f"a setting cannot be {kind}: the only union is with None")
            kind, optional = choices[0], True
        else:
            return kind, notes, optional


def _item_types(kind: Any, length: int) -> list[Any] | None:
    """The type of each of `length` entries; None where `kind` does not take so many."""
    arguments = get_args(kind)
    if get_origin(kind) is list:
        return [arguments[0]] * length
    if get_origin(kind) is tuple:
        if arguments[-1] is Ellipsis:
            return [arguments[0]] * length
        return list(arguments) if len(arguments) == length else None
    return None


_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


def _scalar(kind: Any, text: str, *, plain: bool) -> Any:
    """Read a scalar by the type of its field; `plain` is without quotes. Raises ValueError where it is not one."""
    if get_origin(kind) is Literal and text in get_args(kind):
        return text
    if kind is str and text.strip() and not (plain and text in ("~", "null", "Null", "NULL")):
        return text
    if kind is bool and plain and text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    if kind is int and plain:
        return int(text)
    if kind is float and plain and math.isfinite(float(text)):
        return float(text)
    raise ValueError(text)


def expected(kind: Any) -> str:
    """A type in words: "a number, at least 0 and below 1, or null"."""
    bare, notes, optional = _unwrap(kind)
    limits = "".join(f", {note}" for note in notes if isinstance(note, Range))
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", yaml.Node: "a mapping"}
    if get_origin(bare) is Literal:
        words = f"one of {', '.join(get_args(bare))}"
    elif get_origin(bare) in (tuple, list):
        items = get_args(bare)
        words = "a list" if get_origin(bare) is list or items[-1] is Ellipsis else f"a list of {len(items)}"
    elif dataclasses.is_dataclass(bare):
        words = f"a mapping with keys such as {_first_names(bare)}"
    else:
        words = names[bare]
    return words + limits + (", or null" if optional else "")


def _first_names(kind: Any) -> str:
    return ", ".join(field.name for field in dataclasses.fields(kind)[:3])


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))


def _dotted_names(kind: Any, prefix: str = "") -> Iterator[str]:
    """The dotted name of every field outside lists."""
    types_of_fields = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        yield prefix + field.name
        bare, _, _ = _unwrap(types_of_fields[field.name])
        if dataclasses.is_dataclass(bare):
            yield from _dotted_names(bare, f"{prefix}{field.name}.")
