"""LibriSpeech, LibriTTS and Libri-light limited as published, and other corpora in the same layout.

LibriSpeech/<split>/<speaker>/<chapter>/<id>.flac
                                        <speaker>-<chapter>.trans.txt     id WORDS OF THE TRANSCRIPT
                                        <speaker>-<chapter>.phones.txt    id W ER D Z | AH V     (generated corpus)
                                        <id>.normalized.txt               Words of the text.     (LibriTTS, with WAV)
librispeech_finetuning/1h/{0..5}/{clean,other}/<speaker>/<chapter>/…
                       9h/{clean,other}/<speaker>/<chapter>/…
"""

from collections.abc import Iterable
from pathlib import Path

from parp_cli.data.audio import AUDIO_SUFFIXES, audio_seconds
from parp_cli.data.text import normalize_text, numbered_lines
from parp_cli.data.utterances import Utterance, parse_phones
from parp_cli.errors import DataError, first_few

LIBRISPEECH_FOLDER = "LibriSpeech"
LIBRILIGHT_FOLDER = "librispeech_finetuning"

LIBRISPEECH_SPLITS = (
    *("train-clean-100", "train-clean-360", "train-other-500"),
    *("dev-clean", "dev-other", "test-clean", "test-other"),
)

_FOLDS = tuple(f"1h/{fold}" for fold in range(6))

LIBRILIGHT_SPLITS: dict[str, tuple[str, ...]] = {
    "10min": _FOLDS[:1],
    **{f"10min-{index}": (fold,) for index, fold in enumerate(_FOLDS)},
    "1h": _FOLDS,
    "10h": (*_FOLDS, "9h"),
}
"""The folders that make up each split; "10min" is the first of the six folds."""


def base_folder(root: Path, name: str) -> Path:
    """The folder of a published corpus: `root` itself, or the folder `name` in it."""
    return root / name if (root / name).is_dir() else root


def librispeech_splits(root: Path) -> list[str]:
    """Names of the splits under `root`, sorted. Folders with hidden names are incomplete splits."""
    folders = base_folder(root, LIBRISPEECH_FOLDER).glob("[!.]*/")
    return sorted(folder.name for folder in folders if any(map(_is_audio, folder.glob("*/*/*"))))


def load_librispeech(root: Path, split: str, *, lenient: bool = False) -> list[Utterance]:
    """One split of LibriSpeech, or of any corpus in its layout, sorted by id.

    Args:
        root: the folder named LibriSpeech, or its parent.
        split: a folder in it, such as "train-clean-100".
        lenient: do not open the audio, which `inspect_files` checks; all lengths are 0.

    Raises DataError: there is no such split, audio cannot be read, or a transcript has no audio.
    """
    base, available = base_folder(root, LIBRISPEECH_FOLDER), librispeech_splits(root)
    if split not in available:
        raise DataError(
            f"no split {split} in {base}",
            details=["splits there: " + (", ".join(available) or "none")],
            hint="name one of these, or the folder that holds LibriSpeech/<split>/<speaker>/<chapter>",
        )
    return _load_chapters((base / split).glob("*/*"), split, lenient)


def load_librilight(root: Path, split: str, *, lenient: bool = False) -> list[Utterance]:
    """One split (a key of `LIBRILIGHT_SPLITS`) of Libri-light limited; otherwise as `load_librispeech`.

    Args:
        root: the folder named librispeech_finetuning, or its parent.
    """
    if split not in LIBRILIGHT_SPLITS:
        raise DataError(f"Libri-light limited has no split {split}", hint="name one of " + ", ".join(LIBRILIGHT_SPLITS))
    base = base_folder(root, LIBRILIGHT_FOLDER)
    parts = LIBRILIGHT_SPLITS[split]
    missing = [part for part in parts if next((base / part).glob("*/*/*/*.flac"), None) is None]
    if missing:
        raise DataError(
            f"split {split} of Libri-light limited is incomplete in {base}",
            details=[f"{base / part} has no {{clean,other}}/<speaker>/<chapter>/*.flac" for part in missing],
            hint=f"name the folder that holds {LIBRILIGHT_FOLDER}, or have it downloaded",
        )
    chapters = [chapter for part in parts for chapter in (base / part).glob("*/*/*")]
    return _load_chapters(chapters, split, lenient)


def _load_chapters(chapters: Iterable[Path], split: str, lenient: bool) -> list[Utterance]:
    """The utterances of folders `<speaker>/<chapter>`."""
    utterances: list[Utterance] = []
    problems: list[str] = []
    for chapter in filter(Path.is_dir, chapters):
        speaker = chapter.parent.name
        texts = _read_lines(chapter / f"{speaker}-{chapter.name}.trans.txt", problems)
        phones = _read_lines(chapter / f"{speaker}-{chapter.name}.phones.txt", problems)
        texts |= {path.name.split(".")[0]: _text(path, problems) for path in chapter.glob("*.normalized.txt")}
        audio = {path.stem: path for path in chapter.iterdir() if _is_audio(path)}
        for name in texts.keys() | audio.keys():
            path = audio.get(name, chapter / f"{name}.flac")
            try:
                utterance = Utterance(
                    id=name,
                    audio=path,
                    split=split,
                    seconds=0.0 if lenient else audio_seconds(path),
                    text=normalize_text(texts.get(name, "")) or None,
                    phones=parse_phones(phones.get(name, "")) or None,
                    speaker=speaker,
                )
                utterances.append(utterance)
            except DataError as error:
                problems.append(f"{path}: {'; '.join(error.details)}")
    if problems:
        raise DataError(
            f"split {split} has {len(problems):,} broken or missing files",
            details=first_few(sorted(problems)),
            hint="unpack or download the corpus again",
        )
    return sorted(utterances, key=lambda utterance: utterance.id)


def _read_lines(path: Path, problems: list[str]) -> dict[str, str]:
    """Lines `id rest` as a dict; empty without the file."""
    if not path.is_file():
        return {}
    parts = (line.split(maxsplit=1) for _, line in numbered_lines(_text(path, problems)))
    return {name: " ".join(rest) for name, *rest in parts}


def _text(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path}: {error}")
        return ""


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(".")
