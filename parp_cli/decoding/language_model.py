"""Language models that decoding takes: ARPA files (plain or .gz), KenLM's binaries, and published ones by name."""

import gzip
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from parp_cli.decoding.kneser_ney import SPECIAL_WORDS
from parp_cli.errors import DataError, UsageError

PUBLISHED = {"librispeech-3gram": "librispeech-3-gram", "librispeech-4gram": "librispeech-4-gram"}
"""Names of language models to download, with torchaudio's names for them: LibriSpeech's official ones, with lexicon."""

_BINARY_MAGIC = b"mmap lm http://kheafield.com/code"
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """An n-gram model on the disk.

    Attributes:
        path: what KenLM reads.
        kind: ARPA's words can be listed; a binary's cannot.
        lexicon: the file that was published with it, if any.
    """

    path: Path
    kind: Literal["arpa", "binary"]
    lexicon: Path | None = None


def open_language_model(name: str) -> LanguageModel:
    """A language model by its path, or by its name in `PUBLISHED`, which is downloaded once.

    Raises:
        DataError: there is no such file or it is no language model, or it cannot be downloaded.
    """
    if name in PUBLISHED and not Path(name).exists():
        return _published(name)
    path = Path(name).expanduser()
    return LanguageModel(path=path, kind=_kind(path))


def words_of(model: LanguageModel) -> list[str]:
    """The words that an ARPA file knows, in its order, without <s>, </s> and <unk>.

    Raises:
        UsageError: the model is a binary.
        DataError: the file is broken.
    """
    if model.kind == "binary":
        raise UsageError(
            f"{model.path} is a KenLM binary, which does not list its words",
            hint="name its lexicon with --lexicon, or take the ARPA file it was made from",
        )
    try:
        with open_text(model.path) as file:
            return [word for word in _unigrams(file) if word.lower() not in SPECIAL_WORDS]
    except (OSError, EOFError, UnicodeDecodeError, IndexError) as error:
        raise DataError(f"{model.path} is no ARPA file", details=[str(error)], hint=_HINT) from error


def open_text(path: Path) -> IO[str]:
    """Open a text file in UTF-8, gzipped (whatever its name) or not."""
    with path.open("rb") as file:
        zipped = file.read(2) == _GZIP_MAGIC
    return gzip.open(path, "rt", encoding="utf-8-sig") if zipped else path.open(encoding="utf-8-sig")


def flashlight(module: str) -> Any:
    """A module of flashlight-text, by its name within the package.

    Raises:
        UsageError: the extra `lm` is not installed.
    """
    try:
        return importlib.import_module(f"flashlight.lib.text.{module}")
    except ImportError as error:
        raise _lacking_flashlight() from error


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep KenLM from drawing its progress on stderr, which it does without being asked. Its errors are exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


_HINT = "take an ARPA file (plain or .gz) or a KenLM binary; `parp lm build` counts one from transcripts"


def _kind(path: Path) -> Literal["arpa", "binary"]:
    try:
        with path.open("rb") as file:
            if file.read(len(_BINARY_MAGIC)) == _BINARY_MAGIC:
                return "binary"
        with open_text(path) as text:
            for line in text:
                if line.strip():
                    if line.strip() == "\\data\\":
                        return "arpa"
                    break
    except FileNotFoundError as error:
        names = ", ".join(PUBLISHED)
        raise DataError(f"no language model {path}", hint=f"name a file, or one to download: {names}") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the language model {path}", details=[str(error)], hint=_HINT) from error
    raise DataError(f"{path} is no language model", details=["neither ARPA nor a KenLM binary"], hint=_HINT)


def _unigrams(file: IO[str]) -> Iterator[str]:
    inside = False
    for line in file:
        text = line.strip()
        if inside and text.startswith("\\"):
            return
        if inside and text:
            yield text.split()[1]
        inside = inside or text == "\\1-grams:"


def _lacking_flashlight() -> UsageError:
    return UsageError(
        "decoding with a lexicon or a language model needs the package flashlight-text",
        hint="pip install 'parp-cli[lm]'",
    )


def _published(name: str) -> LanguageModel:
    import torchaudio.models.decoder

    try:
        download = torchaudio.models.decoder.download_pretrained_files
    except RuntimeError as error:  # even this torchaudio has only where flashlight-text is
        raise _lacking_flashlight() from error
    try:
        files = download(PUBLISHED[name])
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors, and a wrong checksum a RuntimeError
        raise DataError(
            f"cannot download the language model {name}",
            details=[str(error)],
            hint="check the connection, or name a file with --lm and --lexicon",
        ) from error
    return LanguageModel(path=Path(files.lm), kind=_kind(Path(files.lm)), lexicon=Path(files.lexicon))
