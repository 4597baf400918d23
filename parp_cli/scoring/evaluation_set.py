"""The utterances that systems are judged by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from parp_cli.data.check import OF_TRAINING_ALONE, Problem, check_utterances, notes_of, read_sounds, refusal
from parp_cli.data.labels import Vocabulary
from parp_cli.data.utterances import Utterance
from parp_cli.errors import first_few
from parp_cli.runtime.progress import Notify, silent
from parp_cli.scoring.results import Recognition


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Splits, without what nothing can be judged by.

    Attributes:
        splits: that the utterances are of.
        split_of, utterances, references: in the same order.
        left_out: why other utterances are not among them.
        notes: what is unusual about some.
    """

    splits: tuple[str, ...]
    split_of: tuple[str, ...]
    utterances: tuple[Utterance, ...]
    references: tuple[str, ...]
    left_out: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def audio_seconds(self) -> float:
        """Of all utterances."""
        return sum(utterance.seconds for utterance in self.utterances)

    def recognized(self, texts: Sequence[str]) -> list[Recognition]:
        """Each utterance with what a system made of it."""
        return [
            Recognition(
                id=utterance.id,
                reference=reference,
                hypothesis=text,
                speaker=utterance.speaker,
                seconds=round(utterance.seconds, 3),
                split=split,
            )
            for utterance, reference, text, split in zip(
                self.utterances, self.references, texts, self.split_of, strict=True
            )
        ]


def evaluation_set(
    splits: Sequence[tuple[str, Sequence[Utterance]]],
    vocabulary: Vocabulary,
    frames: Callable[[int], int],
    notify: Notify = silent,
) -> EvaluationSet:
    """Read all audio once, and leave out what cannot be recognised or compared with a reference.

    Labels outside the vocabulary, and more of them than frames, are no reason: they count as errors.

    Args:
        splits: names and utterances.
        vocabulary: of the references.
        frames: how many frames the model makes of so many samples at 16 kHz.

    Raises:
        DataError: nothing is left.
    """
    sounds = read_sounds((utterance.audio for _, some in splits for utterance in some), notify=notify)
    left_out: list[Problem] = []
    notes = notes_of(splits, sounds)
    usable: list[tuple[str, Utterance]] = []
    for split, some in splits:
        found = check_utterances(some, split, sounds, vocabulary, frames)
        problems = [problem for problem in found if problem.kind not in OF_TRAINING_ALONE]
        bad = {problem.utterance_id for problem in problems}
        usable += [(split, utterance) for utterance in some if utterance.id not in bad]
        left_out += problems
        foreign = [problem.utterance_id for problem in found if problem.kind == "outside vocabulary"]
        foreign = [id_ for id_ in foreign if id_ not in bad]
        if foreign:
            notes.append(
                f"{split}: {vocabulary.labels} that the model cannot write in {len(foreign):,} of {len(some):,} "
                f"references ({', '.join(first_few(foreign, 3))}): they count as errors"
            )
    unknown = [utterance.id for _, utterance in usable if utterance.speaker is None]
    if 0 < len(unknown) < len(usable):
        notes.append(
            f"{len(unknown):,} of {len(usable):,} utterances name no speaker ({', '.join(first_few(unknown, 3))}): "
            "no results by speaker"
        )
    if not usable:
        raise refusal(left_out, ())
    return EvaluationSet(
        splits=tuple(split for split, _ in splits),
        split_of=tuple(split for split, _ in usable),
        utterances=tuple(utterance for _, utterance in usable),
        references=tuple(vocabulary.reference(utterance) for _, utterance in usable),
        left_out=tuple(left_out),
        notes=tuple(notes),
    )
