import itertools

from hypothesis import given
from hypothesis import strategies as st

from parp_cli.data.batching import batches_by_seconds
from parp_cli.tasks.batches import UpdateBatches


class TestUpdateBatches:
    @given(st.lists(st.floats(0.5, 20.0), min_size=1, max_size=40), st.floats(1.0, 60.0), st.integers(0, 5))
    def test_every_utterance_once_an_epoch(self, lengths: list[float], seconds: float, seed: int) -> None:
        batches = UpdateBatches(range(len(lengths)), lengths, batch_size=seconds, seed=seed)
        taken: list[int] = []
        while len(taken) < 3 * len(lengths):
            taken += batches.take()
        for epoch in range(3):
            assert sorted(taken[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == list(range(len(lengths)))

    @given(st.lists(st.floats(0.5, 20.0), min_size=1, max_size=40), st.floats(1.0, 60.0), st.integers(0, 5))
    def test_no_update_holds_too_much(self, lengths: list[float], seconds: float, seed: int) -> None:
        batches = UpdateBatches(range(len(lengths)), lengths, batch_size=seconds, seed=seed)
        groups = (
            group
            for epoch in itertools.count()
            for group in batches_by_seconds(lengths, seconds=seconds, seed=seed, epoch=epoch)
        )
        group = next(groups)
        for _ in range(20):
            taken = batches.take()
            assert taken
            padded, alone = 0.0, len(taken) == 1
            while taken:
                assert taken[: len(group)] == group
                del taken[: len(group)]
                padded += max(lengths[index] for index in group) * len(group)
                group = next(groups)
            assert alone or padded <= seconds * (1 + 1e-9)
            following = max(lengths[index] for index in group) * len(group)
            assert padded + following > seconds * (1 - 1e-9)  # no more would have fitted

    @given(st.integers(0, 25), st.floats(2.0, 90.0))
    def test_a_position_is_all_it_takes_to_go_on(self, after: int, seconds: float) -> None:
        lengths = [1.0 + index % 5 for index in range(17)]
        one, other = (UpdateBatches(range(len(lengths)), lengths, batch_size=seconds, seed=1) for _ in range(2))
        for _ in range(after):
            one.take()
        other.epoch, other.group = one.epoch, one.group
        assert [one.take() for _ in range(9)] == [other.take() for _ in range(9)]

    def test_an_update_longer_than_the_corpus(self) -> None:
        batches = UpdateBatches(range(3), [1.0, 2.0, 3.0], batch_size=40.0, seed=0)
        taken = batches.take()
        assert len(taken) > 9
        assert batches.epoch >= 3
        counts = [taken.count(index) for index in range(3)]
        assert max(counts) - min(counts) <= 1

    def test_some_are_there_more_than_once(self) -> None:
        """A whole number is exact in every epoch, a fraction on average."""
        repeats = [1.0, 3.0, 1.25]
        batches = UpdateBatches(range(3), [1.0] * 3, batch_size=1.0, seed=0, repeats=repeats)
        taken: list[int] = []
        epochs = 400
        while batches.epoch < epochs:
            taken += batches.take()
        taken.pop()  # of the next epoch
        assert (taken.count(0), taken.count(1)) == (epochs, 3 * epochs)
        assert abs(taken.count(2) / epochs - 1.25) < 0.1

    def test_the_seed_decides_the_order(self) -> None:
        lengths = [1.0 + index / 100 for index in range(50)]
        orders = [UpdateBatches(range(len(lengths)), lengths, batch_size=10, seed=seed).take() for seed in (0, 0, 1)]
        assert orders[0] == orders[1] != orders[2]


def test_a_smaller_forward_pass_fills_an_update_better() -> None:
    lengths = [15.0, 2.0] * 40
    by_update = UpdateBatches(range(len(lengths)), lengths, batch_size=400, seed=0)
    by_pass = UpdateBatches(range(len(lengths)), lengths, batch_size=400, micro_batch_size=50, seed=0)

    def heard(batches: UpdateBatches[int]) -> float:
        return sum(sum(lengths[index] for index in batches.take()) for _ in range(10)) / 10

    assert heard(by_pass) > 330 > heard(by_update)


def test_the_mean_size_of_updates() -> None:
    lengths = [1.0, 2.0, 3.0, 4.0]
    batches = UpdateBatches(range(4), lengths, batch_size=4.0, seed=0)
    batches.take()
    position = batches.position
    first_epoch = UpdateBatches(range(4), lengths, batch_size=4.0, seed=0)
    sizes = []
    while first_epoch.epoch == 0:
        sizes.append(sum(lengths[index] for index in first_epoch.take()))
    assert batches.mean_size(100) == sum(sizes) / len(sizes)
    assert batches.mean_size(1) == sizes[0]
    assert batches.position == position
