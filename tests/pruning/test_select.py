import math
from collections.abc import Iterator
from unittest import mock

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils import prune

from parp_cli.errors import ParpError
from parp_cli.models.sources.load import load_encoder
from parp_cli.models.sources.names import MASK_EMBEDDING, without
from parp_cli.models.speech.config import build
from parp_cli.models.speech.prunable import prunable_parameters
from parp_cli.pruning import select
from parp_cli.pruning.masks import count_pruned
from parp_cli.pruning.select import magnitude_masks, prune_count
from tests.fake_cuda import CUDA, fake_cuda, value_of

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SPECIAL = (0.0, -0.0, 1.0, -1.0, 1e-7, -1e-7, 1e-42, -1e-42, 65504.0, math.inf, -math.inf)


def brute_force(weights: dict[str, Tensor], k: int) -> dict[str, Tensor]:
    """A stable sort of everything: ties by position, in the order of the dict and row by row."""
    magnitudes = numpy.concatenate([w.detach().double().abs().numpy().reshape(-1) for w in weights.values()])
    kept = numpy.ones(len(magnitudes), dtype=bool)
    kept[numpy.argsort(magnitudes, kind="stable")[:k]] = False
    parts = torch.from_numpy(kept).split([w.numel() for w in weights.values()])
    return {name: part.reshape(w.shape) for (name, w), part in zip(weights.items(), parts, strict=True)}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, mask in expected.items():
        assert found[name].dtype == torch.bool
        assert torch.equal(found[name], mask), name


def as_bytes(weight: Tensor) -> Tensor:
    return weight.reshape(-1).view(torch.uint8)


Case = tuple[dict[str, Tensor], int]
SMALL_PIECES = mock.patch.object(select, "_PIECE", 8)


@st.composite
def weights_and_k(draw: st.DrawFn) -> Case:
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    weights = {}
    for number, shape in enumerate(draw(st.lists(st.lists(st.integers(0, 12), max_size=2), min_size=1, max_size=4))):
        weight = torch.randn(shape, generator=generator)
        special = torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), shape, generator=generator)]
        rare = torch.rand(shape, generator=generator) < draw(st.sampled_from((0.0, 0.2, 1.0)))
        weights[f"w{number}"] = torch.where(rare, special, weight).to(dtype)
    return weights, draw(st.integers(0, sum(weight.numel() for weight in weights.values())))


@given(weights_and_k())
def test_equals_a_stable_sort(case: Case) -> None:
    weights, k = case
    before = {name: weight.clone() for name, weight in weights.items()}
    masks = magnitude_masks(weights, k)
    assert count_pruned(masks) == k
    assert_equal(masks, brute_force(weights, k))
    for name, weight in weights.items():  # not modified
        assert torch.equal(as_bytes(weight), as_bytes(before[name]))


@given(weights_and_k())
def test_equals_a_stable_sort_in_many_pieces(case: Case) -> None:
    weights, k = case
    with SMALL_PIECES:
        assert_equal(magnitude_masks(weights, k), brute_force(weights, k))


def hard(kind: str, dtype: torch.dtype) -> dict[str, Tensor]:
    weight = torch.randn(6_000, generator=torch.Generator().manual_seed(0))
    if kind == "half zero":
        weight[torch.randperm(6_000, generator=torch.Generator().manual_seed(1))[:3_000]] = 0.0
    elif kind == "2:4":
        weight.view(-1, 4)[:, :2] = -0.0
    elif kind == "three magnitudes":
        weight = weight.sign() * weight.abs().round().clamp(max=2)
    elif kind == "one outlier":
        weight = torch.zeros(6_000)
        weight[4_321] = 3.0
    return {"a": weight[:2_500].reshape(50, 50).to(dtype), "b": weight[2_500:].to(dtype)}


HARD = ("random", "half zero", "2:4", "three magnitudes", "one outlier")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("k", [0, 1, 1_500, 2_999, 3_000, 3_001, 5_999, 6_000])
def test_equals_a_stable_sort_where_many_are_alike(kind: str, dtype: torch.dtype, k: int) -> None:
    weights = hard(kind, dtype)
    assert_equal(magnitude_masks(weights, k), brute_force(weights, k))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, -0.0, 0.5, math.inf, 1e-7])
def test_all_ties_go_by_position(dtype: torch.dtype, value: float) -> None:
    weights = {"b": torch.full((2, 3), value, dtype=dtype), "a": torch.full((4,), -value, dtype=dtype)}
    masks = magnitude_masks(weights, 7)
    assert not masks["b"].any()
    assert masks["a"].tolist() == [False, True, True, True]


def test_one_element_and_none() -> None:
    assert magnitude_masks({}, 0) == {}
    assert magnitude_masks({"a": torch.tensor(2.0)}, 0)["a"].item() is True
    assert magnitude_masks({"a": torch.tensor(2.0)}, 1)["a"].item() is False
    assert magnitude_masks({"a": torch.zeros(0, 3)}, 0)["a"].shape == (0, 3)


@pytest.mark.parametrize("k", [-1, 7])
def test_more_than_there_is(k: int) -> None:
    with pytest.raises(ValueError, match=f"cannot prune {k} of 6"):
        magnitude_masks({"a": torch.ones(6)}, k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [0, 2, 8])
def test_nan_names_its_parameter(dtype: torch.dtype, k: int) -> None:
    weights = {"good": torch.full((4,), math.inf, dtype=dtype), "bad": torch.ones(4, dtype=dtype)}
    weights["bad"][2] = -math.nan
    with pytest.raises(ParpError, match="bad holds NaN") as caught:
        magnitude_masks(weights, k)
    assert caught.value.hint


def test_dtypes_that_cannot_be_ranked() -> None:
    with pytest.raises(ParpError, match="different dtypes"):
        magnitude_masks({"a": torch.ones(2), "b": torch.ones(2).half()}, 1)
    with pytest.raises(ParpError, match="float64"):
        magnitude_masks({"a": torch.ones(2).double()}, 1)


def test_masks_are_nested_as_sparsity_rises() -> None:
    weights = {"a": torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).half(), "b": torch.ones(100)[:50]}
    weights["b"] = weights["b"].half()
    previous = magnitude_masks(weights, 0)
    for k in range(25, 1_251, 25):
        masks = magnitude_masks(weights, k)
        assert all((masks[name] <= previous[name]).all() for name in masks)
        assert count_pruned(masks) == k
        previous = masks


def test_layout_in_memory_and_gradients_do_not_matter() -> None:
    weight = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    expected = magnitude_masks({"a": weight}, 200)
    strided = torch.zeros(60, 40)
    strided[::2, ::2] = weight
    for same in (weight.T.contiguous().T, strided[::2, ::2], torch.nn.Parameter(weight)):
        assert_equal(magnitude_masks({"a": same}, 200), expected)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_does_not_matter() -> None:
    weights = {"a": torch.randn(600, 500, generator=torch.Generator().manual_seed(0)).half().float()}
    masks = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        masks.append(magnitude_masks(weights, 123_456))
    assert_equal(masks[1], masks[0])
    assert_equal(masks[2], masks[0])


@pytest.mark.usefixtures("threads")
@given(weights_and_k())
def test_threads_leave_nothing_out(case: Case) -> None:
    weights, k = case
    torch.set_num_threads(3)
    with SMALL_PIECES:
        assert_equal(magnitude_masks(weights, k), brute_force(weights, k))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", HARD)
def test_the_device_does_not_matter(kind: str, dtype: torch.dtype) -> None:
    weights = hard(kind, dtype)
    on_device = {name: weight.cuda() for name, weight in weights.items()}
    for k in (0, 1_500, 3_000, 6_000):
        masks = magnitude_masks(on_device, k)
        assert all(mask.is_cuda for mask in masks.values())
        assert_equal({name: mask.cpu() for name, mask in masks.items()}, brute_force(weights, k))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", HARD)
def test_a_device_is_waited_for_a_few_times_however_many_tensors_there_are(kind: str, dtype: torch.dtype) -> None:
    weights = hard(kind, dtype)
    parts = {f"{name}/{place}": part for name, w in weights.items() for place, part in enumerate(w.flatten().split(50))}
    assert len(parts) > 100
    with fake_cuda() as device:
        on_device = {name: part.to(CUDA) for name, part in parts.items()}
        device.waits.clear()
        masks = {name: value_of(mask) for name, mask in magnitude_masks(on_device, 1_500).items()}
    assert_equal(masks, brute_force(parts, 1_500))
    assert 0 < len(device.waits) <= 8


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    encoder = load_encoder("mini")
    model = build(encoder.architecture)
    model.load_state_dict(without(encoder.weights, [MASK_EMBEDDING, "aux."]))
    return model


class TestAgainstTorch:
    """torch.nn.utils.prune on the prunable weights of the bundled encoder."""

    @pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.77])
    def test_the_same_set_but_for_ties(self, model: torch.nn.Module, sparsity: float) -> None:
        weights = {name: parameter.detach().clone() for name, parameter in prunable_parameters(model).items()}
        total = sum(weight.numel() for weight in weights.values())
        masks = magnitude_masks(weights, prune_count(sparsity, total))
        theirs = {name: torch.nn.ParameterDict({"w": torch.nn.Parameter(weight)}) for name, weight in weights.items()}
        prune.global_unstructured([(module, "w") for module in theirs.values()], prune.L1Unstructured, amount=sparsity)
        assert count_pruned(masks) == round(sparsity * total)
        assert count_pruned(masks) == sum(int((module.w_mask == 0).sum()) for module in theirs.values())
        threshold = max(weights[name][~mask].abs().max() for name, mask in masks.items() if not mask.all())
        for name, mask in masks.items():
            differs = mask != theirs[name].w_mask.bool()
            assert (weights[name][differs].abs() == threshold).all(), name

    @pytest.mark.parametrize("total", [1, 7, 10, 4_733_952])
    def test_the_same_count(self, total: int) -> None:
        for sparsity in (0.0, 0.05, 0.1, 0.25, 0.5, 0.65, 0.7, 0.95, 0.999):
            assert prune_count(sparsity, total) == round(sparsity * total)
            assert prune_count(sparsity, total) == prune._compute_nparams_toprune(sparsity, total)
