"""Files are either there whole or not at all."""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from parp_cli.errors import ResourceError, UsageError

_TEMPORARY_SUFFIX = ".tmp"
_TEMPORARY = re.compile(rf"\.(?P<name>.+)-[a-z0-9_]{{8}}{re.escape(_TEMPORARY_SUFFIX)}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to, flushed and moved into place when the block ends well.

    Whatever goes wrong inside (an error, Ctrl-C, a kill), the file that was at `path` before stays as it was. A kill
    leaves the temporary one, for `forget_temporaries`.

    Raises:
        ResourceError: no space is left on the disk.
        UsageError: the folder cannot be written to.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=_TEMPORARY_SUFFIX, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are for their owner alone
        temporary.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def forget_temporaries(folder: Path, *names: str) -> None:
    """Remove what killed processes were writing in a folder.

    Args:
        folder: need not exist.
        names: of the files whose temporary ones go, which nobody may be writing now; without any, of all files.
    """
    for path in folder.glob(f".*{_TEMPORARY_SUFFIX}"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is not None and (not names or found["name"] in names) and not path.is_symlink() and path.is_file():
            path.unlink(missing_ok=True)


def write_error(path: Path, error: OSError) -> ResourceError | UsageError:
    """What to tell the user when `path` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"no space left to write {path}", hint="free some space, or write elsewhere with --out or --run"
        )
    return UsageError(f"cannot write {path}: {error.strerror or error}", hint="choose another place with --out")


def _flush_folder(folder: Path) -> None:
    """Let the names in a folder survive a loss of power in the order they were given."""
    with suppress(OSError):  # not every system opens folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
