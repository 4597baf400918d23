"""Every utterance looked at once before anything is trained: its audio, its length, its labels."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from parp_cli.data.audio import MUCH_CLIPPED, SAMPLE_RATE, Sound, can_resample, inspect_audio
from parp_cli.data.known_sounds import KnownSounds, Note, Unreadable, stamp
from parp_cli.data.labels import Vocabulary, frames_needed, visible
from parp_cli.data.utterances import Utterance
from parp_cli.errors import MAX_DETAILS, DataError, Table, first_few
from parp_cli.runtime.progress import Notify, Progress, silent

LOWEST_RATE = 8000
"""Hz of the telephone; below it most consonants are lost."""

_LENGTH_SECONDS, _LENGTH_SHARE = 0.1, 0.01
"""A length is as given within the larger of these: lossy formats add some samples, and manifests round."""

_SYSTEM_ERROR = 2
"""libsndfile's code where the operating system is to blame rather than the file."""

_MOST_READERS = 8
_NOTING_SECONDS = 2.0
"""Between two writings of what was read: all that a kill can lose."""

ProblemKind = Literal[
    "missing audio",
    "unreadable audio",
    "silence",
    "sampling rate",
    "wrong length",
    "too short",
    "more labels than frames",
    "outside vocabulary",
    "no label",
    "repeated id",
]


OF_TRAINING_ALONE: frozenset[ProblemKind] = frozenset(["more labels than frames", "outside vocabulary"])
"""Of a model that is judged they are errors like others."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why an utterance cannot be trained on, or judged by."""

    utterance_id: str
    split: str
    kind: ProblemKind
    what: str
    audio: Path

    @property
    def message(self) -> str:
        """All but the kind in a line."""
        return f"{self.utterance_id}: {self.what} ({self.split}, {self.audio})"


def read_sounds(
    paths: Iterable[Path], *, cache: Path | None = None, notify: Notify = silent
) -> dict[Path, Sound | Unreadable]:
    """Decode each sound file to its end, unless one of that content was read before.

    Args:
        paths: of the files, in any order; repeated ones are read once.
        cache: the folder that keeps what was found; by default the user's cache folder.
        notify: is told of the files that have to be opened.
    """
    found: dict[Path, Sound | Unreadable] = {}
    unread: dict[Path, str] = {}
    with KnownSounds(cache) as known:
        for path in dict.fromkeys(paths):
            if not path.is_file():
                what = "it is a folder" if path.is_dir() else "there is no such file"
                found[path] = Unreadable(what, missing=not path.is_dir())
                continue
            try:
                now = stamp(path)
            except OSError as error:
                found[path] = Unreadable(error.strerror or str(error))
                continue
            sound = known.of_file(path, now)
            if sound is None:
                unread[path] = now
            else:
                found[path] = sound
        found |= _read(unread, known, notify)
    return found


def check_utterances(
    utterances: Iterable[Utterance],
    split: str,
    sounds: Mapping[Path, Sound | Unreadable],
    vocabulary: Vocabulary,
    frames: Callable[[int], int],
) -> list[Problem]:
    """Everything that keeps utterances from being trained on, in their order; the caller skips them or refuses.

    Args:
        utterances: to look at.
        split: they belong to.
        sounds: what is in their audio, from `read_sounds`.
        vocabulary: of the head to be trained.
        frames: how many frames the model makes of so many samples at 16 kHz.
    """
    problems: list[Problem] = []
    utterances = list(utterances)
    count = Counter(utterance.id for utterance in utterances)
    for utterance in utterances:
        sound = sounds[utterance.audio]
        found = [*_wrong_sound(utterance, sound, frames), *_wrong_labels(utterance, sound, vocabulary, frames)]
        if count[utterance.id] > 1:
            found.append(("repeated id", f"{count[utterance.id]} utterances have this id"))
        problems += [
            Problem(utterance_id=utterance.id, split=split, kind=kind, what=what, audio=utterance.audio)
            for kind, what in found
        ]
    return problems


def notes_of(splits: Sequence[tuple[str, Sequence[Utterance]]], sounds: Mapping[Path, Sound | Unreadable]) -> list[str]:
    """What is unusual in the audio of splits and yet can be used, a line for each kind and split.

    Args:
        splits: names and utterances.
        sounds: what is in their audio, from `read_sounds`.
    """
    by_split: dict[str, list[tuple[str, Sound]]] = {}
    for split, utterances in splits:
        if split not in by_split:  # one may be there twice, to train and to validate on
            heard = [(utterance.id, sounds[utterance.audio]) for utterance in utterances]
            # Rates that are problems anyway are not told again.
            by_split[split] = [(id_, it) for id_, it in heard if isinstance(it, Sound) and _is_fit(it.rate)]
    rates = Counter(sound.rate for some in by_split.values() for _, sound in some)
    usual = max(rates, key=lambda rate: (rates[rate], rate), default=SAMPLE_RATE)
    lines = []
    for split, some in by_split.items():
        others = sorted({sound.rate for _, sound in some} - {usual})
        if others:
            apart = "; ".join(
                f"{_few(id_ for id_, sound in some if sound.rate == rate)} at {rate:,} Hz" for rate in others
            )
            lacking = ", and lower rates hold no high sounds" if others[0] < SAMPLE_RATE else ""
            lines.append(
                f"{split}: most audio is sampled at {usual:,} Hz, but {apart} "
                f"(all is resampled to {SAMPLE_RATE:,} Hz{lacking})"
            )
        for channels in sorted({sound.channels for _, sound in some} - {1}):
            lines.append(
                f"{split}: {_few(id_ for id_, sound in some if sound.channels == channels)} with {channels} channels "
                "(they are averaged: if each has a speaker of its own, take them apart)"
            )
        clipped = [(id_, sound.clipped_share) for id_, sound in some if sound.clipped_share > MUCH_CLIPPED]
        if clipped:
            most = max(share for _, share in clipped)
            lines.append(
                f"{split}: {_few(id_ for id_, _ in clipped)} clipped, up to {most:.1%} of the samples "
                "(recorded too loud, which costs accuracy)"
            )
    return lines


def _few(ids: Iterable[str]) -> str:
    return ", ".join(first_few(list(ids), 3))


def _is_fit(rate: int) -> bool:
    return rate >= LOWEST_RATE and can_resample(rate)


def refusal(problems: Sequence[Problem], notes: Iterable[str], *, left_out: bool = False) -> DataError:
    """The error that shows all problems of all splits in one table.

    Args:
        problems: at least one.
        notes: what else was found, a line each.
        left_out: whether the work was done nevertheless, without these utterances.
    """
    kinds = get_args(ProblemKind)
    splits = list(dict.fromkeys(problem.split for problem in problems))
    ordered = sorted(problems, key=lambda problem: (splits.index(problem.split), kinds.index(problem.kind)))
    counts = Counter(problem.kind for problem in problems)
    by_kind = ", ".join(f"{kind} {counts[kind]:,}" for kind in kinds if counts[kind])
    many = "a problem" if len(problems) == 1 else f"{len(problems):,} problems"
    left = "; these were left out, the others evaluated" if left_out else ""
    return DataError(
        f"{many} with the utterances of {' and '.join(splits)} ({by_kind}){left}",
        details=[*first_few([problem.message for problem in ordered]), *notes],
        table=Table(
            columns=("utterance", "split", "kind", "what is wrong", "file"),
            rows=tuple((p.utterance_id, p.split, p.kind, p.what, str(p.audio)) for p in ordered[:MAX_DETAILS]),
        ),
        hint="correct them, or "
        + ("accept that they are left out" if left_out else "leave such utterances out")
        + " with --set data.unusable=skip",
    )


def _read(unread: Mapping[Path, str], known: KnownSounds, notify: Notify) -> dict[Path, Sound | Unreadable]:
    """Open files, whose stamps are given, several at a time."""
    found: dict[Path, Sound | Unreadable] = {}
    fresh: list[Note] = []
    noted = time.monotonic()
    pool = ThreadPoolExecutor(min(_MOST_READERS, os.cpu_count() or 1))
    try:
        readings = {pool.submit(_read_one, path, known): path for path in unread}
        for done, reading in enumerate(as_completed(readings), start=1):
            path = readings[reading]
            content, found[path] = reading.result()
            if content is not None:
                fresh.append(Note(path, unread[path], content, found[path]))
            if time.monotonic() - noted > _NOTING_SECONDS:
                known.add(fresh)
                fresh, noted = [], time.monotonic()
            notify(Progress("checking audio", done, len(unread)))
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the few files that are open, not for those that are left
        if fresh:
            known.add(fresh)
    return found


def _read_one(path: Path, known: KnownSounds) -> tuple[str | None, Sound | Unreadable]:
    """SHA-256 and content of a file; no SHA-256 where it might be read another time."""
    try:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return None, Unreadable(error.strerror or str(error))
    sound = known.of_content(content, path)
    if sound is not None:
        return content, sound
    try:
        return content, inspect_audio(path)
    except DataError as error:
        of_the_system = isinstance(error.__cause__, OSError) or getattr(error.__cause__, "code", 0) == _SYSTEM_ERROR
        return None if of_the_system else content, Unreadable("; ".join(error.details))


def _wrong_sound(
    utterance: Utterance, sound: Sound | Unreadable, frames: Callable[[int], int]
) -> Iterable[tuple[ProblemKind, str]]:
    if isinstance(sound, Unreadable):
        yield ("missing audio" if sound.missing else "unreadable audio"), sound.reason
        return
    if sound.silent:
        yield "silence", "all of its samples are the same"
    if sound.rate < LOWEST_RATE:
        yield "sampling rate", f"{sound.rate:,} Hz: speech needs {LOWEST_RATE:,} Hz at the least"
    elif not can_resample(sound.rate):
        yield "sampling rate", f"{sound.rate:,} Hz have no simple ratio to {SAMPLE_RATE:,} Hz: convert it"
    if abs(sound.seconds - utterance.seconds) > max(_LENGTH_SECONDS, _LENGTH_SHARE * sound.seconds):
        yield "wrong length", f"{sound.seconds:.2f} s, but {utterance.seconds:.2f} s are given for it"
    if frames(sound.resampled) == 0:
        yield "too short", f"{sound.seconds:.3f} s make no frame"


def _wrong_labels(
    utterance: Utterance, sound: Sound | Unreadable, vocabulary: Vocabulary, frames: Callable[[int], int]
) -> Iterable[tuple[ProblemKind, str]]:
    foreign = vocabulary.outside(utterance)
    if not vocabulary.reference(utterance):
        yield "no label", f"no {vocabulary.labels}"
    elif foreign:
        yield "outside vocabulary", f"{vocabulary.labels} outside the vocabulary: {' '.join(map(visible, foreign))}"
    elif isinstance(sound, Sound) and (available := frames(sound.resampled)):
        ids = vocabulary.encode(utterance)
        needed = frames_needed(ids)
        if needed > available:
            yield "more labels than frames", f"{len(ids)} labels need {needed} frames, but it has {available}"
