"""The search that a user asks for: greedy, with a beam or a lexicon, with a language model or without."""

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

from parp_cli.data.labels import Vocabulary
from parp_cli.decoding.lexicon import (
    LexiconSearch,
    LexiconTrie,
    Spelled,
    lexicon_of,
    outside,
    read_lexicon,
    require_letters,
)
from parp_cli.decoding.lm import (
    PUBLISHED,
    LanguageModel,
    NGramScorer,
    TransformerScorer,
    arpa_words,
    flashlight,
    in_cases,
    open_language_model,
    require_kenlm,
)
from parp_cli.decoding.recognizer import Tunable
from parp_cli.decoding.search import BeamSearch, GreedySearch, Rescored
from parp_cli.errors import DataError, UsageError, first_few
from parp_cli.runtime.progress import Notify, silent

Decoder = Literal["greedy", "beam", "lexicon"]

DECODERS: tuple[Decoder, ...] = get_args(Decoder)

BEAM_SIZES: dict[Decoder, int] = {"greedy": 1, "beam": 50, "lexicon": 500}
"""Defaults. A lexicon's hypotheses differ in words that sound alike, so it needs more of them."""

RESCORED_BEAM_SIZE = 200
"""Default for a beam whose n-best list a language model reorders: the more to choose from, the better."""

LM_WEIGHT, WORD_SCORE = 2.0, 0.0

_HUB = "hf:"


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How to decode. None means the default; any other value must have an effect.

    Attributes:
        decoder: "greedy"; "beam", which sums over alignments, finds any word, and lets a language model only reorder
            its n-best list; or "lexicon", which finds only the words of a lexicon.
        lm: an ARPA file (.gz or not), a KenLM binary, or a name in `lm.PUBLISHED`; for "beam" also "hf:" and the name
            or folder of a causal Transformer.
        lexicon: words and their letters; by default the language model's words, or the file published with it.
        word_score: added per word where there is a lexicon or a language model.
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
    """A loaded search and where its words come from.

    Attributes:
        spelled: the lexicon, and the words that the vocabulary cannot spell; None where any word can be found.
        lexicon: the file of the words; None where they are the language model's own, or there is no lexicon.
        lm: the language model as it was asked for.
        unknown: words of the lexicon that the language model does not know.
    """

    search: GreedySearch | BeamSearch | Tunable
    spelled: Spelled | None = None
    lexicon: Path | None = None
    lm: str | None = None
    unknown: tuple[str, ...] = ()

    def notes(self, references: Sequence[str]) -> list[str]:
        """Notes on the reference words that the lexicon or the language model lacks, if any.

        Raises `DataError`: it lacks all of them.
        """
        words = Counter(word for reference in references for word in reference.split())
        scorer = self.search.scorer if isinstance(self.search, Rescored) else None
        notes = []
        if self.unknown:
            some, count = ", ".join(first_few(self.unknown, 5)), len(self.spelled.lexicon) if self.spelled else 0
            notes.append(f"{len(self.unknown):,} of {count:,} words of the lexicon are unknown to the LM: {some}")
        if self.spelled is not None:
            missing = outside(references, self.spelled.lexicon)
            notes += self._missing(missing, words, "are not in the lexicon and cannot be found")
        if isinstance(scorer, NGramScorer):
            missing = Counter({word: count for word, count in words.items() if not scorer.knows(word)})
            notes += self._missing(missing, words, "are unknown to the LM")
        return notes

    def _missing(self, missing: Counter[str], words: Counter[str], where: str) -> list[str]:
        if not missing:
            return []
        most = ", ".join(first_few([word for word, _ in missing.most_common()], 5))
        note = f"{missing.total():,} of {words.total():,} reference words {where}: {most}"
        if missing.total() == words.total():
            hint = "take a lexicon or language model of the same language, script and words"
            name = self.lm or self.lexicon
            raise DataError(f"{name} has none of the words of the references", details=[note], hint=hint)
        return [note]

    def describe(self) -> str:
        """The decoding in words, with every number that affects it."""
        search = self.search
        if isinstance(search, GreedySearch):
            return "greedy"
        if isinstance(search, BeamSearch):
            return f"beam search, beam {search.beam_size}"
        lm = "" if self.lm is None else f"LM {self.lm}, LM weight {search.lm_weight:g}, "
        if isinstance(search, Rescored):
            text = f"beam search, beam {search.search.beam_size}, reordered by {lm}"
        else:
            words = "the LM's own words" if self.lexicon is None else str(self.lexicon)
            text = f"lexicon search, beam {search.beam_size}, lexicon {words}, {lm}"
        return f"{text}word score {search.word_score:g}"


def choose(decoding: Decoding, vocabulary: Vocabulary, *, device: str = "cpu", notify: Notify = silent) -> Chosen:
    """The search that a user asks for, loaded, so that bad files and missing packages show before any audio is read.

    Args:
        device: where a Transformer scores hypotheses; all else runs on the CPU.

    Raises:
        UsageError: the options do not go together, or the vocabulary is of phones and must be of letters.
        DataError: a file cannot be used.
    """
    _check(decoding)
    lm, beam_size = decoding.lm, decoding.beam_size or BEAM_SIZES[decoding.decoder]
    lm_weight = LM_WEIGHT if decoding.lm_weight is None else decoding.lm_weight
    word_score = WORD_SCORE if decoding.word_score is None else decoding.word_score
    if decoding.decoder == "greedy":
        return Chosen(search=GreedySearch(vocabulary))
    if decoding.decoder == "beam" and lm is None:
        return Chosen(search=BeamSearch(vocabulary=vocabulary, beam_size=beam_size, nbest=decoding.nbest))
    require_letters(vocabulary)
    if lm in PUBLISHED:  # missing packages show before gigabytes are downloaded
        _ = require_kenlm() if decoding.decoder == "beam" else flashlight("decoder")
    if decoding.decoder == "beam" and lm is not None:
        beam_size = decoding.beam_size or RESCORED_BEAM_SIZE
        rescored = Rescored(
            search=BeamSearch(vocabulary=vocabulary, beam_size=beam_size, nbest=beam_size),
            scorer=_scorer(lm, device, notify),
            lm_weight=lm_weight,
            word_score=word_score,
            nbest=decoding.nbest,
        )
        return Chosen(search=rescored, lm=lm)
    model = None if lm is None else open_language_model(lm, notify)
    lexicon = decoding.lexicon or (None if model is None else model.lexicon)
    if lexicon is None and model is not None:
        spelled = lexicon_of(arpa_words(model), vocabulary)
    else:
        assert lexicon is not None
        spelled = read_lexicon(lexicon, vocabulary)
    unknown: list[str] = []
    if model is not None and decoding.lexicon is not None:
        spelled, unknown = _in_words_of(model, spelled)
    path = None if model is None else model.path
    search = LexiconSearch(
        trie=LexiconTrie(vocabulary=vocabulary, lexicon=spelled.lexicon, language_model=path),
        beam_size=beam_size,
        lm_weight=lm_weight,
        word_score=word_score,
        nbest=decoding.nbest,
    )
    _ = search.decoder
    return Chosen(search=search, spelled=spelled, lexicon=lexicon, lm=lm, unknown=tuple(unknown))


def _in_words_of(model: LanguageModel, spelled: Spelled) -> tuple[Spelled, list[str]]:
    """A lexicon in the case of a language model's words, and its words that this does not know.

    Raises `DataError`: it knows none of the words, or cannot be read.
    """
    if model.kind == "binary" and find_spec("kenlm") is None:  # which alone can be asked for its words
        return spelled, []
    known: Container[str] = set(arpa_words(model)) if model.kind == "arpa" else NGramScorer(model.path).model
    lexicon: dict[str, tuple[tuple[str, ...], ...]] = {}
    unknown = []
    for word, spellings in spelled.lexicon.items():
        same = next((same for same in in_cases(word) if same in known), None)
        if same is None:
            unknown.append(word)
        lexicon[same or word] = tuple(dict.fromkeys((*lexicon.get(same or word, ()), *spellings)))
    if len(unknown) == len(spelled.lexicon):
        hint = "take a lexicon and a language model of the same words"
        raise DataError(f"{model.path} knows no word of the lexicon", details=first_few(unknown, 5), hint=hint)
    return Spelled(lexicon, spelled.left_out), unknown


def _check(decoding: Decoding) -> None:
    decoder, lm, lexicon = decoding.decoder, decoding.lm, decoding.lexicon
    beam_size, lm_weight, word_score = decoding.beam_size, decoding.lm_weight, decoding.word_score
    greedy, by_lexicon, no_lm = decoder == "greedy", decoder == "lexicon", lm is None
    with_lm = "a language model with --lm"

    def refuse(wrong: bool, message: str, hint: str) -> None:
        if wrong:
            raise UsageError(message, hint=hint)

    refuse(decoder not in DECODERS, f"no decoder {decoder}", "name one of " + ", ".join(DECODERS))
    useless = "greedy decoding has no use for a language model or a lexicon"
    refuse(greedy and not (no_lm and lexicon is None), useless, "add --decoder lexicon, or beam")
    useless = "a beam search without lexicon was given a lexicon"
    refuse(decoder == "beam" and lexicon is not None, useless, "add --decoder lexicon")
    remedy = "name a language model with --lm or a lexicon with --lexicon; `parp lm build` makes both"
    refuse(by_lexicon and no_lm and lexicon is None, "decoding with a lexicon needs to know its words", remedy)
    useless = "a Transformer can only reorder hypotheses, not search for words"
    refuse(by_lexicon and (lm or "").startswith(_HUB), useless, "add --decoder beam")
    # Numbers that would not affect the search: who gives one expects that it counts.
    refuse(greedy and beam_size is not None, *_no_use(decoder, "--beam-size", "--decoder beam or lexicon"))
    refuse(no_lm and lm_weight is not None, *_no_use(decoder, "--lm-weight", with_lm))
    refuse(no_lm and not by_lexicon and word_score is not None, *_no_use(decoder, "--word-score", with_lm))
    refuse(beam_size is not None and beam_size < 1, f"a beam of {beam_size}", "give --beam-size at least 1")
    refuse((lm_weight or 0) < 0, f"a language model weight of {lm_weight}", "give --lm-weight at least 0")


def _no_use(decoder: str, option: str, remedy: str) -> tuple[str, str]:
    what = {"beam": "a beam search without language model", "lexicon": "a lexicon without language model"}
    return f"{what.get(decoder, 'greedy decoding')} has no use for {option}", f"leave it out, or add {remedy}"


def _scorer(lm: str, device: str, notify: Notify) -> NGramScorer | TransformerScorer:
    scorer: NGramScorer | TransformerScorer
    if lm.startswith(_HUB):
        scorer = TransformerScorer(lm.removeprefix(_HUB), device)
    else:
        scorer = NGramScorer(open_language_model(lm, notify).path)
    _ = scorer.model
    return scorer
