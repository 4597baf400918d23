"""Texts and pairs of texts with labels, from TSV, CSV and JSON Lines.

A TSV has no quotes, as in GLUE; a CSV has. The first row names the columns; JSON Lines have keys. Others than the ones
asked for are ignored, except for an id (`id`, `idx` or `index`), which is otherwise the number of the line.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parp_cli.config.classification import TextData, TextFiles
from parp_cli.data import sentences
from parp_cli.data.glue import GLUE
from parp_cli.data.text import numbered_lines, read_utf8
from parp_cli.errors import DataError, first_few

ENDINGS = (".tsv", ".csv", ".jsonl")
"""Of tables."""

_LINES = ".txt"  # the ending of files with a text per line, which have no labels

_IDS = ("id", "idx", "index")

_NAME_COLUMNS = "name its columns with data.text, data.text_b and data.label"


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text, or a pair, with its label as it is written; None where none is asked for."""

    id: str
    text: str
    text_b: str | None = None
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where a file has what; `text_b` None for no pairs, `label` None for none wanted."""

    text: str
    text_b: str | None
    label: str | None
    header: bool = True


def split_file(data: TextFiles, split: str) -> Path:
    """The file of a split; a generated one is written first where it is not there.

    Raises DataError where GLUE's folder is not named, or the split has no file there or several.
    """
    endings = ENDINGS if isinstance(data, TextData) else (*ENDINGS, _LINES)
    if data.root is None and data.glue is not None:
        raise DataError("the recipe names no data", hint="--set data.root=FOLDER, the one of GLUE")
    root, named = Path(data.root) if data.root is not None else sentences.ensure(), split
    if data.glue is not None:
        glue = GLUE[data.glue]
        root = root / glue.folder if (root / glue.folder).is_dir() else root
        named = (glue.splits or {}).get(split, split)
    candidates = [root / named] if Path(named).suffix in endings else [root / f"{named}{end}" for end in endings]
    found = [path for path in candidates if path.is_file()]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"split {split} has several files in {root}", details=[path.name for path in found])
    there = sorted(path.name for path in root.iterdir() if path.suffix in endings) if root.is_dir() else []
    details = [f"looked for {' or '.join(path.name for path in candidates)}", f"found: {', '.join(there) or 'none'}"]
    if data.glue is not None and root.name != GLUE[data.glue].folder:
        details.append(f"task {data.glue} of GLUE is in a folder {GLUE[data.glue].folder}, which is not there")
    raise DataError(
        f"there is no split {split} in {root}",
        details=details,
        hint="name the files with data.train, data.valid and data.test (--split)",
    )


def split_texts(data: TextFiles, split: str) -> tuple[list[Text], list[str]]:
    """The texts of a split without their labels, and what is wrong with other lines.

    Raises DataError as `split_file` and `read_texts`.
    """
    path = split_file(data, split)
    return (read_lines(path), []) if path.suffix == _LINES else read_texts(path, columns_of(data, path))


def columns_of(data: TextFiles, path: Path, *, labelled: bool = True) -> Columns:
    """The columns that a recipe means, in a file: by default a second text only where the file has one.

    A label is asked for only by a recipe that learns labels, and where it is `labelled`.

    Raises DataError where the file cannot be read.
    """
    glue = None if data.glue is None else GLUE[data.glue]
    text = data.text or (glue.text if glue else "text")
    label = (data.label or (glue.label if glue else "label")) if isinstance(data, TextData) and labelled else None
    pair = data.text_b or (glue.text_b if glue else None)
    if pair is None and glue is None:
        first = next(_rows(path, header=True), None)
        pair = "text_b" if first is not None and "text_b" in first[1] else None
    header = glue is None or glue.header or not path.name.startswith(("train", "dev"))
    return Columns(text=text, text_b=pair, label=label, header=header)


def read_texts(path: Path, columns: Columns) -> tuple[list[Text], list[str]]:
    """The texts of a file, and what is wrong with other lines, one message for each.

    Raises DataError: the file cannot be read, lacks a column, or holds no text.
    """
    texts, problems = [], []
    wanted = {"text": columns.text, "text_b": columns.text_b, "label": columns.label}
    wanted = {what: column for what, column in wanted.items() if column is not None}
    for number, row in _rows(path, header=columns.header):
        if isinstance(row, str):
            problems.append(f"{path.name}, line {number}: {row}")
            continue
        missing = [str(column) for column in wanted.values() if column not in row]
        if missing and path.suffix != ".jsonl":
            raise DataError(
                f"{path} has no column {' or '.join(missing)}",
                details=[f"columns: {', '.join(row)}"],
                hint=_NAME_COLUMNS,
            )
        values = {what: _plain(row.get(str(column))) for what, column in wanted.items()}
        if empty := [what for what, value in values.items() if not value]:
            problems.append(f"{path.name}, line {number}: no {' and no '.join(str(wanted[what]) for what in empty)}")
            continue
        name = next((str(row[key]) for key in _IDS if row.get(key) not in (None, "")), str(number))
        texts.append(Text(id=name, **values))
    if not texts:
        raise DataError(f"{path} holds no text that can be used", details=first_few(problems), hint=_NAME_COLUMNS)
    return texts, problems


def read_lines(path: Path) -> list[Text]:
    """A text per line, of a file that is no table.

    Raises DataError where it cannot be read, or has no text.
    """
    lines = numbered_lines(read_utf8(path, what=str(path)))
    texts = [Text(id=str(number), text=line.strip()) for number, line in lines]
    if not texts:
        raise DataError(f"{path} holds no text")
    return texts


def _plain(value: Any) -> str:
    """A cell as text: JSON's whole numbers and truth values as one writes them."""
    return "" if value is None else value.strip() if isinstance(value, str) else json.dumps(value)


def _rows(path: Path, *, header: bool) -> Iterator[tuple[int, Mapping[str, Any] | Any]]:
    """Line number (from 1) and cells by column of each line, or in place of these what is wrong with it."""
    content = read_utf8(path, what=str(path))
    if path.suffix == ".jsonl":
        yield from ((number, _parsed(line)) for number, line in numbered_lines(content))
        return
    if path.suffix == ".csv":
        reader = csv.reader(io.StringIO(content, newline=""), strict=True)
        rows = [(reader.line_num, row) for row in _csv_rows(reader, path) if any(cell.strip() for cell in row)]
    else:  # not the csv module: quotes are plain characters
        rows = [(number, line.rstrip("\r").split("\t")) for number, line in numbered_lines(content)]
    names: Sequence[str] = [name.strip() for name in rows[0][1]] if rows and header else ()
    for number, row in rows[1:] if header else rows:
        if header and len(row) != len(names):
            yield number, f"{len(row)} columns, but the header row has {len(names)}"
        else:
            yield number, dict(zip(names or map(str, range(len(row))), row, strict=True))


def _csv_rows(reader: Any, path: Path) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}", hint="quote cells that hold quotes") from error


def _parsed(line: str) -> Any:
    try:
        value = json.loads(line)
    except ValueError:
        return "not JSON"
    return value if isinstance(value, dict) else "not a JSON object"
