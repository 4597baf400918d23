import math
from collections.abc import Iterable
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from parp_cli.errors import ParpError, UsageError
from parp_cli.pruning import patterns
from parp_cli.pruning.masks import count_pruned
from parp_cli.pruning.patterns import GLOBAL, Pattern

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Few distinct magnitudes, so that most entries are tied.
TIED = (0.0, -0.0, 0.5, -0.5, 1.0, 3.0, -math.inf, math.inf, 6e-8)
SPARSITIES = (0.0, 0.1, 0.25, 0.5, 0.7, 0.9, 0.99)


def smallest(magnitudes: list[float], k: int) -> set[int]:
    """Places of the k smallest, the earlier of equals, by a stable sort."""
    return set(sorted(range(len(magnitudes)), key=lambda place: magnitudes[place])[:k])


def as_list(score: Tensor) -> list[float]:
    return score.double().abs().reshape(-1).tolist()


def expected_among(scores: dict[str, Tensor], names: Iterable[str], sparsity: float) -> dict[str, list[bool]]:
    """Kept entries, row-major, where all tensors of these names compete."""
    entries = [(name, place) for name in names for place in range(scores[name].numel())]
    magnitudes = [value for name in names for value in as_list(scores[name])]
    pruned = {entries[place] for place in smallest(magnitudes, round(sparsity * len(entries)))}
    return {name: [(name, place) not in pruned for place in range(scores[name].numel())] for name in names}


def assert_masks(masks: dict[str, Tensor], scores: dict[str, Tensor], expected: dict[str, list[bool]]) -> None:
    assert list(masks) == list(scores)
    for name, mask in masks.items():
        assert mask.dtype == torch.bool
        assert mask.shape == scores[name].shape
        assert mask.reshape(-1).tolist() == expected[name], name


def draw_score(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Random or mostly tied, contiguous or not."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    score = torch.randn(shape, generator=generator)
    if draw(st.booleans()):
        score = torch.tensor(TIED)[torch.randint(len(TIED), shape, generator=generator)]
    score = score.to(dtype)
    match draw(st.sampled_from(("contiguous", "transposed", "strided"))):
        case "transposed":
            score = score.transpose(0, -1).contiguous().transpose(0, -1) if shape else score
        case "strided" if shape:
            wide = torch.zeros(*shape[:-1], 2 * shape[-1], dtype=dtype)
            wide[..., ::2] = score
            score = wide[..., ::2]
    return score


@st.composite
def free_scores(draw: st.DrawFn) -> dict[str, Tensor]:
    """Up to five tensors of any shapes, without entries too."""
    dtype = draw(st.sampled_from(DTYPES))
    shapes = draw(st.lists(st.lists(st.integers(0, 6), max_size=3), max_size=5))
    return {f"w{number}": draw_score(draw, tuple(shape), dtype) for number, shape in enumerate(shapes)}


@given(free_scores(), st.sampled_from(SPARSITIES))
def test_global_equals_a_stable_sort_of_all(scores: dict[str, Tensor], sparsity: float) -> None:
    assert_masks(GLOBAL.masks(scores, sparsity, {}), scores, expected_among(scores, scores, sparsity))


@given(free_scores(), st.sampled_from(SPARSITIES))
def test_tensor_equals_a_stable_sort_of_each(scores: dict[str, Tensor], sparsity: float) -> None:
    masks = Pattern.parse("tensor").masks(scores, sparsity, {})
    assert_masks(masks, scores, {name: expected_among(scores, [name], sparsity)[name] for name in scores})


@given(free_scores(), st.sampled_from(SPARSITIES), st.data())
def test_layer_equals_a_stable_sort_of_each_layer(
    scores: dict[str, Tensor], sparsity: float, data: st.DataObject
) -> None:
    labels = {name: data.draw(st.sampled_from(("0", "1", "other"))) for name in scores}
    expected = {}
    for label in ("0", "1", "other"):
        expected |= expected_among(scores, [name for name in scores if labels[name] == label], sparsity)
    unused = {"of another model": "7"}
    assert_masks(Pattern.parse("layer").masks(scores, sparsity, labels | unused), scores, expected)


@st.composite
def n_of_m_scores(draw: st.DrawFn) -> tuple[int, int, dict[str, Tensor]]:
    m = draw(st.one_of(st.integers(2, 9), st.just(32)))
    n = draw(st.integers(1, m - 1))
    scores = {}
    for number in range(draw(st.integers(0, 3))):
        shape = (draw(st.integers(0, 4)), m * draw(st.integers(0, 4)))
        if draw(st.booleans()):
            shape = (shape[0], m, shape[1] // m)  # a convolution's
        scores[f"w{number}"] = draw_score(draw, shape, draw(st.sampled_from(DTYPES)))
    return n, m, scores


@given(n_of_m_scores(), st.sampled_from((1, 40, 1 << 20)))
def test_n_of_m_equals_a_stable_sort_of_every_group(case: tuple[int, int, dict[str, Tensor]], chunk: int) -> None:
    n, m, scores = case
    before = {name: score.clone() for name, score in scores.items()}
    pattern = Pattern.parse(f"{n}:{m}")
    with mock.patch.object(patterns, "_CHUNK", max(chunk, m)):
        masks = pattern.masks(scores, 1 - n / m, {})
    expected = {}
    for name, score in scores.items():
        values = as_list(score)
        groups = [values[start : start + m] for start in range(0, len(values), m)]
        expected[name] = [place not in smallest(group, m - n) for group in groups for place in range(m)]
        assert torch.equal(score, before[name])  # not modified
    assert_masks(masks, scores, expected)
    for mask in masks.values():
        assert (mask.reshape(-1, m).sum(1) == n).all()


def test_two_of_four_by_hand() -> None:
    scores = {
        "w": torch.tensor([[1.0, -4.0, 3.0, 2.0, 5.0, -5.0, 5.0, 5.0], [0.0, 0.0, 0.0, 9.0, -1.0, 7.0, 0.0, 1.0]])
    }
    masks = Pattern.parse("2:4").masks(scores, 0.5, {})
    assert masks["w"].int().tolist() == [[0, 1, 1, 0, 0, 0, 1, 1], [0, 0, 1, 1, 0, 1, 0, 1]]


@pytest.mark.parametrize(("text", "m"), [("2:4", 4), ("4:8", 8), ("16:32", 32)])
def test_many_groups_in_many_chunks(text: str, m: int) -> None:
    score = torch.randn(300, 4 * 32 * 9, generator=torch.Generator().manual_seed(0))
    assert score.numel() > patterns._CHUNK
    mask = Pattern.parse(text).masks({"w": score}, 0.5, {})["w"]
    ranks = score.abs().reshape(-1, m).argsort(1).argsort(1)
    assert torch.equal(mask, (ranks >= m // 2).reshape(score.shape))


def test_the_sparsity_of_n_of_m_is_its_own() -> None:
    scores = {"w": torch.ones(2, 12)}
    for text, sparsity in (("2:4", 0.49), ("2:4", 0.0), ("1:4", 0.25), ("2:3", 0.3334)):
        with pytest.raises(UsageError, match=f"pattern {text} cannot have sparsity {sparsity:g}") as caught:
            Pattern.parse(text).masks(scores, sparsity, {})
        assert f"must be {Pattern.parse(text).sparsity:.6g}" in str(caught.value)
    Pattern.parse("2:3").masks(scores, 0.333333, {})  # as the message says it


@st.composite
def block_scores(draw: st.DrawFn) -> tuple[int, int, dict[str, Tensor]]:
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    dtype = draw(st.sampled_from(DTYPES))
    scores = {}
    for number in range(draw(st.integers(0, 3))):
        shape = (rows * draw(st.integers(0, 4)), columns * draw(st.integers(0, 4)))
        if draw(st.booleans()):
            shape = (shape[0], columns, shape[1] // columns)
        scores[f"w{number}"] = draw_score(draw, shape, dtype)
    return rows, columns, scores


@given(block_scores(), st.sampled_from(SPARSITIES))
def test_blocks_equal_a_stable_sort_of_their_sums(case: tuple[int, int, dict[str, Tensor]], sparsity: float) -> None:
    rows, columns, scores = case
    blocks: list[tuple[str, int, int]] = []
    sums: list[float] = []
    for name, score in scores.items():
        matrix = score.double().abs().flatten(1) if score.numel() else score.new_zeros(0, 0)
        for top in range(0, matrix.shape[0], rows):
            for left in range(0, matrix.shape[1], columns):
                blocks.append((name, top, left))
                exact = math.fsum(matrix[top : top + rows, left : left + columns].reshape(-1).tolist())
                sums.append(torch.tensor(exact).float().item())
    expected = {name: torch.ones(score.shape, dtype=torch.bool) for name, score in scores.items()}
    k = round(sparsity * len(blocks))
    for place in smallest(sums, k):
        name, top, left = blocks[place]
        expected[name].view(len(scores[name]), -1)[top : top + rows, left : left + columns] = False
    masks = Pattern.parse(f"{rows}x{columns}").masks(scores, sparsity, {})
    assert_masks(masks, scores, {name: mask.reshape(-1).tolist() for name, mask in expected.items()})
    assert count_pruned(masks) == k * rows * columns


def test_blocks_by_hand() -> None:
    score = torch.tensor([[1.0, -1.0, 4.0, 0.0], [1.0, 1.0, 0.0, 0.0], [-9.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, -2.0]])
    masks = Pattern.parse("2x2").masks({"w": score}, 0.5, {})  # sums 4, 4, 9, 8: of equals, the earlier
    assert masks["w"].int().tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]
    masks = Pattern.parse("1x2").masks({"w": score, "v": torch.zeros(2, 2)}, 0.3, {})  # 3 of 10
    assert masks["w"].int().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 1, 1]]
    assert masks["v"].int().tolist() == [[0, 0], [1, 1]]


def test_a_block_is_worth_its_exact_sum_in_half_precision_too() -> None:
    # 2048 + 1 is 2048 in float16: added up in it, both blocks would be alike and the first would be pruned.
    score = torch.tensor([[2048.0, 1.0], [2048.0, 0.0]], dtype=torch.float16)
    assert Pattern.parse("1x2").masks({"w": score}, 0.5, {})["w"].tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("text", ["global", "layer", "tensor", "2x1", "1x3"])
def test_masks_are_nested_as_sparsity_rises(text: str) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.randn(12, 9, generator=generator).round(decimals=1) for name in "abc"}
    pattern, layers = Pattern.parse(text), {"a": "0", "b": "1", "c": "0"}
    previous = pattern.masks(scores, 0.0, layers)
    assert count_pruned(previous) == 0
    for percent in range(5, 100, 5):
        masks = pattern.masks(scores, percent / 100, layers)
        assert all((masks[name] <= previous[name]).all() for name in masks)
        assert count_pruned(masks) > count_pruned(previous)
        previous = masks


@pytest.mark.parametrize("text", ["global", "layer", "tensor", "2:4", "2x2"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_names_its_parameter(text: str, dtype: torch.dtype) -> None:
    scores = {"good": torch.full((4, 4), math.inf, dtype=dtype), "bad": torch.full((4, 4), math.inf, dtype=dtype)}
    scores["bad"][1, 2] = -math.nan
    with pytest.raises(ParpError, match=r"^bad holds NaN") as caught:
        Pattern.parse(text).masks(scores, 0.5, dict.fromkeys(scores, "0"))
    assert caught.value.hint == "the model has diverged"


@pytest.mark.parametrize("text", ["global", "layer", "tensor", "2:4", "1:3", "16x16"])
def test_nothing_to_prune(text: str) -> None:
    pattern = Pattern.parse(text)
    assert pattern.masks({}, pattern.sparsity or 0.5, {}) == {}


@pytest.mark.parametrize("text", ["global", "layer", "tensor", "2:4", "2x2"])
@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, math.nan])
def test_sparsity_out_of_range(text: str, sparsity: float) -> None:
    with pytest.raises(UsageError, match=r"outside \[0, 1\)"):
        Pattern.parse(text).masks({"w": torch.ones(4, 4)}, sparsity, {"w": "0"})


@pytest.mark.parametrize("text", ["global", "tensor", "2:4", "2x2"])
def test_parameters_that_train(text: str) -> None:
    weight = torch.nn.Parameter(torch.arange(16.0).reshape(4, 4))
    mask = Pattern.parse(text).masks({"w": weight}, 0.5, {})["w"]
    assert not mask.requires_grad
    assert int(mask.sum()) == 8


class TestShapes:
    @pytest.mark.parametrize("text", ["global", "layer", "tensor"])
    def test_any_shape_where_there_are_no_sides(self, text: str) -> None:
        assert all(Pattern.parse(text).carries(shape) for shape in ((), (7,), (3, 5), (2, 3, 5, 7)))

    @pytest.mark.parametrize(
        ("text", "yes", "no"),
        [
            ("2:4", [(1, 4), (3, 8), (5, 2, 2), (5, 1, 2, 6)], [(), (4,), (4, 6), (4, 1, 10), (8, 1)]),
            ("5:10", [(16, 1, 10)], [(10, 16)]),
            ("16x16", [(16, 16), (32, 48), (16, 8, 2)], [(), (16,), (256,), (16, 8), (8, 16), (16, 1, 10), (24, 32)]),
            ("1x8", [(3, 8), (5, 2, 4)], [(8, 3), (8,)]),
            ("8x1", [(8, 3)], [(3, 8), (8,)]),
        ],
    )
    def test_matrices_whose_sides_divide(
        self, text: str, yes: list[tuple[int, ...]], no: list[tuple[int, ...]]
    ) -> None:
        pattern = Pattern.parse(text)
        assert [shape for shape in yes + no if pattern.carries(shape)] == yes
        for shape in no:
            scores = {"fine": torch.ones(yes[0]), "odd one": torch.ones(shape)}
            with pytest.raises(UsageError, match=rf"^odd one cannot hold the pattern {text}") as caught:
                pattern.masks(scores, pattern.sparsity or 0.5, {})
            assert caught.value.details == (f"odd one: {shape}",)
            assert caught.value.hint

    def test_many_that_do_not_carry_it_are_not_all_listed(self) -> None:
        with pytest.raises(UsageError) as caught:
            Pattern.parse("2:4").masks({f"b{number}": torch.ones(4) for number in range(13)}, 0.5, {})
        assert len(caught.value.details) == 11
        assert caught.value.details[-1] == "… and 3 more"


class TestText:
    @pytest.mark.parametrize(
        "text", ["global", "layer", "tensor", "2:4", "4:8", "1:2", "31:32", "16x16", "1x8", "1x1", "128x64"]
    )
    def test_round_trip(self, text: str) -> None:
        pattern = Pattern.parse(text)
        assert str(pattern) == text
        assert Pattern.parse(str(pattern)) == pattern
        assert hash(Pattern.parse(text)) == hash(pattern)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "Global",
            "n:m",
            "block",
            "16",
            "x",
            ":",
            "2:2",
            "4:2",
            "0:4",
            "2:33",
            "02:4",
            "2:4:8",
            "-2:4",
            " 2:4",
            "2:4\n",
            "2 : 4",
            "²:4",
            "0x4",
            "4x0",
            "4X4",
            "16x16x2",
        ],
    )
    def test_what_is_no_pattern(self, text: str) -> None:
        with pytest.raises(UsageError, match="no pattern") as caught:
            Pattern.parse(text)
        assert repr(text) in caught.value.message
        assert "2:4" in str(caught.value.hint)

    def test_sparsity_is_fixed_by_n_of_m_alone(self) -> None:
        found = [Pattern.parse(text).sparsity for text in ("2:4", "1:4", "4:8", "global", "layer", "tensor", "16x16")]
        assert found == [0.5, 0.75, 0.5, None, None, None, None]
        assert str(GLOBAL) == "global"
