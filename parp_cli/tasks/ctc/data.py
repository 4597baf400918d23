"""The utterances of a recipe: loaded, each checked once, and a vocabulary that spells them."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from parp_cli.config.finetune import Data
from parp_cli.data.check import (
    OF_TRAINING_ALONE,
    Problem,
    check_utterances,
    notes_of,
    refusal,
    unwritable,
    with_digits,
    with_lengths,
)
from parp_cli.data.corpora import load
from parp_cli.data.inspection import Inspected, content_hash, inspect_files
from parp_cli.data.labels import Vocabulary, letters_vocabulary, phones_vocabulary, visible
from parp_cli.data.phones import MARKS
from parp_cli.data.utterances import Utterance
from parp_cli.errors import DataError, first_few
from parp_cli.models.speech.config import Architecture, frames
from parp_cli.runtime.progress import Notify, Progress


@dataclass(frozen=True, kw_only=True)
class CtcData:
    """What is learned from and judged on; problems of utterances that are left out, and notes on the others; and the
    `data_key` of all of it."""

    train: tuple[Utterance, ...]
    valid: tuple[Utterance, ...]
    vocabulary: Vocabulary
    skipped: tuple[Problem, ...]
    notes: tuple[str, ...]
    key: str


def data_key(data: Data, notify: Notify) -> str:
    """Names the content of both splits, text and audio. Raises DataError where they are missing."""
    return _read(data, notify)[-1]


def _read(data: Data, notify: Notify) -> tuple[list[Utterance], list[Utterance], dict[Path, Inspected], str]:
    """The utterances of both splits, with lengths where the corpus gives them; what is in their audio; and a name of
    this content."""
    train = load(data, data.train, notify, lenient=True)
    valid = spread(load(data, data.valid, notify, lenient=True), data.max_valid_utterances)
    of_train, of_valid = (inspect_files((each.audio for each in some), notify=notify) for some in (train, valid))
    infos = of_train | of_valid
    return train, valid, infos, f"{content_hash(train, infos)} {content_hash(valid, infos)}"


def load_data(data: Data, architecture: Architecture, own: Vocabulary | None, notify: Notify) -> CtcData:
    """Load both splits, and check that a network of the architecture can be trained on them.

    `own` is the vocabulary of the model or checkpoint that training begins from. Raises DataError where the data is
    missing, or holds utterances that cannot be trained on.
    """
    train, valid, infos, key = _read(data, notify)
    vocabulary, of_head = _vocabulary(data, own, train, valid)
    splits = [(data.train, with_lengths(train, infos)), (data.valid, with_lengths(valid, infos))]
    of_train, of_valid = (
        check_utterances(some, split, infos, vocabulary, lambda samples: frames(architecture, samples))
        for split, some in splits
    )
    notes = [*filter(None, [of_head]), *notes_of(splits, infos)]
    if own is None and data.labels == "letters" and data.alphabet == "found":
        notes += with_digits(train)
    if data.train != data.valid:  # else all of them are to be trained on
        odd = [problem for problem in of_valid if problem.kind in OF_TRAINING_ALONE]
        of_valid = [problem for problem in of_valid if problem not in odd]
        notes += unwritable(odd, vocabulary.labels, len(valid))
    skipped = dict.fromkeys([*of_train, *of_valid])  # in order, once where a split is both trained and validated on
    if skipped and data.unusable == "refuse":
        raise refusal(list(skipped), notes, alphabet=data.alphabet)
    for note in notes:
        notify(Progress("checking audio", len(infos), len(infos), warning=note, kind="data"))
    train, valid = (_without(skipped, some, split) for split, some in splits)
    evened_out(train, data.temperature)  # which raises where it cannot be
    return CtcData(
        train=tuple(train),
        valid=tuple(valid),
        vocabulary=vocabulary,
        skipped=tuple(skipped),
        notes=tuple(notes),
        key=key,
    )


def spread(utterances: Sequence[Utterance], limit: int | None) -> list[Utterance]:
    """At most so many utterances, in their order: as many of each speaker as can be, a speaker's first ones first.

    An utterance without a speaker counts as a speaker of its own.
    """
    if limit is None or limit >= len(utterances):
        return list(utterances)
    seen: dict[str, int] = defaultdict(int)
    ranks: list[tuple[int, int]] = []
    for index, utterance in enumerate(utterances):
        speaker = utterance.speaker or f"utterance {utterance.id}"
        ranks.append((seen[speaker], index))
        seen[speaker] += 1
    return [utterances[index] for index in sorted(index for _, index in sorted(ranks)[:limit])]


def evened_out(utterances: Sequence[Utterance], temperature: float | None) -> list[float] | None:
    """How often each utterance is in an epoch so that a language of n seconds has a share as n^(1/temperature) (Conneau
    et al. 2020, "Unsupervised cross-lingual representation learning for speech recognition", section 2); None for once.

    Those of the language with most speech are in it once. Raises DataError where a language is unknown.
    """
    if temperature is None or temperature == 1:
        return None
    if unknown := [utterance.id for utterance in utterances if utterance.language is None]:
        raise DataError(
            f"data.temperature is of languages, and {len(unknown):,} training utterances do not tell theirs",
            details=first_few(unknown),
            hint="add a column `language` to the manifest, or remove data.temperature",
        )
    seconds: dict[str | None, float] = defaultdict(float)
    for utterance in utterances:
        seconds[utterance.language] += utterance.seconds
    most = max(seconds.values())
    return [(most / seconds[utterance.language]) ** (1 - 1 / temperature) for utterance in utterances]


def _without(problems: Iterable[Problem], utterances: list[Utterance], split: str) -> list[Utterance]:
    """The utterances of a split that can be trained on; a DataError where there are none."""
    own = [problem for problem in problems if problem.split == split]
    bad = {problem.utterance_id for problem in own}
    left = [utterance for utterance in utterances if utterance.id not in bad]
    if not left:
        error = refusal(own, ())
        raise DataError(f"no usable utterance in {split}", details=error.details, hint="correct some of them")
    return left


def _vocabulary(
    data: Data, own: Vocabulary | None, train: list[Utterance], valid: list[Utterance]
) -> tuple[Vocabulary, str]:
    """The labels, and what is to be said of the checkpoint's own head, if anything.

    They are its own, so that it is of use, and after them those that the corpus needs besides; the corpus's alone where
    these are most of them.
    """
    note = ""
    if own is not None and own.labels == data.labels:
        english = data.labels == "letters" and data.alphabet == "english"
        if (extended := own.with_labels_of((*train, *valid), english=english)) is not None:
            new = " ".join(first_few([visible(symbol) for symbol in extended.symbols[len(own) :]]))
            return extended, new and f"the trained output head is kept; labels that are new to it: {new}"
        note = f"a new output head is trained: that of the model has too few of the {own.labels} of the transcripts"
    elif own is not None:
        note = f"a new output head is trained: that of the model is for {own.labels} (--set data.labels={own.labels})"
    if data.labels == "letters":
        return letters_vocabulary(train if data.alphabet == "found" else None), note
    stripped = {"stress": data.strip_stress, "length": data.strip_length, "tone": data.strip_tone}
    return phones_vocabulary(train, strip=[mark for mark in MARKS if stripped[mark]]), note
