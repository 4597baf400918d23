"""Published corpora: downloaded, and unpacked completely or not at all."""

import tarfile
import tempfile
import zlib
from functools import partial
from pathlib import Path

from parp_cli.data.librispeech import LIBRILIGHT_FOLDER, LIBRISPEECH_FOLDER, LIBRISPEECH_SPLITS
from parp_cli.errors import DataError
from parp_cli.storage.atomic import write_error
from parp_cli.storage.download import ByteProgress, check_sha256, download


def download_librispeech(split: str, root: Path, *, progress: ByteProgress | None = None) -> None:
    """Download one split into `root/LibriSpeech/<split>` (into `root` itself where that is named LibriSpeech).

    Raises DataError: there is no such split, or as `fetch`.
    """
    if split not in LIBRISPEECH_SPLITS:
        hint = "name one of " + ", ".join(LIBRISPEECH_SPLITS)
        raise DataError(f"LibriSpeech has no split {split} to download", hint=hint)
    url, sha256 = _librispeech_archive(split)
    fetch(url, _outside(root, LIBRISPEECH_FOLDER), sha256=sha256, progress=progress)


def download_librilight(root: Path, *, progress: ByteProgress | None = None) -> None:
    """Download all splits of Libri-light limited into `root/librispeech_finetuning`; errors as `fetch`."""
    url, sha256 = _librilight_archive()
    fetch(url, _outside(root, LIBRILIGHT_FOLDER), sha256=sha256, progress=progress)


def fetch(url: str, root: Path, *, sha256: str, progress: ByteProgress | None = None) -> None:
    """Download a tar archive and unpack it into `root`, then delete it.

    An archive of that name that is in `root` already is used, and kept. Errors as `unpack`, or the download fails.
    """
    archive = root / url.rsplit("/", 1)[-1]
    was_there = archive.is_file()
    if was_there:
        check_sha256(archive, sha256)
    else:
        download(url, archive, verify=partial(check_sha256, sha256=sha256), progress=progress)
    unpack(archive, root)
    if not was_there:
        archive.unlink()


def unpack(archive: Path, root: Path) -> None:
    """Unpack a tar archive, compressed or not, into `root`; existing files are kept.

    Raises:
        DataError: the archive is damaged, or has members outside `root`.
        ResourceError: no space is left on the disk.
    """
    try:
        # Unpacked beside its place and then moved, so that no folder of the corpus is ever incomplete.
        with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=root) as folder:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
            _merge(Path(folder), root)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        hint = "delete it and download it again"
        raise DataError(f"cannot unpack {archive}", details=[str(error)], hint=hint) from error
    except OSError as error:
        raise write_error(root, error) from error


def _librispeech_archive(split: str) -> tuple[str, str]:
    """URL and SHA-256 of a split. torchaudio has them only in a private table, and its download cannot resume."""
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


def _merge(source: Path, target: Path) -> None:
    """Move the content of `source` into `target`, whole folders where `target` lacks them."""
    for path in source.iterdir():
        if not (target / path.name).exists():
            path.rename(target / path.name)
        elif path.is_dir():
            _merge(path, target / path.name)
