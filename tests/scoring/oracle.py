"""Alignment done by hand, to hold jiwer's against, and .trn read as sclite reads it."""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote


def read_trn(path: Path) -> dict[str, str]:
    """Texts by id, in the order of the file."""
    lines = [re.fullmatch(r"(.*)\(([^()\s]+)\)", line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert all(lines), "each ends in (speaker-utterance)"
    texts = {unquote(line[2]): line[1].strip() for line in lines if line}
    assert len(texts) == len(lines)
    return texts


def fewest_edits(reference: Sequence[str], hypothesis: Sequence[str]) -> set[tuple[int, int, int]]:
    """Substitutions, deletions and insertions of every alignment with as few edits as can be, cell by cell."""
    ways = [[{(0, 0, 0)}] + [set() for _ in hypothesis]] + [
        [set() for _ in range(len(hypothesis) + 1)] for _ in reference
    ]
    for row in range(len(reference) + 1):
        for column in range(len(hypothesis) + 1):
            if row == column == 0:
                continue
            found = set()
            if row and column:
                wrong = reference[row - 1] != hypothesis[column - 1]
                found |= {(s + wrong, d, i) for s, d, i in ways[row - 1][column - 1]}
            if row:
                found |= {(s, d + 1, i) for s, d, i in ways[row - 1][column]}
            if column:
                found |= {(s, d, i + 1) for s, d, i in ways[row][column - 1]}
            fewest = min(map(sum, found))
            ways[row][column] = {way for way in found if sum(way) == fewest}
    return ways[-1][-1]
