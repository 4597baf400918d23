"""How to decode, as a user says it: greedily, with a beam, or with a lexicon; with a language model or without."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor

from parp_cli.data.labels import Vocabulary
from parp_cli.decoding.beam import BeamSearch, Hypothesis
from parp_cli.decoding.greedy import collapse
from parp_cli.decoding.language_model import LanguageModel, open_language_model, words_of
from parp_cli.decoding.lexicon import Spelt, lexicon_of, read_lexicon, require_letters
from parp_cli.decoding.lexicon_search import LexiconSearch, LexiconTrie
from parp_cli.decoding.rescore import NGramScorer, Rescored, Scorer, TransformerScorer
from parp_cli.errors import UsageError

Decoder = Literal["greedy", "beam", "lexicon"]

DECODERS: tuple[Decoder, ...] = get_args(Decoder)

BEAM_SIZES: dict[Decoder, int] = {"greedy": 1, "beam": 50, "lexicon": 500}
"""Where none is asked for. A lexicon's hypotheses differ in words that sound alike, so it needs more of them."""

RESCORED_BEAM_SIZE = 200
"""Of a beam whose n-best list a language model then reorders: the more there is to choose from, the better."""

LM_WEIGHT, WORD_SCORE = 2.0, 0.0
"""Where none are asked for."""

_HUB = "hf:"


@dataclass(frozen=True)
class GreedySearch:
    """The likeliest label of every frame. Its score is the natural logarithm of that path's probability."""

    vocabulary: Vocabulary

    def __call__(self, logits: Sequence[Tensor]) -> list[list[Hypothesis]]:
        """One hypothesis of each utterance, from its logits (T_i, V)."""
        found = []
        for item in logits:
            path = item.argmax(-1)
            chosen = item.double().log_softmax(-1).gather(1, path[:, None])
            score = float(chosen.sum())
            found.append([Hypothesis(self.vocabulary.decode(collapse(path.cpu())), score)])
        return found

    @property
    def pays_in_processes(self) -> bool:
        """Whether several processes search faster than one: sending them the logits takes longer than the search."""
        return False


Tunable = LexiconSearch | Rescored
"""Searches that have a language model's weight and a word score."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How to decode. What is None is as usual; what is not must have an effect.

    Attributes:
        decoder: "greedy"; "beam", which sums over alignments, finds any word, and lets a language model only reorder
            what it found; or "lexicon", which finds the words of a lexicon alone.
        lm: an ARPA file (.gz or not), a KenLM binary, or one of `language_model.PUBLISHED`; for "beam" also "hf:" and
            the name or folder of a causal Transformer.
        lexicon: words with their letters; by default the language model's words, or what was published with it.
        beam_size: by default `BEAM_SIZES`, and `RESCORED_BEAM_SIZE` for a beam with a language model.
        lm_weight: of the language model's log10 probability; by default `LM_WEIGHT`.
        word_score: added for each word that a lexicon or a language model knows of; by default `WORD_SCORE`.
        nbest: most hypotheses of an utterance.
    """

    decoder: Decoder = "greedy"
    lm: str | None = None
    lexicon: Path | None = None
    beam_size: int | None = None
    lm_weight: float | None = None
    word_score: float | None = None
    nbest: int = 1


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A search, and what its words are.

    Attributes:
        search: of `decoding`.
        spelt: the lexicon, and the words that the vocabulary cannot spell; None where any word can be found.
        lexicon: the file that the words are from; None where they are the language model's own, or there is no lexicon.
        lm: the language model as it was asked for.
    """

    search: GreedySearch | BeamSearch | Tunable
    spelt: Spelt | None = None
    lexicon: Path | None = None
    lm: str | None = None

    @property
    def tunable(self) -> bool:
        """Whether there are weights to tune."""
        return isinstance(self.search, Tunable)

    @property
    def told(self) -> str:
        """How it decodes, in words, with all figures that have a part in it."""
        search = self.search
        match search:
            case GreedySearch():
                return "greedy"
            case BeamSearch():
                return f"beam search, beam {search.beam_size}"
            case Rescored():
                parts = ["beam search", f"beam {search.search.beam_size}", f"reordered by LM {self.lm}"]
            case LexiconSearch():
                words = "the LM's own words" if self.lexicon is None else str(self.lexicon)
                parts = ["lexicon search", f"beam {search.beam_size}", f"lexicon {words}"]
                parts += [] if self.lm is None else [f"LM {self.lm}"]
        parts += [] if self.lm is None else [f"LM weight {search.lm_weight:g}"]
        return ", ".join([*parts, f"word score {search.word_score:g}"])


def choose(decoding: Decoding, vocabulary: Vocabulary, *, device: str = "cpu") -> Chosen:
    """The search that a user asks for, loaded: what is wrong with files or packages shows before any audio is read.

    Args:
        device: where a Transformer judges hypotheses; all else is done by the processor.

    Raises:
        UsageError: the options do not go together, or the vocabulary is of phones and needs letters.
        DataError: a file cannot be used.
    """
    _check(decoding)
    beam_size = decoding.beam_size or BEAM_SIZES[decoding.decoder]
    lm_weight = LM_WEIGHT if decoding.lm_weight is None else decoding.lm_weight
    word_score = WORD_SCORE if decoding.word_score is None else decoding.word_score
    match decoding.decoder:
        case "greedy":
            return Chosen(search=GreedySearch(vocabulary))
        case "beam" if decoding.lm is None:
            return Chosen(search=BeamSearch(vocabulary=vocabulary, beam_size=beam_size, nbest=decoding.nbest))
        case "beam":
            assert decoding.lm is not None
            require_letters(vocabulary)
            beam_size = decoding.beam_size or RESCORED_BEAM_SIZE
            rescored = Rescored(
                search=BeamSearch(vocabulary=vocabulary, beam_size=beam_size, nbest=beam_size),
                scorer=_scorer(decoding.lm, device),
                lm_weight=lm_weight,
                word_score=word_score,
                nbest=decoding.nbest,
            )
            return Chosen(search=rescored, lm=decoding.lm)
        case "lexicon":
            require_letters(vocabulary)
            model = None if decoding.lm is None else open_language_model(decoding.lm)
            lexicon = decoding.lexicon or (None if model is None else model.lexicon)
            spelt = _spelt(lexicon, model, vocabulary)
            trie = LexiconTrie(
                vocabulary=vocabulary,
                lexicon=spelt.lexicon,
                language_model=None if model is None else model.path,
            )
            search = LexiconSearch(
                trie=trie, beam_size=beam_size, lm_weight=lm_weight, word_score=word_score, nbest=decoding.nbest
            )
            search.load()
            return Chosen(search=search, spelt=spelt, lexicon=lexicon, lm=decoding.lm)


def _check(decoding: Decoding) -> None:
    if decoding.decoder not in DECODERS:
        raise UsageError(f"no decoder {decoding.decoder}", hint="name one of " + ", ".join(DECODERS))
    if decoding.decoder == "greedy" and (decoding.lm is not None or decoding.lexicon is not None):
        raise UsageError(
            "greedy decoding has no use for a language model or a lexicon", hint="add --decoder lexicon, or beam"
        )
    if decoding.decoder == "beam" and decoding.lexicon is not None:
        raise UsageError("a beam search without lexicon was given a lexicon", hint="add --decoder lexicon")
    if decoding.decoder == "lexicon" and decoding.lm is None and decoding.lexicon is None:
        raise UsageError(
            "decoding with a lexicon needs to know its words",
            hint="name a language model with --lm or a lexicon with --lexicon; `parp lm build` makes both",
        )
    if decoding.decoder == "lexicon" and decoding.lm is not None and decoding.lm.startswith(_HUB):
        raise UsageError("a Transformer can only reorder hypotheses, not search for words", hint="add --decoder beam")
    _refuse_without_effect(decoding)
    if decoding.beam_size is not None and decoding.beam_size < 1:
        raise UsageError(f"a beam of {decoding.beam_size}", hint="give --beam-size at least 1")
    if decoding.lm_weight is not None and decoding.lm_weight < 0:
        raise UsageError(f"a language model's weight of {decoding.lm_weight:g}", hint="give at least 0")


def _refuse_without_effect(decoding: Decoding) -> None:
    """Refuse numbers that the search has no use for: who gives one believes that it counts."""
    what = {
        "greedy": "greedy decoding",
        "beam": "a beam search without language model",
        "lexicon": "a lexicon without language model",
    }[decoding.decoder]
    numbers = {
        "--beam-size": decoding.beam_size if decoding.decoder == "greedy" else None,
        "--lm-weight": decoding.lm_weight if decoding.lm is None else None,
        "--word-score": decoding.word_score if decoding.lm is None and decoding.decoder != "lexicon" else None,
    }
    for option, number in numbers.items():
        if number is not None:
            remedy = "--decoder beam or lexicon" if option == "--beam-size" else "a language model with --lm"
            raise UsageError(f"{what} has no use for {option}", hint=f"leave it out, or add {remedy}")


def _scorer(lm: str, device: str) -> Scorer:
    scorer = (
        TransformerScorer(lm.removeprefix(_HUB), device)
        if lm.startswith(_HUB)
        else NGramScorer(open_language_model(lm).path)
    )
    scorer.load()
    return scorer


def _spelt(path: Path | None, model: LanguageModel | None, vocabulary: Vocabulary) -> Spelt:
    if path is not None:
        return read_lexicon(path, vocabulary)
    assert model is not None
    return lexicon_of(words_of(model), vocabulary)
