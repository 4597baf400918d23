"""Fetch published corpora: resumed where a download broke off, checked, and unpacked whole or not at all."""

import hashlib
import http.client
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from parp_cli.data.librispeech import LIBRILIGHT_FOLDER, LIBRISPEECH_FOLDER, LIBRISPEECH_SPLITS
from parp_cli.errors import DataError
from parp_cli.storage.atomic import write_error

ByteProgress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all (0 where the server does not say)."""

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 60
_RANGE_NOT_SATISFIABLE = 416


def download_librispeech(split: str, root: Path, *, progress: ByteProgress | None = None) -> None:
    """Download one split into `root/LibriSpeech/<split>` (into `root` itself where that is named LibriSpeech).

    Raises:
        DataError: there is no such split, or its archive cannot be had or is damaged.
        ResourceError: no space is left on the disk.
    """
    if split not in LIBRISPEECH_SPLITS:
        raise DataError(
            f"LibriSpeech has no split {split} to download", hint="name one of " + ", ".join(LIBRISPEECH_SPLITS)
        )
    url, sha256 = _librispeech_archive(split)
    fetch(url, _outside(root, LIBRISPEECH_FOLDER), sha256=sha256, progress=progress)


def download_librilight(root: Path, *, progress: ByteProgress | None = None) -> None:
    """Download Libri-light limited, all splits of it, into `root/librispeech_finetuning`.

    Raises:
        DataError: the archive cannot be had or is damaged.
        ResourceError: no space is left on the disk.
    """
    url, sha256 = _librilight_archive()
    fetch(url, _outside(root, LIBRILIGHT_FOLDER), sha256=sha256, progress=progress)


def fetch(url: str, root: Path, *, sha256: str, progress: ByteProgress | None = None) -> None:
    """Download a tar archive and unpack it into `root`, then delete it.

    An archive of that name that lies in `root` already is used, and kept.

    Raises:
        DataError: it cannot be had, is damaged, or would write outside `root`.
        ResourceError: no space is left on the disk.
    """
    archive = root / url.rsplit("/", 1)[-1]
    was_there = archive.is_file()
    if was_there:
        _check(archive, sha256)
    else:
        download(url, archive, sha256=sha256, progress=progress)
    unpack(archive, root)
    if not was_there:
        archive.unlink()


def download(url: str, path: Path, *, sha256: str | None, progress: ByteProgress | None = None) -> None:
    """Download to `path`. What came before a break is kept in `<path>.part`, and the next call goes on from there.

    Args:
        url: http, https or file.
        path: where the file goes; its folder is made.
        sha256: what the file must hash to, in hexadecimal digits; None where none is published.
        progress: called after every mebibyte or so.

    Raises:
        DataError: the address cannot be reached, the connection breaks, or the file is not the one expected.
        ResourceError: no space is left on the disk.
    """
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download_rest(url, partial, progress)
        if sha256 is not None:
            _check(partial, sha256)
        partial.replace(path)
    except OSError as error:
        raise write_error(path, error) from error


def unpack(archive: Path, root: Path) -> None:
    """Unpack a tar archive, compressed or not, into `root`; files that are there already stay as they are.

    Raises:
        DataError: the archive is damaged, or has members that would end up outside `root`.
        ResourceError: no space is left on the disk.
    """
    try:
        # Unpacked beside its place and then moved: a folder of the corpus is there whole or not at all.
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root) as folder:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
            _merge(Path(folder), root)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot unpack {archive}", details=[str(error)], hint="delete it and download it again"
        ) from error
    except OSError as error:
        raise write_error(root, error) from error


def _librispeech_archive(split: str) -> tuple[str, str]:
    """Address and SHA-256 of a split, which torchaudio knows (its own download prints, and cannot resume)."""
    from torchaudio.datasets import librispeech

    for url, sha256 in librispeech._CHECKSUMS.items():
        if url.endswith(f"/{split}.tar.gz"):
            return str(url), str(sha256)
    raise DataError(f"torchaudio does not know where to download LibriSpeech {split}", hint="use torchaudio 2.11")


def _librilight_archive() -> tuple[str, str]:
    from torchaudio.datasets import librilight_limited

    return str(librilight_limited._URL), str(librilight_limited._CHECKSUM)


def _outside(root: Path, name: str) -> Path:
    """The folder that an archive with the top folder `name` is unpacked in."""
    return root.parent if root.name == name else root


def _download_rest(url: str, partial: Path, progress: ByteProgress | None) -> None:
    """Append to `partial` what it lacks."""
    done = partial.stat().st_size if partial.is_file() else 0
    try:
        response = _open(url, done)
    except urllib.error.HTTPError as error:
        if error.code == _RANGE_NOT_SATISFIABLE and done:
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
            for chunk in _chunks(url, response):
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
    if done < total:
        raise _unreachable(url, f"the connection closed after {done:,} of {total:,} bytes")


def _open(url: str, first_byte: int) -> Any:
    headers = {"User-Agent": "parp"}
    if first_byte:
        headers["Range"] = f"bytes={first_byte}-"
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS)


def _chunks(url: str, response: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk: bytes = response.read(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _unreachable(url, error) from error
        if not chunk:
            return
        yield chunk


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest == sha256.lower():
        return
    hint = "delete it and download it again"
    if path.suffix == ".part":
        path.unlink()  # or every later call would go on from the wrong bytes
        hint = "try again; it starts from the beginning"
    raise DataError(f"{path} is not the file expected", details=[f"SHA-256 {digest}, not {sha256}"], hint=hint)


def _unreachable(url: str, reason: object) -> DataError:
    return DataError(
        f"cannot download {url}",
        details=[str(reason)],
        hint="check the connection and try again (it goes on where it stopped), or name a folder that holds the corpus",
    )


def _merge(source: Path, target: Path) -> None:
    """Move what lies in `source` into `target`, a whole folder at a time where `target` does not have it."""
    for path in source.iterdir():
        if not (target / path.name).exists():
            path.rename(target / path.name)
        elif path.is_dir():
            _merge(path, target / path.name)
