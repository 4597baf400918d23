"""Beam search for words of a lexicon, with or without an n-gram language model: flashlight-text's (extra `lm`).

Results are those of torchaudio's `ctc_decoder`, which is the same decoder. That one loads lexicon and language model
anew for each pair of weights; here searches of different weights share them.

T frames, V labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parp_cli.data.labels import BLANK_ID, BOUNDARY, Vocabulary
from parp_cli.decoding.beam import Hypothesis
from parp_cli.decoding.greedy import collapse
from parp_cli.decoding.language_model import flashlight, quiet_loading
from parp_cli.decoding.lexicon import Lexicon, require_letters
from parp_cli.errors import DataError

_BEAM_THRESHOLD = 25.0
"""Hypotheses whose score is so far below the best one's are dropped after each frame. torchaudio's own 50 takes four
times as long and found the same words wherever it was tried; 15 loses some."""

_NO_UNKNOWN_WORD = -1
"""Number of the word that stands for all others: there is none, as only the lexicon's words are searched for."""


class _Loaded(NamedTuple):
    """flashlight's own objects."""

    language_model: Any
    trie: Any


@dataclass(frozen=True, kw_only=True)
class LexiconTrie:
    """A lexicon as a tree of letters, with a language model: what takes long to load, and knows of no weights.

    Loaded once, when it is first needed; all searches that have it share what was loaded.

    Attributes:
        vocabulary: of letters.
        lexicon: of the vocabulary's letters.
        language_model: ARPA or KenLM binary, as `language_model.open_language_model` accepts it; None for none.
    """

    vocabulary: Vocabulary
    lexicon: Lexicon
    language_model: Path | None = None

    def decoder(self, *, beam_size: int, lm_weight: float, word_score: float) -> Any:
        """flashlight's decoder, which must not outlive this object.

        Raises:
            UsageError: the extra `lm` is not installed, or the vocabulary is of phones.
            DataError: the language model cannot be read.
        """
        decoder, loaded = flashlight("decoder"), self._loaded
        options = decoder.LexiconDecoderOptions(
            beam_size=beam_size,
            beam_size_token=len(self.vocabulary),
            beam_threshold=_BEAM_THRESHOLD,
            lm_weight=lm_weight,
            word_score=word_score,
            unk_score=float("-inf"),
            sil_score=0.0,
            log_add=False,
            criterion_type=decoder.CriterionType.CTC,
        )
        transitions: list[float] = []  # between labels: CTC has none
        return decoder.LexiconDecoder(
            options, loaded.trie, loaded.language_model, self._boundary, BLANK_ID, _NO_UNKNOWN_WORD, transitions, False
        )

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: what was loaded cannot go to another process, which loads its own."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def _boundary(self) -> int:
        return self.vocabulary.symbols.index(BOUNDARY)

    @cached_property
    def _loaded(self) -> _Loaded:
        require_letters(self.vocabulary)
        decoder = flashlight("decoder")
        ids = {symbol: label for label, symbol in enumerate(self.vocabulary.symbols)}
        language_model = self._open()
        trie = decoder.Trie(len(self.vocabulary), self._boundary)
        begin = language_model.start(False)
        for number, spellings in enumerate(self.lexicon.values()):
            # Looked ahead to while a word is not yet whole.
            _, score = language_model.score(begin, number)
            for letters in spellings:
                trie.insert([ids[letter] for letter in letters], number, score)
        trie.smear(decoder.SmearingMode.MAX)
        return _Loaded(language_model, trie)

    def _open(self) -> Any:
        """The language model, in which words have the numbers of their places in the lexicon."""
        if self.language_model is None:
            return flashlight("decoder").ZeroLM()
        kenlm, words = flashlight("decoder.kenlm"), flashlight("dictionary").Dictionary(list(self.lexicon))
        try:
            with quiet_loading():
                return kenlm.KenLM(str(self.language_model), words)
        except RuntimeError as error:
            raise DataError(
                f"the language model {self.language_model} cannot be loaded",
                details=str(error).splitlines()[:3],
                hint="build one with `parp lm build`, or with KenLM's own tools",
            ) from error


@dataclass(frozen=True, kw_only=True)
class LexiconSearch:
    """Beam search through a lexicon.

    The score is the natural logarithm of the best alignment's CTC probability, plus `lm_weight` times the language
    model's log10 probability of the words and the end of the sentence, plus `word_score` for each word. (log10 is what
    flashlight takes from KenLM; published weights are for this scale.)

    Attributes:
        trie: words and language model; `dataclasses.replace` gives a search with other weights that shares it.
        beam_size: hypotheses kept after each frame.
        lm_weight: of the language model; at least 0.
        word_score: added for each word: above 0 for more and shorter words.
        nbest: most hypotheses of an utterance.
    """

    trie: LexiconTrie
    beam_size: int = 50
    lm_weight: float = 2.0
    word_score: float = 0.0
    nbest: int = 1

    def __call__(self, logits: Sequence[Tensor]) -> list[list[Hypothesis]]:
        """Hypotheses of each utterance, best first. None where not even the lexicon's shortest word fits its frames.

        Args:
            logits: of each utterance, (T_i, V), in natural logarithms up to a constant of each frame.

        Raises:
            UsageError: the extra `lm` is not installed, or the vocabulary is of phones.
            DataError: the language model cannot be read.
        """
        return [self._found(_with_end(item, self.trie.vocabulary)) for item in logits]

    @property
    def pays_in_processes(self) -> bool:
        """Whether several processes search faster than one, although each loads words and language model for itself."""
        return True

    def load(self) -> None:
        """Load now what the first call would load, so that what is wrong with it shows at once.

        Raises:
            As a call does.
        """
        _ = self._decoder

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: the decoder cannot go to another process, which makes its own."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def _decoder(self) -> Any:
        return self.trie.decoder(beam_size=self.beam_size, lm_weight=self.lm_weight, word_score=self.word_score)

    def _found(self, frames: Tensor) -> list[Hypothesis]:
        """Of one utterance's log probabilities (T, V)."""
        results = self._decoder.decode(frames.data_ptr(), *frames.shape)
        best: dict[str, Hypothesis] = {}
        # Hypotheses that read the same can differ in their spaces.
        for result in results[: self.nbest if self.nbest == 1 else 2 * self.nbest]:
            # From the letters, as the lexicon's words may be of another case than the references.
            text = self.trie.vocabulary.decode(collapse(torch.tensor(result.tokens)))
            best.setdefault(text, Hypothesis(text, float(result.score)))
        return list(best.values())[: self.nbest]


def _with_end(logits: Tensor, vocabulary: Vocabulary) -> Tensor:
    """Log probabilities (T + 1, V) of logits (T, V), with a frame at the end that is surely a word boundary.

    Spellings end with the boundary, so that words cannot run together; but models learn to write it between words only.
    """
    frames = logits.detach().cpu().float().log_softmax(-1)
    end = torch.full((1, len(vocabulary)), float("-inf"))
    end[0, vocabulary.symbols.index(BOUNDARY)] = 0.0
    return torch.cat([frames, end]).contiguous()
