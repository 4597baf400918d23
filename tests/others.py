"""The tiny corpus in the formats of others, with files as their tools write them."""

import csv
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import soundfile

from tests.tiny import TEXTS, write_speech

NAMES = {"train": "train", "valid": "dev", "test": "test"}
"""Most call their splits so."""

_COMMON_VOICE = (
    *("client_id", "path", "sentence_id", "sentence", "sentence_domain", "up_votes", "down_votes", "age", "gender"),
    *("accents", "variant", "locale", "segment"),
)


@dataclass(frozen=True)
class Corpus:
    """Where it is, and what its splits are called, from train, valid and test."""

    path: Path
    names: dict[str, str]
    count: int = sum(map(len, TEXTS.values()))


def _spoken(write: Callable[[str, int, str], Path], names: dict[str, str] = NAMES) -> dict[str, list[tuple[Path, str]]]:
    """Paths and texts of each split, spoken into the paths that `write` makes of a split, a number and a text."""
    made = {}
    for split, name in names.items():
        made[name] = [(write(name, number, text), text) for number, text in enumerate(TEXTS[split])]
        for number, (path, text) in enumerate(made[name]):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_speech(path, text, seed=number)
    return made


def common_voice(folder: Path) -> Corpus:
    """MP3s and tables, other tables beside them, and what was not validated."""
    root = folder / "cv-corpus-17.0" / "ky"
    made = _spoken(lambda split, n, _: root / "clips" / f"common_voice_ky_{len(split)}{split[0]}{n:04d}.mp3")
    for split, rows in {**made, "validated": made["train"] + made["dev"]}.items():
        lines = [
            [f"c{n % 2}", path.name, f"s{n}", text, "", "2", "0", "", "", "", "", "ky", ""]
            for n, (path, text) in enumerate(rows)
        ]
        (root / f"{split}.tsv").write_text("".join("\t".join(line) + "\n" for line in [_COMMON_VOICE, *lines]))
    (root / "clip_durations.tsv").write_text("clip\tduration[ms]\n" + f"{made['train'][0][0].name}\t500\n")
    (root / "reported.tsv").write_text("sentence_id\tsentence\tlocale\treason\nx\tABC\tky\tother\n")
    return Corpus(root, NAMES)


def common_voice_archive(folder: Path) -> Corpus:
    """As it is downloaded: a language in the folder of the release."""
    corpus = common_voice(folder / "unpacked")
    archive = folder / "cv-corpus-17.0-ky.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(corpus.path.parent, corpus.path.parent.name)
    return Corpus(archive, NAMES)


def fleurs(folder: Path) -> Corpus:
    """Tables without a header; several recordings have one number."""
    root = folder / "ky_kg"
    made = _spoken(lambda split, n, _: root / "audio" / split / f"10{n:03d}{split}.wav")
    for split, rows in made.items():
        lines = [
            [f"{n // 2}", path.name, f"{text.title()}.", text, "|".join(text), f"{_samples(path)}", "FEMALE"]
            for n, (path, text) in enumerate(rows)
        ]
        (root / f"{split}.tsv").write_text("".join("\t".join(line) + "\n" for line in lines))
    return Corpus(root, NAMES)


def _samples(path: Path) -> int:
    return int(soundfile.info(path).frames)


def mls(folder: Path) -> Corpus:
    """Folders of speakers and books, with a list of the ten minutes to train on."""
    root = folder / "mls_polish"
    made = _spoken(lambda split, n, _: root / split / "audio" / f"{n % 2}7" / "12" / f"{n % 2}7_12_{n:06d}.flac")
    for split, rows in made.items():
        lines = "".join(f"{path.stem}\t{text}\n" for path, text in rows)
        (root / split / "transcripts.txt").write_text(lines)
    for part, chosen in {"1hr/0": made["train"][:2], "1hr/1": made["train"][2:4], "9hr": made["train"][4:]}.items():
        handles = root / "train" / "limited_supervision" / part / "handles.txt"
        handles.parent.mkdir(parents=True)
        handles.write_text("".join(f"{path.stem}\n" for path, _ in chosen))
    return Corpus(root, NAMES)


def nemo(folder: Path) -> Corpus:
    """JSON Lines with absolute paths."""
    made = _spoken(lambda split, n, _: folder / "wavs" / f"{split}-{n}.wav")
    for split, rows in made.items():
        lines = [
            {"audio_filepath": str(path), "duration": _samples(path) / 16_000, "text": text, "lang": "ky"}
            for path, text in rows
        ]
        (folder / f"{split}_manifest.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Corpus(folder, NAMES)


def audiofolder(folder: Path) -> Corpus:
    """A folder for each split, with its metadata.csv."""
    made = _spoken(lambda split, n, _: folder / split / f"{n}.flac")
    for split, rows in made.items():
        with (folder / split / "metadata.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file_name", "transcription", "note"])
            writer.writerows([path.name, text, 'quoted, "twice"'] for path, text in rows)
    return Corpus(folder, NAMES)


def kaldi(folder: Path) -> Corpus:
    """Data directories, whose paths start where the recipe was run."""
    made = _spoken(lambda split, n, _: folder / "audio" / f"{split}-{n}.wav")
    for split, rows in made.items():
        data = folder / "data" / split
        data.mkdir(parents=True)
        ids = {f"s{n % 2}-{path.stem}": (path, text) for n, (path, text) in enumerate(rows)}
        (data / "wav.scp").write_text("".join(f"{id_} audio/{path.name}\n" for id_, (path, _) in ids.items()))
        (data / "text").write_text("".join(f"{id_} {text}\n" for id_, (_, text) in ids.items()))
        (data / "utt2spk").write_text("".join(f"{id_} {id_[:2]}\n" for id_ in ids))
    return Corpus(folder / "data", NAMES)


def recordings(folder: Path) -> Corpus:
    """A folder for each split, with a text beside each recording."""
    made = _spoken(lambda split, n, _: folder / "own" / split / f"{n}.{'WAV' if n else 'flac'}")
    for rows in made.values():
        for path, text in rows:
            path.with_suffix(".txt").write_text(f"{text}\n")
    (folder / "own" / "notes.txt").write_text("recorded in May\n")
    return Corpus(folder / "own", NAMES)


CORPORA: dict[str, Callable[[Path], Corpus]] = {
    "common_voice": common_voice,
    "common_voice_archive": common_voice_archive,
    "fleurs": fleurs,
    "mls": mls,
    "nemo": nemo,
    "audiofolder": audiofolder,
    "kaldi": kaldi,
    "recordings": recordings,
}
