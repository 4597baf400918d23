"""What is removed from a network changes its size, and not what it computes."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from parp_cli.errors import CheckpointError
from parp_cli.models.sources.names import fit
from parp_cli.models.speech.config import Architecture, build
from parp_cli.models.speech.forward import draw_skipped_layers, encode, front_end, pad
from parp_cli.models.speech.small import without_empty_groups
from parp_cli.pruning.masks import apply_
from parp_cli.pruning.structures import spread
from tests.models.small import SMALL, randomise, waveform

VOCABULARY = 7


def logits(architecture: Architecture, weights: dict[str, Tensor]) -> list[Tensor]:
    """Of three lengths, padded together, and then alone."""
    model = build(architecture, vocabulary_size=VOCABULARY)
    model.load_state_dict(weights)
    model.eval()
    with torch.inference_mode():
        features = [front_end(model, architecture, waveform(samples)[0]) for samples in (4_000, 1_500, 2_600)]
        together = encode(model, *pad(features))
        alone = [encode(model, *pad([one]))[0] for one in features]
    return [*(row[: len(one)] for row, one in zip(together, features, strict=True)), *alone]


def pruned(name: str, kept: dict[str, list[list[int]]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random weights, and masks that keep these heads and units of each layer and nothing else."""
    weights = dict(randomise(build(SMALL[name], vocabulary_size=VOCABULARY)).state_dict())
    structures = SMALL[name].structures_of(weights)
    values = {}
    for structure in structures:
        chosen = torch.zeros(structure.count, dtype=torch.bool)
        chosen[kept.get(structure.kind, ALL)[structure.layer]] = True
        values[next(iter(structure.parts))] = chosen
    masks = spread(values, weights, structures)
    apply_(masks, weights)
    return weights, masks


def assert_same(before: list[Tensor], after: list[Tensor]) -> None:
    assert before[0].std() > 0.1
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


ALL: list[list[int]] = [[*range(16)]] * 3
UNEVEN = {"heads": [[1, 2], [0, 1, 2, 3], [3]], "units": [[*range(0, 48, 3)], [5], [*range(48)]]}
FIRST_EMPTY = {"heads": [[], [0, 3], [2]], "units": [[], [*range(20)], []]}
CHANNELS = UNEVEN | {"channels": [[0, 2, *range(5, 16)], [1, 4, 6, 15], [*range(3, 12)]]}
EMPTY: dict[str, list[list[int]]] = {"heads": [[], [], []], "units": [[], [], []]}
KINDS = [name for name in SMALL if name != "xls-r"]


@pytest.mark.parametrize(
    "kept", [UNEVEN, FIRST_EMPTY, EMPTY, CHANNELS], ids=["uneven", "first empty", "empty", "channels"]
)
@pytest.mark.parametrize("name", KINDS)
def test_the_small_network_does_what_the_masked_one_does(name: str, kept: dict[str, list[list[int]]]) -> None:
    weights, masks = pruned(name, kept)
    small = without_empty_groups(SMALL[name], weights, masks)
    read = Architecture.from_json(json.loads(json.dumps(small.architecture.to_json())))
    assert read == small.architecture
    assert [read.sizes_of_layer(index)[0] for index in range(3)] == [len(heads) for heads in kept["heads"]]
    assert [read.sizes_of_layer(index)[2] for index in range(3)] == [len(units) for units in kept["units"]]
    found = fit(small.weights, read, source="small", vocabulary_size=VOCABULARY)
    assert_same(logits(SMALL[name], weights), logits(read, found))
    assert not small.masks, "what is left is kept"
    channels = [len(numbers) for numbers in kept.get("channels", ALL)]
    assert [layer[0] for layer in read.conv_layers] == channels
    assert read.norm_channels == (16, 16, 16)
    left = sum(mask.numel() for mask in masks.values()) - sum(int((~mask).sum()) for mask in masks.values())
    inside = ("q_proj", "k_proj", "v_proj", "in_proj", "out_proj.weight", "intermediate", "output_dense.weight")
    inside += ("conv_layers", "feature_projection.layer_norm", "projection.projection.weight")
    assert sum(weight.numel() for key, weight in found.items() if any(part in key for part in inside)) == left


@pytest.mark.parametrize("name", ["hubert-base", "wavlm-large"])
def test_a_small_network_is_made_smaller(name: str) -> None:
    weights, masks = pruned(name, CHANNELS)
    once = without_empty_groups(SMALL[name], weights, masks)
    chosen = once.architecture.structures_of(once.weights)
    # A norm over very few channels leaves little but signs, and float32 rounds what is near zero to either.
    values = {next(iter(s.parts)): torch.arange(s.count) % 2 == 0 for s in chosen}
    for structure in chosen:
        if structure.kind == "channels":
            numbers = torch.arange(structure.count)
            values[next(iter(structure.parts))] = (numbers % 4 != 1) | (structure.layer == 1)
    masks = spread(values, once.weights, chosen)
    apply_(masks, once.weights)
    twice = without_empty_groups(once.architecture, once.weights, masks)
    assert twice.architecture.name == once.architecture.name
    assert twice.heads == (7, 4)
    if name.startswith("wavlm"):
        assert twice.architecture.kept_heads == ((1,), (0, 2), (3,))
    assert twice.channels == (26, 21)
    assert twice.architecture.norm_channels == (16, 16, 16)
    assert_same(logits(once.architecture, once.weights), logits(twice.architecture, twice.weights))


@pytest.mark.parametrize("name", KINDS)
def test_what_only_gives_a_constant_is_removed_too(name: str) -> None:
    """A unit without input weights, and a head without values, add what their biases make of them."""
    weights = dict(randomise(build(SMALL[name], vocabulary_size=VOCABULARY)).state_dict())
    masks = {}
    for structure in SMALL[name].structures_of(weights):
        if structure.kind == "channels":
            continue
        source = next(
            key for key in structure.parts if "in_proj_weight" in key or "v_proj.weight" in key or "inter" in key
        )
        mask = torch.ones_like(weights[source], dtype=torch.bool)
        mask.unflatten(0, (structure.parts[source][1], structure.count, -1))[-1, 1:3] = False
        masks[source] = mask
    apply_(masks, weights)
    small = without_empty_groups(SMALL[name], weights, masks)
    assert (small.heads, small.units) == ((12, 6), (144, 138))
    assert_same(logits(SMALL[name], weights), logits(small.architecture, small.weights))


def test_masks_of_what_is_left_go_along() -> None:
    weights, masks = pruned("hubert-large", UNEVEN)
    name = "encoder.transformer.layers.1.attention.q_proj.weight"
    masks[name][:, ::2] = False
    apply_(masks, weights)
    small = without_empty_groups(SMALL["hubert-large"], weights, masks)
    assert {key: tuple(mask.shape) for key, mask in small.masks.items()} == {
        key: tuple(small.weights[key].shape) for key in masks
    }
    assert torch.equal(small.masks[name], masks[name])
    assert all(bool(mask.all()) for key, mask in small.masks.items() if key != name)


def test_nothing_is_empty_after_unstructured_pruning() -> None:
    weights = dict(randomise(build(SMALL["wavlm-base"])).state_dict())
    masks = {key: torch.rand(w.shape) < 0.5 for key, w in weights.items() if "attention" in key and w.ndim == 2}
    apply_(masks, weights)
    small = without_empty_groups(SMALL["wavlm-base"], weights, masks)
    assert not small.removed
    assert all(torch.equal(weight, weights[key]) for key, weight in small.weights.items())


@pytest.mark.parametrize("name", ["hubert-base", "wavlm-base"])
def test_it_trains(name: str) -> None:
    weights, masks = pruned(name, FIRST_EMPTY)
    small = without_empty_groups(SMALL[name], weights, masks)
    model: Any = build(small.architecture, vocabulary_size=VOCABULARY, layer_drop=0.99, attention_dropout=0.1)
    model.load_state_dict(small.weights)
    encode(model.train(), torch.randn(2, 60, 16), torch.tensor([60, 40])).sum().backward()
    missing = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert all(key.startswith("feature_extractor.") for key in missing)
    torch.manual_seed(0)
    assert draw_skipped_layers(model) == ({0, 2} if name == "wavlm-base" else {0, 1, 2})


@pytest.mark.parametrize(
    "change",
    [
        {"heads": (2, 4, 1)},
        {"heads": (2, 4, 1), "head_size": 8},
        {"heads": (1, 1, 1), "head_size": 8, "kept_heads": ((0,), (1, 2), (0,))},
        {"heads": (1, 1, 1), "head_size": 8, "kept_heads": ((0,), (4,), (0,))},
        {"heads": (2, 2, 2), "head_size": 8, "kept_heads": ((0, 1), (1, 0), (0, 1))},
        {"family": "hubert", "buckets": None, "max_distance": None, "kept_heads": ((0, 1, 2, 3),) * 3},
    ],
)
def test_heads_that_cannot_be_told_apart_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="heads"):
        replace(SMALL["wavlm-base"], **change)
    with pytest.raises(CheckpointError):
        Architecture.from_json(SMALL["wavlm-base"].to_json() | change)
