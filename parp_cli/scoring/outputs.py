"""The files that an evaluation leaves."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parp_cli.scoring.page import page
from parp_cli.scoring.report import Report
from parp_cli.scoring.results import Recognition, to_lines
from parp_cli.scoring.trn import to_trn
from parp_cli.storage.atomic import write_text


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """Where they go.

    Attributes:
        hypotheses: a results file: JSON Lines of id, reference, hypothesis and what else is known of each utterance.
        figures: everything that was counted, as JSON.
        html: a page of it.
        trn: references and hypotheses for sclite.
    """

    hypotheses: Path
    figures: Path
    html: Path | None = None
    trn: tuple[Path, ...] = ()

    @property
    def by_option(self) -> list[tuple[str, Path]]:
        """Each path with the option that names it."""
        named = [("--out", self.hypotheses), ("--out", self.figures), *(("--trn", path) for path in self.trn)]
        return named if self.html is None else [*named, ("--html", self.html)]

    def write(self, recognitions: Sequence[Recognition], report: Report, figures: Mapping[str, Any]) -> None:
        """Write all of them, what is dearest first.

        Raises:
            ResourceError: a file cannot be written.
        """
        write_text(self.hypotheses, to_lines(recognitions))
        text = json.dumps(figures, default=_plain, ensure_ascii=False, indent=2, sort_keys=True)
        write_text(self.figures, text + "\n")
        if self.html is not None:
            write_text(self.html, page(report))
        for path, content in zip(self.trn, to_trn(recognitions) if self.trn else (), strict=True):
            write_text(path, content)


def outputs(out: Path, html: Path | None, trn: Path | None, label: str = "") -> Outputs:
    """Where the files of one system go.

    Args:
        out: of the hypotheses; the figures go beside them, as `.json`.
        trn: how the names of two files begin, which end in ".ref.trn" and ".hyp.trn".
        label: added to all names.
    """

    def labelled(path: Path) -> Path:
        return path.with_stem(f"{path.stem}-{label}") if label else path

    hypotheses = labelled(out)
    figures = hypotheses.with_name(hypotheses.stem + ("-figures.json" if hypotheses.suffix == ".json" else ".json"))
    pair: tuple[Path, ...] = ()
    if trn is not None:
        prefix = f"{trn.name}-{label}" if label else trn.name
        pair = (trn.with_name(f"{prefix}.ref.trn"), trn.with_name(f"{prefix}.hyp.trn"))
    return Outputs(hypotheses=hypotheses, figures=figures, html=None if html is None else labelled(html), trn=pair)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else asdict(value)
