"""What is taken for what."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from parp_cli.scoring.metrics import Alignment, Kind, Unit

MOST = 20
"""Confusions of a kind that are listed."""

MOST_SYMBOLS = 40
"""Rows and columns of a matrix: more can't be told apart on a page."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """An error that is made again and again.

    Attributes:
        reference: the token that was said; "" of an insertion.
        hypothesis: the token that was recognised; "" of a deletion.
        of: how often the token occurs: in the references, or of an insertion in the hypotheses.
    """

    reference: str
    hypothesis: str
    count: int
    of: int


@dataclass(frozen=True, kw_only=True)
class Confusions:
    """The most frequent errors of each kind, falling; equally frequent ones in the order of the alphabet."""

    unit: Unit
    substitutions: tuple[Confusion, ...]
    deletions: tuple[Confusion, ...]
    insertions: tuple[Confusion, ...]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """How often each letter or phone was recognised as each.

    Attributes:
        unit: characters or phones.
        symbols: the most frequent, in the order of the alphabet; "" comes first and stands for none, which makes its
            row the insertions and its column the deletions.
        counts: a row for each symbol said, a column for each recognised.
    """

    unit: Unit
    symbols: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Step:
    """One column of an alignment; "" stands for no token."""

    kind: Kind
    reference: str
    hypothesis: str


def steps(alignment: Alignment) -> Iterator[Step]:
    """An alignment token by token."""
    for stretch in alignment:
        for reference, hypothesis in _pairs((stretch,)):
            yield Step(stretch.kind, reference, hypothesis)


def confusions(alignments: Sequence[Alignment], unit: Unit, most: int = MOST) -> Confusions:
    """Count the errors of all utterances, token by token."""
    said: Counter[str] = Counter()
    recognised: Counter[str] = Counter()
    pairs: dict[Kind, Counter[tuple[str, str]]] = {"substitute": Counter(), "delete": Counter(), "insert": Counter()}
    for alignment in alignments:
        for stretch in alignment:
            said.update(stretch.reference)
            recognised.update(stretch.hypothesis)
            if stretch.kind != "equal":
                pairs[stretch.kind].update(_pairs((stretch,)))

    def of_kind(kind: Kind) -> tuple[Confusion, ...]:
        falling = sorted(pairs[kind].items(), key=lambda item: (-item[1], item[0]))
        return tuple(
            Confusion(
                reference=reference,
                hypothesis=hypothesis,
                count=count,
                of=recognised[hypothesis] if kind == "insert" else said[reference],
            )
            for (reference, hypothesis), count in falling[:most]
        )

    return Confusions(
        unit=unit,
        substitutions=of_kind("substitute"),
        deletions=of_kind("delete"),
        insertions=of_kind("insert"),
    )


def matrix(alignments: Sequence[Alignment], unit: Unit, most: int = MOST_SYMBOLS) -> Matrix:
    """Count how often each symbol was taken for each, among the `most` that are said or recognised most often."""
    pairs = Counter(chain.from_iterable(map(_pairs, alignments)))
    occurrences: Counter[str] = Counter()
    for (reference, hypothesis), count in pairs.items():
        occurrences[reference] += count
        occurrences[hypothesis] += count
    del occurrences[""]
    frequent = sorted(occurrences.items(), key=lambda item: (-item[1], item[0]))[:most]
    symbols = ("", *sorted(symbol for symbol, _ in frequent))
    return Matrix(
        unit=unit,
        symbols=symbols,
        counts=tuple(tuple(pairs[reference, hypothesis] for hypothesis in symbols) for reference in symbols),
    )


def _pairs(alignment: Alignment) -> Iterator[tuple[str, str]]:
    """Tokens side by side; "" where there is none. A stretch has as many on both sides, or none on one."""
    for stretch in alignment:
        yield from zip_longest(stretch.reference, stretch.hypothesis, fillvalue="")
