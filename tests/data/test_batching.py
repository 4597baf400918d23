import pytest
from hypothesis import given
from hypothesis import strategies as st

from parp_cli.data.batching import batches_by_seconds, sorted_batches

LENGTHS = st.lists(st.floats(min_value=0.01, max_value=40.0), max_size=80)
SECONDS = st.floats(min_value=0.5, max_value=200.0)


def assert_batches(batches: list[list[int]], lengths: list[float], seconds: float) -> None:
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        assert len(batch) == 1 or max(lengths[index] for index in batch) * len(batch) <= seconds


@given(LENGTHS, SECONDS, st.integers(0, 5), st.integers(0, 5))
def test_each_utterance_once_and_no_batch_too_long(lengths, seconds, seed, epoch):
    batches = batches_by_seconds(lengths, seconds=seconds, seed=seed, epoch=epoch)
    assert_batches(batches, lengths, seconds)
    assert batches == batches_by_seconds(lengths, seconds=seconds, seed=seed, epoch=epoch)


@given(LENGTHS, SECONDS)
def test_sorted_batches_run_from_the_longest_to_the_shortest(lengths, seconds):
    batches = sorted_batches(lengths, seconds)
    assert_batches(batches, lengths, seconds)
    order = [lengths[index] for batch in batches for index in batch]
    assert order == sorted(lengths, reverse=True)


def test_epochs_and_seeds_differ_in_order_and_in_company():
    lengths = [1 + index % 7 + index / 1000 for index in range(200)]
    epochs = [batches_by_seconds(lengths, seconds=30, seed=0, epoch=epoch) for epoch in range(3)]
    epochs.append(batches_by_seconds(lengths, seconds=30, seed=1, epoch=0))
    as_sets = [{frozenset(batch) for batch in batches} for batches in epochs]
    for index, batches in enumerate(epochs):
        for other in range(index):
            assert batches != epochs[other]
            assert as_sets[index] != as_sets[other]


def test_little_is_padding():
    lengths = [2 + 14 * index / 999 for index in range(1000)]
    batches = batches_by_seconds(lengths, seconds=80, seed=0, epoch=0)
    padded = sum(max(lengths[index] for index in batch) * len(batch) for batch in batches)
    assert padded < 1.15 * sum(lengths)


def test_the_order_is_the_same_on_every_machine():
    assert batches_by_seconds([1.0, 2.0, 3.0, 4.0, 5.0], seconds=6, seed=3, epoch=4) == [[0, 1], [3], [2], [4]]


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_batch_must_hold_something(seconds):
    with pytest.raises(ValueError, match="holds nothing"):
        sorted_batches([1.0], seconds)
