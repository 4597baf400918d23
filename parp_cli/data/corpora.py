"""Loading utterances: of any corpus, and of folders of unlabelled audio."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath

from parp_cli.config.finetune import Data
from parp_cli.data import espeak, generated
from parp_cli.data.audio import AUDIO_SUFFIXES, audio_seconds
from parp_cli.data.downloads import download_librilight, download_librispeech
from parp_cli.data.layouts import id_of
from parp_cli.data.librispeech import (
    LIBRILIGHT_FOLDER,
    LIBRISPEECH_SPLITS,
    base_folder,
    librispeech_splits,
    load_librilight,
    load_librispeech,
)
from parp_cli.data.manifest import read_manifest
from parp_cli.data.text import without_punctuation
from parp_cli.data.utterances import Utterance
from parp_cli.errors import DataError, first_few
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage.download import ByteProgress


def load(data: Data, split: str, notify: Notify = silent, *, lenient: bool = False) -> list[Utterance]:
    """All utterances of one split of a recipe's corpus; the same for every seed, so that runs can be compared.

    Only utterances in the recipe's languages; with phones from espeak-ng where these are the labels, and only a text is
    there; for letters without punctuation, if the recipe says so. `lenient` as of `read_manifest` and
    `load_librispeech`.

    Raises DataError: there is no such split, or it is broken or cannot be fetched.
    """
    utterances = _read(data, split, lambda done, total: notify(Progress(f"preparing {split}", done, total)), lenient)
    if data.language is not None:
        there = sorted({utterance.language for utterance in utterances if utterance.language})
        utterances = [each for each in utterances if each.language in (None, *data.language)]
        if not utterances:
            details = ["languages there: " + ", ".join(there)]
            raise DataError(f"split {split} has nothing in {', '.join(data.language)}", details=details)
    if data.labels == "phones":
        own = data.language[0] if data.language is not None and len(data.language) == 1 else None
        notify(Progress(f"making phones of {split}", 0, len(utterances)))
        return _with_phones(utterances, own)
    if data.strip_punctuation:
        utterances = [replace(each, text=without_punctuation(each.text or "") or None) for each in utterances]
    return utterances


def _read(data: Data, split: str, progress: ByteProgress, lenient: bool) -> list[Utterance]:
    """The utterances as the corpus has them; progress is of bytes of a download, or of speakers of generated speech."""
    root = None if data.root is None else Path(data.root)
    if data.corpus == "generated":
        return generated_speech(split, data.language or ("en",), root=root, progress=progress, lenient=lenient)
    if data.corpus == "manifest":
        return _load_manifest(data, split, lenient=lenient)
    # Libri-light has no dev and test sets of its own: they are LibriSpeech's, under the same root.
    if data.corpus == "librilight" and split not in LIBRISPEECH_SPLITS:
        folder = root or generated.cache_folder() / "librilight"
        if data.download and not (base_folder(folder, LIBRILIGHT_FOLDER) / "1h").is_dir():
            download_librilight(folder, progress=progress)
        return load_librilight(_existing(folder, "Libri-light limited"), split, lenient=lenient)
    folder = root or generated.cache_folder() / "librispeech"
    if data.download and split not in librispeech_splits(folder):
        download_librispeech(split, folder, progress=progress)
    return load_librispeech(_existing(folder, "LibriSpeech"), split, lenient=lenient)


def generated_speech(
    split: str,
    languages: Sequence[str],
    *,
    root: Path | None = None,
    minutes: float | None = None,
    progress: ByteProgress | None = None,
    lenient: bool = False,
) -> list[Utterance]:
    """One split of generated speech in several languages, one after another; arguments and errors as `ensure_split`."""
    utterances = []
    for language in languages:
        folder = generated.ensure_split(split, root=root, language=language, minutes=minutes, progress=progress)
        loaded = load_librispeech(folder, split, lenient=lenient)
        utterances += [replace(utterance, language=language) for utterance in loaded]
    return utterances


def _with_phones(utterances: list[Utterance], language: str | None) -> list[Utterance]:
    """Utterances with phones that espeak-ng makes of their texts, where they have none.

    They are in the language given where they do not tell theirs; without one they stay as they are.
    """
    to_do: dict[str, list[int]] = {}
    for number, utterance in enumerate(utterances):
        spoken = utterance.language or language
        if utterance.phones is None and utterance.text is not None and spoken is not None:
            to_do.setdefault(spoken, []).append(number)
    for spoken, numbers in to_do.items():
        made = espeak.phonemise(spoken, [utterances[number].text or "" for number in numbers])
        for number, phones in zip(numbers, made, strict=True):
            utterances[number] = replace(utterances[number], phones=phones or None)
    return utterances


def find_audio(folder: Path) -> list[Utterance]:
    """Every audio file under a folder, unlabelled, sorted by path; ids are paths from the folder.

    Raises DataError: there is no such folder, no audio in it, or files that cannot be read (all are listed).
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


def _load_manifest(data: Data, split: str, *, lenient: bool) -> list[Utterance]:
    assert data.manifest is not None, "the recipe's rules ask for one"
    manifest = Path(data.manifest)
    if data.lists is None:
        return read_manifest(manifest, split=split, lenient=lenient)
    lists = Path(data.lists)
    path = lists / f"{split}.txt"
    try:
        names = [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        there = ", ".join(sorted(path.stem for path in lists.glob("*.txt"))) or "none"
        details = [f"lists there: {there}"]
        raise DataError(f"cannot read the list {path} of split {split}", details=details, hint=str(error)) from error
    by_id = {utterance.id: utterance for utterance in read_manifest(manifest, lenient=lenient)}
    ids = [id_of(name) if PurePath(name).suffix.lower() in AUDIO_SUFFIXES else name for name in names]
    missing = [id_ for id_ in ids if id_ not in by_id]
    if missing and not lenient:
        raise DataError(f"{len(missing):,} ids of {path} are not in {manifest}", details=first_few(missing))
    # What the corpus lacks is reported, or left out, with all that is wrong with single utterances.
    nowhere = {id_: Utterance(id=id_, audio=manifest / id_, split=split, seconds=0.0) for id_ in missing}
    return [replace(by_id.get(id_) or nowhere[id_], split=split) for id_ in ids]
