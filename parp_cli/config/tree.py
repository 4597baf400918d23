"""YAML as dicts, lists and text that know where they were written, and the overrides of `--set` over them.

Scalars stay text until their field's type decides: PyYAML would read `2e-5` as a string and the language code `no` as
False. Only null is read here.
"""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from parp_cli.errors import RecipeError

UNNAMED = "recipe"
"""The place of what comes from no file."""

_NULLS = ("", "~", "null", "Null", "NULL", "None", "none")
_HINT = "the recipes/ folder has some to copy"


class Text(str):
    """A scalar or a key; relative paths start at `folder`, None leaves them as they are."""

    mark: yaml.Mark
    folder: Path | None

    def __new__(cls, text: str, mark: yaml.Mark, folder: Path | None = None) -> "Text":
        self = super().__new__(cls, text)
        self.mark, self.folder = mark, folder
        return self


class Entries(dict[Text, Any]):
    """A mapping; `duplicates` are keys that come again, each with the line of the first."""

    def __init__(self, mark: yaml.Mark) -> None:
        self.mark = mark
        self.duplicates: list[tuple[Text, int]] = []

    def mark_of(self, name: Any) -> yaml.Mark:
        """Where a key is, or where the mapping begins."""
        return next((key.mark for key in self if key == name), self.mark)


class Items(list[Any]):
    """A sequence."""

    mark: yaml.Mark


class Problem(Exception):
    """One thing that is wrong, in words, and its line, counted from 1."""

    def __init__(self, words: str, line: int = 1) -> None:
        super().__init__(words)
        self.line = line


class _Loader(yaml.BaseLoader):
    folder: Path | None = None

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node.tag.startswith("!") or "python/" in node.tag:
            raise ConstructorError(None, None, f"the tag {node.tag} is not supported", node.start_mark)
        return super().construct_object(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        is_null = node.style is None and node.value in _NULLS
        return None if is_null else Text(node.value, node.start_mark, self.folder)

    def construct_sequence(self, node: Any, deep: bool = False) -> Items:
        items = Items(map(self.construct_object, node.value))
        items.mark = node.start_mark
        return items

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        entries = Entries(node.start_mark)
        for key_node, value in node.value:
            key = self.construct_object(key_node)
            if not isinstance(key, Text):
                raise ConstructorError(None, None, f"a key must be a name, not {shown(key)}", key_node.start_mark)
            if key in entries:
                entries.duplicates.append((key, entries.mark_of(key).line + 1))
            else:
                entries[key] = self.construct_object(value)
        return entries


def read_file(path: Path) -> Any:
    """The tree of a YAML file.

    Raises RecipeError: missing or unreadable, not UTF-8, not YAML (with the line), or empty.
    """
    try:
        root = compose(path.read_text(encoding="utf-8-sig"), str(path), path.absolute().parent)
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


def compose(text: str, place: str, folder: Path | None = None) -> Any:
    """The tree of one YAML document, its marks named `place`; None where there is nothing but comments.

    Raises Problem: not YAML.
    """
    try:
        loader = _Loader(text)
        loader.name, loader.folder = place, folder
        return loader.get_single_data()
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
    """Plain values as YAML that reads back to the same; lists of plain values take one line."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> Any:
        return super().represent_mapping(tag, mapping, flow_style=False)

    def represent_str(self, data: str) -> Any:
        # PyYAML keeps Unicode's rarer line breaks only in double quotes, where it escapes them.
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)
# Text that spells None is quoted, since it is read as null.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^(None|none)$"), ["N", "n"])


def at_start(place: str) -> yaml.Mark:
    """The mark of what has no line: an override."""
    return yaml.Mark(place, 0, 0, 0, "", 0)


def shown(value: Any) -> str:
    """A value in a message, as it was written where that is short."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = "null" if value is None else value or '""'
    return text if len(text) <= 60 else text[:57] + "..."


def child(tree: Any, part: Any) -> Any:
    """The value under a key of a dict, or the entry of a list with that number; None without one."""
    if isinstance(tree, dict):
        return tree.get(part)
    if isinstance(tree, list) and str(part).isdecimal() and int(part) < len(tree):
        return tree[int(part)]
    return None


def put(tree: Any, parts: Sequence[str], value: Any, mark: yaml.Mark, defaults: Any = None) -> Any:
    """A copy of a tree with another value at a dotted place; aliases elsewhere do not change with it.

    Args:
        parts: of the place; entries of lists are numbered from 0.
        mark: of the key, and of sections that have to be added.
        defaults: plain values of what the tree lacks, so that entries of default lists can be replaced.

    Raises Problem: there is no such place in the tree.
    """
    if not parts:
        return value
    first, *rest = parts
    below, defaults = child(tree, first), child(defaults, first)
    if below is None:
        below = Entries(mark) if defaults is None else compose(dump(defaults), mark.name)
    if not isinstance(tree, (dict, list)):
        raise Problem(f"{first} cannot lie under {shown(tree)}")
    changed: Any = copy.copy(tree)
    if isinstance(tree, dict):
        if not rest:
            changed.pop(first, None)  # with its mark
        changed[Text(first, mark)] = put(below, rest, value, mark, defaults)
    elif child(tree, first) is None:
        raise Problem(f"{first} is not an entry of a list of {len(tree)}, counted from 0")
    else:
        changed[int(first)] = put(below, rest, value, mark, defaults)
    return changed


def override_place(override: str) -> str:
    """The place of an override."""
    return f"--set {override}"


def with_override(tree: Any, override: str, defaults: Any = None) -> Any:
    """A copy of a tree with the value of an override, `section.key=value`; `defaults` as of `put`.

    Raises Problem: there is no such place in the tree, no `=`, or the value is not YAML.
    """
    name, equals, text = override.partition("=")
    parts, text, place = name.strip().split("."), text.strip(), override_place(override)
    if not equals or not all(parts):
        raise Problem("write it as key=value or section.key=value")
    value: Any = None if text in _NULLS else Text(text, at_start(place), Path())
    # Only lists, mappings and quoted text are YAML here: a path with a `#` or a `: ` in it means itself.
    if text.startswith(("[", "{", '"', "'")):
        value = compose(text, place, Path())
    return put(tree, parts, value, at_start(place), defaults)
