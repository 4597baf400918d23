"""Sound files that were read before, by content, so that a corpus is read through once and later only looked at.

SQLite: several runs may ask and note at the same time, and any of them may be killed. It is only a cache: where it
cannot be used files are read again, and where it is broken it is begun anew.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import soundfile

from parp_cli.data.audio import Sound

T = TypeVar("T")

_FILE = "sounds-2.sqlite"
"""Its name in the cache folder, with the number of its layout."""

_TABLES = (
    "CREATE TABLE IF NOT EXISTS sounds (content TEXT, reader TEXT, samples INTEGER, rate INTEGER, channels INTEGER, "
    "silent INTEGER, clipped INTEGER, reason TEXT, PRIMARY KEY (content, reader)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, stamp TEXT, content TEXT) WITHOUT ROWID",
)

_SOUND = "samples, rate, channels, silent, clipped, reason"
_BUSY_SECONDS = 10.0
_BROKEN = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)

_SETTLED_SECONDS = 2.0
"""A file may change twice within one tick of its clock: what changed just now is not known by its time."""


@dataclass(frozen=True)
class Unreadable:
    """A sound file that cannot be used, and why; `missing` where there is none."""

    reason: str
    missing: bool = False


@dataclass(frozen=True)
class Note:
    """What was found in a file.

    Attributes:
        stamp: of the file before it was read.
        content: SHA-256 of its bytes.
    """

    path: Path
    stamp: str
    content: str
    sound: Sound | Unreadable


class KnownSounds:
    """What is known of sound files; threads may share it.

    Args:
        folder: where it is kept; by default the user's cache folder.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is None:
            from parp_cli.data.generated import cache_folder

            folder = cache_folder()
        self._path = folder / _FILE
        self._lock = threading.Lock()
        self._renewed = False
        self._connection: sqlite3.Connection | None = None
        with self._lock:
            self._connect()

    def __enter__(self) -> "KnownSounds":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._disconnect()

    def of_file(self, path: Path, stamp: str) -> Sound | Unreadable | None:
        """What is in a file that has not changed since it was noted, without opening it."""
        query = (
            f"SELECT {_SOUND} FROM files JOIN sounds USING (content) WHERE path = ? AND files.stamp = ? AND reader = ?"
        )
        return self._sound(query, (_key(path), stamp, reader(path)))

    def of_content(self, content: str, path: Path) -> Sound | Unreadable | None:
        """What is in a file at `path` whose SHA-256 is `content`."""
        return self._sound(f"SELECT {_SOUND} FROM sounds WHERE content = ? AND reader = ?", (content, reader(path)))

    def add(self, notes: Iterable[Note]) -> None:
        """Note what files hold."""
        notes = list(notes)
        sounds = [(note.content, reader(note.path), *_values(note.sound)) for note in notes]
        files = [(_key(note.path), note.stamp, note.content) for note in notes if _is_settled(note.stamp)]

        def write(connection: sqlite3.Connection) -> None:
            with connection:
                connection.executemany("INSERT OR REPLACE INTO sounds VALUES (?, ?, ?, ?, ?, ?, ?, ?)", sounds)
                connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", files)

        self._try(write)

    def _sound(self, query: str, values: tuple[object, ...]) -> Sound | Unreadable | None:
        row = self._try(lambda connection: connection.execute(query, values).fetchone())
        if row is None:
            return None
        samples, rate, channels, silent, clipped, reason = row
        if reason is not None:
            return Unreadable(reason)
        return Sound(samples=samples, rate=rate, channels=channels, silent=bool(silent), clipped=clipped)

    def _try(self, use: Callable[[sqlite3.Connection], T]) -> T | None:
        with self._lock:
            if self._connection is None:
                return None
            try:
                return use(self._connection)
            except sqlite3.Error as error:
                self._give_up(error)
                return None

    def _connect(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS, check_same_thread=False)
            for table in _TABLES:
                self._connection.execute(table)
        except OSError:
            self._disconnect()
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: sqlite3.Error) -> None:
        """Go on without the file; begin it anew, once, if it is broken rather than busy, full or forbidden."""
        self._disconnect()
        if not self._renewed and getattr(error, "sqlite_errorcode", 0) & 0xFF in _BROKEN:
            self._renewed = True
            try:
                self._path.unlink(missing_ok=True)
            except OSError:
                return
            self._connect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def stamp(path: Path) -> str:
    """Changes whenever the file does.

    Raises:
        OSError: there is no such file.
    """
    about = path.stat()
    return f"{about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}"


def reader(path: Path) -> str:
    """What else decides how a file is read: libsndfile, which also looks at its ending."""
    return f"{soundfile.__libsndfile_version__}{path.suffix.lower()}"


def _is_settled(stamp: str) -> bool:
    changed = max(map(int, stamp.split()[1:])) / 1e9
    return time.time() - changed > _SETTLED_SECONDS


def _key(path: Path) -> bytes:
    return os.fsencode(path.absolute())  # bytes, as not every name of a file is text


def _values(sound: Sound | Unreadable) -> tuple[object, ...]:
    if isinstance(sound, Unreadable):
        return (None, None, None, None, None, sound.reason)
    return (sound.samples, sound.rate, sound.channels, int(sound.silent), sound.clipped, None)
