"""Words and their spellings, and beam search for words of a lexicon with flashlight-text (extra `lm`).

A lexicon is a text file with one word and its spelling per line, such as "HELLO H E L L O |". A search through it only
finds its words: in place of any other word it returns the words of the lexicon that sound most like it.

The search gives the results of torchaudio's `ctc_decoder`, which is the same decoder; but searches with different
weights share lexicon and language model. T frames, V labels.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from parp_cli.data.labels import BLANK_ID, BOUNDARY, Vocabulary
from parp_cli.data.text import normalize_text
from parp_cli.decoding.lm import Reloading, cannot_load, flashlight, quiet_loading
from parp_cli.decoding.search import Hypothesis, collapse
from parp_cli.errors import DataError, UsageError, first_few

Lexicon = Mapping[str, tuple[tuple[str, ...], ...]]
"""Spellings of each word, in symbols of a vocabulary; each ends with its delimiter."""

_BEAM_THRESHOLD = 25.0
"""Hypotheses that score this much below the best one are dropped after each frame. torchaudio's default of 50 takes
four times as long and found the same words wherever it was tried; 15 loses some."""


class Spelled(NamedTuple):
    """A lexicon, and the words left out of it because the vocabulary lacks one of their letters."""

    lexicon: Lexicon
    left_out: list[str]


def spelling(letters: Sequence[str], vocabulary: Vocabulary) -> tuple[str, ...] | None:
    """The letters of a word (or the word itself) and the delimiter after it; None where the vocabulary lacks one.

    In the vocabulary's case: published language models are often lower case, and most models upper case. Where it has
    no "ß", a word that has is spelled with "SS".
    """
    word = normalize_text("".join(letters))
    for same in (word, word.upper()) if vocabulary.case == "upper" else (word,):
        symbols = vocabulary.spelling(same)
        if symbols and vocabulary.delimiter is not None and vocabulary.letters.issuperset(symbols):
            return (*symbols, vocabulary.delimiter)
    return None


def lexicon_of(words: Iterable[str], vocabulary: Vocabulary) -> Spelled:
    """Words spelled letter by letter, sorted.

    Raises `UsageError`, `DataError`: the vocabulary is of phones, or spells none of the words.
    """
    require_letters(vocabulary)
    spellings = {word: spelling(word, vocabulary) for word in sorted(set(words))}
    spelled = {word: (found,) for word, found in spellings.items() if found is not None}
    left_out = [word for word in spellings if word not in spelled]
    if not spelled:
        raise DataError(
            "no word can be spelled with the vocabulary's letters",
            details=first_few(left_out),
            hint="the text is of another language or script than the model",
        )
    return Spelled(spelled, left_out)


def lexicon_lines(lexicon: Lexicon) -> str:
    """A lexicon in its file format."""
    return "".join(f"{word}\t{' '.join(letters)}\n" for word, spellings in lexicon.items() for letters in spellings)


def read_lexicon(path: Path, vocabulary: Vocabulary) -> Spelled:
    """The words of a lexicon file; spellings may be of another case, and lack the boundary at their end.

    Raises as `lexicon_of`, also for files that cannot be read or have lines that are no word with a spelling.
    """
    require_letters(vocabulary)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the lexicon {path}", details=[str(error)]) from error
    found: dict[str, list[tuple[str, ...]]] = {}
    left_out, problems = [], []
    for number, line in enumerate(lines, start=1):
        word, *letters = line.split() or [""]
        letters = letters[:-1] if letters[-1:] == [BOUNDARY] else letters
        if not letters:
            problems += [f"line {number}: {line.strip()!r}"] if word else []
        elif (spelled := spelling(letters, vocabulary)) is None:
            left_out.append(word)
        elif spelled not in found.setdefault(word, []):
            found[word].append(spelled)
    if problems or not found:
        raise DataError(
            f"{path} is not a lexicon of the vocabulary's letters",
            details=first_few(problems or list(dict.fromkeys(left_out))),
            hint='each line is a word and its letters separated by spaces, such as "HELLO H E L L O |"',
        )
    lexicon = {word: tuple(spellings) for word, spellings in found.items()}
    return Spelled(lexicon, [word for word in dict.fromkeys(left_out) if word not in lexicon])


def outside(references: Iterable[str], lexicon: Lexicon) -> Counter[str]:
    """Words of references, and how often they occur, that a search through the lexicon cannot find."""
    known = {"".join(letters[:-1]) for spellings in lexicon.values() for letters in spellings}
    return Counter(word for reference in references for word in reference.split() if word not in known)


def require_letters(vocabulary: Vocabulary) -> None:
    """Refuse vocabularies that do not mark where a word ends."""
    if vocabulary.labels != "letters" or vocabulary.delimiter is None:
        writes = "phones" if vocabulary.labels == "phones" else "no boundary between words"
        raise UsageError(
            f"words are spelled in letters, and this model writes {writes}",
            hint="decode greedily, or with --decoder beam and no language model",
        )


@dataclass(frozen=True, kw_only=True)
class LexiconTrie(Reloading):
    """A lexicon as a tree of letters, with a language model file if any: what takes long to load, whatever the weights.

    Loaded when first needed, and shared by all searches that hold it.
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
        decoder, (language_model, trie) = flashlight("decoder"), self._loaded
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
        # No word stands for all others, as only the lexicon's are searched for, and CTC has no transitions.
        return decoder.LexiconDecoder(options, trie, language_model, self.boundary, BLANK_ID, -1, [], False)

    @property
    def boundary(self) -> int:
        """Label of the word delimiter."""
        assert self.vocabulary.delimiter is not None
        return self.vocabulary.symbols.index(self.vocabulary.delimiter)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """flashlight's language model and trie."""
        require_letters(self.vocabulary)
        decoder = flashlight("decoder")
        language_model = self._open()
        trie = decoder.Trie(len(self.vocabulary), self.boundary)
        begin = language_model.start(False)
        for number, spellings in enumerate(self.lexicon.values()):
            # The look-ahead score while a word is incomplete.
            _, score = language_model.score(begin, number)
            for letters in spellings:
                trie.insert(list(map(self.vocabulary.symbols.index, letters)), number, score)
        trie.smear(decoder.SmearingMode.MAX)
        return language_model, trie

    def _open(self) -> Any:
        """The language model, in which a word's number is its place in the lexicon."""
        if self.language_model is None:
            return flashlight("decoder").ZeroLM()
        kenlm, words = flashlight("decoder.kenlm"), flashlight("dictionary").Dictionary(list(self.lexicon))
        try:
            with quiet_loading():
                return kenlm.KenLM(str(self.language_model), words)
        except RuntimeError as error:
            raise cannot_load(self.language_model, error) from error


@dataclass(frozen=True, kw_only=True)
class LexiconSearch(Reloading):
    """Beam search through a lexicon.

    The score is the natural logarithm of the best alignment's CTC probability, plus `lm_weight` times the language
    model's log10 probability of the words and the end of the sentence, plus `word_score` per word. (flashlight takes
    log10 from KenLM; published weights are for this scale.)

    Attributes:
        trie: words and language model; `dataclasses.replace` gives a search with other weights that shares it.
        beam_size: hypotheses kept after each frame.
        word_score: added per word: above 0 favours more and shorter words.
    """

    trie: LexiconTrie
    beam_size: int = 50
    lm_weight: float = 2.0
    word_score: float = 0.0
    nbest: int = 1
    pays_in_processes = True  # although each process loads words and language model for itself

    def __call__(self, logits: Sequence[Tensor]) -> list[list[Hypothesis]]:
        """Hypotheses of each utterance, best first, from its logits (T_i, V) up to a constant per frame.

        There are none where not even the shortest word fits its frames. Raises as `LexiconTrie.decoder`.
        """
        return [self._search(self._with_end(item)) for item in logits]

    @cached_property
    def decoder(self) -> Any:
        """flashlight's decoder, loaded when first asked for. Raises as `LexiconTrie.decoder`."""
        return self.trie.decoder(beam_size=self.beam_size, lm_weight=self.lm_weight, word_score=self.word_score)

    def _search(self, frames: Tensor) -> list[Hypothesis]:
        results = self.decoder.decode(frames.data_ptr(), *frames.shape)
        best: dict[str, Hypothesis] = {}
        # Hypotheses that read the same can differ in their spaces.
        for result in results[: self.nbest if self.nbest == 1 else 2 * self.nbest]:
            # From the letters, as the lexicon's words may be of another case than the references.
            text = self.trie.vocabulary.decode(collapse(torch.tensor(result.tokens)))
            best.setdefault(text, Hypothesis(text, float(result.score)))
        return list(best.values())[: self.nbest]

    def _with_end(self, logits: Tensor) -> Tensor:
        """Log probabilities (T + 1, V) of logits (T, V), with a frame appended that is certainly a word boundary."""
        # Spellings end with it, so that words cannot run together; but models learn to write it only between words.
        frames = logits.detach().cpu().float().log_softmax(-1)
        end = torch.full((1, len(self.trie.vocabulary)), float("-inf"))
        end[0, self.trie.boundary] = 0.0
        return torch.cat([frames, end]).contiguous()
