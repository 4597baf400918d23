"""Transcripts for NIST's sclite: a line `WORDS (speaker-utterance)` for each utterance.

`sclite -r ref.trn -h hyp.trn -i spu_id -s` takes what stands before the first hyphen for the speaker, and tells upper
case from lower. It weighs a substitution 4 and other errors 3, where error rates weigh all the same: it finds another
one among equally short alignments, and between very unlike lines may prefer an alignment with an error more.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from urllib.parse import quote

from parp_cli.errors import DataError, first_few
from parp_cli.scoring.results import Recognition

_ODD_IN_ID = re.compile(r"[\s()%]")
_MEANS_SOMETHING = re.compile(r"[{}\\;]|^@$")
"""Of words: alternatives in braces, an escape, a comment, and the empty word."""


def trn_id(recognition: Recognition) -> str:
    """The utterance's id with its speaker in front, as LibriSpeech's own "84-121123-0001"; a space in it is %20.

    sclite's speaker ends at the first hyphen: one of the speaker's own is written "_".
    """
    id_, speaker = recognition.id, recognition.speaker
    if speaker:
        id_ = f"{_as_sclite_has_it(speaker)}-{id_.removeprefix(f'{speaker}-')}"
    return quote(id_, safe="/:") if _ODD_IN_ID.search(id_) else id_


def check_trn(recognitions: Sequence[Recognition]) -> None:
    """Find out whether these can be told in .trn; before anything is recognised, whether references and ids can.

    Raises:
        DataError: a word would mean something else to sclite, or two utterances or speakers would be one.
    """
    ids = [trn_id(this) for this in recognitions]
    problems = [f"{id_} comes {count} times" for id_, count in Counter(ids).items() if count > 1]
    for id_, this in zip(ids, recognitions, strict=True):
        odd = [word for word in f"{this.reference} {this.hypothesis}".split() if _MEANS_SOMETHING.search(word)]
        if odd:
            problems.append(f"{id_}: {' '.join(odd)}")
    speakers = sorted({this.speaker for this in recognitions if this.speaker})
    for written, some in groupby(sorted(speakers, key=_as_sclite_has_it), _as_sclite_has_it):
        if len(alike := list(some)) > 1:
            problems.append(f"speakers {' and '.join(alike)} would both be {written}")
    if problems:
        raise DataError(
            "these transcripts cannot be told in .trn",
            details=first_few(problems),
            hint="braces, backslashes, semicolons and a lone @ mean something to sclite, and speakers have no hyphen: "
            "change them in the corpus",
        )


def to_trn(recognitions: Sequence[Recognition]) -> tuple[str, str]:
    """The contents of a file of references and of one of hypotheses.

    Raises:
        DataError: as `check_trn`.
    """
    check_trn(recognitions)
    lines = [(f"{this.reference} ({trn_id(this)})\n", f"{this.hypothesis} ({trn_id(this)})\n") for this in recognitions]
    return "".join(reference for reference, _ in lines), "".join(hypothesis for _, hypothesis in lines)


def _as_sclite_has_it(speaker: str) -> str:
    return speaker.replace("-", "_")
