"""Sentences, and what poor systems make of them."""

import random

from parp_cli.scoring.results import Recognition

WORDS = ["THE", "A", "TO", "OF", "IN", "SEVEN", "ELEVEN", "TUESDAY", "LETTER", "LATER"]


def garbled(
    seed: int, utterances: int, *, speakers: int = 8, wrong: float = 0.25, noise: int = 0, split: str = "test"
) -> list[Recognition]:
    """The same `seed` has the same sentences, and the same `noise` the same luck.

    Args:
        wrong: about this share of words is substituted, deleted, or followed by one too many.
    """
    say, hear = random.Random(seed), random.Random(f"{seed} {noise}")
    found = []
    for number in range(utterances):
        reference = say.choices(WORDS, k=say.randint(1, 12))
        speaker = f"{number % speakers}"
        hypothesis: list[str] = []
        for word in reference:
            kind, other = (hear.randrange(3) if hear.random() < wrong else None), hear.choice(WORDS)
            hypothesis += {None: [word], 0: [other], 1: [], 2: [word, other]}[kind]
        found.append(
            Recognition(
                id=f"{speaker}-{number:04}",
                reference=" ".join(reference),
                hypothesis=" ".join(hypothesis),
                speaker=speaker,
                seconds=round(0.3 + 0.35 * len(reference), 2),
                split=split,
            )
        )
    return found
