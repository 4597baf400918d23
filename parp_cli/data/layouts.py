"""How corpora list their utterances: in one file, or in a folder of files, told apart by their content.

    one file        a table with a header row (TSV or CSV), JSON Lines, or an array in JSON, with the columns of this
                    package's manifests, of Common Voice, of NeMo, or of Hugging Face
    Common Voice    train.tsv, dev.tsv, … beside clips/
    FLEURS          train.tsv, … without a header row, beside audio/train/ or train/
    NeMo            train_manifest.json, …, in JSON Lines
    audiofolder     metadata.csv or metadata.jsonl, in a folder for each split or for all
    Kaldi           wav.scp, text, utt2spk, in a folder for each split
    MLS             transcripts.txt beside audio/, in a folder for each split; train/limited_supervision/
    recordings      hello.wav beside hello.txt, which holds what is said, in a folder for each split

Each file is a split, unless it has a column of splits.
"""

import csv
import hashlib
import io
import json
import re
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from parp_cli.data.audio import AUDIO_SUFFIXES
from parp_cli.data.downloads import unpack
from parp_cli.data.generated import cache_folder
from parp_cli.data.text import numbered_lines, read_utf8
from parp_cli.errors import DataError

Fields = dict[str, Any]
"""What is known of an utterance, by our names of columns."""

Rows = list[tuple[str, Fields | str]]
"""The lines of a file: their place, such as "line 3", and what they say, or what is wrong with them."""

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "id": ("id",),
    "audio": ("audio", "audio_filepath", "file_name", "path"),
    "split": ("split",),
    "text": ("text", "sentence", "transcription", "transcript"),
    "phones": ("phones",),
    "speaker": ("speaker", "client_id", "speaker_id"),
    "seconds": ("seconds", "duration"),
    "language": ("language", "locale", "lang"),
    "offset": ("offset",),
}
"""Our names of columns, and those that others have for the same; the first that is there counts."""

_HINT = "needed is a column audio (or path, audio_filepath, file_name); the README of the recipes names all formats"
_FLEURS = ("number", "audio", "raw", "text", "letters", "samples", "gender")
_FLEURS_RATE = 16_000
_START = 1 << 16  # characters that tell what a file is
_LIMITED = {"10min": ("1hr/0",), "1h": ("1hr",), "10h": ("1hr", "9hr")}  # of MLS, under train/limited_supervision


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A file that lists utterances: all of one split, or None where it has a column of splits.

    Paths in it start at one of `folders`.
    """

    path: Path
    split: str | None
    folders: tuple[Path, ...]
    read: Callable[[], Rows]


def listings(path: Path) -> list[Listing]:
    """The files that list a corpus's utterances: `path` itself, or those in a folder or a tar archive.

    An archive is unpacked once, into the user's cache.

    Raises DataError: there are none, or a file cannot be read.
    """
    if path.is_file() and path.suffix not in (".tsv", ".csv", ".json", ".jsonl") and tarfile.is_tarfile(path):
        path = _unpacked(path)
    if not path.is_dir():
        return [_file(path, split=_split_of(path))]
    folders = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())]
    folders += sorted(folder for parent in folders[1:] for folder in parent.iterdir() if folder.is_dir())
    for depth in range(3):  # the outermost folders that list something
        some = [folder for folder in folders if len(folder.relative_to(path).parts) == depth]
        if found := [listing for folder in some for listing in _folder(folder)]:
            return found
    hint = "it has no manifest, transcripts.txt, wav.scp or metadata.csv, and no audio file with a .txt of its name"
    raise DataError(f"no corpus in folder {path}", hint=hint)


def _folder(folder: Path) -> list[Listing]:
    """What lists utterances in a folder itself."""
    if (folder / "wav.scp").is_file():
        read = partial(_kaldi_rows, folder)
        return [Listing(path=folder / "wav.scp", split=folder.name, folders=(folder, *folder.parents), read=read)]
    if (folder / "transcripts.txt").is_file():
        return _mls(folder)
    for name in ("metadata.csv", "metadata.jsonl", "metadata.tsv"):
        if (folder / name).is_file():
            return [_file(folder / name, split=folder.name)]
    files = sorted(path for path in folder.iterdir() if path.suffix in (".tsv", ".csv", ".json", ".jsonl"))
    tables = [_file(path, split=_split_of(path)) for path in files if _columns(path) & {*COLUMNS["audio"]}]
    return tables or _pairs(folder)


def _pairs(folder: Path) -> list[Listing]:
    """Recordings, some of which have a text file of the same name beside them; the others have no text."""
    there = {path.stem for path in folder.glob("*.txt")}
    audio = sorted(path for path in folder.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES) if there else []
    if not any(path.stem in there for path in audio):
        return []

    def rows() -> Rows:
        texts = {path: path.with_suffix(".txt") for path in audio}
        return [
            (path.name, {"audio": path.name, **({"text": _text(text)} if text.is_file() else {})})
            for path, text in texts.items()
        ]

    return [Listing(path=folder, split=folder.name, folders=(folder,), read=rows)]


def _split_of(path: Path) -> str:
    """train_manifest.json lists the split train."""
    return re.sub(r"(?<=.)[_-]?manifest$", "", path.stem)


def _file(path: Path, *, split: str) -> Listing:
    folder = path.parent
    places = (folder, folder / "clips", folder / "audio" / split, folder / split)
    own = None if "split" in _columns(path) else split
    return Listing(path=path, split=own, folders=places, read=partial(_file_rows, path))


def _columns(path: Path) -> set[str]:
    """Names of the columns in the beginning of a file."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            start = file.read(_START)
    except OSError:
        return set()  # which reading it will report
    if start.lstrip().startswith(("{", "[")):
        return set(re.findall(r'"(\w+)"\s*:', start))
    cells = re.split("[\t,]", start.lstrip().partition("\n")[0].strip())
    return {*_FLEURS} if _is_fleurs(cells) else {cell.strip() for cell in cells}


def _is_fleurs(cells: list[str]) -> bool:
    is_audio = len(cells) == len(_FLEURS) and Path(cells[1]).suffix.lower() in AUDIO_SUFFIXES
    return is_audio and cells[5].isdigit()


def _text(path: Path) -> str:
    return read_utf8(path, what=f"manifest {path}")


def _lines(path: Path) -> list[tuple[int, str]]:
    return numbered_lines(_text(path))


def _file_rows(path: Path) -> Rows:
    text = _text(path)
    if text.lstrip().startswith("["):
        rows = list(_json_rows([("", text)]))
    elif text.lstrip().startswith("{"):
        rows = list(_json_rows([(f"line {number}", line) for number, line in numbered_lines(text)]))
    else:
        rows = list(_table_rows(path, text))
    there = {name for _, fields in rows if isinstance(fields, dict) for name in fields}
    ours = {name: next((other for other in others if other in there), name) for name, others in COLUMNS.items()}

    def renamed(fields: Fields | str) -> Fields | str:
        if isinstance(fields, str):
            return fields
        return {name: fields[other] for name, other in ours.items() if other in fields}

    return [(where, renamed(fields)) for where, fields in rows]


def _json_rows(texts: list[tuple[str, str]]) -> Iterator[tuple[str, Fields | str]]:
    """Objects, and those of arrays, without their nulls."""
    for where, text in texts:
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            place = where or f"line {error.lineno}"
            yield place, f"not JSON: {error.msg} at column {error.colno}"
            continue
        numbered = [(where, content)] if where else [(f"entry {n}", each) for n, each in enumerate(content, start=1)]
        for place, fields in numbered:
            if isinstance(fields, dict):
                # null is the same as an absent key
                yield place, {key: value for key, value in fields.items() if value is not None}
            else:
                yield place, "not a JSON object"


def _table_rows(path: Path, text: str) -> Iterator[tuple[str, Fields | str]]:
    lines = numbered_lines(text)
    if not lines:
        return
    if "\t" not in lines[0][1] and "," in lines[0][1]:
        reader = csv.reader(io.StringIO(text, newline=""))
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    else:  # not the csv module: quotation marks in a transcript do not quote
        rows = [(number, line.rstrip("\r").split("\t")) for number, line in lines]
    if _is_fleurs(rows[0][1]):
        for number, row in rows:
            fields = dict(zip(_FLEURS, row, strict=False))
            yield f"line {number}", {**fields, "seconds": int(fields["samples"]) / _FLEURS_RATE}
        return
    header = [name.strip() for name in rows[0][1]]
    details = [] if any(name in header for name in COLUMNS["audio"]) else [f"line {rows[0][0]}: no column audio"]
    repeated = sorted({name for name in header if header.count(name) > 1})
    details += [f"line {rows[0][0]}: column {name} is repeated" for name in repeated]
    if details:
        details.append("columns: " + ", ".join(header))
        raise DataError(f"manifest {path} has a wrong header row", details=details, hint=_HINT)
    for number, row in rows[1:]:
        if len(row) == len(header):
            yield f"line {number}", dict(zip(header, map(str.strip, row), strict=True))
        else:
            yield f"line {number}", f"{len(row)} columns, but the header row has {len(header)}"


def _kaldi_rows(folder: Path) -> Rows:
    """Utterances of a data directory; nothing in it is executed."""
    if (folder / "segments").is_file():
        hint = "cut the recordings into a file for each utterance, such as by extract-segments"
        raise DataError(f"{folder} has segments of recordings, but only whole files are read", hint=hint)
    tables = {
        column: {line.split(maxsplit=1)[0]: " ".join(line.split()[1:]) for _, line in _lines(folder / name)}
        for column, name in (("text", "text"), ("speaker", "utt2spk"), ("seconds", "utt2dur"), ("language", "utt2lang"))
        if (folder / name).is_file()
    }
    rows: Rows = []
    for number, line in _lines(folder / "wav.scp"):
        id_, *rest = line.split(maxsplit=1)
        audio = rest[0].strip() if rest else ""
        if audio.endswith("|"):
            rows.append((f"line {number}", f"{id_} is the output of a command, which is not run: name a file"))
        elif re.search(r"\.ark:\d+$", audio):
            rows.append((f"line {number}", f"{id_} is inside an archive of Kaldi's: name a file"))
        else:
            columns = {column: table[id_] for column, table in tables.items() if id_ in table}
            rows.append((f"line {number}", {"id": id_, "audio": audio, **columns}))
    return rows


def _mls(folder: Path) -> list[Listing]:
    """The split of a folder, and parts of it that are lists of ids."""

    def listing(split: str, ids: set[str] | None) -> Listing:
        path = folder / "transcripts.txt"
        return Listing(path=path, split=split, folders=(folder / "audio",), read=partial(_mls_rows, folder, ids))

    found = [listing(folder.name, None)]
    limited = folder / "limited_supervision"
    for split, parts in _LIMITED.items() if limited.is_dir() else ():
        lists = [path for part in parts for path in (limited / part).rglob("handles.txt")]
        found.append(listing(split, {line.strip() for path in lists for _, line in _lines(path)}))
    return found


def _mls_rows(folder: Path, ids: set[str] | None) -> Rows:
    rows: Rows = []
    for number, line in _lines(folder / "transcripts.txt"):
        id_, _, text = line.partition("\t")
        parts = id_.strip().split("_")
        if len(parts) != 3:
            rows.append((f"line {number}", f"{id_} is not speaker_book_number"))
        elif ids is None or id_ in ids:
            audio = folder / "audio" / parts[0] / parts[1] / id_
            suffix = ".opus" if audio.with_suffix(".opus").exists() else ".flac"
            rows.append((f"line {number}", {"id": id_, "audio": f"{audio}{suffix}", "text": text, "speaker": parts[0]}))
    return rows


def id_of(audio: str) -> str:
    """The id of an utterance that has none: its path without suffix."""
    return PurePath(audio).with_suffix("").as_posix().lstrip("/")


def _unpacked(archive: Path) -> Path:
    """The folder in the user's cache that an archive was unpacked into, completely, now or before."""
    status = archive.stat()
    named = f"{archive.absolute()} {status.st_size} {status.st_mtime_ns}"
    target = cache_folder() / "archives" / hashlib.sha256(named.encode()).hexdigest()[:16]
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=target.parent) as folder:
            content = Path(folder) / "content"
            content.mkdir()
            unpack(archive, content)
            content.rename(target)
    return target
