"""What the keys of recipes mean: read from the docstrings below the fields, where they are written once."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parp_cli.config.load import schema_of


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


def keys_of(kind: Any) -> Iterator[Key]:
    """The keys of a dataclass of settings, those of nested ones under dotted names."""
    schema = schema_of(kind)
    for name, field in schema.fields.items():
        if "properties" not in schema.bare(field):
            meanings = schema.bare(field).get("meanings", {}).items()
            yield Key(
                name=name,
                expected=schema.expected(name.split(".")),
                default=json.dumps(field["default"]) if "default" in field else None,
                meaning=" ".join([*field.get("description", "").split(), *(f"{n}: {m}." for n, m in meanings)]),
            )
