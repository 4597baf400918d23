"""Texts of utterances: the same however the work is divided, and without keeping more than the search needs."""

import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parp_cli.data.labels import BLANK, BOUNDARY, Vocabulary
from parp_cli.data.utterances import Utterance
from parp_cli.decoding import recognizer as module
from parp_cli.decoding.recognizer import Recognizer
from parp_cli.decoding.search import BeamSearch, GreedySearch, Hypothesis, Rescored
from parp_cli.runtime.processes import SINGLE, World
from parp_cli.runtime.progress import Progress

VOCABULARY = Vocabulary((BLANK, BOUNDARY, "A", "B"), "letters")
COUNT = 150
UTTERANCES = [
    Utterance(id=str(number), audio=Path("x"), split="test", seconds=0.1 + number % 7) for number in range(COUNT)
]
GREEDY, BEAM = GreedySearch(VOCABULARY), BeamSearch(vocabulary=VOCABULARY, beam_size=4)


def logits_at(index: int) -> Tensor:
    return torch.randn(3 + index % 11, 4, generator=torch.Generator().manual_seed(index))


class Batches:
    """Stands for `logits_of`: rows of padded batches of four, last utterances first, dealt out among processes."""

    def __init__(self) -> None:
        self.alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
        self.given = 0

    def __call__(
        self, model: Any, features: Any, utterances: Sequence[Utterance], *, world: World, **_: Any
    ) -> Iterator[tuple[int, Tensor]]:
        order = list(range(len(utterances)))[::-1]
        batches = [order[start : start + 4] for start in range(0, len(order), 4)]
        for number, _counts in world.share(len(batches)):
            padded = torch.zeros(4, 50, 4)
            self.alive.add(padded)
            for row, index in zip(padded, batches[number], strict=False):
                item = logits_at(index)
                row[: len(item)] = item
                self.given += 1
                yield index, row[: len(item)]


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Batches:
    found = Batches()
    monkeypatch.setattr(module, "logits_of", found)
    return found


def recognizer(**options: Any) -> Recognizer:
    return Recognizer(model=None, features=None, **options)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Spy:
    """A search that notes how many logits there had been, and how many batches are still kept, at each call."""

    search: GreedySearch | BeamSearch
    batches: Batches
    pays_in_processes: bool
    given: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def __call__(self, logits: Sequence[Tensor]) -> list[list[Hypothesis]]:
        self.given.append(self.batches.given)
        self.kept.append(len(self.batches.alive))
        assert all(item.untyped_storage().nbytes() == item.nbytes for item in logits), "a view keeps all of its batch"
        return self.search(logits)


@pytest.mark.parametrize("search", [GREEDY, BEAM])
@pytest.mark.parametrize("workers", [None, 1])
def test_texts_are_those_of_each_utterance_alone(
    search: GreedySearch | BeamSearch, workers: int | None, batches: Batches
) -> None:
    expected = [search([logits_at(index)])[0][0].text for index in range(COUNT)]
    assert recognizer(workers=workers).texts(UTTERANCES, search) == expected
    assert len(set(expected)) > 20
    assert recognizer(workers=workers).texts([], search) == []


@pytest.mark.parametrize(("pays", "workers"), [(False, None), (False, 4), (True, 1)])
def test_one_process_searches_as_batches_come(pays: bool, workers: int | None, batches: Batches) -> None:
    spy = Spy(GREEDY, batches, pays)
    recognizer(workers=workers).texts(UTTERANCES, spy)
    assert len(spy.given) > 1
    assert spy.given[0] <= 64
    assert max(spy.kept) <= 1, "but for the batch that is being given out, none is kept"


def test_what_is_dealt_out_is_collected_without_its_padding(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("parp_cli.decoding.recognizer.usable_cores", lambda: 4)
    spy = Spy(GREEDY, batches, True)
    steps: list[Progress] = []
    recognizer(notify=steps.append).texts(UTTERANCES, spy)
    assert set(spy.given) == {COUNT}
    assert max(spy.kept) <= 1
    assert (steps[-1].task, steps[-1].done, steps[-1].total) == ("decoding", COUNT, COUNT)


class Exchange:
    """Lets threads stand for processes."""

    def __init__(self, count: int) -> None:
        self.barrier, self.values = threading.Barrier(count), {}  # type: ignore[var-annotated]

    def processes(self, rank: int) -> World:
        exchange = self

        class Threads(World):
            def gather(self, value: Any) -> list[Any]:
                exchange.values[self.rank] = value
                exchange.barrier.wait(timeout=300)
                return [exchange.values[number] for number in range(self.world_size)]

        return Threads(rank=rank, world_size=self.barrier.parties)


@pytest.mark.parametrize("search", [GREEDY, BEAM])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_several_processes_have_the_same_texts(search: GreedySearch | BeamSearch, count: int, batches: Batches) -> None:
    exchange, found = Exchange(count), {}

    def run(rank: int) -> None:
        found[rank] = recognizer(world=exchange.processes(rank)).texts(UTTERANCES, search)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alone = recognizer(world=SINGLE).texts(UTTERANCES, search)
    assert found == dict.fromkeys(range(count), alone)


def test_tuning_searches_utterances_in_their_order(batches: Batches) -> None:
    """Each has its own reference: with the wrong one, no weights would make few errors."""
    references = [BEAM([logits_at(index)])[0][0].text or "A" for index in range(COUNT)]
    search = Rescored(
        search=BeamSearch(vocabulary=VOCABULARY, beam_size=4, nbest=4),
        scorer=lambda texts: [0.0] * len(texts),
        lm_weight=7.0,
    )
    tuned, tuning = recognizer().tuned(search, UTTERANCES, references)
    assert isinstance(tuned, Rescored)
    assert (tuned.lm_weight, tuned.word_score) == (tuning.best.lm_weight, tuning.best.word_score) == (0.0, 0.0)
    empty = sum(not BEAM([logits_at(index)])[0][0].text for index in range(COUNT))
    assert tuning.best.errors <= empty
