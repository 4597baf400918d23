"""Reading recipes: pydantic turns a tree of text into a dataclass of settings.

All problems are reported at once, each with its line, what was expected and, for an unknown key, the nearest valid one.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypeVar

from parp_cli.config import tree
from parp_cli.config.finetune import Recipe
from parp_cli.config.recipes import RECIPES
from parp_cli.config.values import CONFLICT
from parp_cli.errors import RecipeError

T = TypeVar("T", default=Recipe)

_Problem = tuple[yaml.Mark, str]


def load_recipe(path: Path | None, overrides: Sequence[str] = (), *, kind: type[T] | None = None) -> T:
    """Read and check a recipe.

    Args:
        path: the YAML file, whose folder its relative paths start at; None for all defaults.
        overrides: `section.key=value`, as `--set` takes them. They come after the file, and the last one wins. Entries
            of lists are numbered from 0: `stages.0.updates=10`. Their paths are relative to the working folder.
        kind: `PretrainRecipe` or another dataclass of settings; by default the recipe that `task` selects.

    Raises RecipeError: no such file, not YAML, or with all problems as its details.
    """
    root = tree.compose("{}", tree.UNNAMED) if path is None else tree.read_file(path)
    hint = "`parp finetune --keys` shows every key and what it means" if kind is None else None
    return read(root, path, overrides, kind=kind, hint=hint)


def recipe_to_dict(recipe: Any) -> dict[str, Any]:
    """All fields of a recipe as plain values for JSON, defaults too."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return plain


def recipe_from_dict(values: Mapping[str, Any], overrides: Sequence[str] = (), *, kind: type[T] | None = None) -> T:
    """Read back what `recipe_to_dict` returned, with the overrides and checks of `load_recipe`; paths stay as they are.

    Raises RecipeError: with all problems as its details.
    """
    try:
        root = tree.compose(tree.dump(dict(values)), tree.UNNAMED)
    except (yaml.YAMLError, tree.Problem) as problem:
        raise RecipeError("the recipe is not made of plain values", details=[str(problem)]) from problem
    return read(root, None, overrides, kind=kind)


def dump_yaml(recipe: Any) -> str:
    """All fields of a recipe as YAML that `load_recipe` reads back to an equal one."""
    return tree.dump(recipe_to_dict(recipe))


def read(
    root: Any, path: Path | None, overrides: Sequence[str] = (), *, kind: type[T] | None = None, hint: str | None = None
) -> T:
    """Read settings from a tree that may come from several files; arguments and errors as of `load_recipe`.

    Only problems of the file `path` have a line.
    """
    problems: list[_Problem] = []
    for override in overrides:
        try:
            root = tree.with_override(root, override, _defaults(_selected(kind, root)))
        except tree.Problem as problem:
            problems.append((tree.at_start(tree.override_place(override)), str(problem)))
    selected: Any = _selected(kind, root)
    problems += _unknown(root, schema_of(selected), selected, ())
    settings = None
    try:
        settings = _adapter(selected).validate_python(root)
    except ValidationError as error:
        problems += [_described(each, root, schema_of(selected)) for each in error.errors(include_url=False)]
    order = {tree.override_place(override): number for number, override in enumerate(overrides, start=1)}
    problems.sort(key=lambda problem: (order.get(problem[0].name, 0), problem[0].index))
    places = [f"{mark.name}:{mark.line + 1}" if mark.name == str(path) else mark.name for mark, _ in problems]
    details = [f"{place}: {text}" for place, (_, text) in zip(places, problems, strict=True)]
    raise_problems("recipe" if path is None else f"recipe {path}", details, hint)
    return cast(T, settings)


def raise_problems(title: str, problems: Sequence[str], hint: str | None) -> None:
    """Raise a RecipeError that lists each problem once; nothing where there is none."""
    details = list(dict.fromkeys(problems))
    if details:
        count = "a problem" if len(details) == 1 else f"{len(details)} problems"
        raise RecipeError(f"{title} has {count}", details=details, hint=hint)


def _selected(kind: type[T] | None, root: Any) -> Any:
    """The dataclass to read: the kind that was asked for, else that of the task which the recipe names."""
    task = tree.child(root, "task")
    return kind or RECIPES.get(cast(Any, task if isinstance(task, str) else Recipe.task), Recipe)


def _unknown(value: Any, field: Mapping[str, Any], kind: Any, place: tuple[Any, ...]) -> Iterator[_Problem]:
    """Keys that no field has, and keys that come twice."""
    if isinstance(value, tree.Entries):
        name = "".join(f"{part}." for part in place)
        for key, line in value.duplicates:
            yield key.mark, f"duplicate key {name}{key}, first on line {line}"
        fields = field.get("properties")
        if fields is None and field.get("type", "object") != "object":
            return  # a mapping where a plain value belongs
        for key, below in value.items():
            if fields is None or key in fields:
                yield from _unknown(below, (fields or {}).get(key, {}), kind, (*place, key))
            else:
                yield key.mark, f"unknown key {name}{key}: {_suggestion(key, field, kind, name)}"
    elif isinstance(value, tree.Items) and ("items" in field or "type" not in field):
        for number, item in enumerate(value):
            yield from _unknown(item, field.get("items", {}), kind, (*place, number))


def _suggestion(key: str, section: Mapping[str, Any], kind: Any, prefix: str) -> str:
    """What may have been meant by an unknown key."""
    fields = [name for name, _ in fields_of(kind)]
    if "." in key and key in fields:
        parent, _, leaf = key.rpartition(".")
        return f"write {leaf} under {parent}"
    here = {name: prefix + name for name in section["properties"]}
    # Of equal names the outermost.
    anywhere = {name.rpartition(".")[2]: name for name in sorted(fields, key=lambda name: -name.count("."))}
    # A name of another section has to be closer to be meant.
    for choices, cutoff in ((anywhere, 1.0), (here, 0.6), (anywhere, 0.75)):
        if close := get_close_matches(key, choices, n=1, cutoff=cutoff):
            return f"did you mean {choices[close[0]]}?"
    return f"the keys here are {', '.join(here)}"


def _described(error: Any, root: Any, schema: Mapping[str, Any]) -> _Problem:
    """An error of pydantic's in words, and its place."""
    place, value, field, mark = error["loc"], root, schema, getattr(root, "mark", tree.at_start(tree.UNNAMED))
    if error["type"] == "missing" and isinstance(place[-1], int):  # the list is too short
        place, error = place[:-1], {"type": "too_short"}
    for part in place:
        field = _below(field, part)
        mark = value.mark_of(part) if isinstance(value, tree.Entries) else getattr(value, "mark", mark)
        value = tree.child(value, part)
    name, mark = ".".join(map(str, place)), getattr(value, "mark", mark)
    if error["type"] == CONFLICT:
        return mark, f"{name}: {error['msg']}"
    if error["type"] == "missing":
        return mark, f"{name} is missing: expected {expected(field)}"
    return mark, f"{f'{name} =' if name else 'found'} {tree.shown(value)}: expected {expected(field)}"


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


@functools.cache
def schema_of(kind: Any) -> Mapping[str, Any]:
    """The JSON schema of a dataclass of settings, references followed; what may be null is marked `optional`."""
    schema = _adapter(kind).json_schema()

    def followed(field: Mapping[str, Any]) -> dict[str, Any]:
        optional = "anyOf" in field
        for choice in field.get("anyOf", ()):
            field = field if choice.get("type") == "null" else {**choice, **field}
        if "$ref" in field:
            field = {**schema["$defs"][field["$ref"].rpartition("/")[2]], **field}
        below = {name: followed(each) for name, each in field.get("properties", {}).items()}
        lists = {"items": followed(field["items"])} if isinstance(field.get("items"), dict) else {}
        return {**field, **lists, **({"properties": below} if below else {}), "optional": optional}

    return followed(schema)


def _below(field: Mapping[str, Any], part: str | int) -> Mapping[str, Any]:
    if isinstance(part, str):
        return cast(Mapping[str, Any], field["properties"][part])
    return cast(Mapping[str, Any], field["prefixItems"][part] if "prefixItems" in field else field["items"])


def _defaults(kind: Any) -> dict[str, Any]:
    """Plain values of the outermost fields."""
    return {name: field["default"] for name, field in schema_of(kind)["properties"].items() if "default" in field}


def fields_of(kind: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Fields and sections of a dataclass of settings, by dotted name; none of those within lists."""

    def below(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for name, field in section.get("properties", {}).items():
            yield prefix + name, field
            yield from below(field, f"{prefix}{name}.")

    return below(schema_of(kind), "")


_TYPES = {"boolean": "true or false", "integer": "a whole number", "number": "a number", "string": "text"}
_LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def expected(field: Mapping[str, Any]) -> str:
    """The type of a field of `schema_of` in words: "a number, at least 0 and below 1, or null"."""
    if "expected" in field:
        words = str(field["expected"])
    elif "enum" in field or "const" in field:
        words = f"one of {', '.join(field.get('enum') or [field['const']])}"
    elif field["type"] == "array":
        words = f"a list of {len(field['prefixItems'])}" if "prefixItems" in field else "a list"
    elif field["type"] == "object":
        names = list(field.get("properties", ()))[:3]
        words = f"a mapping with keys such as {', '.join(names)}" if names else "a mapping"
    else:
        words = _TYPES[field["type"]]
    limits = " and ".join(f"{word} {field[limit]}" for limit, word in _LIMITS.items() if limit in field)
    return words + (f", {limits}" if limits else "") + (", or null" if field.get("optional") else "")
