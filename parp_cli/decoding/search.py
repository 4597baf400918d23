"""Searches that turn CTC output into text without a lexicon: the best path, and a prefix beam search.

The beam search returns the likeliest label sequences, each summed over its alignments. A prefix is a label sequence so
far, kept with two probabilities: of alignments that end with a blank, and of those that end with its last label
(Graves, "Sequence transduction with recurrent neural networks", 2012; Hannun et al., "First-pass large vocabulary
continuous speech recognition using bi-directional recurrent DNNs", 2014). A language model may then rescore its n-best
list, so that any word can be found.

flashlight's lexicon-free decoder is no substitute: it loses alignments, so that with a beam of 4000 it ends with less
probable texts than this one with a beam of 10.

T frames, K prefixes in the beam, V labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy
import torch
from torch import Tensor

from parp_cli.data.labels import BLANK_ID, Vocabulary
from parp_cli.decoding.lm import NGramScorer, Scorer

_IMPOSSIBLE = float("-inf")


@dataclass(frozen=True)
class Hypothesis:
    """Words (or phones) separated by spaces; scores are comparable within one utterance and one kind of search."""

    text: str
    score: float


class Search(Protocol):
    """Turns logits into hypotheses. Where several processes pay, it can be sent to them."""

    @property
    def pays_in_processes(self) -> bool:
        """Whether several processes search faster than one, counting their start and what each has to load."""

    def __call__(self, logits: Sequence[Tensor], /) -> list[list[Hypothesis]]:
        """Hypotheses of each utterance, best first, from its logits (T_i, V)."""


def collapse(path: Tensor) -> list[int]:
    """Label ids that a path of labels per frame (T,) spells: repeats merged, blanks dropped."""
    merged = torch.unique_consecutive(path)
    ids: list[int] = merged[merged != BLANK_ID].tolist()
    return ids


@dataclass(frozen=True)
class GreedySearch:
    """The likeliest label of every frame. The score is the natural logarithm of that path's probability."""

    vocabulary: Vocabulary
    pays_in_processes = False  # sending them the logits takes longer than the search

    def __call__(self, logits: Sequence[Tensor]) -> list[list[Hypothesis]]:
        """One hypothesis per utterance, from its logits (T_i, V)."""
        best = [item.double().log_softmax(-1).max(-1) for item in logits]
        return [[Hypothesis(self.vocabulary.decode(collapse(path.cpu())), float(each.sum()))] for each, path in best]


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """Beam search over labels alone. The score is the natural logarithm of the text's CTC probability.

    Label sequences that read the same (with and without a word boundary at the end) are one hypothesis, whose
    probabilities are added.
    """

    vocabulary: Vocabulary
    beam_size: int = 50
    nbest: int = 1
    pays_in_processes = True

    def __call__(self, logits: Sequence[Tensor]) -> list[list[Hypothesis]]:
        """Hypotheses of each utterance, best first, from its logits (T_i, V) up to a constant per frame."""
        return [self._read(prefix_beam_search(item, self.beam_size)) for item in logits]

    def _read(self, prefixes: list[tuple[list[int], float]]) -> list[Hypothesis]:
        scores: dict[str, list[float]] = {}
        for ids, score in prefixes:
            scores.setdefault(self.vocabulary.decode(ids), []).append(score)
        summed = {text: float(torch.tensor(some, dtype=torch.float64).logsumexp(0)) for text, some in scores.items()}
        best = sorted(summed.items(), key=lambda item: (-item[1], item[0]))
        return [Hypothesis(text, score) for text, score in best[: self.nbest]]


def prefix_beam_search(logits: Tensor, beam_size: int) -> list[tuple[list[int], float]]:
    """The K likeliest label sequences of an utterance's logits (T, V) with their log probabilities, best first.

    The probabilities are lower bounds: alignments through a prefix that the beam had dropped are missing.
    """
    # Prefixes are nodes of a tree, numbered by parent and last label; the empty one has the blank as its last label.
    numbers: dict[tuple[int, int], int] = {(-1, BLANK_ID): 0}
    node, parent, last = numpy.array([0]), numpy.array([-1]), numpy.array([BLANK_ID])
    blank, label = numpy.array([0.0]), numpy.array([_IMPOSSIBLE])  # log probabilities, by what alignments end with
    for frame in logits.detach().cpu().double().log_softmax(-1).numpy():
        either = numpy.logaddexp(blank, label)
        stay_blank = either + frame[BLANK_ID]
        stay_label = numpy.where(last == BLANK_ID, _IMPOSSIBLE, label + frame[last])  # a repeated label, merged
        longer = either[:, None] + frame
        # The last label once more makes the prefix longer only after a blank.
        longer[numpy.arange(len(last)), last] = blank + frame[last]
        longer[:, BLANK_ID] = _IMPOSSIBLE
        # Where a prefix plus a label is in the beam already, its probability moves there.
        child, source = numpy.nonzero(parent[:, None] == node)
        stay_label[child] = numpy.logaddexp(stay_label[child], longer[source, last[child]])
        longer[source, last[child]] = _IMPOSSIBLE

        scores = numpy.concatenate([numpy.logaddexp(stay_blank, stay_label), longer.ravel()])
        chosen = numpy.flatnonzero(scores > _IMPOSSIBLE)
        if len(chosen) > beam_size:
            chosen = chosen[numpy.argpartition(-scores[chosen], beam_size)[:beam_size]]
        stays = chosen < len(node)
        source, new = numpy.divmod(chosen - len(node), len(frame))
        source = numpy.where(stays, chosen, source)
        blank = numpy.where(stays, stay_blank[source], _IMPOSSIBLE)
        label = numpy.where(stays, stay_label[source], scores[chosen])
        last = numpy.where(stays, last[source], new)
        parent = numpy.where(stays, parent[source], node[source])
        keys = zip(parent.tolist(), last.tolist(), strict=True)
        node = numpy.array([numbers.setdefault(key, len(numbers)) for key in keys])
    scores, keys_of = numpy.logaddexp(blank, label), list(numbers)

    def spelled(number: int) -> list[int]:
        ids = []
        while number:
            number, label = keys_of[number]
            ids.append(label)
        return ids[::-1]

    return [(spelled(node[place]), float(scores[place])) for place in numpy.argsort(-scores, kind="stable")]


class ScoredText(NamedTuple):
    """A text with the natural logarithm of its CTC probability, and log10 of that by the language model."""

    text: str
    acoustic: float
    language: float


@dataclass(frozen=True, kw_only=True)
class Rescored:
    """A beam search whose n-best list (of `search.nbest`) a language model reorders.

    The score is the natural logarithm of the text's CTC probability, plus `lm_weight` times the language model's log10
    probability, plus `word_score` per word: weights mean the same as in `LexiconSearch`.
    """

    search: BeamSearch
    scorer: Scorer
    lm_weight: float = 2.0
    word_score: float = 0.0
    nbest: int = 1

    def __call__(self, logits: Sequence[Tensor]) -> list[list[Hypothesis]]:
        """Hypotheses of each utterance, best first, from its logits (T_i, V)."""
        return [self.order(scored) for scored in self.score(logits)]

    @property
    def pays_in_processes(self) -> bool:
        """Whether several processes search faster than one; not where each would load a Transformer of its own."""
        return isinstance(self.scorer, NGramScorer)

    def score(self, logits: Sequence[Tensor]) -> list[list[ScoredText]]:
        """The part that does not depend on the weights: the scored n-best list of each utterance."""
        found = []
        for nbest in self.search(logits):
            language = self.scorer([hypothesis.text for hypothesis in nbest])
            found.append([ScoredText(each.text, each.score, lm) for each, lm in zip(nbest, language, strict=True)])
        return found

    def order(self, scored: Sequence[ScoredText]) -> list[Hypothesis]:
        """The hypotheses of one utterance, best first."""
        weighted = [
            Hypothesis(text, acoustic + self.lm_weight * language + self.word_score * len(text.split()))
            for text, acoustic, language in scored
        ]
        return sorted(weighted, key=lambda hypothesis: -hypothesis.score)[: self.nbest]
