"""A generated corpus for text encoders: sentences that name things, and what kind of thing a sentence is about.

Unlabelled sentences (split pretrain) have each name where only such names stand: "the train to peru leaves on monday".
Labelled ones have it where any could, "we talked about peru", or beside one that is not meant, "not peru but latin";
and no name of one of their splits is in another. So the labels have to be learned from few texts, and what a name is
has to be known from pre-training, as in real tasks.
"""

import random
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from parp_cli.data.generated import cache_folder
from parp_cli.data.phrases import Grammar, part_of
from parp_cli.storage.atomic import write_text

_VERSION = 1  # of the sentences: a new one where they change

_KINDS = {"country": ("territory",), "language": ("language",), "measure": ("unit",), "time": ("month", "day")}
"""The slots of `phrases.Grammar` by label."""

_PATTERNS = (
    "we talked about {name}",
    "she never forgot {name}",
    "{name} is the answer",
    "the word is {name}",
    "he wrote {name} on the wall",
    "do you remember {name}",
    "{name} is what they wanted to know",
    "not {other} but {name}",
    "{name} and not {other}",
    "he said {other} but she heard {name}",
    "it is {name} instead of {other}",
)

_COUNTS = {"train": 100, "dev": 400, "test": 1000, "pretrain": 20000}
_NEUTRAL = 0.3  # share of the sentences for pre-training that are of these patterns, with any names


def ensure() -> Path:
    """The folder with the splits, in the user's cache, written unless it is there.

    Raises UsageError where Babel (extra demo) is not installed.
    """
    try:
        babel = version("Babel")
    except PackageNotFoundError:
        babel = "none"  # `Grammar` says what to install
    folder = cache_folder() / f"sentences-{_VERSION}-babel{babel}"
    if not all((folder / _file(split)).is_file() for split in _COUNTS):
        grammar = Grammar("en")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / _file("pretrain"), "".join(f"{text}\n" for text in _unlabelled(grammar)))
        for split in ("train", "dev", "test"):
            rows = "".join(f"{text}\t{label}\n" for text, label in _labelled(grammar, split))
            write_text(folder / _file(split), f"text\tlabel\n{rows}")
    return folder


def words() -> list[str]:
    """Every word of the corpus, by the alphabet."""
    grammar = Grammar("en")
    fixed = {word for pattern in _PATTERNS for word in pattern.split() if "{" not in word}
    return sorted(fixed.union(word.lower() for word in grammar.vocabulary))


def _file(split: str) -> str:
    return f"{split}.txt" if split == "pretrain" else f"{split}.tsv"


def _names(grammar: Grammar) -> dict[str, list[str]]:
    """Names by label. One that several labels have is none's."""
    found = {label: [name.lower() for slot in slots for name in grammar.words[slot]] for label, slots in _KINDS.items()}
    every = [name for names in found.values() for name in set(names)]
    return {label: [name for name in names if every.count(name) == 1] for label, names in found.items()}


def _unlabelled(grammar: Grammar) -> Iterator[str]:
    rng = random.Random("pretrain")
    typed = grammar.sentences("train", rng)
    names = [name for some in _names(grammar).values() for name in some]
    for _ in range(_COUNTS["pretrain"]):
        yield _filled(names, names, rng) if rng.random() < _NEUTRAL else next(typed).lower()


def _labelled(grammar: Grammar, split: str) -> Iterator[tuple[str, str]]:
    """Different sentences with names of this split alone, as many of each label."""
    rng = random.Random(split)
    # Half of the names are for training, the rest is for the other two splits.
    own = {label: _shares(names)[split] for label, names in _names(grammar).items()}
    every = {label: [name for other in own if other != label for name in own[other]] for label in own}
    seen = set[str]()
    labels = sorted(own)
    while len(seen) < _COUNTS[split]:
        label = labels[len(seen) % len(labels)]
        text = _filled(own[label], every[label], rng)
        if text not in seen:
            seen.add(text)
            yield text, label


def _shares(names: Sequence[str]) -> dict[str, list[str]]:
    order = sorted(names, key=lambda name: (part_of(name), name))
    random.Random(len(order)).shuffle(order)
    half, rest = len(order) // 2, (len(order) - len(order) // 2) // 2
    return {"train": order[:half], "dev": order[half : half + rest], "test": order[half + rest :]}


def _filled(names: Sequence[str], others: Sequence[str], rng: random.Random) -> str:
    return rng.choice(_PATTERNS).format(name=rng.choice(names), other=rng.choice(others))
