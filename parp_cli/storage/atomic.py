"""Files are either there whole or not at all."""

import errno
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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


def refuse_same(
    outputs: Mapping[str, Path | Sequence[Path]], inputs: Mapping[str, Path | Sequence[Path]] | None = None
) -> None:
    """Refuse to write one file twice, or over one that is read; to be called before either is done.

    Args:
        outputs: files that will be written, by the option that names them. They need not exist.
        inputs: files that are read.

    Raises:
        UsageError: two are the same file, by symbolic links too.
    """
    taken = {os.path.realpath(path): f"{option} {path}" for option, path in _pairs(inputs or {})}
    for option, path in _pairs(outputs):
        real = os.path.realpath(path)
        if real in taken:
            raise UsageError(f"{option} {path} would overwrite {taken[real]}", hint="name another file")
        taken[real] = f"{option} {path}"


def require_writable(path: Path, option: str) -> None:
    """Refuse early what could not be written hours later; nothing is made.

    Args:
        path: of a file that need not exist, nor its folder.
        option: that names it.

    Raises:
        UsageError: it is a folder, or lies where nothing can be written.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir():
        why = "it is a folder"
    elif not folder.is_dir():
        why = f"{folder} is no folder"
    elif not os.access(folder, os.W_OK):
        why = f"{folder} cannot be written to"
    else:
        return
    raise UsageError(f"cannot write {path}: {why}", hint=f"choose another place with {option}")


def _pairs(files: Mapping[str, Path | Sequence[Path]]) -> Iterator[tuple[str, Path]]:
    for option, paths in files.items():
        yield from ((option, path) for path in ([paths] if isinstance(paths, Path) else paths))


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


def shortest_labels(paths: Sequence[Path]) -> list[str]:
    """A name for each file that tells it from the others: its stem, its folder, or as much of the path as it takes."""
    parts = [(*path.absolute().parent.parts[1:], path.stem) for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        for chosen in (slice(-depth, -depth + 1 or None), slice(-depth, None)):
            labels = ["/".join(part[chosen]) for part in parts]
            if all(labels) and len(set(labels)) == len(labels):
                return labels
    return [f"{path} ({number})" for number, path in enumerate(paths, start=1)]
