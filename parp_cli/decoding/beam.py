"""CTC prefix beam search: the likeliest label sequences, each summed over all its alignments. No lexicon.

A prefix is a label sequence so far, kept with two probabilities: of the alignments that end with a blank, and of those
that end with its last label (Graves, "Sequence transduction with recurrent neural networks", 2012; Hannun et al.,
"First-pass large vocabulary continuous speech recognition using bi-directional recurrent DNNs", 2014).

B utterances, T frames, K prefixes of the beam, V labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from parp_cli.data.labels import BLANK_ID, Vocabulary

_UTTERANCES = 32
"""Searched at once: enough that the time goes into arithmetic, few enough for a hundred megabytes."""

_IMPOSSIBLE = float("-inf")

# Prefixes are told apart by polynomial hashes modulo 2^64 (tensors of int64 wrap around): two of some thousand
# prefixes of an utterance share one with a chance of about 1e-12.
_HASH_FACTOR = 6364136223846793005
_HASH_EMPTY = 1442695040888963407


@dataclass(frozen=True)
class Hypothesis:
    """What may have been said.

    Attributes:
        text: words, or phones divided by spaces.
        score: the higher, the likelier; comparable within one utterance and one way of searching only.
    """

    text: str
    score: float


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """Beam search over the labels alone; the score is the natural logarithm of the text's CTC probability.

    Attributes:
        vocabulary: of the logits.
        beam_size: label sequences kept after each frame.
        nbest: most hypotheses of an utterance. There are fewer where label sequences read the same (as with and
            without a word boundary at the end), whose probabilities are added, or where the beam holds fewer.
    """

    vocabulary: Vocabulary
    beam_size: int = 50
    nbest: int = 1

    def __call__(self, logits: Sequence[Tensor]) -> list[list[Hypothesis]]:
        """Hypotheses of each utterance, best first; those of one do not depend on the others.

        Args:
            logits: of each utterance, (T_i, V), in natural logarithms up to a constant of each frame.
        """
        found: dict[int, list[Hypothesis]] = {}
        # Longest first, so that the utterances that go on are always the first rows.
        order = sorted(range(len(logits)), key=lambda index: -len(logits[index]))
        for start in range(0, len(order), _UTTERANCES):
            batch = order[start : start + _UTTERANCES]
            searched = prefix_beam_search([logits[index] for index in batch], self.beam_size)
            found |= {index: self._read(prefixes) for index, prefixes in zip(batch, searched, strict=True)}
        return [found[index] for index in range(len(logits))]

    @property
    def pays_in_processes(self) -> bool:
        """Whether several processes search faster than one."""
        return True

    def _read(self, prefixes: list[tuple[list[int], float]]) -> list[Hypothesis]:
        scores: dict[str, Tensor] = {}
        for ids, score in prefixes:
            text = self.vocabulary.decode(ids)
            summand = torch.tensor(score, dtype=torch.float64)
            scores[text] = torch.logaddexp(scores[text], summand) if text in scores else summand
        best = sorted(scores.items(), key=lambda item: (-float(item[1]), item[0]))
        return [Hypothesis(text, float(score)) for text, score in best[: self.nbest]]


def prefix_beam_search(logits: Sequence[Tensor], beam_size: int) -> list[list[tuple[list[int], float]]]:
    """The label sequences in the beam at the end of each utterance, and their log probabilities, best first.

    They are lower bounds: alignments that pass through a prefix the beam had dropped are not in them.

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
    """K prefixes each of B utterances, all at the same frame. Slots whose probability is zero stand for no prefix."""

    def __init__(self, utterances: int, beam_size: int) -> None:
        shape = (utterances, beam_size)
        self._blank = torch.full(shape, _IMPOSSIBLE, dtype=torch.float64)  # log probability, ending with a blank
        self._blank[:, 0] = 0.0
        self._label = torch.full(shape, _IMPOSSIBLE, dtype=torch.float64)  # ending with the last label
        self._last = torch.full(shape, BLANK_ID)  # the last label; of the empty prefix none, which blank stands for
        self._hash = torch.full(shape, _HASH_EMPTY)
        self._parent_hash = torch.zeros(shape, dtype=torch.int64)  # of the prefix without its last label
        self._history: list[tuple[Tensor, Tensor]] = []  # of each frame: from which slot, and with which new label

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
        stay_label = self._merge(longer, stay_label, either)

        candidates = torch.cat([torch.logaddexp(stay_blank, stay_label), longer.flatten(1)], dim=1)
        chosen = candidates.topk(slots, dim=1, sorted=True).indices
        stays = chosen < slots
        grown = (chosen - slots).clamp(min=0)
        source = torch.where(stays, chosen, grown // labels)
        new = torch.where(stays, BLANK_ID, grown % labels)

        kept = self._hash[:active].gather(1, source)
        self._parent_hash[:active] = torch.where(stays, self._parent_hash[:active].gather(1, source), kept)
        self._hash[:active] = torch.where(stays, kept, kept * _HASH_FACTOR + new)
        self._last[:active] = torch.where(stays, last.gather(1, source), new)
        score = candidates.gather(1, chosen)
        self._blank[:active] = torch.where(stays, stay_blank.gather(1, source), _IMPOSSIBLE)
        self._label[:active] = torch.where(stays, stay_label.gather(1, source), score)
        self._history.append((source, new))

    def _merge(self, longer: Tensor, stay_label: Tensor, either: Tensor) -> Tensor:
        """Move what a prefix gains by a new label to the slot that has the longer prefix already.

        Args:
            longer: (B', K, V) of prefixes with a new label; those merged are made impossible.
            stay_label: (B', K) of prefixes as they are that end with their last label.
            either: (B', K) of prefixes before this frame.

        Returns:
            `stay_label` with what was moved.
        """
        active = len(longer)
        # A slot without a prefix must take nothing, or it would become the double of another one.
        alive = either > _IMPOSSIBLE
        is_parent = (self._hash[:active, None, :] == self._parent_hash[:active, :, None]) & alive[:, None, :]
        utterance, slot = (is_parent.any(2) & alive & (self._last[:active] != BLANK_ID)).nonzero(as_tuple=True)
        parent = is_parent.to(torch.uint8).argmax(2)[utterance, slot]
        label = self._last[utterance, slot]
        gained = longer[utterance, parent, label]
        longer[utterance, parent, label] = _IMPOSSIBLE
        merged = stay_label.clone()
        merged[utterance, slot] = torch.logaddexp(stay_label[utterance, slot], gained)
        return merged

    def read(self) -> list[list[tuple[list[int], float]]]:
        """Label ids and log probability of every prefix, best first, utterance by utterance."""
        scores = torch.logaddexp(self._blank, self._label)
        order = scores.argsort(dim=1, descending=True, stable=True)
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
            for texts, row in zip(spelt, scores.gather(1, order).tolist(), strict=True)
        ]
