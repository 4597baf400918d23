from itertools import pairwise

import pytest

from parp_cli.training.optimizer import tri_stage


def share(update: int, updates: int = 100) -> float:
    """The published proportions: 10 % warm-up, 40 % hold, 50 % decay to 0.05."""
    return tri_stage(update, updates, warmup=0.1, hold=0.4, decay=0.5, final_scale=0.05)


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        (0, 0.01),
        (1, 0.109),
        (5, 0.505),
        (9, 0.901),
        (10, 1.0),
        (49, 1.0),
        (50, 1.0),  # the decay begins at the peak
        (51, 0.05**0.02),
        (75, 0.05**0.5),
        (99, 0.05**0.98),
        (100, 0.05),
        (1_000, 0.05),
    ],
)
def test_by_hand(update: int, expected: float) -> None:
    assert share(update) == pytest.approx(expected, rel=1e-12)


def test_it_rises_holds_and_falls() -> None:
    shares = [share(update, 12_000) for update in range(12_001)]
    assert shares[:1_201] == sorted(shares[:1_201])
    assert set(shares[1_200:6_001]) == {1.0}
    assert shares[6_000:] == sorted(shares[6_000:], reverse=True)
    assert max(abs(a - b) for a, b in pairwise(shares)) < 1e-3  # no jumps
    assert shares[12_000] == pytest.approx(0.05)


def test_stages_that_are_left_out() -> None:
    assert tri_stage(0, 10, warmup=0.0, hold=1.0, decay=0.0, final_scale=0.5) == 1.0
    assert tri_stage(0, 10, warmup=0.0, hold=0.0, decay=1.0, final_scale=0.25) == 1.0
    assert tri_stage(5, 10, warmup=0.0, hold=0.0, decay=1.0, final_scale=0.25) == 0.5
    assert tri_stage(10, 10, warmup=0.0, hold=1.0, decay=0.0, final_scale=0.5) == 1.0


def test_a_run_of_one_update() -> None:
    assert 0 < share(0, 1) <= 1
