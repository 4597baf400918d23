"""Manifests: the user's recordings, listed in a TSV file with a header row or in JSON Lines.

Columns or keys: id, audio (a path relative to the manifest), split; text and phones ("HH AH0 | DH EH1 R": phones
separated by spaces, words by "|"), either, both, or neither for unlabelled audio; optionally speaker and seconds
(by default from the audio's header). Others are ignored.
"""

import json
import math
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from parp_cli.data.audio import audio_seconds
from parp_cli.data.text import normalize_text
from parp_cli.data.utterances import Utterance, parse_phones
from parp_cli.errors import DataError, first_few

REQUIRED = ("id", "audio", "split")
_STRINGS = (*REQUIRED, "text", "phones", "speaker")
_HINT = "required are id, audio and split; text, phones, speaker and seconds are optional"


def read_manifest(path: Path, *, lenient: bool = False) -> list[Utterance]:
    """Read a manifest, in its order; if its first character is "{", it is JSON Lines.

    Args:
        path: of the manifest.
        lenient: allow repeated ids, and do not open the audio, which `inspect_files` checks; missing lengths are 0.

    Raises:
        DataError: the file cannot be read, or has wrong lines, all of which are listed with their numbers.
    """
    problems: list[str] = []
    utterances: list[Utterance] = []
    first_line: dict[str, int] = {}
    for line, fields in _rows(path, _text(path), problems):
        utterance = _utterance(path.parent, fields, f"line {line}", problems, lenient)
        if utterance is None:
            continue
        first = first_line.setdefault(utterance.id, line)
        if first != line and not lenient:
            problems.append(f"line {line}: id {utterance.id} is that of line {first}")
        utterances.append(utterance)
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems):,} problems"
        raise DataError(f"manifest {path} has {count}", details=first_few(problems), hint=_HINT)
    if not utterances:
        raise DataError(f"manifest {path} lists no utterances", hint="add a line for each audio file")
    return utterances


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"manifest {path} is not UTF-8 text", details=[str(error)], hint="save it as UTF-8") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"cannot read manifest {path}", details=[reason], hint="check the path") from error


def _rows(path: Path, text: str, problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (from 1) and fields of every line that is not blank."""
    # Not splitlines, which also splits at characters that a transcript may contain.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if text.lstrip().startswith("{"):
        yield from _json_rows(lines, problems)
    elif lines:
        yield from _tsv_rows(path, lines, problems)


def _json_rows(lines: list[tuple[int, str]], problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in lines:
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"line {number}: not JSON: {error.msg} at column {error.colno}")
            continue
        if isinstance(fields, dict):
            # null is the same as an absent key
            yield number, {key: value for key, value in fields.items() if value is not None}
        else:
            problems.append(f"line {number}: not a JSON object")


def _tsv_rows(path: Path, lines: list[tuple[int, str]], problems: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    # Not the csv module: quotation marks in a transcript do not quote.
    rows = [(number, line.split("\t")) for number, line in lines]
    header = [name.strip() for name in rows[0][1]]
    missing = [name for name in REQUIRED if name not in header]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if missing or repeated:
        details = [f"line {rows[0][0]}: no column {name}" for name in missing]
        details += [f"line {rows[0][0]}: column {name} is repeated" for name in repeated]
        details.append("columns: " + ", ".join(header))
        raise DataError(f"manifest {path} has a wrong header row", details=details, hint=_HINT)
    for number, row in rows[1:]:
        if len(row) == len(header):
            yield number, {name: value for name, value in zip(header, row, strict=True) if value.strip()}
        else:
            problems.append(f"line {number}: {len(row)} columns, but the header row has {len(header)}")


def _utterance(
    folder: Path, fields: dict[str, Any], where: str, problems: list[str], lenient: bool
) -> Utterance | None:
    """The utterance of one line, or None and `problems`."""
    before = len(problems)
    for name in _STRINGS:
        if name in fields and not isinstance(fields[name], str):
            problems.append(f"{where}: {name} is {fields[name]!r}, not a string")
        elif name in REQUIRED and not fields.get(name, "").strip():
            problems.append(f"{where}: no {name}")
    if len(problems) > before:
        return None
    audio = _in_any_form(folder / fields["audio"].strip())
    try:
        seconds = _seconds(fields, audio, lenient)
    except DataError as error:
        problems.append(": ".join([where, error.message, *error.details]))
        return None
    return Utterance(
        id=fields["id"].strip(),
        audio=audio,
        split=fields["split"].strip(),
        seconds=seconds,
        text=normalize_text(fields.get("text", "")) or None,
        phones=parse_phones(fields.get("phones", "")) or None,
        speaker=fields.get("speaker", "").strip() or None,
    )


def _in_any_form(path: Path) -> Path:
    """The path of a file whose name may have another Unicode form than in the manifest."""
    forms = (path, *(Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD")))
    return next((same for same in forms if same.exists()), path)


def _seconds(fields: dict[str, Any], audio: Path, lenient: bool) -> float:
    if not lenient and not audio.is_file():
        raise DataError(f"no audio file {audio}")
    if "seconds" not in fields:
        return 0.0 if lenient else audio_seconds(audio)
    value = fields["seconds"]
    with suppress(TypeError, ValueError):
        if not isinstance(value, bool) and 0 < float(value) < math.inf:
            return float(value)
    raise DataError(f"seconds is {value!r}, not a number above 0")
