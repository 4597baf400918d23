"""Overlaps against sets of positions, and the level of chance against all masks there are."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from parp_cli.errors import MaskError
from parp_cli.pruning.overlap import Overlap, by_group, overlaps, together

bits = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30)


def overlap_of(pairs: list[tuple[bool, bool]]) -> Overlap:
    first, second = (torch.tensor([pair[which] for pair in pairs]) for which in (0, 1))
    return overlaps({"w": first}, {"w": second})["w"]


@given(bits)
def test_against_sets(pairs: list[tuple[bool, bool]]) -> None:
    kept = [{place for place, pair in enumerate(pairs) if pair[which]} for which in (0, 1)]
    pruned = [set(range(len(pairs))) - one for one in kept]
    found = overlap_of(pairs)
    for value, (first, second) in ((found.iou, kept), (found.pruned_iou, pruned)):
        assert value == pytest.approx(len(first & second) / len(first | second) if first | second else 1.0)
    assert found.agreement == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


@given(bits)
def test_a_mask_with_itself_and_with_its_opposite(pairs: list[tuple[bool, bool]]) -> None:
    same = overlap_of([(a, a) for a, _ in pairs])
    assert (same.iou, same.pruned_iou, same.agreement) == (1, 1, 1)
    opposite = overlap_of([(a, not a) for a, _ in pairs])
    assert (opposite.iou, opposite.pruned_iou, opposite.agreement) == (0, 0, 0)


def masks_that_keep(kept: int, total: int) -> Iterator[Tensor]:
    for places in itertools.combinations(range(total), kept):
        mask = torch.zeros(total, dtype=torch.bool)
        mask[list(places)] = True
        yield mask


@pytest.mark.parametrize(("first", "second", "total"), [(3, 3, 6), (2, 5, 7), (1, 6, 6), (0, 3, 5)])
def test_chance_is_the_mean_over_all_masks(first: int, second: int, total: int) -> None:
    fixed = next(masks_that_keep(first, total))
    found = [overlaps({"w": fixed}, {"w": other})["w"] for other in masks_that_keep(second, total)]
    kept_both = Fraction(sum(one.kept_both for one in found), len(found))
    assert kept_both == Fraction(first * second, total)
    mean = sum(one.agreement for one in found) / len(found)
    for one in found:
        assert one.agreement_by_chance == pytest.approx(mean)
        assert one.iou_by_chance == pytest.approx(float(kept_both / (first + second - kept_both)))
        pruned = total - first - second + kept_both
        assert one.pruned_iou_by_chance == pytest.approx(float(pruned / (total - kept_both)))
        assert one.kept_both_by_chance_pooled == one.kept_both_by_chance  # of one tensor they are the same


def test_chance_over_several_tensors_is_the_mean_over_all_masks_with_their_sparsities() -> None:
    """4 of 5 and 1 of 4 in the first mask, 3 of 5 and 1 of 4 in the second: one tensor is denser in both."""
    fixed = {"v": next(masks_that_keep(4, 5)), "w": next(masks_that_keep(1, 4))}
    found = [
        together(overlaps(fixed, {"v": v, "w": w}).values())
        for v, w in itertools.product(masks_that_keep(3, 5), masks_that_keep(1, 4))
    ]
    kept_both = Fraction(sum(one.kept_both for one in found), len(found))
    assert kept_both == Fraction(4 * 3, 5) + Fraction(1, 4)
    for one in found:
        assert one.kept_both_by_chance == pytest.approx(float(kept_both))
        assert one.iou_by_chance == pytest.approx(float(kept_both / (5 + 4 - kept_both)))
        assert one.agreement_by_chance == pytest.approx(sum(other.agreement for other in found) / len(found))
        assert one.pruned_iou_by_chance == pytest.approx(float((kept_both) / (9 - kept_both)))
        pooled = Fraction(5 * 4, 9)
        assert one.iou_by_chance_pooled == pytest.approx(float(pooled / (9 - pooled)))
        assert one.iou_by_chance > one.iou_by_chance_pooled
        assert one.agreement_by_chance > one.agreement_by_chance_pooled
        assert one.pruned_iou_by_chance > one.pruned_iou_by_chance_pooled


def test_half_pruned_at_random_is_at_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = [torch.randperm(100_000, generator=generator) < 50_000 for _ in range(2)]
    found = overlaps({"w": masks[0]}, {"w": masks[1]})["w"]
    assert (found.iou_by_chance, found.agreement_by_chance) == (pytest.approx(1 / 3), pytest.approx(1 / 2))
    assert found.iou == pytest.approx(1 / 3, abs=0.01)
    assert found.iou_above_chance == pytest.approx(0, abs=0.01)


def test_above_chance() -> None:
    def above(kept_both: int) -> float:
        one = Overlap(total=8, kept_first=4, kept_second=4, kept_both=kept_both, kept_both_by_chance=2)
        return one.iou_above_chance

    assert above(2) == 0
    assert above(4) == 1
    assert above(0) == pytest.approx(-1 / 2)
    full = Overlap(total=3, kept_first=3, kept_second=3, kept_both=3, kept_both_by_chance=3)
    assert full.iou_above_chance == 0


def test_of_nothing() -> None:
    empty = together([])
    assert (empty.iou, empty.pruned_iou, empty.agreement) == (1, 1, 1)


def test_groups_add_up() -> None:
    generator = torch.Generator().manual_seed(1)
    first, second = ({name: torch.rand(5, 7, generator=generator) < 0.4 for name in "cab"} for _ in range(2))
    by_name = overlaps(first, second)
    groups = by_group(by_name, {"c": "x", "a": "y", "b": "x"})
    assert list(groups) == ["x", "y"]
    assert groups["y"] == by_name["a"]
    joined = [torch.cat([one["c"], one["b"]]) for one in (first, second)]
    one = overlaps({"w": joined[0]}, {"w": joined[1]})["w"]
    assert groups["x"] == replace(one, kept_both_by_chance=groups["x"].kept_both_by_chance)
    assert together(groups.values()) == together(by_name.values())


def test_masks_of_another_model() -> None:
    with pytest.raises(MaskError, match="mask of another model"):
        overlaps({"w": torch.ones(2, dtype=torch.bool)}, {"w": torch.ones(3, dtype=torch.bool)})
