from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from parp_cli.data.labels import BLANK, BOUNDARY, Vocabulary
from parp_cli.decoding import recognizer
from parp_cli.decoding.kneser_ney import estimate, write_arpa
from parp_cli.decoding.lexicon import LexiconSearch, LexiconTrie, lexicon_of
from parp_cli.decoding.recognizer import LM_WEIGHTS, WORD_SCORES, Trial, best_first, tune
from parp_cli.decoding.search import BeamSearch, Rescored
from parp_cli.runtime.progress import Progress
from parp_cli.scoring.metrics import word_errors

VOCABULARY = Vocabulary((BLANK, BOUNDARY, "A", "B"), "letters")
TEXT = ["A BB", "AB A", "A BB AB", "BB A BB"]


@pytest.fixture
def language_model(tmp_path: Path) -> Path:
    with (tmp_path / "lm.arpa").open("w") as file:
        write_arpa(estimate(TEXT * 3, 3), file)
    return tmp_path / "lm.arpa"


def lexicon_search(language_model: Path | None = None) -> LexiconSearch:
    lexicon = lexicon_of(["A", "AB", "BB"], VOCABULARY).lexicon
    return LexiconSearch(trie=LexiconTrie(vocabulary=VOCABULARY, lexicon=lexicon, language_model=language_model))


def noisy_logits(texts: list[str]) -> list[Tensor]:
    """What a poor model would write: letters of which many are wrong."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for text in texts:
        ids = [VOCABULARY.symbols.index(letter) for letter in text.replace(" ", BOUNDARY)]
        spelled = torch.tensor([label for index in ids for label in (index, 0)])
        found.append(torch.nn.functional.one_hot(spelled, 4) * 2.0 + torch.randn(len(spelled), 4, generator=generator))
    return found


def test_the_best_of_what_was_tried_is_what_it_says(language_model: Path) -> None:
    pytest.importorskip("flashlight.lib.text")
    logits = noisy_logits(TEXT)
    search = lexicon_search(language_model)
    steps: list[Progress] = []
    tuning = tune(search, logits, TEXT, notify=steps.append)
    assert tuning == tune(search, logits, TEXT)
    weights = [(trial.lm_weight, trial.word_score) for trial in tuning.trials]
    assert weights == [(w, s) for w in LM_WEIGHTS for s in WORD_SCORES]
    assert tuning.best.errors == min(trial.errors for trial in tuning.trials)
    assert best_first(tuning.trials)[0] == tuning.best
    assert (steps[-1].done, steps[-1].total) == (len(weights), len(weights))
    best = replace(search, lm_weight=tuning.best.lm_weight, word_score=tuning.best.word_score)
    assert word_errors(TEXT, [found[0].text for found in best(logits)]).rate == tuning.best.rate


def test_a_lexicon_without_language_model_has_no_weight_to_tune() -> None:
    pytest.importorskip("flashlight.lib.text")
    tuning = tune(lexicon_search(), noisy_logits(TEXT), TEXT)
    assert [(trial.lm_weight, trial.word_score) for trial in tuning.trials] == [(0.0, score) for score in WORD_SCORES]


def test_words_and_language_model_are_loaded_once(language_model: Path) -> None:
    """Or it takes minutes for lexicons of usual size."""
    pytest.importorskip("flashlight.lib.text")
    search = lexicon_search(language_model)
    expected = tune(search, noisy_logits(TEXT), TEXT)
    search = lexicon_search(language_model)
    _ = search.decoder
    language_model.unlink()
    assert tune(search, noisy_logits(TEXT), TEXT) == expected


def test_the_best_first() -> None:
    """The same order whatever they come in, with the chosen one in front."""
    weights = [(2.0, 1.0, 7), (2.0, -1.0, 7), (2.0, 0.0, 7), (0.5, 3.0, 7), (9.0, 9.0, 6), (0.0, 0.0, 8)]
    trials = [Trial(lm_weight=w, word_score=s, errors=errors, rate=errors / 10) for w, s, errors in weights]
    expected = [(9.0, 9.0), (0.5, 3.0), (2.0, 0.0), (2.0, -1.0), (2.0, 1.0), (0.0, 0.0)]
    for some in (trials, trials[::-1]):
        assert [(trial.lm_weight, trial.word_score) for trial in best_first(some)] == expected


def test_no_more_processes_than_there_are_utterances(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def pool(search: object, items: object, workers: int) -> None:
        asked.append(workers)
        raise AssertionError("processes were started")

    monkeypatch.setattr(recognizer, "_in_processes", pool)
    for workers in (2, 100):
        with pytest.raises(AssertionError, match="processes were started"):
            tune(lexicon_search(), noisy_logits(TEXT), TEXT, workers=workers)
    assert asked == [2, len(TEXT)]


def test_what_only_reorders_searches_once() -> None:
    searched = []

    class Counted(BeamSearch):
        def __call__(self, logits):  # type: ignore[no-untyped-def]
            searched.append(len(logits))
            return super().__call__(logits)

    search = Rescored(
        search=Counted(vocabulary=VOCABULARY, beam_size=8, nbest=8),
        scorer=lambda texts: [-float(abs(len(text.split()) - 2)) for text in texts],
    )
    tuning = tune(search, noisy_logits(TEXT), TEXT)
    assert searched == [len(TEXT)]
    assert len(tuning.trials) == len(LM_WEIGHTS) * len(WORD_SCORES)
    for trial in tuning.trials:
        weighted = replace(search, lm_weight=trial.lm_weight, word_score=trial.word_score)
        texts = [found[0].text for found in weighted(noisy_logits(TEXT))]
        assert word_errors(TEXT, texts).errors == trial.errors


@pytest.mark.slow
def test_several_processes_find_the_same(language_model: Path) -> None:
    pytest.importorskip("flashlight.lib.text")
    search = lexicon_search(language_model)
    assert tune(search, noisy_logits(TEXT), TEXT, workers=2) == tune(search, noisy_logits(TEXT), TEXT)
