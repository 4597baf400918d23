"""Problems of utterances, found before anything is trained: in their audio, length and labels."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from parp_cli.data.audio import MUCH_CLIPPED, SAMPLE_RATE, AudioInfo, can_resample
from parp_cli.data.inspection import Inspected, Unreadable
from parp_cli.data.labels import Vocabulary, frames_needed, visible
from parp_cli.data.utterances import Utterance
from parp_cli.errors import MAX_DETAILS, DataError, first_few

LOWEST_RATE = 8000
"""Hz of telephone speech; below it most consonants are lost."""

_LENGTH_SECONDS, _LENGTH_SHARE = 0.1, 0.01
"""Tolerance of a given length, the larger of the two: lossy formats add samples, and manifests round."""

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
"""In evaluation they are no problems, but count as recognition errors."""


_REMEDIES: Mapping[ProblemKind, str] = {
    "missing audio": "check the paths, which start at the manifest's folder, or data.root",
    "unreadable audio": "replace the files, or re-encode them as 16-bit FLAC",
    "silence": "replace the files, or remove the utterances",
    "sampling rate": "resample from the original recording: ffmpeg -i FILE -ar 16000 NEW.flac",
    "wrong length": "correct the seconds that the corpus gives, or remove them",
    "too short": "remove the utterances, or join them with their neighbours",
    "more labels than frames": "check that transcript and audio go together, and that the audio is whole",
    "no label": "add what is missing to the corpus",
    "repeated id": "give each utterance an id of its own",
}

_EXAMPLES = 3  # shown of each kind of problem, where there are many problems


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why an utterance cannot be trained on or evaluated."""

    utterance_id: str
    split: str
    kind: ProblemKind
    what: str
    audio: Path

    @property
    def message(self) -> str:
        """Everything except the kind, in one line."""
        return f"{self.utterance_id}: {self.what} ({self.split}, {self.audio})"


def with_lengths(utterances: Iterable[Utterance], infos: Mapping[Path, Inspected]) -> list[Utterance]:
    """The utterances, with lengths from `inspect_files` where the corpus gave none."""
    lengths = {path: info.seconds for path, info in infos.items() if isinstance(info, AudioInfo)}
    return [replace(one, seconds=one.seconds or lengths.get(one.audio, 0.0)) for one in utterances]


def check_utterances(
    utterances: Iterable[Utterance],
    split: str,
    infos: Mapping[Path, Inspected],
    vocabulary: Vocabulary,
    frames: Callable[[int], int],
) -> list[Problem]:
    """All problems that make utterances of a split unusable for training, in their order.

    Args:
        infos: of their audio, from `inspect_files`.
        vocabulary: of the head to be trained.
        frames: of the model, by samples at 16 kHz.
    """

    def of(utterance: Utterance, info: Inspected) -> _Found:
        yield from _of_audio(utterance, info)
        available = None
        if isinstance(info, AudioInfo):
            available = frames(info.resampled)
            if not available:
                yield "too short", f"{info.seconds:.3f} s make no frame"
        yield from _of_labels(utterance, vocabulary, available)

    return _checked(utterances, split, infos, of)


def check_audio(utterances: Iterable[Utterance], split: str, infos: Mapping[Path, Inspected]) -> list[Problem]:
    """Of these problems the ones of audio and ids, whatever the model."""
    return _checked(utterances, split, infos, _of_audio)


def notes_of(splits: Sequence[tuple[str, Sequence[Utterance]]], infos: Mapping[Path, Inspected]) -> list[str]:
    """What is unusual in the audio of splits and yet usable, one line for each kind and split.

    Args:
        splits: names and utterances; the same split again (to train and to validate on) is ignored.
        infos: of their audio, from `inspect_files`.
    """
    by_split: dict[str, list[tuple[str, AudioInfo]]] = {}
    for split, utterances in dict(reversed(splits)).items():
        pairs = [(utterance.id, infos[utterance.audio]) for utterance in utterances]
        # Rates that are problems anyway are not reported again.
        by_split[split] = [
            (id_, info)
            for id_, info in pairs
            if isinstance(info, AudioInfo) and info.rate >= LOWEST_RATE and can_resample(info.rate)
        ]
    rates = Counter(info.rate for pairs in by_split.values() for _, info in pairs)
    usual = max(rates, key=lambda rate: (rates[rate], rate), default=SAMPLE_RATE)
    return [f"{split}: {note}" for split in dict(splits) for note in _notes(by_split[split], usual)]


def unwritable(problems: Iterable[Problem], labels: str, count: int) -> list[str]:
    """A note on the references of `count` utterances that are recognised, if some cannot be written in the labels."""
    foreign = [problem for problem in problems if problem.kind == "outside vocabulary"]
    if not foreign:
        return []
    return [
        f"{foreign[0].split}: {labels} that the model cannot write in {len(foreign):,} of {count:,} references "
        f"({_few(problem.utterance_id for problem in foreign)}): they count as errors"
    ]


def with_digits(utterances: Sequence[Utterance]) -> list[str]:
    """A note on transcripts of one split with numbers in digits, which do not tell how they are spoken."""
    ids = [utterance.id for utterance in utterances if any(map(str.isdecimal, utterance.text or ""))]
    if not ids:
        return []
    return [
        f"{utterances[0].split}: digits in {len(ids):,} of {len(utterances):,} transcripts ({_few(ids)}): each is a "
        "letter of its own; write numbers as words, as they are spoken"
    ]


def _notes(infos: Sequence[tuple[str, AudioInfo]], usual_rate: int) -> Iterable[str]:
    """Notes on the audio of one split, by utterance."""
    if others := sorted({info.rate for _, info in infos} - {usual_rate}):
        apart = "; ".join(f"{_few(id_ for id_, info in infos if info.rate == rate)} at {rate:,} Hz" for rate in others)
        lacking = ", and lower rates lack high frequencies" if others[0] < SAMPLE_RATE else ""
        yield (
            f"most audio is sampled at {usual_rate:,} Hz, but {apart} (all is resampled to {SAMPLE_RATE:,} Hz{lacking})"
        )
    for count in sorted({info.channels for _, info in infos} - {1}):
        ids = _few(id_ for id_, info in infos if info.channels == count)
        yield f"{ids} with {count} channels (they are averaged: if each has a speaker of its own, separate them)"
    if clipped := _few(id_ for id_, info in infos if info.clipped_share > MUCH_CLIPPED):
        largest = max(info.clipped_share for _, info in infos)
        yield f"{clipped} clipped, up to {largest:.1%} of the samples (recorded too loud, which costs accuracy)"
    for word, sign in (("shorter", 1), ("longer", -1)):
        if ids := _few(id_ for id_, info in infos if info.differs_from_header and sign * info.missing_seconds > 0):
            seconds = max(sign * info.missing_seconds for _, info in infos)
            yield (
                f"{ids} {word} than the file's header says, by up to {seconds:.2f} s "
                "(everything that can be decoded is used)"
            )


def _few(ids: Iterable[str]) -> str:
    return ", ".join(first_few(list(ids), 3))


def refusal(
    problems: Sequence[Problem], notes: Iterable[str], *, left_out: bool = False, alphabet: str = "english"
) -> DataError:
    """The error that shows the problems, at least one, of all splits by kind, the most frequent first.

    Args:
        notes: further details, one line each.
        left_out: whether these utterances are left out already.
        alphabet: where the letters of the vocabulary are from, as `data.alphabet` has it.
    """
    by_kind: dict[ProblemKind, list[Problem]] = {kind: [] for kind in get_args(ProblemKind)}
    for problem in problems:
        by_kind[problem.kind].append(problem)
    found = sorted(((kind, some) for kind, some in by_kind.items() if some), key=lambda item: -len(item[1]))
    shown = len(problems) if len(problems) <= MAX_DETAILS else _EXAMPLES
    details: list[str] = []
    for kind, some in found:
        examples = first_few([problem.message for problem in some], shown)
        details += [f"{kind} ({len(some):,}): {_remedy(some[0], alphabet)}", *(f"  {line}" for line in examples)]
    counts = ", ".join(f"{kind} {len(some):,}" for kind, some in found)
    splits = " and ".join(dict.fromkeys(problem.split for problem in problems))
    many = "a problem" if len(problems) == 1 else f"{len(problems):,} problems"
    left = "; these were left out, the others evaluated" if left_out else ""
    hint = "accept that they are left out" if left_out else "leave such utterances out"
    return DataError(
        f"{many} with the utterances of {splits} ({counts}){left}",
        details=[*details, *notes],
        hint=f"correct them, or {hint} with --set data.unusable=skip",
    )


def _remedy(problem: Problem, alphabet: str) -> str:
    """What to do about problems of this kind; `alphabet` as of `refusal`."""
    if problem.kind != "outside vocabulary":
        return _REMEDIES[problem.kind]
    if alphabet == "english" and problem.what.startswith("letters"):
        return (
            "take the letters of the transcripts with --set data.alphabet=found, without punctuation with "
            "--set data.strip_punctuation=true; write numbers and signs as words"
        )
    return "no training transcript has them: correct these, or add utterances that have them to the training split"


_Found = Iterator[tuple[ProblemKind, str]]  # kinds of problems, each with a description


def _checked(
    utterances: Iterable[Utterance],
    split: str,
    infos: Mapping[Path, Inspected],
    problems: Callable[[Utterance, Inspected], _Found],
) -> list[Problem]:
    utterances = list(utterances)
    count = Counter(utterance.id for utterance in utterances)
    found = []
    for each in utterances:
        own = list(problems(each, infos[each.audio]))
        if count[each.id] > 1:
            own.append(("repeated id", f"{count[each.id]} utterances have this id"))
        found += [
            Problem(utterance_id=each.id, split=split, kind=kind, what=what, audio=each.audio) for kind, what in own
        ]
    return found


def _of_audio(utterance: Utterance, info: Inspected) -> _Found:
    if isinstance(info, Unreadable):
        yield ("missing audio" if info.missing else "unreadable audio"), info.reason
        return
    if info.silent:
        yield "silence", "all of its samples are the same"
    if info.rate < LOWEST_RATE:
        yield "sampling rate", f"{info.rate:,} Hz: speech needs at least {LOWEST_RATE:,} Hz"
    elif not can_resample(info.rate):
        yield "sampling rate", f"{info.rate:,} Hz have no simple ratio to {SAMPLE_RATE:,} Hz: convert it"
    given = utterance.seconds
    if given and abs(info.seconds - given) > max(_LENGTH_SECONDS, _LENGTH_SHARE * info.seconds):
        yield "wrong length", f"{info.seconds:.2f} s, but the corpus says {given:.2f} s"


def _of_labels(utterance: Utterance, vocabulary: Vocabulary, frames: int | None) -> _Found:
    """`frames` that there are for the labels; None where this is unknown."""
    if not vocabulary.reference(utterance):
        yield "no label", f"no {vocabulary.labels}"
    elif foreign := vocabulary.outside(utterance):
        yield "outside vocabulary", f"{vocabulary.labels} outside the vocabulary: {' '.join(map(visible, foreign))}"
    elif frames:
        ids = vocabulary.encode(utterance)
        if (needed := frames_needed(ids)) > frames:
            yield "more labels than frames", f"{len(ids)} labels need {needed} frames, but it has {frames}"
