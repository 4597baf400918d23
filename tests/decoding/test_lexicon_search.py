import itertools
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parp_cli.data.labels import BLANK, BOUNDARY, Vocabulary
from parp_cli.decoding.kneser_ney import estimate, write_arpa
from parp_cli.decoding.lexicon import LexiconSearch, LexiconTrie, lexicon_lines, lexicon_of, read_lexicon
from parp_cli.decoding.search import Hypothesis, collapse
from parp_cli.errors import DataError
from tests.decoding.arpa import read_arpa

VOCABULARY = Vocabulary((BLANK, BOUNDARY, "A", "B"), "letters")
LEXICON = lexicon_of(["A", "AB", "BB"], VOCABULARY).lexicon


def lexicon_search(language_model: Path | None = None, **options: Any) -> LexiconSearch:
    return LexiconSearch(
        trie=LexiconTrie(vocabulary=VOCABULARY, lexicon=LEXICON, language_model=language_model), **options
    )


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    with path.open("w") as file:
        write_arpa(estimate(["A BB", "AB A BB", "A AB", "BB"], 3), file)
    return path


def best_alignments(logits: Tensor) -> dict[str, float]:
    """log probability of the best path of each text whose words are all in the lexicon."""
    frames = logits.log_softmax(-1).tolist()
    found: dict[str, float] = {}
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        text = VOCABULARY.decode(collapse(torch.tensor(path)))
        if set(text.split()) <= set(LEXICON):
            score = sum(frames[frame][label] for frame, label in enumerate(path))
            found[text] = max(found.get(text, score), score)
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("lm_weight", "word_score"), [(0.0, 0.0), (0.0, -1.5), (1.3, 0.4)])
def test_it_finds_what_a_search_through_every_path_finds(
    seed: int, lm_weight: float, word_score: float, language_model: Path
) -> None:
    pytest.importorskip("flashlight.lib.text")
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) * 2
    arpa = read_arpa(language_model)
    expected = {
        text: score + lm_weight * arpa.score(text) + word_score * len(text.split())
        for text, score in best_alignments(logits).items()
    }
    search = lexicon_search(language_model, beam_size=1000, lm_weight=lm_weight, word_score=word_score, nbest=3)
    (found,) = search([logits])
    best = sorted(expected, key=lambda text: -expected[text])[:3]
    assert [hypothesis.text for hypothesis in found] == best
    assert [hypothesis.score for hypothesis in found] == pytest.approx([expected[text] for text in best], abs=1e-3)


def test_without_a_language_model_and_after_pickling() -> None:
    pytest.importorskip("flashlight.lib.text")
    logits = torch.tensor([[0.0, 0, 9, 0], [0, 0, 0, 9], [0, 9, 0, 0], [0, 0, 9, 0]])
    search = lexicon_search()
    assert search([logits])[0][0].text == "AB A"
    assert pickle.loads(pickle.dumps(search))([logits]) == search([logits])


def test_only_words_of_the_lexicon_are_found() -> None:
    """ "BA" is no word: what sounds most like it is found instead, and nothing says so but `lexicon.outside`."""
    pytest.importorskip("flashlight.lib.text")
    logits = torch.tensor([[0.0, 0, 0, 9], [0, 0, 9, 0]])
    (found,) = lexicon_search(beam_size=100)([logits])
    assert set(found[0].text.split()) <= set(LEXICON)


def test_imported_vocabularies_with_signs_that_are_never_said() -> None:
    """Whatever they have in it, such as the <s> and <unk> of transformers' models, takes no part."""
    pytest.importorskip("flashlight.lib.text")
    special = dict.fromkeys(("<s>", "</s>", "<unk>"), "extra")
    vocabulary = Vocabulary((BLANK, "<s>", "</s>", "<unk>", BOUNDARY, "A", "B"), "letters", special=special)
    spelled = [5, 5, 3, 6, 4, 5]  # A A <unk> B | A
    logits = torch.nn.functional.one_hot(torch.tensor(spelled), 7) * 5.0
    trie = LexiconTrie(vocabulary=vocabulary, lexicon=lexicon_of(["A", "AB"], vocabulary).lexicon)
    search = LexiconSearch(trie=trie)
    assert search([logits])[0][0].text == "AB A"


def test_nothing_was_said() -> None:
    pytest.importorskip("flashlight.lib.text")
    search = lexicon_search()
    silence, nothing = search([torch.tensor([[9.0, 0, 0, 0]] * 3), torch.zeros(0, 4)])
    assert (silence[0].text, nothing[0].text) == ("", "")


def test_a_lower_case_lexicon_of_an_upper_case_vocabulary(tmp_path: Path) -> None:
    """As LibriSpeech's published one: its words stay as the language model knows them."""
    pytest.importorskip("flashlight.lib.text")
    model = tmp_path / "lm.arpa"
    with model.open("w") as file:
        write_arpa(estimate(["ab a", "ab a", "bb"], 2), file)
    (tmp_path / "lexicon.txt").write_text("ab a b |\na a |\nbb b b |\nzoo z o o |\n")
    lexicon, left_out = read_lexicon(tmp_path / "lexicon.txt", VOCABULARY)
    assert lexicon == {"ab": (("A", "B", "|"),), "a": (("A", "|"),), "bb": (("B", "B", "|"),)}
    assert left_out == ["zoo"]
    logits = torch.tensor([[0.0, 0, 9, 0], [0, 0, 0, 9], [0, 9, 0, 0], [0, 0, 9, 0]])
    trie = LexiconTrie(vocabulary=VOCABULARY, lexicon=lexicon, language_model=model)
    search = LexiconSearch(trie=trie, lm_weight=1.0)
    best = search([logits])[0][0]
    assert best.text == "AB A"
    acoustic = float(logits.log_softmax(-1).max(-1).values.sum())
    assert best.score == pytest.approx(acoustic + read_arpa(model).score("ab a"), abs=1e-4)


def test_a_broken_language_model(tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text")
    path = tmp_path / "lm.arpa"
    path.write_text("\\data\\\nngram 1=3\n\n\\1-grams:\nnonsense\n")
    with pytest.raises(DataError, match=r"lm\.arpa cannot be loaded") as caught:
        lexicon_search(path)([torch.zeros(1, 4)])
    assert caught.value.details


WEIGHTS = [(0.0, 0.0), (2.0, -1.0), (0.7, 3.5)]


def by_torchaudio(
    logits: list[Tensor], folder: Path, language_model: Path | None, **options: Any
) -> list[list[Hypothesis]]:
    """What torchaudio's own decoder finds, made anew with everything it loads."""
    from torchaudio.models.decoder import ctc_decoder

    (folder / "lexicon.txt").write_text(lexicon_lines(LEXICON))
    decoder = ctc_decoder(
        lexicon=str(folder / "lexicon.txt"),
        tokens=list(VOCABULARY.symbols),
        lm=None if language_model is None else str(language_model),
        nbest=20,
        beam_threshold=25,
        blank_token=BLANK,
        sil_token=BOUNDARY,
        **options,
    )
    end = torch.tensor([[float("-inf"), 0.0, float("-inf"), float("-inf")]])
    found = []
    for item in logits:
        hypotheses: dict[str, Hypothesis] = {}
        for result in decoder(torch.cat([item.log_softmax(-1), end])[None])[0]:
            text = VOCABULARY.decode(result.tokens.tolist())
            hypotheses.setdefault(text, Hypothesis(text, result.score))
        found.append(list(hypotheses.values())[:10])
    return found


@pytest.mark.parametrize("with_language_model", [True, False])
def test_searches_that_share_what_was_loaded_find_what_torchaudio_finds_alone(
    with_language_model: bool, language_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("flashlight.lib.text")
    path = language_model if with_language_model else None
    generator = torch.Generator().manual_seed(1)
    logits = [torch.randn(length, 4, generator=generator) * 2 for length in (1, 9, 30, 60)]
    first = lexicon_search(path, beam_size=40, nbest=10)
    found = []
    for lm_weight, word_score in WEIGHTS:
        search = replace(first, lm_weight=lm_weight, word_score=word_score)
        assert search.trie is first.trie
        found.append(search(logits))
        expected = by_torchaudio(logits, tmp_path, path, beam_size=40, lm_weight=lm_weight, word_score=word_score)
        assert found[-1] == expected
    assert found[0] != found[1] != found[2]
    # Those that were made before others go on as before.
    assert replace(first, lm_weight=0.0)(logits) == found[0]


def test_weights_load_nothing_anew(language_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text")
    path = tmp_path / "lm.arpa"
    path.write_bytes(language_model.read_bytes())
    search = lexicon_search(path)
    _ = search.decoder
    path.unlink()
    logits = [torch.randn(30, 4, generator=torch.Generator().manual_seed(0)) * 2]
    assert replace(search, lm_weight=0.5)(logits) == lexicon_search(language_model, lm_weight=0.5)(logits)
    # Only another process loads its own.
    with pytest.raises(DataError, match="cannot be loaded"):
        _ = pickle.loads(pickle.dumps(search)).decoder
