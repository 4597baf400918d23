"""YAML as a tree of nodes: scalars as they were written, each with its place; and the overrides of `--set` over it.

Nothing is constructed into Python objects: PyYAML would read `2e-5` as a string and the language code `no` as False.
`strict_yaml.py` reads the nodes by the types of a dataclass.
"""

import copy
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from parp_cli.errors import RecipeError

UNNAMED = "recipe"
"""The place of nodes that come from no file."""

_NULLS = ("", "~", "null", "Null", "NULL")


class Problem(Exception):
    """One thing that is wrong, in words, and its line, counted from 1."""

    def __init__(self, words: str, line: int = 1) -> None:
        super().__init__(words)
        self.line = line


def read_file(path: Path) -> Any:
    """The root node of a YAML file.

    Raises:
        RecipeError: missing or unreadable, not UTF-8, not YAML (with the line), or empty.
    """
    try:
        root = compose(path.read_text(encoding="utf-8-sig"), str(path))
    except FileNotFoundError:
        raise RecipeError(f"no recipe at {path}", hint="the recipes/ folder has some to copy") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} is not text in UTF-8", details=[str(error)]) from error
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read", details=[error.strerror or str(error)]) from error
    except Problem as problem:
        raise RecipeError(f"recipe {path} is not YAML", details=[f"{path}:{problem.line}: {problem}"]) from problem
    if root is None:
        raise RecipeError(f"recipe {path} is empty", hint="the recipes/ folder has some to copy")
    return root


def compose(text: str, place: str) -> Any:
    """The node of one YAML document, its marks named `place`; None where there is nothing but comments.

    Raises:
        Problem: not YAML.
    """
    try:
        loader = yaml.SafeLoader(text)
        loader.name = place
        return loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise Problem(f"character {ord(text[error.position]):#x} is not allowed in YAML", line) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = " ".join(part for part in (error.context, error.problem) if part)
        raise Problem(words, mark.line + 1 if mark else 1) from error
    except RecursionError as error:
        raise Problem("nested too deeply") from error


def dump(values: Any) -> str:
    """Plain values as YAML that reads back to the same."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=120)


class _Dumper(yaml.SafeDumper):
    """Block style, but for lists of plain values: `adam_betas: [0.9, 0.98]`."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_sequence(self, tag: str, sequence: Iterable[Any], flow_style: bool | None = None) -> Any:
        items = list(sequence)
        flow = not any(isinstance(item, (dict, list, tuple)) for item in items)
        return super().represent_sequence(tag, items, flow_style=flow)

    def represent_str(self, data: str) -> Any:
        # PyYAML loses Unicode's rarer line breaks but in double quotes, where it escapes them.
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)
# Text that spells None is quoted, since the reader takes it for a null written by somebody who thinks in Python.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^(None|none)$"), ["N", "n"])


def empty_mapping(place: str) -> yaml.MappingNode:
    """A mapping node without entries."""
    mark = yaml.Mark(place, 0, 0, 0, "", 0)
    return yaml.MappingNode("tag:yaml.org,2002:map", [], mark, mark)


def plain_scalar(text: str, place: str) -> yaml.ScalarNode:
    """A scalar node, as if written without quotes."""
    mark = yaml.Mark(place, 0, 0, 0, "", 0)
    return yaml.ScalarNode("tag:yaml.org,2002:str", text, mark, mark)


def is_null(node: Any) -> bool:
    """Whether nothing is written there, or `null`, or `~`."""
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in _NULLS


def spells_none(node: Any) -> bool:
    """Whether `None` is written there, which YAML takes for text."""
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in ("None", "none")


def is_standard(node: Any) -> bool:
    """Whether the node has no tag of its own, such as `!path` or `!!python/object`."""
    tag: str = node.tag
    return tag.startswith("tag:yaml.org,2002:") and "python/" not in tag


def shown(node: Any) -> str:
    """A node in a message, as it was written where that is short."""
    tag = "" if is_standard(node) else f"{node.tag} "
    if isinstance(node, yaml.MappingNode):
        return tag + "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return tag + f"a list of {len(node.value)}"
    text = node.value if len(node.value) <= 60 else node.value[:57] + "..."
    if node.style is not None:
        text = json.dumps(text, ensure_ascii=False)
    return tag + (text or "nothing")


def override_place(override: str) -> str:
    """The place of the nodes of an override."""
    return f"--set {override}"


def apply_override(override: str, root: Any, defaults: Any) -> None:
    """Put the value of an override, `section.key=value`, into the tree.

    Args:
        override: entries of lists are numbered from 0: `stages.0.updates=10`.
        root: the node to change.
        defaults: plain values of what the file may not mention, so that entries of default lists can be overridden.

    Raises:
        Problem: there is no such place in the tree, or no `=`.
    """
    name, equals, text = override.partition("=")
    *parents, last = name.strip().split(".")
    if not equals or not all((*parents, last)):
        raise Problem("write it as key=value or section.key=value")
    place, text = override_place(override), text.strip()
    # Only lists, mappings and quoted text are YAML here: a path with a `#` or a `: ` in it means itself.
    value = compose(text, place) if text.startswith(("[", "{", '"', "'")) else plain_scalar(text, place)
    node = root
    for part in parents:
        defaults = _entry(defaults, part)
        child = _child(node, part)
        if child is None:
            child = compose(dump(defaults), place) if isinstance(defaults, (dict, list)) else empty_mapping(place)
        else:
            child = copy.copy(child)
            if isinstance(child.value, list):
                child.value = list(child.value)  # an alias elsewhere in the file must not change with it
        _put(node, part, child, place)
        node = child
    _put(node, last, value, place)


def _entry(values: Any, part: str) -> Any:
    """The entry called `part` of a dictionary, or numbered `part` of a list; None where there is none."""
    if isinstance(values, dict):
        return values.get(part)
    if isinstance(values, list) and part.isdecimal() and int(part) < len(values):
        return values[int(part)]
    return None


def _child(node: Any, part: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    return _entry(node.value, part)


def _put(node: Any, part: str, value: Any, place: str) -> None:
    """Set an entry of a mapping or sequence node."""
    if isinstance(node, yaml.MappingNode):
        for position, (key, _) in enumerate(node.value):
            if key.value == part:
                node.value[position] = (key, value)
                return
        node.value.append((plain_scalar(part, place), value))
    elif isinstance(node, yaml.SequenceNode):
        if not part.isdecimal() or int(part) >= len(node.value):
            raise Problem(f"{part} is not an entry of a list of {len(node.value)}, counted from 0")
        node.value[int(part)] = value
    else:
        raise Problem(f"{part} cannot lie under {shown(node)}")
