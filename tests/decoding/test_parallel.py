import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from parp_cli.data.labels import BLANK, BOUNDARY, Vocabulary
from parp_cli.decoding import recognizer as parallel
from parp_cli.decoding.lexicon import LexiconSearch, LexiconTrie
from parp_cli.decoding.lm import NGramScorer, TransformerScorer
from parp_cli.decoding.recognizer import MAX_WORKERS, PAYS_OFF_FRAMES, max_workers, search_all, usable_cores
from parp_cli.decoding.search import BeamSearch, GreedySearch, Hypothesis, Rescored, Search
from parp_cli.errors import ResourceError
from parp_cli.runtime.progress import Progress

VOCABULARY = Vocabulary((BLANK, BOUNDARY, "A", "B"), "letters")
SEARCH = BeamSearch(vocabulary=VOCABULARY, beam_size=5, nbest=2)


def random_logits(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3 + index % 7, 4, generator=generator) for index in range(count)]


@pytest.mark.slow
def test_several_processes_give_the_same_in_the_same_order() -> None:
    logits = random_logits(21)
    one, two = search_all(SEARCH, logits, workers=1), search_all(SEARCH, logits, workers=2)
    assert [[h.text for h in found] for found in two] == [[h.text for h in found] for found in one]
    for left, right in zip(one, two, strict=True):
        assert [h.score for h in left] == pytest.approx([h.score for h in right])


def test_little_work_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(parallel, "_in_processes", refuse)
    logits = random_logits(3)
    steps: list[Progress] = []
    assert search_all(SEARCH, logits, notify=steps.append) == SEARCH(logits)
    assert [(step.done, step.total) for step in steps] == [(3, 3)]
    assert search_all(SEARCH, []) == []
    assert search_all(SEARCH, logits[:1], workers=8) == SEARCH(logits[:1])
    with pytest.raises(AssertionError, match="a process was started"):
        search_all(SEARCH, logits, workers=2)
    monkeypatch.setattr(parallel, "PAYS_OFF_FRAMES", 10)
    monkeypatch.setattr(parallel, "usable_cores", lambda: 2)
    with pytest.raises(AssertionError, match="a process was started"):
        search_all(SEARCH, logits)


PAY: list[Search] = [
    SEARCH,
    LexiconSearch(trie=LexiconTrie(vocabulary=VOCABULARY, lexicon={"A": (("A", "|"),)})),
    Rescored(search=SEARCH, scorer=NGramScorer(Path("lm.arpa"))),
]
DO_NOT_PAY: list[Search] = [
    GreedySearch(VOCABULARY),
    Rescored(search=SEARCH, scorer=TransformerScorer("gpt2", "cuda")),
    Rescored(search=SEARCH, scorer=lambda texts: [0.0] * len(texts)),
]


@pytest.mark.parametrize("search", DO_NOT_PAY)
def test_processes_are_not_started_where_they_cost_more_than_they_save(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much there is to do, and whatever is asked for."""

    def refuse(*_: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(parallel, "_in_processes", refuse)
    monkeypatch.setattr(parallel, "usable_cores", lambda: 16)
    monkeypatch.setattr(type(search), "__call__", lambda _, logits: [[Hypothesis("", 0.0)] for _ in logits])
    logits = [torch.zeros(1).expand(PAYS_OFF_FRAMES, 4)] * 2
    assert search_all(search, logits) == [[Hypothesis("", 0.0)]] * 2
    assert search_all(search, logits, workers=4) == [[Hypothesis("", 0.0)]] * 2


def test_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for search in PAY:
        for cores, usual in ((1, 1), (2, 2), (64, MAX_WORKERS)):
            monkeypatch.setattr(parallel, "usable_cores", lambda cores=cores: cores)
            assert max_workers(search) == usual
            assert max_workers(search, 20) == 20, "who asks knows how much memory there is"
    for search in DO_NOT_PAY:
        assert max_workers(search) == max_workers(search, 20) == 1


def test_no_more_processes_than_pieces_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def pool(search: object, items: object, workers: int) -> None:
        asked.append(workers)
        raise AssertionError("processes were started")

    monkeypatch.setattr(parallel, "_in_processes", pool)
    with pytest.raises(AssertionError, match="processes were started"):
        search_all(SEARCH, random_logits(3), workers=50)
    assert asked == [3]


@dataclass(frozen=True)
class Killed:
    """As where memory is short."""

    pays_in_processes = True

    def __call__(self, logits: Sequence[Tensor]) -> list[list[Hypothesis]]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []


@pytest.mark.slow
def test_a_killed_process_is_told() -> None:
    with pytest.raises(ResourceError, match="was killed"):
        search_all(Killed(), random_logits(4), workers=2)


def test_cores() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
