import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from parp_cli.data.labels import BLANK, BOUNDARY, Vocabulary
from parp_cli.decoding.choose import BEAM_SIZES, DECODERS, RESCORED_BEAM_SIZE, Decoding, choose
from parp_cli.decoding.kneser_ney import estimate, write_arpa
from parp_cli.decoding.lexicon import LexiconSearch, LexiconTrie
from parp_cli.decoding.lm import LanguageModel, NGramScorer, TransformerScorer
from parp_cli.decoding.recognizer import Tunable
from parp_cli.decoding.search import BeamSearch, GreedySearch, Rescored, collapse
from parp_cli.errors import DataError, UsageError

VOCABULARY = Vocabulary((BLANK, BOUNDARY, "A", "B"), "letters")
PHONES = Vocabulary((BLANK, "AH", "B"), "phones")


@pytest.fixture
def language_model(tmp_path: Path) -> str:
    with (tmp_path / "lm.arpa").open("w") as file:
        write_arpa(estimate(["A BB", "AB ZOO"], 2), file)
    return str(tmp_path / "lm.arpa")


def test_greedy() -> None:
    chosen = choose(Decoding(), VOCABULARY)
    assert chosen.search == GreedySearch(VOCABULARY)
    assert chosen.spelled is None
    assert not isinstance(chosen.search, Tunable)
    logits = [torch.randn(length, 4, generator=torch.Generator().manual_seed(length)) for length in (1, 9, 30)]
    for item, (found,) in zip(logits, chosen.search(logits), strict=True):
        assert found.text == VOCABULARY.decode(collapse(item.argmax(-1)))
        assert found.score == pytest.approx(sum(row.log_softmax(-1).max().item() for row in item), abs=1e-5)


def test_beam() -> None:
    expected = BeamSearch(vocabulary=PHONES, beam_size=BEAM_SIZES["beam"], nbest=3)
    assert choose(Decoding(decoder="beam", nbest=3), PHONES).search == expected
    assert choose(Decoding(decoder="beam", beam_size=7), PHONES).search == BeamSearch(vocabulary=PHONES, beam_size=7)


def test_a_beam_with_a_language_model_reorders(language_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kenlm")
    loaded = []
    monkeypatch.setattr(TransformerScorer, "model", property(lambda scorer: loaded.append(scorer.name)))
    chosen = choose(Decoding(decoder="beam", lm=language_model, lm_weight=1.2, word_score=0.1), VOCABULARY)
    assert isinstance(chosen.search, Tunable)
    assert chosen.spelled is None
    assert chosen.search == Rescored(
        search=BeamSearch(vocabulary=VOCABULARY, beam_size=RESCORED_BEAM_SIZE, nbest=RESCORED_BEAM_SIZE),
        scorer=NGramScorer(Path(language_model)),
        lm_weight=1.2,
        word_score=0.1,
    )
    transformer = choose(Decoding(decoder="beam", lm="hf:gpt2"), VOCABULARY, device="cuda").search
    assert isinstance(transformer, Rescored)
    assert transformer.scorer == TransformerScorer("gpt2", "cuda")
    assert loaded == ["gpt2"]


def test_a_lexicon_is_the_language_models_words_or_the_file_named(language_model: str, tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text")
    chosen = choose(Decoding(decoder="lexicon", lm=language_model, beam_size=9), VOCABULARY)
    assert isinstance(chosen.search, Tunable)
    assert chosen.spelled is not None
    assert chosen.spelled.left_out == ["ZOO"]
    words = {word: ((*word, "|"),) for word in ("A", "AB", "BB")}
    trie = LexiconTrie(vocabulary=VOCABULARY, lexicon=words, language_model=Path(language_model))
    assert chosen.search == LexiconSearch(trie=trie, beam_size=9, lm_weight=2.0, word_score=0.0)
    (tmp_path / "lexicon.txt").write_text("B B |\n")
    named = choose(Decoding(decoder="lexicon", lexicon=tmp_path / "lexicon.txt"), VOCABULARY).search
    assert isinstance(named, LexiconSearch)
    assert named == LexiconSearch(
        trie=LexiconTrie(vocabulary=VOCABULARY, lexicon={"B": (("B", "|"),)}), beam_size=BEAM_SIZES["lexicon"]
    )


def test_what_is_told_is_what_is_done(language_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("flashlight.lib.text")
    monkeypatch.setattr(NGramScorer, "model", None)
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("BB B B |\n")
    lm = language_model
    for decoding, told in (
        (Decoding(), "greedy"),
        (Decoding(decoder="beam"), "beam search, beam 50"),
        (Decoding(decoder="beam", beam_size=7), "beam search, beam 7"),
        (
            Decoding(decoder="beam", lm=lm),
            f"beam search, beam 200, reordered by LM {lm}, LM weight 2, word score 0",
        ),
        (
            Decoding(decoder="beam", lm=lm, beam_size=9, lm_weight=0, word_score=-0.25),
            f"beam search, beam 9, reordered by LM {lm}, LM weight 0, word score -0.25",
        ),
        (
            Decoding(decoder="lexicon", lexicon=lexicon, word_score=1.5),
            f"lexicon search, beam 500, lexicon {lexicon}, word score 1.5",
        ),
        (
            Decoding(decoder="lexicon", lm=lm, lm_weight=1.25, beam_size=30),
            f"lexicon search, beam 30, lexicon the LM's own words, LM {lm}, LM weight 1.25, word score 0",
        ),
        (
            Decoding(decoder="lexicon", lm=lm, lexicon=lexicon),
            f"lexicon search, beam 500, lexicon {lexicon}, LM {lm}, LM weight 2, word score 0",
        ),
    ):
        assert choose(decoding, VOCABULARY).describe() == told
    chosen = choose(Decoding(decoder="lexicon", lm=lm), VOCABULARY)
    assert isinstance(chosen.search, LexiconSearch)
    tuned = replace(chosen, search=replace(chosen.search, lm_weight=0.5, word_score=-1.0))
    assert tuned.describe().endswith("LM weight 0.5, word score -1"), "the weights that were found, not those asked for"


def test_the_lexicon_that_was_published_with_a_model_is_told(
    language_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flashlight.lib.text")
    lexicon = tmp_path / "published.txt"
    lexicon.write_text("B B |\n")
    model = LanguageModel(path=Path(language_model), kind="binary", lexicon=lexicon)
    monkeypatch.setattr("parp_cli.decoding.choose.open_language_model", lambda name, notify: model)
    chosen = choose(Decoding(decoder="lexicon", lm="librispeech-4gram"), VOCABULARY)
    assert f"lexicon {lexicon}, LM librispeech-4gram, LM weight 2" in chosen.describe()


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        (Decoding(decoder="viterbi"), "no decoder viterbi"),  # type: ignore[arg-type]
        (Decoding(lm="lm.arpa"), "greedy decoding"),
        (Decoding(lexicon=Path("lexicon.txt")), "greedy decoding"),
        (Decoding(decoder="beam", lexicon=Path("lexicon.txt")), "without lexicon"),
        (Decoding(decoder="lexicon"), "needs to know its words"),
        (Decoding(decoder="lexicon", lm="hf:gpt2"), "only reorder"),
        (Decoding(decoder="beam", beam_size=0), "a beam of 0"),
        (Decoding(decoder="lexicon", lm="lm.arpa", lm_weight=-1), "weight of -1"),
        (Decoding(beam_size=50), "greedy decoding has no use for --beam-size"),
        (Decoding(lm_weight=2.0), "greedy decoding has no use for --lm-weight"),
        (Decoding(word_score=0.0), "greedy decoding has no use for --word-score"),
        (Decoding(decoder="beam", lm_weight=0.0), "a beam search without language model has no use for --lm-weight"),
        (Decoding(decoder="beam", word_score=1.0), "a beam search without language model has no use for --word-score"),
        (
            Decoding(decoder="lexicon", lexicon=Path("lexicon.txt"), lm_weight=2.0),
            "a lexicon without language model has no use for --lm-weight",
        ),
    ],
)
def test_options_that_do_not_go_together(decoding: Decoding, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        choose(decoding, VOCABULARY)
    assert caught.value.hint


@pytest.mark.parametrize("decoder", ["beam", "lexicon"])
def test_phones_have_no_words(decoder: str, language_model: str) -> None:
    assert decoder in DECODERS
    with pytest.raises(UsageError, match="phones"):
        choose(Decoding(decoder=decoder, lm=language_model), PHONES)  # type: ignore[arg-type]


def test_packages_are_missed_at_once(language_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise UsageError("flashlight-text")

    monkeypatch.setattr("parp_cli.decoding.lexicon.flashlight", missing)
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(UsageError, match="flashlight-text"):
        choose(Decoding(decoder="lexicon", lm=language_model), VOCABULARY)
    with pytest.raises(UsageError, match="kenlm"):
        choose(Decoding(decoder="beam", lm=language_model), VOCABULARY)


def test_files_are_checked_at_once(tmp_path: Path) -> None:
    for decoding in (
        Decoding(decoder="lexicon", lm=str(tmp_path / "none.arpa")),
        Decoding(decoder="beam", lm=str(tmp_path / "none.arpa")),
        Decoding(decoder="lexicon", lexicon=tmp_path / "none.txt"),
    ):
        with pytest.raises(DataError, match="none"):
            choose(decoding, VOCABULARY)


def test_words_that_the_language_model_does_not_know_are_counted(language_model: str, tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text")
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("a A |\nbb B B |\nAAA A A A |\n")
    chosen = choose(Decoding(decoder="lexicon", lm=language_model, lexicon=lexicon), VOCABULARY)
    assert chosen.spelled is not None
    assert list(chosen.spelled.lexicon) == ["A", "BB", "AAA"], "in the case of the language model"
    assert chosen.notes(["A BB", "BA BB"]) == [
        "1 of 3 words of the lexicon are unknown to the LM: AAA",
        "1 of 4 reference words are not in the lexicon and cannot be found: BA",
    ]
    with pytest.raises(DataError, match=r"has none of the words"):
        chosen.notes(["BA", "BAB"])
    lexicon.write_text("AAA A A A |\n")
    with pytest.raises(DataError, match=r"lm\.arpa knows no word of the lexicon"):
        choose(Decoding(decoder="lexicon", lm=language_model, lexicon=lexicon), VOCABULARY)


def test_words_that_a_reordering_model_does_not_know_are_counted(language_model: str) -> None:
    pytest.importorskip("kenlm")
    chosen = choose(Decoding(decoder="beam", lm=language_model), VOCABULARY)
    assert chosen.notes(["A zoo", "BB"]) == []
    assert chosen.notes(["A BAB"]) == ["1 of 2 reference words are unknown to the LM: BAB"]
    with pytest.raises(DataError, match=r"lm\.arpa has none of the words"):
        chosen.notes(["BAB BA"])
