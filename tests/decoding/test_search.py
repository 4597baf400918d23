import itertools
import math

import pytest
import torch
from torch import Tensor

from parp_cli.data.labels import BLANK, BOUNDARY, Vocabulary
from parp_cli.decoding.search import BeamSearch, collapse, prefix_beam_search

VOCABULARY = Vocabulary((BLANK, BOUNDARY, "A", "B"), "letters")
EVERYTHING = 400
"""A beam that drops nothing of the small cases here."""


def random_logits(*lengths: int, labels: int = 4, seed: int = 0, scale: float = 2.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, labels, generator=generator) * scale for length in lengths]


def all_alignments(logits: Tensor) -> dict[tuple[int, ...], float]:
    """The probability of every label sequence, path by path."""
    probabilities = logits.double().softmax(-1).tolist()
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(logits.shape[1]), repeat=len(logits)):
        ids = tuple(collapse(torch.tensor(path)))
        chance = math.prod(probabilities[frame][label] for frame, label in enumerate(path))
        found[ids] = found.get(ids, 0.0) + chance
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_beam_that_drops_nothing_sums_every_alignment(seed: int) -> None:
    logits = random_logits(5, 4, 1, seed=seed)
    for item, prefixes in ((item, prefix_beam_search(item, EVERYTHING)) for item in logits):
        expected = all_alignments(item)
        assert len(prefixes) == len(expected)  # none twice
        assert {tuple(ids): math.exp(score) for ids, score in prefixes} == pytest.approx(expected)
        assert [score for _, score in prefixes] == sorted((score for _, score in prefixes), reverse=True)


@pytest.mark.parametrize("beam_size", [1, 2, 5, 20])
def test_a_small_beam_never_overcounts_and_never_repeats_a_prefix(beam_size: int) -> None:
    """Also where a prefix was dropped and came back: torch's CTC loss says what it may have at most."""
    for item in random_logits(*[30] * 10, seed=1, scale=1.0):
        prefixes = prefix_beam_search(item, beam_size)
        assert 0 < len(prefixes) <= beam_size
        assert len({tuple(ids) for ids, _ in prefixes}) == len(prefixes)
        for ids, score in prefixes:
            whole = -torch.nn.functional.ctc_loss(
                item.double().log_softmax(-1)[:, None],
                torch.tensor([ids]),
                torch.tensor([len(item)]),
                torch.tensor([len(ids)]),
                reduction="sum",
            )
            assert score <= whole.item() + 1e-9


def test_a_wider_beam_comes_closer_to_the_whole_probability() -> None:
    (item,) = random_logits(20, seed=2)
    ids, _ = prefix_beam_search(item, 400)[0]
    whole = -torch.nn.functional.ctc_loss(
        item.double().log_softmax(-1)[:, None],
        torch.tensor([ids]),
        torch.tensor([20]),
        torch.tensor([len(ids)]),
        reduction="sum",
    )
    missing = [whole.item() - dict_of(prefix_beam_search(item, size))[tuple(ids)] for size in (25, 100, 400)]
    assert missing == sorted(missing, reverse=True)
    assert missing[-1] < 0.01


def dict_of(prefixes: list[tuple[list[int], float]]) -> dict[tuple[int, ...], float]:
    return {tuple(ids): score for ids, score in prefixes}


def test_what_greedy_decoding_gets_wrong() -> None:
    """Each alignment of "A" is less likely than silence, all of them together are likelier."""
    chances = torch.tensor([[0.6, 0.0, 0.4, 0.0], [0.6, 0.0, 0.4, 0.0]])
    assert collapse(chances.argmax(-1)) == []
    ((best,),) = BeamSearch(vocabulary=VOCABULARY)([chances.log()])
    assert best.text == "A"
    assert math.exp(best.score) == pytest.approx(1 - 0.36)


def test_utterances_do_not_depend_on_the_others() -> None:
    logits = random_logits(7, 0, 12, 1, 12, *range(3, 40), seed=3)
    search = BeamSearch(vocabulary=VOCABULARY, beam_size=6, nbest=3)
    together = search(logits)
    for found, item in zip(together, logits, strict=True):
        (alone,) = search([item])
        assert [hypothesis.text for hypothesis in found] == [hypothesis.text for hypothesis in alone]
        assert [h.score for h in found] == pytest.approx([h.score for h in alone], abs=1e-12)
    assert [hypothesis.text for hypothesis in together[1]] == [""]


def test_label_sequences_that_read_the_same_are_one_hypothesis() -> None:
    (item,) = random_logits(4, seed=4)
    ((*hypotheses,),) = BeamSearch(vocabulary=VOCABULARY, beam_size=EVERYTHING, nbest=EVERYTHING)([item])
    expected: dict[str, float] = {}
    for ids, chance in all_alignments(item).items():
        text = VOCABULARY.decode(ids)
        expected[text] = expected.get(text, 0.0) + chance
    assert {hypothesis.text: math.exp(hypothesis.score) for hypothesis in hypotheses} == pytest.approx(expected)
    assert len(hypotheses) == len(expected)


def test_nbest_and_scale() -> None:
    logits = random_logits(20, seed=5)
    search = BeamSearch(vocabulary=VOCABULARY, beam_size=10, nbest=4)
    assert len(search(logits)[0]) == 4
    # Logits count up to a constant of each frame.
    moved = search([logits[0] + torch.arange(20.0)[:, None]])[0]
    assert [h.text for h in moved] == [h.text for h in search(logits)[0]]
    assert [h.score for h in moved] == pytest.approx([h.score for h in search(logits)[0]], abs=1e-4)


def test_phones() -> None:
    phones = Vocabulary((BLANK, "AH", "B", "S"), "phones")
    chances = torch.tensor([[0.1, 0.1, 0.8, 0.0], [0.1, 0.8, 0.1, 0.0], [0.9, 0.1, 0.0, 0.0]])
    assert BeamSearch(vocabulary=phones)([chances.log()])[0][0].text == "B AH"


def test_impossible_labels_stay_out() -> None:
    """Labels with a probability of zero fill no slot of the beam, however few are left."""
    chances = torch.tensor([[0.5, 0.0, 0.5, 0.0]] * 3)
    prefixes = prefix_beam_search(chances.log(), 50)
    assert {tuple(ids): math.exp(score) for ids, score in prefixes} == pytest.approx(
        {(): 1 / 8, (2,): 6 / 8, (2, 2): 1 / 8}
    )


def test_no_utterances() -> None:
    assert BeamSearch(vocabulary=VOCABULARY)([]) == []
