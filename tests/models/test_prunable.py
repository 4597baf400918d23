import pytest
import torch

from parp_cli.models.architectures import ARCHITECTURES, build
from parp_cli.models.prunable import KINDS, kind_of, layer_of, prunable_parameters
from tests.models.small import SMALL

D, F = 32, 48  # the small encoders' dimensions and feed-forward dimensions


@pytest.mark.parametrize(
    ("name", "weights", "biases"),
    [
        ("wav2vec2-base", 84_934_656, 82_944),
        ("wav2vec2-large", 301_989_888, 221_184),
        ("xlsr-53", 301_989_888, 221_184),
        ("wavlm-base", 84_934_656, 82_944),
    ],
)
def test_counts_are_the_papers(name: str, weights: int, biases: int) -> None:
    with torch.device("meta"):
        model = build(ARCHITECTURES[name], vocabulary_size=32)
    assert _count(prunable_parameters(model, biases=False)) == weights
    assert _count(prunable_parameters(model)) == weights + biases


def _count(parameters: dict[str, torch.nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters.values())


@pytest.mark.parametrize("name", SMALL)
def test_exactly_projections_and_feed_forward_of_every_layer(name: str) -> None:
    architecture = SMALL[name]
    model = build(architecture, vocabulary_size=5)
    found = prunable_parameters(model)
    state = dict(model.named_parameters())
    assert all(parameter is state[key] for key, parameter in found.items())
    assert {key for key in state if kind_of(key) != "other"} == set(found)
    packed = architecture.family == "wavlm"
    kinds = {"qkv", "out_proj", "fc1", "fc2"} if packed else set(KINDS) - {"qkv"}
    per_layer = {(layer_of(key), kind_of(key), key.endswith("bias")) for key in found}
    layers = range(architecture.builder["encoder_num_layers"])
    assert per_layer == {(layer, kind, bias) for layer in layers for kind in kinds for bias in (False, True)}
    assert len(per_layer) == len(found)
    assert [layer_of(key) for key in found] == sorted(layer_of(key) or 0 for key in found)


def test_names_of_what_is_not_pruned() -> None:
    model = build(SMALL["wavlm-base"], vocabulary_size=5)
    others = set(model.state_dict()) - set(prunable_parameters(model))
    assert {kind_of(name) for name in others} == {"other"}
    assert layer_of("aux.weight") is layer_of("feature_extractor.conv_layers.3.conv.weight") is None
    assert layer_of("encoder.transformer.layers.11.layer_norm.weight") == 11


def test_found_inside_another_module_and_in_the_same_order() -> None:
    model = build(SMALL["hubert-base"])
    inside = prunable_parameters(torch.nn.ModuleDict({"wav2vec2": model}))
    assert [f"wav2vec2.{name}" for name in prunable_parameters(model)] == list(inside)
    assert {kind_of(name) for name in inside} == {kind_of(name) for name in prunable_parameters(model)}
