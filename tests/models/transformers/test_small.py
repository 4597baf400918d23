"""Text encoders without the heads and units that masks have emptied: the same outputs, and every size."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from parp_cli.models.network import read_architecture
from parp_cli.models.small import Small
from parp_cli.models.sources.load import load_encoder
from parp_cli.models.sources.names import Encoder
from parp_cli.models.transformers.architecture import TextArchitecture
from parp_cli.pruning.patterns import Pattern
from tests.models.text import CONFIGS, save_model

FAMILIES = pytest.mark.parametrize("family", CONFIGS)

HEADS, UNITS = 2 * 2, 2 * 24
"""Of the tiny encoders: two layers."""


def encoder_of(folder: Path, family: str) -> Encoder:
    return load_encoder(str(save_model(folder, family, labels=["no", "maybe", "yes"])))


def structured(encoder: Encoder, sparsity: float, pattern: str = "structures") -> dict[str, Tensor]:
    """Masks of whole heads and units."""
    network = encoder.architecture.build(outputs=3)
    parsed, scoped = Pattern.parse(pattern), network.prunable()
    structures = encoder.architecture.structures_of(scoped)
    weights = {name: encoder.weights[name] for name in parsed.among(scoped, where="", structures=structures)}
    return parsed.masks(weights, sparsity, {}, structures=structures)


def outputs(architecture: TextArchitecture, weights: dict[str, Tensor]) -> Tensor:
    """Of three texts, one padded."""
    network = architecture.build(outputs=3).eval()
    network.load_state_dict(weights)
    tokens = torch.randint(5, 15, (3, 9), generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(tokens)
    valid[1, 5:] = 0
    with torch.no_grad():
        found: Tensor = network({"input_ids": tokens, "attention_mask": valid})
    return found


def cut(encoder: Encoder, masks: dict[str, Tensor]) -> Small:
    """What is left, whose outputs are those of the masked encoder."""
    weights = {name: w * masks[name] if name in masks else w for name, w in encoder.weights.items()}
    small = encoder.architecture.without_empty_groups(weights, masks)
    read = read_architecture(small.architecture.to_json())
    assert read == small.architecture
    expected = outputs(encoder.architecture, weights)
    assert expected.std() > 0.1
    torch.testing.assert_close(outputs(read, small.weights), expected, rtol=0, atol=1e-5)
    return small  # type: ignore[no-any-return]


@FAMILIES
def test_outputs_stay(family: str, tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, family)
    small = cut(encoder, structured(encoder, 0.5))
    assert small.removed
    assert small.heads[0] == HEADS
    assert small.units[0] == UNITS
    assert small.heads[1] < HEADS or small.units[1] < UNITS
    assert not small.masks, "all that was pruned is gone"
    before, after = (sum(w.numel() for w in each.values()) for each in (encoder.weights, small.weights))
    assert after < before
    assert small.architecture.name.endswith("-2x16-small")
    assert not small.architecture.same_network(encoder.architecture)
    restored = replace(small.architecture, heads=None, feed_forward=None)
    assert restored.same_network(encoder.architecture)


@FAMILIES
@pytest.mark.parametrize(("pattern", "sparsity"), [("heads", 0.5), ("units", 0.5)])
def test_heads_or_units_alone(family: str, pattern: str, sparsity: float, tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, family)
    small = cut(encoder, structured(encoder, sparsity, pattern))
    assert small.heads[1] == (HEADS // 2 if pattern == "heads" else HEADS)
    assert small.units[1] == (UNITS if pattern == "heads" else UNITS // 2)


@FAMILIES
def test_a_layer_keeps_a_head_and_a_unit(family: str, tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, family)
    masks = structured(encoder, 0.98)
    small = cut(encoder, masks)
    assert (small.heads[1], small.units[1]) == (2, 2)
    nothing = {name: torch.zeros_like(mask) for name, mask in masks.items()}
    small = cut(encoder, nothing)
    assert (small.heads[1], small.units[1]) == (2, 2)
    assert small.masks.keys() == masks.keys()
    assert not any(mask.any() for mask in small.masks.values())


@FAMILIES
def test_what_has_no_input_gives_a_constant(family: str, tmp_path: Path) -> None:
    """Of a head without values its bias is left, of a unit what the activation makes of its bias."""
    encoder = encoder_of(tmp_path, family)
    masks = {name: torch.ones(w.shape, dtype=torch.bool) for name, w in structured(encoder, 0.5).items()}
    for structure in encoder.architecture.structures_of(masks):
        dimension = structure.parts[structure.source][0]
        size = masks[structure.source].shape[dimension] // structure.count
        masks[structure.source].narrow(dimension, 0, size).fill_(False)
    small = cut(encoder, masks)
    assert (small.heads[1], small.units[1]) == (2, UNITS - 2)
    if family != "xlnet":  # whose heads have no biases
        changed = [n for n, w in small.weights.items() if w.shape == encoder.weights[n].shape and n.endswith("bias")]
        assert any(not torch.equal(small.weights[name], encoder.weights[name]) for name in changed)


@FAMILIES
def test_what_is_small_can_be_cut_again(family: str, tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, family)
    once = cut(encoder, structured(encoder, 0.3))
    left = encoder._replace(architecture=once.architecture, weights=once.weights)
    twice = cut(left, structured(left, 0.5))
    assert (twice.heads[0], twice.units[0]) == (once.heads[1], once.units[1])
    assert twice.heads[1] + twice.units[1] < once.heads[1] + once.units[1]
    assert twice.architecture.name == once.architecture.name


def test_layers_that_are_not_known_have_no_structures(tmp_path: Path) -> None:
    architecture = encoder_of(tmp_path, "bert").architecture
    renamed = ["bert.encoder.layer.0.mixing.weight", "bert.encoder.layer.0.output.dense.weight"]
    assert architecture.structures_of(renamed) == []
