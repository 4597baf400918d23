"""One process at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parp_cli.errors import UsageError
from parp_cli.storage.atomic import write_error

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def only_one(folder: Path, what: str) -> Iterator[None]:
    """Hold a folder until the block ends; however the process ends, the system lets go of it.

    Args:
        folder: made if it is not there.
        what: is going on in it, for the message; "sweep" for one.

    Raises:
        ResourceError: no space is left on the disk.
        UsageError: another process holds it, or it cannot be written to.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise write_error(path, error) from error
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    f"another {what} is running in {folder}", hint="wait for it, or choose another folder with --run"
                ) from error
            except OSError:  # some network file systems have no locks
                pass
        yield
