import math

import pytest
import torch
from torch import Tensor

from parp_cli.errors import MaskError
from parp_cli.pruning.masks import (
    OPERATIONS,
    apply_,
    check_fit,
    combined,
    count_all,
    count_pruned,
    recorded_setting,
    revived_and_dropped,
    sparsity,
)


@pytest.fixture
def masks() -> dict[str, Tensor]:
    return {"a": torch.tensor([[True, False], [False, False]]), "b": torch.tensor([True] * 4)}


def test_counts(masks: dict[str, Tensor]) -> None:
    assert (count_pruned(masks), count_all(masks), sparsity(masks)) == (3, 8, 3 / 8)
    assert (count_pruned({}), count_all({}), sparsity({})) == (0, 0, 0.0)


def test_what_is_pruned_becomes_zero_whatever_it_was(masks: dict[str, Tensor]) -> None:
    weights = {"a": torch.tensor([[math.inf, math.nan], [-math.inf, -3.0]]), "b": torch.ones(4), "c": torch.ones(1)}
    weights["a"].requires_grad_()
    apply_(masks, weights)
    assert weights["a"].tolist() == [[math.inf, 0.0], [0.0, 0.0]]
    assert not torch.signbit(weights["a"]).any()
    assert weights["b"].tolist() == [1.0] * 4
    assert weights["c"].tolist() == [1.0]


def test_masks_that_fit(masks: dict[str, Tensor]) -> None:
    check_fit(masks, {"a": torch.ones(2, 2), "b": torch.ones(4), "c": torch.ones(3)}, what="it")
    check_fit({}, {}, what="it")


def test_masks_of_another_model(masks: dict[str, Tensor]) -> None:
    with pytest.raises(MaskError, match=r"mask does not fit base\.safetensors") as caught:
        check_fit(masks, {"a": torch.ones(4)}, what="base.safetensors")
    assert caught.value.details == ("a: mask (2, 2), weight (4,)", "b: mask (4,), no such weight")
    assert caught.value.hint
    assert caught.value.exit_code == 4


def test_a_long_list_is_cut() -> None:
    with pytest.raises(MaskError) as caught:
        check_fit({f"w{n}": torch.ones(1) for n in range(12)}, {}, what="it")
    assert len(caught.value.details) == 11
    assert caught.value.details[-1] == "… and 2 more"


def test_revived_and_dropped_against_counting_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = ({n: torch.rand(7, 5, generator=generator) < 0.5 for n in "ab"} for _ in range(2))
    pairs = [
        (b, a) for n in "ab" for b, a in zip(before[n].flatten().tolist(), after[n].flatten().tolist(), strict=True)
    ]
    assert revived_and_dropped(before, after) == (pairs.count((False, True)), pairs.count((True, False)))
    assert revived_and_dropped(before, before) == (0, 0)


def test_sets_against_sets_of_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = ({n: torch.rand(3, 4, generator=generator) < 0.5 for n in "xy"} for _ in range(2))

    def kept(masks: dict[str, Tensor]) -> set[tuple[str, int]]:
        return {(n, i) for n, mask in masks.items() for i, keep in enumerate(mask.flatten().tolist()) if keep}

    before = {n: mask.clone() for n, mask in a.items()}
    union, intersection, difference = (combined(a, b, OPERATIONS[name]) for name in ("union", "intersect", "minus"))
    assert kept(union) == kept(a) | kept(b)
    assert kept(intersection) == kept(a) & kept(b)
    assert kept(difference) == kept(a) - kept(b)
    assert all(torch.equal(a[n], before[n]) for n in a)
    assert {mask.dtype for made in (union, difference) for mask in made.values()} == {torch.bool}
    assert list(combined(a, dict(reversed(b.items())), OPERATIONS["union"])) == ["x", "y"]


@pytest.mark.parametrize(
    ("other", "detail"),
    [
        ({"a": torch.ones(2, 2).bool(), "b": torch.ones(5).bool()}, "b: (4,) in the first, (5,) in the second"),
        ({"a": torch.ones(2, 2).bool()}, "b: (4,) in the first, not masked in the second"),
        (
            {"a": torch.ones(2, 2).bool(), "b": torch.ones(4).bool(), "c": torch.ones(1).bool()},
            "c: not masked in the first, (1,) in the second",
        ),
    ],
)
def test_sets_of_masks_of_different_weights(masks: dict[str, Tensor], other: dict[str, Tensor], detail: str) -> None:
    for operation in OPERATIONS.values():
        with pytest.raises(MaskError, match="mask of another model") as caught:
            combined(masks, other, operation)
        assert caught.value.details == (detail,)
        assert caught.value.hint


def test_the_pattern_of_a_recipe() -> None:
    assert recorded_setting({"pattern": "2:4", "model": "mini"}, "pattern", "global") == "2:4"
    assert recorded_setting({"pruning": {"pattern": "16x16"}}, "pattern", "global") == "16x16"
    for recipe in (None, {}, {"pruning": {"mode": "parp"}}, {"model": "mini"}):
        assert recorded_setting(recipe, "pattern", "global") == "global"
