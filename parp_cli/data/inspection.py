"""Every audio file of a corpus decoded once: later runs only compare sizes and times with a cache.

The cache has one JSON file per folder. Where that is damaged, of another version, or cannot be written, files are
decoded again.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import soundfile

from parp_cli.data.audio import AudioInfo, inspect_audio
from parp_cli.data.generated import cache_folder
from parp_cli.data.utterances import Utterance
from parp_cli.errors import DataError, ParpError
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage.atomic import write_text

_VERSION = f"2, libsndfile {soundfile.__libsndfile_version__}"
_SETTLED_SECONDS = 2.0  # a file changed more recently may change again within one tick of its clock
_SAVE_SECONDS = 30.0  # of work that a kill may lose
_SYSTEM_ERROR = 2  # libsndfile's code for errors of the operating system rather than the file
_MAX_READERS = 8


@dataclass(frozen=True)
class Unreadable:
    """Why an audio file cannot be used; `missing` if it does not exist."""

    reason: str
    missing: bool = False


Inspected = AudioInfo | Unreadable


def inspect_files(
    paths: Iterable[Path], *, cache: Path | None = None, notify: Notify = silent
) -> dict[Path, Inspected]:
    """Decode each audio file once to its end, except those that `cache` has, by default the user's cache folder."""
    paths = list(dict.fromkeys(paths))
    cache_file = _cache_file(paths, cache)
    known = _load(cache_file)
    infos: dict[Path, Inspected] = {}
    unread: dict[Path, list[int]] = {}
    for path in paths:
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            infos[path] = Unreadable("there is no such file", missing=True)
        except OSError as error:
            infos[path] = Unreadable(error.strerror or str(error))
        else:
            stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            before, content = known.get(_key(path), (None, ""))
            if before == stamp:
                infos[path] = Unreadable(content) if isinstance(content, str) else AudioInfo(**content)
            else:
                unread[path] = stamp
    return infos | _inspect(unread, known, cache_file, notify)


def content_hash(utterances: Iterable[Utterance], infos: Mapping[Path, Inspected]) -> str:
    """SHA-256 of all that the corpus says about utterances, in their order, and of their audio files.

    Args:
        utterances: with lengths only where the corpus gives them.
        infos: of their audio, from `inspect_files`.
    """
    found = hashlib.sha256()
    for each in utterances:
        info = infos[each.audio]
        audio = info.checksum if isinstance(info, AudioInfo) else info.reason
        found.update(json.dumps([each.id, each.seconds, each.text, each.phones, each.speaker, audio]).encode())
    return found.hexdigest()


def _inspect(
    unread: Mapping[Path, list[int]], known: dict[str, Any], cache_file: Path, notify: Notify
) -> dict[Path, Inspected]:
    """Decode files, several at a time, and add them to the cache."""
    infos: dict[Path, Inspected] = {}
    saved = time.monotonic()
    pool = ThreadPoolExecutor(min(_MAX_READERS, os.cpu_count() or 1))
    try:
        readings = {pool.submit(_inspect_one, path): path for path in unread}
        for done, reading in enumerate(as_completed(readings), start=1):
            path = readings[reading]
            info, is_lasting = reading.result()
            infos[path] = info
            if is_lasting and time.time() - max(unread[path][1:]) / 1e9 > _SETTLED_SECONDS:
                known[_key(path)] = [unread[path], info.reason if isinstance(info, Unreadable) else asdict(info)]
            if time.monotonic() - saved > _SAVE_SECONDS:
                _save(known, cache_file)
                saved = time.monotonic()
            notify(Progress("checking audio", done, len(unread)))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits only for the files that are open
        if unread:
            _save(known, cache_file)
    return infos


def _inspect_one(path: Path) -> tuple[Inspected, bool]:
    """What is in a file, and whether to cache it: not where the disk or the network failed."""
    try:
        return inspect_audio(path), True
    except DataError as error:
        cause = error.__cause__
        is_of_system = isinstance(cause, OSError) or getattr(cause, "code", 0) == _SYSTEM_ERROR
        return Unreadable("; ".join(error.details)), not is_of_system


def _cache_file(paths: list[Path], cache: Path | None) -> Path:
    """Named after the folder that the files have in common."""
    folder = os.path.commonpath([path.absolute().parent for path in paths]) if paths else ""
    return (cache or cache_folder()) / "audio" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.json"


def _load(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] == _VERSION:
            return dict(content["files"])
    return {}


def _save(known: Mapping[str, Any], path: Path) -> None:
    with suppress(ParpError):  # a full disk, another user's folder
        write_text(path, json.dumps({"version": _VERSION, "files": known}))


def _key(path: Path) -> str:
    return str(path.absolute())  # a name that is not UTF-8 has surrogates, which JSON escapes
