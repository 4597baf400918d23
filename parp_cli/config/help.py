"""What the keys of recipes mean: read from the docstrings below the fields, where they are written once."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from parp_cli.config.load import expected, fields_of


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key: its dotted name, its values in words, its default as JSON (None without one), and its meaning."""

    name: str
    expected: str
    default: str | None
    meaning: str


def keys_of(kind: Any) -> Iterator[Key]:
    """The keys of a dataclass of settings, those of nested ones under dotted names."""
    for name, field in fields_of(kind):
        if "properties" not in field:
            meanings = (f"{value}: {meaning}." for value, meaning in field.get("meanings", {}).items())
            yield Key(
                name=name,
                expected=expected(field),
                default=json.dumps(field["default"]) if "default" in field else None,
                meaning=" ".join([*field.get("description", "").split(), *meanings]),
            )
