"""A reader of ARPA files and their probabilities by the format's own definition: the oracle of other readers."""

from dataclasses import dataclass
from pathlib import Path

Words = tuple[str, ...]


@dataclass(frozen=True)
class Arpa:
    """n-grams with log10 probabilities and backoffs."""

    order: int
    probabilities: dict[Words, float]
    backoffs: dict[Words, float]

    def log10(self, word: str, context: Words) -> float:
        """Of a word after the words before it (the last `order` - 1 of them count)."""
        if (word,) not in self.probabilities:
            word = "<unk>"
        context = context[len(context) - self.order + 1 :] if len(context) >= self.order else context
        if (*context, word) in self.probabilities:
            return self.probabilities[*context, word]
        return self.backoffs.get(context, 0.0) + self.log10(word, context[1:])

    def score(self, text: str) -> float:
        """Of a sentence with its end."""
        words = ["<s>", *(word if (word,) in self.probabilities else "<unk>" for word in text.split()), "</s>"]
        return sum(self.log10(words[end], tuple(words[:end])) for end in range(1, len(words)))


def read_arpa(path: Path) -> Arpa:
    """Read a plain ARPA file, whose header must be true."""
    probabilities: dict[Words, float] = {}
    backoffs: dict[Words, float] = {}
    promised, found, order = {}, {}, 0
    lines = path.read_text().splitlines()
    assert lines[0] == "\\data\\"
    assert lines[-1] == "\\end\\"
    for line in lines[1:-1]:
        if line.startswith("ngram "):
            number, _, count = line.removeprefix("ngram ").partition("=")
            promised[int(number)] = int(count)
        elif line.startswith("\\"):
            order = int(line[1:].partition("-")[0])
            found[order] = 0
        elif line:
            probability, text, *backoff = line.split("\t")
            words = tuple(text.split(" "))
            assert len(words) == order
            assert words not in probabilities
            probabilities[words] = float(probability)
            found[order] += 1
            if backoff:
                backoffs[words] = float(backoff[0])
    assert found == promised
    return Arpa(order, probabilities, backoffs)
