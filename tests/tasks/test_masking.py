import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parp_cli.tasks.masking import LatentMasking, span_mask


def expected_share(size: int, spans: int, length: int) -> float:
    """Share of entries covered by `spans` spans that begin at different places, all alike."""
    places = size - length + 1
    total = 0.0
    for entry in range(size):
        covering = min(entry, places - 1) - max(0, entry - length + 1) + 1
        total += 1 - math.comb(places - covering, spans) / math.comb(places, spans)
    return total / size


@pytest.mark.parametrize(("probability", "length"), [(0.3, 1), (0.5, 10), (0.75, 10), (0.25, 20)])
def test_coverage(probability: float, length: int) -> None:
    size, rows = 200, 400
    torch.manual_seed(0)
    found = span_mask([size] * rows, size, probability, length, 0).float().mean().item()
    low = expected_share(size, math.floor(probability * size / length), length)
    high = expected_share(size, math.ceil(probability * size / length), length)
    part = probability * size / length % 1
    assert found == pytest.approx((1 - part) * low + part * high, abs=0.01)


def test_without_overlap_the_expectation_is_the_probability() -> None:
    torch.manual_seed(0)
    counts = span_mask([7] * 4_000, 7, 0.3, 1, 0).sum(1)
    assert counts.float().mean().item() == pytest.approx(2.1, abs=0.03)
    assert set(counts.tolist()) == {2, 3}


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6),
    st.floats(0, 1),
    st.integers(1, 15),
    st.integers(0, 3),
    st.integers(0, 1000),
)
def test_spans_stay_inside_their_row(sizes: list[int], probability: float, length: int, least: int, seed: int) -> None:
    torch.manual_seed(seed)
    mask = span_mask(sizes, 40, probability, length, least)
    assert mask.shape == (len(sizes), 40)
    for row, size in zip(mask, sizes, strict=True):
        assert not row[size:].any()
        assert size == 0 or not row[:size].all()  # something is left to hear
        runs = [len(run) for run in "".join("x" if hidden else " " for hidden in row.tolist()).split()]
        if size > 2 * length * max(least, 1):
            assert all(run >= length for run in runs)
        if size > (least + 1) * length and least:
            assert runs


def test_a_least_number_of_spans() -> None:
    torch.manual_seed(0)
    assert all(count >= 11 for count in span_mask([50] * 100, 50, 0.01, 10, 2).sum(1).tolist())


def test_the_global_generator_decides() -> None:
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(span_mask([90, 60], 90, 0.5, 10, 2))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def masking(time: float, channel: float) -> LatentMasking:
    return LatentMasking(time_probability=time, time_length=5, channel_probability=channel, channel_length=4)


class TestAltering:
    FEATURES = torch.randn(3, 60, 16, generator=torch.Generator().manual_seed(0))
    LENGTHS = (60, 45, 30)
    EMBEDDING = torch.arange(16.0)

    def alter(self, time: float, channel: float) -> torch.Tensor:
        torch.manual_seed(0)
        return masking(time, channel).masked(self.FEATURES, self.LENGTHS, self.EMBEDDING)

    def test_frames_become_the_embedding_or_stay(self) -> None:
        result = self.alter(0.5, 0.0)
        replaced = (result == self.EMBEDDING).all(-1)
        assert torch.equal(result[~replaced], self.FEATURES[~replaced])
        assert all(0 < count < length for count, length in zip(replaced.sum(1), self.LENGTHS, strict=True))
        assert not any(row[length:].any() for row, length in zip(replaced, self.LENGTHS, strict=True))

    def test_channels_become_zero_through_the_whole_utterance(self) -> None:
        result = self.alter(0.0, 0.5)
        zeroed = (result == 0).all(1)
        assert zeroed.any(1).all()
        assert not zeroed.all(1).any()
        assert torch.equal(result, self.FEATURES * ~zeroed[:, None])

    def test_both_at_once(self) -> None:
        result = self.alter(0.5, 0.5)
        zeroed = (result == 0).all(1)
        masked = (result == self.EMBEDDING * ~zeroed[:, None]).all(-1)
        assert masked.any()
        assert zeroed.any()

    def test_nothing_is_nothing(self) -> None:
        assert self.alter(0.0, 0.0) is self.FEATURES

    def test_the_embedding_learns(self) -> None:
        embedding = self.EMBEDDING.clone().requires_grad_()
        masking(0.5, 0.0).masked(self.FEATURES, self.LENGTHS, embedding).sum().backward()
        assert embedding.grad is not None
        assert (embedding.grad > 0).all()
