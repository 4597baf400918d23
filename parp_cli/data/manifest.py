"""Manifests: one's own recordings, listed in a TSV file with a header row or in JSON Lines.

Columns or keys: id, audio (a path from the manifest's folder), split; text and phones ("HH AH0 | DH EH1 R": phones
divided by spaces, words by "|"), either or both, and neither for unlabelled audio; optionally speaker and seconds
(read from the audio's header where it is missing). Others are not looked at.
"""

import json
import math
import unicodedata
from collections.abc import Iterator
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
    """Read a manifest, in its own order; the format is told from the first character ("{" is JSON Lines).

    Args:
        path: of the manifest.
        lenient: allow repeated ids, and open no audio, which may be missing: that is left to `inspect_files`. A
            length that the manifest does not give is 0.

    Raises:
        DataError: the file cannot be read, or lines of it are wrong: all of them are listed with their numbers.
    """
    problems: list[str] = []
    utterances: list[Utterance] = []
    first_line: dict[str, int] = {}
    for line, fields in _rows(path, _text(path), problems):
        utterance = _utterance(path.parent, fields, f"line {line}", problems, lenient)
        if utterance is None:
            continue
        if utterance.id in first_line and not lenient:
            problems.append(f"line {line}: id {utterance.id} is that of line {first_line[utterance.id]}")
        else:
            first_line.setdefault(utterance.id, line)
            utterances.append(utterance)
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems):,} problems"
        raise DataError(f"manifest {path} has {count}", details=first_few(problems), hint=_HINT)
    if not utterances:
        raise DataError(f"manifest {path} lists no utterances", hint="add a line for each sound file")
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
    # Not splitlines: it takes characters for line ends that may stand in a transcript.
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
    # Plain splitting: an apostrophe or quotation mark in a transcript is itself, not a way of quoting.
    rows = [(number, line.split("\t")) for number, line in lines]
    header = [name.strip() for name in rows[0][1]]
    missing = [name for name in REQUIRED if name not in header]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if missing or repeated:
        details = [f"line {rows[0][0]}: no column {name}" for name in missing]
        details += [f"line {rows[0][0]}: column {name} stands there twice" for name in repeated]
        details.append("columns there: " + ", ".join(header))
        raise DataError(f"manifest {path} has a wrong header row", details=details, hint=_HINT)
    for number, row in rows[1:]:
        if len(row) == len(header):
            yield number, {name: value for name, value in zip(header, row, strict=True) if value.strip()}
        else:
            problems.append(f"line {number}: {len(row)} columns, but the header row has {len(header)}")


def _utterance(
    folder: Path, fields: dict[str, Any], where: str, problems: list[str], lenient: bool
) -> Utterance | None:
    """The utterance of one line; what is wrong with it is added to `problems`."""
    found = len(problems)
    for name in _STRINGS:
        if name in fields and not isinstance(fields[name], str):
            problems.append(f"{where}: {name} is {fields[name]!r}, not a string")
        elif name in REQUIRED and not fields.get(name, "").strip():
            problems.append(f"{where}: no {name}")
    if len(problems) > found:
        return None
    audio = _in_any_form(folder / fields["audio"].strip())
    seconds = _seconds(fields, audio, where, problems, lenient)
    if seconds is None:
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
    """The path of a file whose name may be in another Unicode form than in the manifest."""
    forms = (path, *(Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD")))
    return next((same for same in forms if same.exists()), path)


def _seconds(fields: dict[str, Any], audio: Path, where: str, problems: list[str], lenient: bool) -> float | None:
    if not lenient and not audio.is_file():
        problems.append(f"{where}: no audio file {audio}")
        return None
    if "seconds" not in fields:
        try:
            return 0.0 if lenient else audio_seconds(audio)
        except DataError as error:
            problems.append(f"{where}: {error.message}: {'; '.join(error.details)}")
            return None
    value = fields["seconds"]
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if math.isfinite(seconds) and seconds > 0:
        return seconds
    problems.append(f"{where}: seconds is {value!r}, not a number above 0")
    return None
