"""Files are written completely or not at all."""

import errno
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from parp_cli.errors import ResourceError, UsageError

_TEMPORARY_SUFFIX = ".tmp"
_TEMPORARY = re.compile(rf"\.(?P<name>.+)-[a-z0-9_]{{8}}{re.escape(_TEMPORARY_SUFFIX)}")
_SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")
_ADDED_CHARACTERS = len(f".-{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}")
_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR


@contextmanager
def replacing(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """A temporary file beside `path` to write to, flushed and moved into place when the block ends without an error.

    Whatever goes wrong inside (an error, Ctrl-C, a kill), the previous file at `path` is unchanged. A kill leaves the
    temporary file behind, for `forget_temporaries`.

    Args:
        path: of the file.
        flush: whether it has to survive a loss of power; a cache whose reader notices damage does not.

    Raises:
        ResourceError: no space is left on the disk.
        UsageError: the folder cannot be written to.
    """
    temporary: Path | None = None
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.with_name(f".{path.name}-{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}")
        # The system applies the umask here; reading it would mean setting it, for other threads' files as well.
        os.close(os.open(name, _NEW, 0o666))
        temporary = name
        mode = name.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file of its own there, which nobody else may read
        if flush:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
        if flush:
            _flush_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if temporary is not None:
            with suppress(FileNotFoundError):
                temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def is_text(path: Path, text: str) -> bool:
    """Whether a file holds this text."""
    return path.is_file() and path.read_bytes() == text.encode()


def refuse_same(
    outputs: Mapping[str, Path | Sequence[Path]], inputs: Mapping[str, Path | Sequence[Path]] | None = None
) -> None:
    """Raise a UsageError where one file would be written twice, or an input overwritten, by symbolic links too; call it
    before reading or writing anything. Files are given by the option that names them, and need not exist."""
    taken = {os.path.realpath(path): f"{option} {path}" for option, path in _pairs(inputs or {})}
    for option, path in _pairs(outputs):
        real = os.path.realpath(path)
        if real in taken:
            raise UsageError(f"{option} {path} would overwrite {taken[real]}", hint="name another file")
        taken[real] = f"{option} {path}"


def require_writable(path: Path, option: str) -> None:
    """Check now that a file can be written later, rather than fail after hours of work. Creates nothing.

    Raises UsageError: it is a folder, or its folder cannot be written to; names the command-line option to change.
    """
    try:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        longest = os.pathconf(folder, "PC_NAME_MAX") - _ADDED_CHARACTERS
    except OSError as error:  # a folder's name is too long
        raise write_error(path, error, option) from error
    names = path.absolute().relative_to(folder).parts
    if max(len(os.fsencode(name)) for name in names) > longest:
        why = f"its name is too long: {longest} bytes at most"
    elif path.is_dir():
        why = "it is a folder"
    elif not folder.is_dir():
        why = f"{folder} is not a folder"
    elif not os.access(folder, os.W_OK):
        why = f"{folder} cannot be written to"
    else:
        return
    raise UsageError(f"cannot write {path}: {why}", hint=f"choose another place with {option}")


def numbered(path: Path) -> Path:
    """The first name beside this one that is free: `run~1` for a folder `run`, `eval~1.json` for a file `eval.json`."""
    stem, suffix = (path.name, "") if path.is_dir() else (path.stem, path.suffix)
    names = (path.with_name(f"{stem}~{number}{suffix}") for number in count(1))
    return next(free for free in names if not os.path.lexists(free))


def set_aside(*paths: Path, option: str = "--out") -> list[Path]:
    """Rename those of these files that exist, so that others can be written in their place; their new names.

    Raises as `write_error`, which names the `option`.
    """
    kept = []
    for path in paths:
        if path.exists():
            try:
                kept.append(path.rename(numbered(path)))
            except OSError as error:
                raise write_error(path, error, option) from error
    return kept


def _pairs(files: Mapping[str, Path | Sequence[Path]]) -> Iterator[tuple[str, Path]]:
    for option, paths in files.items():
        yield from ((option, path) for path in ([paths] if isinstance(paths, Path) else paths))


def forget_temporaries(folder: Path, *names: str) -> None:
    """Remove the temporary files that killed processes left in a folder: of these files, none of which may be in use,
    by default of all."""
    for path in folder.glob(f".*{_TEMPORARY_SUFFIX}"):
        match = _TEMPORARY.fullmatch(path.name)
        if match is not None and (not names or match["name"] in names) and not path.is_symlink() and path.is_file():
            path.unlink(missing_ok=True)
    for path in folder.glob(".tmp*") if not names else ():  # safetensors' own, which it renames to ours
        if _SAFETENSORS.fullmatch(path.name) and not path.is_symlink() and path.is_file():
            path.unlink(missing_ok=True)


def write_error(path: Path, error: OSError, option: str = "--out") -> ResourceError | UsageError:
    """The error to raise when `path` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"no space left to write {path}", hint="free some space, or write elsewhere with --out or --run"
        )
    return UsageError(f"cannot write {path}: {error.strerror or error}", hint=f"choose another place with {option}")


def _flush_folder(folder: Path) -> None:
    """Flush a folder's entries, so that renames survive a loss of power in their order."""
    with suppress(OSError):  # not every system opens folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
