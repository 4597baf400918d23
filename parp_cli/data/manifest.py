"""Manifests: the user's recordings, listed in a file, or by a corpus that others made (`layouts`).

Columns or keys of a file: audio (a path relative to the file); id (by default that path without its suffix); split (by
default the file's name); text and phones ("HH AH0 | DH EH1 R": phones separated by spaces, words by "|"), either, both,
or neither for unlabelled audio; optionally speaker, language and seconds (by default from the audio's header). Others
are ignored.
"""

import math
import os
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from parp_cli.data.audio import audio_seconds
from parp_cli.data.layouts import Fields, Listing, id_of, listings
from parp_cli.data.text import normalize_text
from parp_cli.data.utterances import Utterance, parse_phones
from parp_cli.errors import DataError, first_few

_REQUIRED = ("id", "audio", "split")
_STRINGS = (*_REQUIRED, "text", "phones", "speaker", "language")
_HINT = "required is audio; id, split, text, phones, speaker, language and seconds are optional"


def read_manifest(path: Path, *, split: str | None = None, lenient: bool = False) -> list[Utterance]:
    """Read a manifest, or the folder or archive of a corpus, in its order.

    Args:
        path: what is read; see `layouts`.
        split: the only one to read; None is all of them, and then what several files list is there once.
        lenient: allow repeated ids, and do not open the audio, which `inspect_files` checks; missing lengths are 0.

    Raises DataError: there is no such split, a file cannot be read, or has wrong lines, all of which are listed with
    their numbers.
    """
    found = listings(path)
    problems: list[str] = []
    utterances: list[Utterance] = []
    there: set[str] = set()
    known: set[Path] = set()
    for listing in found:
        there |= {listing.split} if listing.split is not None else set()
        if split is not None and listing.split not in (None, split):
            continue
        place = "" if len(found) == 1 else f"{listing.path.parent.name}/{listing.path.name}, "
        own = list(_read(listing, place, problems, lenient))
        there |= {utterance.split for utterance in own}
        utterances += [each for each in own if split in (None, each.split) and each.audio not in known]
        known |= {utterance.audio for utterance in own}
    if problems:
        count = "a problem" if len(problems) == 1 else f"{len(problems):,} problems"
        raise DataError(f"manifest {path} has {count}", details=first_few(problems), hint=_HINT)
    if not there or (split is None and not utterances):
        raise DataError(f"manifest {path} lists no utterances", hint="add a line for each audio file")
    if not utterances:
        details = ["splits there: " + ", ".join(sorted(there))]
        hint = "name one of these: data.train, data.valid and data.test, or --split"
        if len(found) == 1 and found[0].split is not None:
            hint = (
                "without a column of splits a file or a folder is one split: name the folder that has one for each, "
                "such as train, dev and test"
            )
        raise DataError(f"no split {split} in manifest {path}", details=details, hint=hint)
    return utterances


def _read(listing: Listing, place: str, problems: list[str], lenient: bool) -> Iterator[Utterance]:
    """The utterances of one file; what is wrong with others is added to the problems, after the `place` of the file."""
    wrong: list[str] = []
    rows = listing.read()
    has_ids = any("id" in fields for _, fields in rows if isinstance(fields, dict))
    first: dict[str, str] = {}
    for where, fields in rows:
        if isinstance(fields, str):
            wrong.append(f"{where}: {fields}")
            continue
        if not has_ids and isinstance(fields.get("audio"), str):
            fields["id"] = id_of(fields["audio"])
        if listing.split is not None:
            fields["split"] = listing.split
        utterance = _utterance(listing, fields, where, wrong, lenient)
        if utterance is None:
            continue
        before = first.setdefault(utterance.id, where)
        if before != where and not lenient:
            wrong.append(f"{where}: id {utterance.id} is that of {before}")
        yield utterance
    problems += [place + each for each in wrong]


def _utterance(listing: Listing, fields: Fields, where: str, problems: list[str], lenient: bool) -> Utterance | None:
    """The utterance of one line, or None and `problems`."""
    before = len(problems)
    for name in _STRINGS:
        if name in fields and not isinstance(fields[name], str):
            problems.append(f"{where}: {name} is {fields[name]!r}, not a string")
        elif name in _REQUIRED and not fields.get(name, "").strip():
            problems.append(f"{where}: no {name}")
    if str(fields.get("offset", "0")).strip() not in ("", "0", "0.0"):
        problems.append(f"{where}: starts within a file, at {fields['offset']} s: cut it into a file of its own")
    if len(problems) > before:
        return None
    audio = _found(listing, fields["audio"].strip())
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
        language=fields.get("language", "").strip() or None,
    )


def _found(listing: Listing, audio: str) -> Path:
    """The path of a file, in the first folder that has it; its name may have another Unicode form than in the list."""
    audio = os.path.expanduser(audio)
    forms = (audio, *(unicodedata.normalize(form, audio) for form in ("NFC", "NFD")))
    paths = [folder / form for folder in listing.folders for form in forms]
    return next((path for path in paths if path.exists()), paths[0])


def _seconds(fields: Fields, audio: Path, lenient: bool) -> float:
    if not lenient and not audio.is_file():
        raise DataError(f"no audio file {audio}")
    if not str(fields.get("seconds", "")).strip():
        return 0.0 if lenient else audio_seconds(audio)
    value = fields["seconds"]
    with suppress(TypeError, ValueError):
        if not isinstance(value, bool) and 0 < float(value) < math.inf:
            return float(value)
    raise DataError(f"seconds is {value!r}, not a number above 0")
