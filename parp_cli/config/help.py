"""What the keys of recipes mean: read from the docstrings below the fields, where they are written once."""

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_type_hints

from parp_cli.config.strict_yaml import expected


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a recipe.

    Attributes:
        name: dotted.
        expected: what its value may be, in words.
        default: as JSON, which is YAML too; None where there is none.
        meaning: for people; may be empty.
    """

    name: str
    expected: str
    default: str | None
    meaning: str


def keys_of(kind: Any, prefix: str = "") -> Iterator[Key]:
    """The keys of a dataclass of settings, those of nested ones under dotted names.

    Args:
        kind: `recipe.Recipe` or another dataclass that `strict_yaml` reads; its source must be at hand.
        prefix: before each name.
    """
    meanings, hints = _docstrings(kind), get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default):
            yield from keys_of(type(field.default), f"{prefix}{field.name}.")
            continue
        default = None
        if field.default is not dataclasses.MISSING:
            default = json.dumps(field.default, default=dataclasses.asdict)
        yield Key(
            name=prefix + field.name,
            expected=expected(hints[field.name]),
            default=default,
            meaning=meanings.get(field.name, ""),
        )


def _docstrings(kind: type) -> dict[str, str]:
    """The string after each field of a class, by the field's name."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
            text = ast.literal_eval(after.value)
            found[field.target.id] = " ".join(text.split())
    return found
