"""Downloads that continue where they stopped, and are checked before they are used."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parp_cli.errors import DataError
from parp_cli.storage.atomic import write_error
from parp_cli.storage.checkpoint import file_hash

ByteProgress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all (0 where the server does not say)."""

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60


def download(
    url: str, path: Path, *, verify: Callable[[Path], None] | None = None, progress: ByteProgress | None = None
) -> None:
    """Download to `path`. What came before a break is kept in `<path>.part`, and the next call goes on from there.

    Args:
        url: http, https or file.
        verify: raises a DataError where the file is not the one expected, which is then removed.
        progress: called after every mebibyte or so.

    Raises:
        DataError: the address cannot be reached, the connection breaks, or the file is not the one expected.
        ResourceError: no space is left on the disk.
    """
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download_rest(url, partial, progress)
        try:
            if verify is not None:
                verify(partial)
        except DataError:
            partial.unlink()  # or every later call would go on from the wrong bytes
            raise
        partial.replace(path)
    except OSError as error:
        raise write_error(path, error) from error


def check_sha256(path: Path, sha256: str) -> None:
    """Raise a DataError unless a file hashes to `sha256`, in hexadecimal digits."""
    digest = file_hash(path)
    if digest != sha256.lower():
        raise DataError(
            f"{path} is not the file expected",
            details=[f"SHA-256 {digest}, not {sha256}"],
            hint="delete it, if it is still there, and try again; it starts from the beginning",
        )


def _download_rest(url: str, partial: Path, progress: ByteProgress | None) -> None:
    """Append to `partial` what it lacks."""
    done = partial.stat().st_size if partial.is_file() else 0
    headers = {"User-Agent": "parp"} | ({"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()  # it is also the response
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and done:
            return  # it was whole already; the checksum decides
        raise _unreachable(url, error) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _unreachable(url, error) from error
    with response:
        # A server that does not know ranges answers 200 and starts from the beginning.
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            done = 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else 0
        with partial.open("ab" if done else "wb") as file:
            while chunk := _read(url, response):
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
    if done < total:
        raise _unreachable(url, f"the connection closed after {done:,} of {total:,} bytes")


def _read(url: str, response: Any) -> bytes:
    try:
        chunk: bytes = response.read(_CHUNK)
        return chunk
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(url, error) from error


def _unreachable(url: str, reason: object) -> DataError:
    return DataError(
        f"cannot download {url}",
        details=[str(reason)],
        hint="check the connection and try again (it goes on where it stopped), or put the file in place by hand",
    )
