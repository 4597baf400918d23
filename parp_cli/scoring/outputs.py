"""The files that an evaluation writes: results, metrics, a page, and transcripts for NIST's sclite.

A .trn file has one line `WORDS (speaker-utterance)` per utterance. `sclite -r ref.trn -h hyp.trn -i spu_id -s` takes
what precedes the first hyphen for the speaker, and distinguishes case. It weighs a substitution 4 and other errors 3,
where error rates weigh all the same: it picks another of the equally short alignments, and between very different lines
may prefer an alignment with one more error.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from parp_cli.errors import DataError, first_few
from parp_cli.scoring.page import page
from parp_cli.scoring.report import Report
from parp_cli.scoring.results import Recognition, to_lines
from parp_cli.storage.atomic import is_text, refuse_same, require_writable, set_aside, write_text

_ODD_IN_ID = re.compile(r"[\s()%]")
_MEANS_SOMETHING = re.compile(r"[{}\\;]|^@$")
"""In words: alternatives in braces, an escape, a comment, and the empty word."""


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Paths of results (JSON Lines), all metrics (JSON), a page, and references and hypotheses for sclite."""

    hypotheses: Path
    figures: Path
    html: Path | None = None
    trn: tuple[Path, ...] = ()

    @property
    def by_option(self) -> list[tuple[str, Path]]:
        """Each path with the option that names it."""
        named = [("--out", self.hypotheses), ("--out", self.figures), *(("--trn", path) for path in self.trn)]
        return named if self.html is None else [*named, ("--html", self.html)]

    def make_room(self, hypotheses: str) -> None:
        """Keep files of other results than these under other names. Raises `UsageError`: one cannot be renamed."""
        if not is_text(self.hypotheses, hypotheses):
            for option, path in self.by_option:
                set_aside(path, option=option)

    def write(self, recognitions: Sequence[Recognition], report: Report, figures: Mapping[str, Any]) -> None:
        """Write all files, the most expensive to recompute first, and keep those of other results under other names.

        Raises `ResourceError`, `UsageError`: a file cannot be written.
        """
        lines = to_lines(recognitions)
        self.make_room(lines)
        write_text(self.hypotheses, lines)
        text = json.dumps(figures, default=_plain, ensure_ascii=False, indent=2, sort_keys=True)
        write_text(self.figures, text + "\n")
        if self.html is not None:
            write_text(self.html, page(report))
        for path, content in zip(self.trn, to_trn(recognitions) if self.trn else (), strict=True):
            write_text(path, content)


def check_outputs(files: Sequence[Outputs], read: Mapping[str, Sequence[Path]]) -> None:
    """Refuse files that overwrite each other or one of those read, by what names it, and that cannot be written.

    Raises `UsageError`: there are such files.
    """
    written: dict[str, list[Path]] = {}
    for option, path in (pair for each in files for pair in each.by_option):
        written.setdefault(option, []).append(path)
    refuse_same(written, read)
    for option, paths in written.items():
        for path in paths:
            require_writable(path, option)


def outputs(out: Path, html: Path | None, trn: Path | None, label: str = "") -> Outputs:
    """The paths for the files of one system: metrics beside the hypotheses, and the label added to all names."""

    def labelled(path: Path) -> Path:
        return path.with_stem(f"{path.stem}-{label}") if label else path

    hypotheses = labelled(out)
    figures = hypotheses.with_name(hypotheses.stem + ("-figures.json" if hypotheses.suffix == ".json" else ".json"))
    prefix = None if trn is None else trn.with_name(f"{trn.name}-{label}" if label else trn.name)
    pair = () if prefix is None else tuple(Path(f"{prefix}.{side}.trn") for side in ("ref", "hyp"))
    return Outputs(hypotheses=hypotheses, figures=figures, html=None if html is None else labelled(html), trn=pair)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else asdict(value)


def trn_id(recognition: Recognition) -> str:
    """The utterance's id after its speaker, as in LibriSpeech's "84-121123-0001"; a space becomes %20."""
    id_, speaker = recognition.id, recognition.speaker
    if speaker:
        id_ = f"{_sclite_speaker(speaker)}-{id_.removeprefix(f'{speaker}-')}"
    return quote(id_, safe="/:") if _ODD_IN_ID.search(id_) else id_


def check_trn(recognitions: Sequence[Recognition]) -> None:
    """Check that these can be written as .trn; before anything is recognised, that references and ids can.

    Raises `DataError`: a word has a special meaning to sclite, or two utterances or speakers would become one.
    """
    ids = [trn_id(this) for this in recognitions]
    problems = [f"{id_} comes {count} times" for id_, count in Counter(ids).items() if count > 1]
    for id_, this in zip(ids, recognitions, strict=True):
        odd = [word for word in f"{this.reference} {this.hypothesis}".split() if _MEANS_SOMETHING.search(word)]
        if odd:
            problems.append(f"{id_}: {' '.join(odd)}")
    speakers = sorted({this.speaker for this in recognitions if this.speaker})
    for written, some in groupby(sorted(speakers, key=_sclite_speaker), _sclite_speaker):
        if len(alike := list(some)) > 1:
            problems.append(f"speakers {' and '.join(alike)} would both be {written}")
    if problems:
        raise DataError(
            "these transcripts cannot be written as .trn",
            details=first_few(problems),
            hint="braces, backslashes, semicolons and a lone @ mean something to sclite, and speakers have no hyphen: "
            "change them in the corpus",
        )


def to_trn(recognitions: Sequence[Recognition]) -> tuple[str, str]:
    """The contents of the file of references and of the file of hypotheses. Raises as `check_trn`."""
    check_trn(recognitions)
    references = "".join(f"{this.reference} ({trn_id(this)})\n" for this in recognitions)
    return references, "".join(f"{this.hypothesis} ({trn_id(this)})\n" for this in recognitions)


def _sclite_speaker(speaker: str) -> str:
    """For sclite the speaker ends at the first hyphen."""
    return speaker.replace("-", "_")
