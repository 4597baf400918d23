from collections.abc import Iterable

import pytest
import torch

from parp_cli.errors import UsageError
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, build
from parp_cli.models.speech.prunable import (
    KINDS,
    SCOPES,
    is_feature_encoder,
    kind_of,
    layer_of,
    layers_of,
    prunable_parameters,
)
from tests.models.small import SMALL

D, F = 32, 48  # the small encoders' dimensions and feed-forward dimensions


def touches(names: Iterable[str]) -> bool:
    return any(map(is_feature_encoder, names))


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
    packed = architecture.family == "wavlm"
    kinds = {"qkv", "out_proj", "fc1", "fc2"} if packed else {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    per_layer = {(layer_of(key), kind_of(key), key.endswith("bias")) for key in found}
    layers = range(architecture.layers)
    assert per_layer == {(layer, kind, bias) for layer in layers for kind in kinds for bias in (False, True)}
    assert len(per_layer) == len(found)
    assert [layer_of(key) for key in found] == sorted(layer_of(key) or 0 for key in found)


@pytest.mark.parametrize("name", SMALL)
def test_kinds_are_those_of_everything(name: str) -> None:
    model = build(SMALL[name], vocabulary_size=5)
    found = prunable_parameters(model, scope="everything", norms=True)
    assert [key for key in model.state_dict() if kind_of(key) != "other"] == list(found)
    assert {kind_of(key) for key in found} <= set(KINDS)
    assert layer_of("aux.weight") is layer_of("feature_extractor.conv_layers.3.conv.weight") is None
    assert layer_of("encoder.transformer.layers.11.layer_norm.weight") == 11


def test_found_inside_another_module_and_in_the_same_order() -> None:
    model = build(SMALL["hubert-base"])
    inside = prunable_parameters(torch.nn.ModuleDict({"wav2vec2": model}))
    assert [f"wav2vec2.{name}" for name in prunable_parameters(model)] == list(inside)
    assert {kind_of(name) for name in inside} == {kind_of(name) for name in prunable_parameters(model)}
    everything = prunable_parameters(torch.nn.ModuleDict({"wav2vec2": model}), scope="everything")
    assert [f"wav2vec2.{name}" for name in prunable_parameters(model, scope="everything")] == list(everything)
    assert list(layers_of(everything).values()) == list(
        layers_of(prunable_parameters(model, scope="everything")).values()
    )
    assert touches(everything)


def names(architecture: Architecture, scope: str, *, biases: bool = True) -> list[str]:
    model = build(architecture, vocabulary_size=5)
    found = prunable_parameters(model, scope=scope, biases=biases)
    parameters = dict(model.named_parameters())
    assert all(parameter is parameters[name] for name, parameter in found.items())
    return list(found)


PROJECTION = ["encoder.feature_projection.projection.weight", "encoder.feature_projection.projection.bias"]
POSITION = [
    "encoder.transformer.pos_conv_embed.conv.bias",
    "encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1",
]


def layer(number: int, *modules: str) -> list[str]:
    return [f"encoder.transformer.layers.{number}.{module}{end}" for module in modules for end in (".weight", ".bias")]


ATTENTION = {
    family: [
        name for number in range(3) for name in layer(number, *(f"attention.{p}_proj" for p in ("k", "v", "q", "out")))
    ]
    for family in ("wav2vec2", "hubert")
} | {
    "wavlm": [
        f"encoder.transformer.layers.{number}.attention.attention.{name}"
        for number in range(3)
        for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    ]
}
FEED_FORWARD = [
    name
    for number in range(3)
    for name in layer(number, "feed_forward.intermediate_dense", "feed_forward.output_dense")
]
FAMILIES = ["wav2vec2-group-norm", "wav2vec2-layer-norm", "hubert-base", "wavlm-base"]


@pytest.mark.parametrize("name", FAMILIES)
class TestScopes:
    def test_attention_and_feed_forward_make_the_transformer(self, name: str) -> None:
        small = SMALL[name]
        assert names(small, "attention") == ATTENTION[small.family]
        assert names(small, "feed-forward") == FEED_FORWARD
        transformer = [
            key
            for number in range(3)
            for part in (ATTENTION[small.family], FEED_FORWARD)
            for key in part
            if layer_of(key) == number
        ]
        assert names(small, "transformer") == transformer
        assert list(prunable_parameters(build(small))) == transformer  # the default

    def test_front_end(self, name: str) -> None:
        ends = ["weight", "bias"] if SMALL[name].conv_bias else ["weight"]
        convolutions = [f"feature_extractor.conv_layers.{number}.conv.{end}" for number in range(3) for end in ends]
        assert names(SMALL[name], "front-end") == convolutions + PROJECTION

    def test_everything(self, name: str) -> None:
        front_end, transformer = (names(SMALL[name], scope) for scope in ("front-end", "transformer"))
        assert names(SMALL[name], "everything") == front_end + POSITION + transformer

    @pytest.mark.parametrize("scope", [*SCOPES, "*.conv.*"])
    def test_without_biases(self, name: str, scope: str) -> None:
        everywhere = names(SMALL[name], scope)
        assert names(SMALL[name], scope, biases=False) == [key for key in everywhere if not key.endswith("bias")]

    def test_layers(self, name: str) -> None:
        found = names(SMALL[name], "everything")
        front_end = names(SMALL[name], "front-end")
        labels = layers_of(found)
        assert list(labels) == found
        assert {key for key, label in labels.items() if label == "front-end"} == set(front_end)
        assert {key for key, label in labels.items() if label == "other"} == set(POSITION)
        inside = {key: label for key, label in labels.items() if label.isdigit()}
        assert inside == {key: str(layer_of(key)) for key in names(SMALL[name], "transformer")}
        assert set(inside.values()) == {"0", "1", "2"}

    def test_what_front_end_features_depend_on(self, name: str) -> None:
        assert touches(names(SMALL[name], "front-end"))
        assert touches(names(SMALL[name], "everything"))
        assert not touches([*names(SMALL[name], "transformer"), *PROJECTION, *POSITION, "aux.weight"])


class TestGlobs:
    @pytest.mark.parametrize(
        ("scope", "expected"),
        [
            ("*.feed_forward.*", FEED_FORWARD),
            ("*.layers.[02].feed_forward.*", [name for name in FEED_FORWARD if layer_of(name) != 1]),
            ("*.layers.?.attention.q_proj.bias", [layer(number, "attention.q_proj")[1] for number in range(3)]),
            (PROJECTION[0], PROJECTION[:1]),
            ("*pos_conv_embed*", POSITION),
        ],
    )
    def test_by_name(self, scope: str, expected: list[str]) -> None:
        assert names(SMALL["hubert-base"], scope) == expected

    @pytest.mark.parametrize("name", FAMILIES)
    def test_a_star_is_everything_and_wavlms_gates(self, name: str) -> None:
        gates = [key for number in range(3) for key in layer(number, "attention.gru_rel_pos_linear")]
        found = names(SMALL[name], "*")
        assert [key for key in found if key not in gates] == names(SMALL[name], "everything")
        assert [key for key in found if key in gates] == (gates if name == "wavlm-base" else [])

    @pytest.mark.parametrize(
        "scope",
        ["", "aux.*", "aux.weight", "*layer_norm*", "*original0", "*mask_embedding*", "*rel_attn_embed*", "*.LAYERS.*"],
    )
    def test_what_is_never_pruned(self, scope: str) -> None:
        with pytest.raises(UsageError, match="no prunable parameter matches the scope") as caught:
            names(SMALL["wavlm-base"], scope)
        assert repr(scope) in caught.value.message
        assert caught.value.hint

    def test_a_misspelling_is_mended(self) -> None:
        for scope, meant in {
            "atention": "attention",
            "front_end": "front-end",
            PROJECTION[0] + "s": PROJECTION[0],
        }.items():
            with pytest.raises(UsageError) as caught:
                names(SMALL["hubert-base"], scope)
            assert caught.value.hint == f"did you mean {meant}?"

    def test_biases_that_are_left_out_are_mentioned(self) -> None:
        with pytest.raises(UsageError) as caught:
            names(SMALL["hubert-base"], "*.q_proj.bias", biases=False)
        assert caught.value.details == ("biases are left out",)


def test_labels_of_other_names() -> None:
    other = ["aux.weight", "mask_embedding", "encoder.transformer.layer_norm.weight", "scores"]
    assert layers_of(other) == dict.fromkeys(other, "other")
    assert layers_of([]) == {}
    assert not touches(["my_feature_extractor.weight", "encoder.feature_extractors.0"])
