"""References and hypotheses of utterances: the lines of a results file (JSON Lines)."""

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parp_cli.data.text import numbered_lines, read_utf8
from parp_cli.errors import DataError, first_few

_HINT = (
    "`parp eval` writes one, as eval-test-clean.jsonl: lines of JSON with id, reference and hypothesis of an utterance"
)


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """One utterance (its id is unique within its split) and a system's transcript of it; speaker, seconds of audio,
    split and language may be unknown.

    References and hypotheses are words, or phones, separated by spaces; "" where nothing was recognised.
    """

    id: str
    reference: str
    hypothesis: str
    speaker: str | None = None
    seconds: float | None = None
    split: str = ""
    language: str | None = None


def to_lines(recognitions: Iterable[Recognition]) -> str:
    """The content of a results file: one JSON object per line, without unknown fields."""
    rows = (
        {key: value for key, value in asdict(this).items() if value is not None and (key, value) != ("split", "")}
        for this in recognitions
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_results(path: Path) -> list[Recognition]:
    """Read a results file; keys beyond those of `Recognition` are ignored.

    Raises `DataError`: it cannot be read, a line is no result, or an utterance is repeated.
    """
    lines = numbered_lines(read_utf8(path, what=f"the results {path}", hint=_HINT))
    results = [(number, _parse(line)) for number, line in lines]
    found = [result for _, result in results if isinstance(result, Recognition)]
    problems = [f"line {number}: {result}" for number, result in results if isinstance(result, str)] or repeated(found)
    if problems or not found:
        raise DataError(
            f"{path} is no file of results" if found or problems else f"{path} holds no results",
            details=first_few(problems),
            hint=_HINT,
        )
    return found


def repeated(recognitions: Sequence[Recognition]) -> list[str]:
    """One line per utterance that occurs more than once."""
    counts = Counter((this.split, this.id) for this in recognitions)
    return [f"utterance {id_} comes {count} times" for (_, id_), count in counts.items() if count > 1]


def _parse(line: str) -> Recognition | str:
    """A result, or what is wrong with a line."""
    try:
        row: Any = json.loads(line)
    except ValueError:
        return "not JSON"
    if not isinstance(row, dict):
        return "not an object"
    missing = [key for key in ("id", "reference", "hypothesis") if not isinstance(row.get(key), str)]
    if missing:
        return f"no text for {', '.join(missing)}"
    speaker, seconds, split, language = (row.get(key) for key in ("speaker", "seconds", "split", "language"))
    if not isinstance(seconds, int | float) or not math.isfinite(seconds) or seconds < 0:
        seconds = None
    return Recognition(
        id=row["id"],
        reference=unicodedata.normalize("NFC", row["reference"]),
        hypothesis=unicodedata.normalize("NFC", row["hypothesis"]),
        speaker=None if speaker is None else str(speaker),
        seconds=None if seconds is None else float(seconds),
        split=split if isinstance(split, str) else "",
        language=language if isinstance(language, str) else None,
    )
