"""Every audio file of a corpus decoded once; what was found is kept, so that later runs only look at the file's time.

One JSON file per folder, in the cache. It is only a cache: where it is damaged, of another version, or cannot be
written, files are decoded again.
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
from parp_cli.errors import DataError, ParpError
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage.atomic import write_text

_VERSION = f"1, libsndfile {soundfile.__libsndfile_version__}"
"""Of what is kept, and of what it was found by."""

_SETTLED_SECONDS = 2.0
"""A file may change twice within one tick of its clock: one that changed just now is not recognised by its time."""

_SAVE_SECONDS = 30.0
"""Between two writings of what was found: all that a kill can lose."""

_SYSTEM_ERROR = 2
"""libsndfile's code where the operating system is to blame rather than the file."""

_MAX_READERS = 8


@dataclass(frozen=True)
class Unreadable:
    """An audio file that cannot be used, and why; `missing` where there is none."""

    reason: str
    missing: bool = False


Inspected = AudioInfo | Unreadable


def inspect_files(
    paths: Iterable[Path], *, cache: Path | None = None, notify: Notify = silent
) -> dict[Path, Inspected]:
    """Decode each audio file to its end, unless it has not changed since that was done.

    Args:
        paths: of the files, in any order; repeated ones are read once.
        cache: the folder that keeps what was found; by default the user's cache folder.
        notify: is told of the files that have to be opened.
    """
    paths = list(dict.fromkeys(paths))
    kept_in = _cache_file(paths, cache)
    known = _load(kept_in)
    found: dict[Path, Inspected] = {}
    unread: dict[Path, list[int]] = {}
    for path in paths:
        try:
            stamp = _stamp(path)
        except (FileNotFoundError, NotADirectoryError):
            found[path] = Unreadable("there is no such file", missing=True)
        except OSError as error:
            found[path] = Unreadable(error.strerror or str(error))
        else:
            entry = known.get(_key(path))
            if entry is not None and entry[0] == stamp:
                found[path] = _from_json(entry[1])
            else:
                unread[path] = stamp
    return found | _inspect(unread, known, kept_in, notify)


def _inspect(
    unread: Mapping[Path, list[int]], known: dict[str, Any], kept_in: Path, notify: Notify
) -> dict[Path, Inspected]:
    """Decode files, several at a time, and add what was found to the cache."""
    found: dict[Path, Inspected] = {}
    saved = time.monotonic()
    pool = ThreadPoolExecutor(min(_MAX_READERS, os.cpu_count() or 1))
    try:
        readings = {pool.submit(_inspect_one, path): path for path in unread}
        for done, reading in enumerate(as_completed(readings), start=1):
            path = readings[reading]
            found[path], lasting = reading.result()
            if lasting and _is_settled(unread[path]):
                known[_key(path)] = [unread[path], _to_json(found[path])]
            if time.monotonic() - saved > _SAVE_SECONDS:
                _save(known, kept_in)
                saved = time.monotonic()
            notify(Progress("checking audio", done, len(unread)))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the few files that are open, not for those that are left
        if unread:
            _save(known, kept_in)
    return found


def _inspect_one(path: Path) -> tuple[Inspected, bool]:
    """What is in a file, and whether that would be found again: not where the disk or the network failed."""
    try:
        return inspect_audio(path), True
    except DataError as error:
        cause = error.__cause__
        of_the_system = isinstance(cause, OSError) or getattr(cause, "code", 0) == _SYSTEM_ERROR
        return Unreadable("; ".join(error.details)), not of_the_system


def _cache_file(paths: list[Path], cache: Path | None) -> Path:
    """Where what was found in these files is kept: by the folder that they have in common."""
    if cache is None:
        from parp_cli.data.generated import cache_folder

        cache = cache_folder()
    folder = os.path.commonpath([path.absolute().parent for path in paths]) if paths else ""
    return cache / "audio" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.json"


def _load(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] == _VERSION:
            return dict(content["files"])
    return {}


def _save(known: Mapping[str, Any], path: Path) -> None:
    with suppress(ParpError):  # a full disk, a folder of somebody else
        write_text(path, json.dumps({"version": _VERSION, "files": known}))


def _stamp(path: Path) -> list[int]:
    """Size and times of a file, which differ once it has changed."""
    about = path.stat()
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def _is_settled(stamp: list[int]) -> bool:
    return time.time() - max(stamp[1:]) / 1e9 > _SETTLED_SECONDS


def _key(path: Path) -> str:
    return str(path.absolute())  # a name that is not UTF-8 has surrogates, which JSON escapes


def _to_json(item: Inspected) -> str | dict[str, Any]:
    return item.reason if isinstance(item, Unreadable) else asdict(item)


def _from_json(value: str | dict[str, Any]) -> Inspected:
    return Unreadable(value) if isinstance(value, str) else AudioInfo(**value)
