"""The utterances that systems are evaluated on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from parp_cli.data.check import (
    OF_TRAINING_ALONE,
    Problem,
    check_utterances,
    notes_of,
    refusal,
    unwritable,
    with_lengths,
)
from parp_cli.data.inspection import Inspected, inspect_files
from parp_cli.data.labels import Vocabulary
from parp_cli.data.utterances import Utterance
from parp_cli.errors import DataError, first_few
from parp_cli.runtime.progress import Notify, silent
from parp_cli.scoring.results import Recognition


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Splits without their unusable utterances.

    Attributes:
        recognitions: one per utterance, without a hypothesis yet.
        left_out, notes: why other utterances are missing, and what is unusual about some.
    """

    splits: tuple[str, ...]
    utterances: tuple[Utterance, ...]
    recognitions: tuple[Recognition, ...]
    left_out: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def audio_seconds(self) -> float:
        return sum(utterance.seconds for utterance in self.utterances)

    @property
    def references(self) -> list[str]:
        return [recognition.reference for recognition in self.recognitions]

    def recognized(self, texts: Sequence[str]) -> list[Recognition]:
        """Each utterance with a system's transcript."""
        return [replace(empty, hypothesis=text) for empty, text in zip(self.recognitions, texts, strict=True)]


def evaluation_set(
    splits: Sequence[tuple[str, Sequence[Utterance]]],
    vocabulary: Vocabulary,
    frames: Callable[[int], int],
    notify: Notify = silent,
) -> EvaluationSet:
    """Read all audio once, and leave out what cannot be recognised or compared with a reference.

    Utterances with labels outside the vocabulary, or more labels than frames, stay: they count as errors.

    Args:
        frames: how many frames the model makes of a number of samples at 16 kHz.

    Raises `DataError`: nothing is left.
    """
    infos: dict[Path, Inspected] = {}
    for _, some in splits:
        infos |= inspect_files((utterance.audio for utterance in some), notify=notify)
    splits = [(split, with_lengths(some, infos)) for split, some in splits]
    left_out: list[Problem] = []
    notes = notes_of(splits, infos)
    usable: list[Utterance] = []
    recognitions: list[Recognition] = []
    for split, some in splits:
        found = check_utterances(some, split, infos, vocabulary, frames)
        left_out += (problems := [problem for problem in found if problem.kind not in OF_TRAINING_ALONE])
        bad = {problem.utterance_id for problem in problems}
        good = [utterance for utterance in some if utterance.id not in bad]
        usable += good
        recognitions += [
            Recognition(
                id=utterance.id,
                reference=vocabulary.reference(utterance),
                hypothesis="",
                speaker=utterance.speaker,
                seconds=round(utterance.seconds, 3),
                split=split,
                language=utterance.language,
            )
            for utterance in good
        ]
        others = [problem for problem in found if problem.utterance_id not in bad]
        notes += unwritable(others, vocabulary.labels, len(some))
    unknown = [utterance.id for utterance in usable if utterance.speaker is None]
    if 0 < len(unknown) < len(usable):
        notes.append(
            f"{len(unknown):,} of {len(usable):,} utterances name no speaker ({', '.join(first_few(unknown, 3))}): "
            "no results by speaker"
        )
    if not usable:
        error = refusal(left_out, ())
        raise DataError(error.message, details=error.details, hint="correct some of them: nothing else is left")
    return EvaluationSet(
        splits=tuple(split for split, _ in splits),
        utterances=tuple(usable),
        recognitions=tuple(recognitions),
        left_out=tuple(left_out),
        notes=tuple(notes),
    )
