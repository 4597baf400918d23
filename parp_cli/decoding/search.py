"""Searches that turn CTC output into text without a lexicon: the best path, and a prefix beam search.

The beam search returns the likeliest label sequences, each summed over its alignments. A prefix is a label sequence so
far, kept with two probabilities: of alignments that end with a blank, and of those that end with its last label
(Graves, "Sequence transduction with recurrent neural networks", 2012; Hannun et al., "First-pass large vocabulary
continuous speech recognition using bi-directional recurrent DNNs", 2014). A language model may then rescore its n-best
list, so that any word can be found.

flashlight's lexicon-free decoder is no substitute: it loses alignments, so that with a beam of 4000 it ends with less
probable texts than this one with a beam of 10.

B utterances, T frames, K prefixes in the beam, V labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from parp_cli.data.labels import BLANK_ID, Vocabulary
from parp_cli.decoding.lm import NGramScorer, Scorer

_UTTERANCES = 32
"""Utterances searched together: enough to keep tensors busy, few enough for about a hundred megabytes."""

_IMPOSSIBLE = float("-inf")

# Prefixes are compared by polynomial hashes modulo 2^64 (int64 tensors wrap around). The chance that two of some
# thousand prefixes of an utterance collide is about 1e-12.
_HASH_FACTOR = 6364136223846793005
_HASH_EMPTY = 1442695040888963407


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
        ...

    def __call__(self, logits: Sequence[Tensor], /) -> list[list[Hypothesis]]:
        """Hypotheses of each utterance, best first, from its logits (T_i, V)."""
        ...


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

    Attributes:
        beam_size: label sequences kept after each frame.
        nbest: maximum hypotheses per utterance. Label sequences that read the same (with and without a word boundary
            at the end) are one hypothesis, whose probabilities are added.
    """

    vocabulary: Vocabulary
    beam_size: int = 50
    nbest: int = 1
    pays_in_processes = True

    def __call__(self, logits: Sequence[Tensor]) -> list[list[Hypothesis]]:
        """Hypotheses of each utterance, best first, from its logits (T_i, V) up to a constant per frame."""
        found: dict[int, list[Hypothesis]] = {}
        # Longest first, so that the utterances still running are always the first rows.
        order = sorted(range(len(logits)), key=lambda index: -len(logits[index]))
        for start in range(0, len(order), _UTTERANCES):
            batch = order[start : start + _UTTERANCES]
            prefixes = prefix_beam_search([logits[index] for index in batch], self.beam_size)
            found |= zip(batch, map(self._read, prefixes), strict=True)
        return [found[index] for index in range(len(logits))]

    def _read(self, prefixes: list[tuple[list[int], float]]) -> list[Hypothesis]:
        scores: dict[str, list[float]] = {}
        for ids, score in prefixes:
            scores.setdefault(self.vocabulary.decode(ids), []).append(score)
        summed = {text: float(torch.tensor(some, dtype=torch.float64).logsumexp(0)) for text, some in scores.items()}
        best = sorted(summed.items(), key=lambda item: (-item[1], item[0]))
        return [Hypothesis(text, score) for text, score in best[: self.nbest]]


def prefix_beam_search(logits: Sequence[Tensor], beam_size: int) -> list[list[tuple[list[int], float]]]:
    """The label sequences in the beam at the end of each utterance with their log probabilities, best first.

    The probabilities are lower bounds: alignments through a prefix that the beam had dropped are missing.

    Args:
        logits: of each utterance, (T_i, V), longest first.
        beam_size: K.
    """
    lengths = [len(item) for item in logits]
    beams = _Beams(len(logits), beam_size)
    if lengths and lengths[0]:
        padded = torch.nn.utils.rnn.pad_sequence([item.detach().cpu().double() for item in logits], batch_first=True)
        frames = padded.log_softmax(-1)
        for frame in range(lengths[0]):
            beams.advance(frames[: sum(length > frame for length in lengths), frame])
    return beams.read()


class _Beams:
    """K prefixes for each of B utterances, all at the same frame. Slots of probability zero hold no prefix."""

    def __init__(self, utterances: int, beam_size: int) -> None:
        shape = (utterances, beam_size)
        self._blank = torch.full(shape, _IMPOSSIBLE, dtype=torch.float64)  # log probability, ending with a blank
        self._blank[:, 0] = 0.0
        self._label = torch.full(shape, _IMPOSSIBLE, dtype=torch.float64)  # ending with the last label
        self._last = torch.full(shape, BLANK_ID)  # last label; blank for the empty prefix
        self._hash = torch.full(shape, _HASH_EMPTY)
        self._parent_hash = torch.zeros(shape, dtype=torch.int64)  # of the prefix without its last label
        self._history: list[tuple[Tensor, Tensor]] = []  # per frame: slot extended, and new label

    def advance(self, frame: Tensor) -> None:
        """One frame on, with log probabilities (B', V) of the first B' utterances; the others have ended."""
        active, slots, labels = len(frame), self._last.shape[1], frame.shape[1]
        blank, label, last = self._blank[:active], self._label[:active], self._last[:active]
        either = torch.logaddexp(blank, label)
        stay_blank = either + frame[:, BLANK_ID, None]
        stay_label = label + frame.gather(1, last)  # a repeated label, merged
        stay_label[last == BLANK_ID] = _IMPOSSIBLE

        longer = either[:, :, None] + frame[:, None, :]
        # The last label once more makes the prefix longer only after a blank.
        longer.scatter_(2, last[:, :, None], (blank + frame.gather(1, last))[:, :, None])
        longer[:, :, BLANK_ID] = _IMPOSSIBLE
        self._merge(longer, stay_label, either)

        candidates = torch.cat([torch.logaddexp(stay_blank, stay_label), longer.flatten(1)], dim=1)
        score, chosen = candidates.topk(slots, dim=1, sorted=True)
        stays = chosen < slots
        grown = (chosen - slots).clamp(min=0)
        source = torch.where(stays, chosen, grown // labels)
        new = torch.where(stays, BLANK_ID, grown % labels)

        kept = self._hash[:active].gather(1, source)
        self._parent_hash[:active] = torch.where(stays, self._parent_hash[:active].gather(1, source), kept)
        self._hash[:active] = torch.where(stays, kept, kept * _HASH_FACTOR + new)
        self._last[:active] = torch.where(stays, last.gather(1, source), new)
        self._blank[:active] = torch.where(stays, stay_blank.gather(1, source), _IMPOSSIBLE)
        self._label[:active] = torch.where(stays, stay_label.gather(1, source), score)
        self._history.append((source, new))

    def _merge(self, longer: Tensor, stay_label: Tensor, either: Tensor) -> None:
        """Where a prefix plus a label (B', K, V) is in the beam already, move its probability to `stay_label`."""
        active = len(longer)
        # A slot without a prefix must take nothing, or it would become a duplicate of another one.
        alive = either > _IMPOSSIBLE
        is_parent = (self._hash[:active, None, :] == self._parent_hash[:active, :, None]) & alive[:, None, :]
        utterance, slot = (is_parent.any(2) & alive & (self._last[:active] != BLANK_ID)).nonzero(as_tuple=True)
        parent = is_parent.to(torch.uint8).argmax(2)[utterance, slot]
        label = self._last[utterance, slot]
        gained = longer[utterance, parent, label]
        longer[utterance, parent, label] = _IMPOSSIBLE
        stay_label[utterance, slot] = torch.logaddexp(stay_label[utterance, slot], gained)

    def read(self) -> list[list[tuple[list[int], float]]]:
        """Label ids and log probability of every prefix, best first, per utterance."""
        scores, order = torch.logaddexp(self._blank, self._label).sort(dim=1, descending=True, stable=True)
        slots = order.clone()
        spelt: list[list[list[int]]] = [[[] for _ in row] for row in order.tolist()]
        for source, new in reversed(self._history):
            active = len(source)
            labels = new.gather(1, slots[:active])
            for row, column in labels.nonzero().tolist():
                spelt[row][column].append(int(labels[row, column]))
            slots[:active] = source.gather(1, slots[:active])
        return [
            [(ids[::-1], score) for ids, score in zip(texts, row, strict=True) if score > _IMPOSSIBLE]
            for texts, row in zip(spelt, scores.tolist(), strict=True)
        ]


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
