"""YAML as a tree of nodes: scalars as they are written, each with its place; and the overrides of `--set` over it.

Nothing is constructed into Python objects: PyYAML would read `2e-5` as a string and the language code `no` as False.
"""

import copy
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from parp_cli.errors import RecipeError

UNNAMED = "recipe"
"""The place of nodes that come from no file."""

_HINT = "the recipes/ folder has some to copy"


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
        raise RecipeError(f"no recipe at {path}", hint=_HINT) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} is not text in UTF-8", details=[str(error)]) from error
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read", details=[error.strerror or str(error)]) from error
    except Problem as problem:
        raise RecipeError(f"recipe {path} is not YAML", details=[f"{path}:{problem.line}: {problem}"]) from problem
    if root is None:
        raise RecipeError(f"recipe {path} is empty", hint=_HINT)
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
        # PyYAML keeps Unicode's rarer line breaks only in double quotes, where it escapes them.
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)
# Text that spells None is quoted, since the reader takes it for a null written by somebody who thinks in Python.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^(None|none)$"), ["N", "n"])


def at_start(place: str) -> yaml.Mark:
    """The mark of nodes that have no line: those of an override."""
    return yaml.Mark(place, 0, 0, 0, "", 0)


def _scalar(text: str, mark: yaml.Mark) -> yaml.ScalarNode:
    return yaml.ScalarNode("tag:yaml.org,2002:str", text, mark, mark)


def is_null(node: Any) -> bool:
    """Whether nothing is written there, or `null`, or `~`."""
    return isinstance(node, yaml.ScalarNode) and node.style is None and node.value in ("", "~", "null", "Null", "NULL")


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


def child(node: Any, part: str) -> Any:
    """The value under a key of a mapping node, or the entry of a sequence node with that number; None without one."""
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    return _entry(node.value, part)


def _entry(values: Any, part: str) -> Any:
    if isinstance(values, dict):
        return values.get(part)
    if isinstance(values, list) and part.isdecimal() and int(part) < len(values):
        return values[int(part)]
    return None


def put(node: Any, parts: Sequence[str], value: Any, mark: yaml.Mark, defaults: Any = None) -> Any:
    """A copy of a tree with another value at a dotted place; aliases elsewhere do not change with it.

    Args:
        node: the tree.
        parts: of the place; entries of lists are numbered from 0.
        value: a node.
        mark: of sections that have to be added.
        defaults: plain values of what the tree lacks, so that entries of default lists can be replaced.

    Raises:
        Problem: there is no such place in the tree.
    """
    if not parts:
        return value
    first, *rest = parts
    defaults = _entry(defaults, first)
    below = child(node, first)
    if below is None and isinstance(defaults, (dict, list)):
        below = compose(dump(defaults), mark.name)
    elif below is None:
        below = yaml.MappingNode("tag:yaml.org,2002:map", [], mark, mark)
    tree = copy.copy(node)
    if isinstance(node, yaml.MappingNode):
        key = next((key for key, _ in node.value if key.value == first), _scalar(first, mark))
        entry = (key, put(below, rest, value, mark, defaults))
        tree.value = [entry if other is key else (other, old) for other, old in node.value]
        if entry not in tree.value:
            tree.value.append(entry)
    elif isinstance(node, yaml.SequenceNode):
        if child(node, first) is None:
            raise Problem(f"{first} is not an entry of a list of {len(node.value)}, counted from 0")
        tree.value = list(node.value)
        tree.value[int(first)] = put(below, rest, value, mark, defaults)
    else:
        raise Problem(f"{first} cannot lie under {shown(node)}")
    return tree


def override_place(override: str) -> str:
    """The place of the nodes of an override."""
    return f"--set {override}"


def with_override(root: Any, override: str, defaults: Any = None) -> Any:
    """A copy of a tree with the value of an override, `section.key=value`; `defaults` as of `put`.

    Raises:
        Problem: there is no such place in the tree, no `=`, or the value is not YAML.
    """
    name, equals, text = override.partition("=")
    parts, text, place = name.strip().split("."), text.strip(), override_place(override)
    if not equals or not all(parts):
        raise Problem("write it as key=value or section.key=value")
    # Only lists, mappings and quoted text are YAML here: a path with a `#` or a `: ` in it means itself.
    is_yaml = text.startswith(("[", "{", '"', "'"))
    value = compose(text, place) if is_yaml else _scalar(text, at_start(place))
    return put(root, parts, value, at_start(place), defaults)
