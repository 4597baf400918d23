"""Loading utterances: of any corpus, and of folders of unlabelled audio."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from parp_cli.config.finetune import Corpus, Data
from parp_cli.data import generated
from parp_cli.data.audio import AUDIO_SUFFIXES, audio_seconds
from parp_cli.data.downloads import download_librilight, download_librispeech
from parp_cli.data.librispeech import (
    LIBRILIGHT_FOLDER,
    LIBRISPEECH_SPLITS,
    base_folder,
    librispeech_splits,
    load_librilight,
    load_librispeech,
)
from parp_cli.data.manifest import read_manifest
from parp_cli.data.utterances import Utterance
from parp_cli.errors import DataError, first_few
from parp_cli.runtime.progress import Notify, Progress
from parp_cli.storage.download import ByteProgress

CORPORA: tuple[Corpus, ...] = get_args(Corpus)


def load(data: Data, split: str, notify: Notify, *, lenient: bool = False) -> list[Utterance]:
    """One split of a recipe's corpus, as `load_split`; the same for every seed, so that runs can be compared."""
    return load_split(
        data.corpus,
        split,
        languages=data.language or ("en",),
        root=None if data.root is None else Path(data.root),
        manifest=None if data.manifest is None else Path(data.manifest),
        download=data.download,
        progress=lambda done, total: notify(Progress(f"preparing {split}", done, total)),
        lenient=lenient,
    )


def load_split(
    corpus: str,
    split: str,
    *,
    languages: Sequence[str] = ("en",),
    root: Path | None = None,
    manifest: Path | None = None,
    download: bool = False,
    progress: ByteProgress | None = None,
    seed: int = 0,
    minutes: float | None = None,
    lenient: bool = False,
) -> list[Utterance]:
    """All utterances of one split.

    Args:
        corpus: one of `CORPORA`; "librispeech" is any corpus in LibriSpeech's layout.
        languages: of generated speech, whose utterances follow one another.
        root: the corpus's folder; by default one in the user's cache folder. Manifests have none.
        download: fetch LibriSpeech or Libri-light limited if it is not under `root`.
        progress: called with done and total: bytes of a download, speakers of the generated corpus.
        minutes: of generated speech in each language, if not those of the split.
        lenient: as of `read_manifest` and `load_librispeech`.

    Raises:
        DataError: there is no such corpus or split, or it is broken or cannot be fetched.
    """
    match corpus:
        case "generated":
            utterances = []
            for language in languages:
                folder = generated.ensure_split(
                    split, root=root, language=language, seed=seed, minutes=minutes, progress=progress
                )
                loaded = load_librispeech(folder, split, lenient=lenient)
                utterances += [replace(utterance, language=language) for utterance in loaded]
            return utterances
        case "librispeech":
            folder = root or generated.cache_folder() / "librispeech"
            if download and split not in librispeech_splits(folder):
                download_librispeech(split, folder, progress=progress)
            return load_librispeech(_existing(folder, "LibriSpeech"), split, lenient=lenient)
        case "librilight" if split in LIBRISPEECH_SPLITS:
            # It has no dev and test sets of its own: they are LibriSpeech's, under the same root.
            return load_split("librispeech", split, root=root, download=download, progress=progress, lenient=lenient)
        case "librilight":
            folder = root or generated.cache_folder() / "librilight"
            if download and not (base_folder(folder, LIBRILIGHT_FOLDER) / "1h").is_dir():
                download_librilight(folder, progress=progress)
            return load_librilight(_existing(folder, "Libri-light limited"), split, lenient=lenient)
        case "manifest":
            return _load_manifest(manifest, split, lenient=lenient)
    raise DataError(f"no corpus named {corpus}", hint="name one of " + ", ".join(CORPORA))


def find_audio(folder: Path) -> list[Utterance]:
    """Every audio file under a folder, unlabelled, sorted by path; ids are paths from the folder.

    Raises:
        DataError: there is no such folder, no audio in it, or files that cannot be read (all are listed).
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}", hint="name a folder that holds audio files")
    utterances: list[Utterance] = []
    problems: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in AUDIO_SUFFIXES or path.name.startswith(".") or not path.is_file():
            continue
        try:
            name, seconds = path.relative_to(folder).as_posix(), audio_seconds(path)
            utterances.append(Utterance(id=name, audio=path, split="", seconds=seconds))
        except DataError as error:
            problems.append(f"{path}: {'; '.join(error.details)}")
    if problems:
        raise DataError(
            f"{len(problems):,} audio files under {folder} cannot be read",
            details=first_few(problems),
            hint="remove them, or re-encode them as 16-bit FLAC",
        )
    if not utterances:
        endings = " ".join(sorted(AUDIO_SUFFIXES))
        raise DataError(f"no audio files under {folder}", hint=f"add files that end in {endings}")
    return utterances


def _existing(folder: Path, corpus: str) -> Path:
    if not folder.is_dir():
        raise DataError(f"no folder {folder}", hint=f"name the folder that holds {corpus}, or have it downloaded")
    return folder


def _load_manifest(manifest: Path | None, split: str, *, lenient: bool) -> list[Utterance]:
    if manifest is None:
        raise DataError("no manifest is named", hint="name a TSV or JSON Lines file that lists the utterances")
    utterances = read_manifest(manifest, lenient=lenient)
    chosen = [utterance for utterance in utterances if utterance.split == split]
    if not chosen:
        there = sorted({utterance.split for utterance in utterances})
        raise DataError(
            f"no split {split} in manifest {manifest}",
            details=["splits there: " + ", ".join(there)],
            hint="name one of these",
        )
    return chosen
