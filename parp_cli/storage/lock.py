"""One process at a time in a folder."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from parp_cli.errors import UsageError
from parp_cli.storage.atomic import write_error

LOCK = ".lock"


@contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of a folder, which is made if need be, until the block ends; the system releases it however the
    process ends. The message says `what` runs there, such as "sweep".

    Raises:
        ResourceError: no space is left on the disk.
        UsageError: another process holds the lock, or the folder cannot be written to.
    """
    path = folder / LOCK
    lock = FileLock(path, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UsageError(
            f"another {what} is running in {folder}", hint="wait for it, or choose another folder with --run"
        ) from error
    except NotImplementedError:  # some network file systems have no locks
        pass
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise write_error(path, error) from error
    try:
        yield
    finally:
        lock.release()
