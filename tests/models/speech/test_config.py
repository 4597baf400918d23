import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchaudio

from parp_cli.errors import CheckpointError
from parp_cli.models.sources.published import FILES
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, build, frames, with_known_name
from parp_cli.models.speech.waveform import normalize
from tests.models.oracle import builder_of
from tests.models.small import OF_TORCHAUDIO, SMALL, waveform

BUNDLES = {
    "wav2vec2-base": "WAV2VEC2_BASE",
    "wav2vec2-large": "WAV2VEC2_LARGE",
    "wav2vec2-large-lv60k": "WAV2VEC2_LARGE_LV60K",
    "xlsr-53": "WAV2VEC2_XLSR53",
    "xls-r-300m": "WAV2VEC2_XLSR_300M",
    "xls-r-1b": "WAV2VEC2_XLSR_1B",
    "xls-r-2b": "WAV2VEC2_XLSR_2B",
    "hubert-base": "HUBERT_BASE",
    "hubert-large": "HUBERT_LARGE",
    "hubert-xlarge": "HUBERT_XLARGE",
    "wavlm-base": "WAVLM_BASE",
    "wavlm-base-plus": "WAVLM_BASE_PLUS",
    "wavlm-large": "WAVLM_LARGE",
}
ALL = [*ARCHITECTURES.values(), *SMALL.values()]


@pytest.mark.parametrize("name", BUNDLES)
def test_sizes_files_and_normalisation_are_torchaudios(name: str) -> None:
    bundle = getattr(torchaudio.pipelines, BUNDLES[name])
    theirs = {key: value for key, value in bundle._params.items() if "drop" not in key and key != "aux_num_out"}
    ours = {key: value for key, value in builder_of(ARCHITECTURES[name]).items() if "drop" not in key}
    assert ours == theirs
    assert ARCHITECTURES[name].normalize_waveform == bundle._normalize_waveform
    assert FILES[name] == bundle._path


def test_every_architecture_but_the_bundled_one_has_published_weights() -> None:
    assert {*BUNDLES, "mini"} == set(ARCHITECTURES) == {*FILES, "mini"}


@pytest.mark.parametrize("architecture", ALL, ids=lambda architecture: architecture.name)
def test_json_and_back(architecture: Architecture) -> None:
    assert Architecture.from_json(json.loads(json.dumps(architecture.to_json()))) == architecture


@pytest.mark.parametrize(
    "change",
    [
        {"family": "bert"},
        {"kind": "text"},
        {"conv_layers": [[1, 2]]},
        {"conv_layers": 3},
        {"width": "256"},
        {"width": 255},
        {"heads": [4, 4, 2, 2, 2, 1]},
        {"heads": [4], "head_size": 64},
        {"layers": 0},
        {"norm_first": "yes"},
        {"conv_norm": "batch"},
        {"buckets": 320},
        {"family": "wavlm"},
        {"positional_layers": 5},
        {"family": "data2vec-audio"},
    ],
)
def test_unreadable_json_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        Architecture.from_json(ARCHITECTURES["mini"].to_json() | change)


def test_fields_are_checked() -> None:
    mini = ARCHITECTURES["mini"].to_json()
    mini["head"] = mini.pop("heads")
    with pytest.raises(CheckpointError) as caught:
        Architecture.from_json(mini)
    assert caught.value.details == ("heads: missing", "head: unknown")


@pytest.mark.parametrize(
    "architecture", [*ARCHITECTURES.values(), *OF_TORCHAUDIO.values()], ids=lambda architecture: architecture.name
)
def test_format_1_is_read(architecture: Architecture) -> None:
    builder = json.loads(json.dumps(builder_of(architecture)))
    written = {
        "name": architecture.name,
        "family": architecture.family,
        "builder": builder,
        "normalize_waveform": architecture.normalize_waveform,
    }
    assert Architecture.from_json(written) == architecture
    del builder["encoder_embed_dim"]
    with pytest.raises(CheckpointError) as caught:
        Architecture.from_json(written | {"builder": builder | {"encoder_depth": 3}})
    assert caught.value.details == ("width: missing", "encoder_depth: unknown")


def test_sizes_may_differ_from_layer_to_layer() -> None:
    architecture = replace(SMALL["hubert-large"], heads=(4, 2, 1), head_size=8, feed_forward=(48, 16, 32))
    assert Architecture.from_json(json.loads(json.dumps(architecture.to_json()))) == architecture
    assert architecture.to_json()["feed_forward"] == [48, 16, 32]
    model = build(architecture, vocabulary_size=5)
    layers = [model.get_submodule(f"encoder.transformer.layers.{index}") for index in range(3)]
    assert [layer.get_submodule("attention.q_proj").weight.shape for layer in layers] == [(32, 32), (16, 32), (8, 32)]
    assert [layer.get_submodule("feed_forward.output_dense").weight.shape[1] for layer in layers] == [48, 16, 32]
    logits, _ = model(waveform())
    assert logits.shape == (1, 199, 5)
    logits.sum().backward()
    equal = replace(architecture, heads=(4, 4, 4), feed_forward=(48, 48, 48))
    assert equal == SMALL["hubert-large"]
    assert not equal.same_network(architecture)


def test_sizes_lend_their_name() -> None:
    sizes: dict[str, Any] = {
        "conv_norm": "group",
        "conv_bias": False,
        "width": 768,
        "heads": 12,
        "feed_forward": 3072,
    }
    for layers, expected in ((12, "hubert-base"), (11, "custom")):
        architecture = Architecture(family="hubert", normalize_waveform=True, norm_first=False, layers=layers, **sizes)
        assert with_known_name(architecture).name == expected


@pytest.mark.parametrize("samples", [1, 399, 400, 719, 720, 16_000, 16_123])
def test_frames_are_the_front_ends(samples: int) -> None:
    mini = ARCHITECTURES["mini"]
    _, lengths = build(mini).feature_extractor(torch.zeros(1, 20_000), torch.tensor([samples]))
    assert frames(mini, samples) == lengths.item()


def test_regularisers_reach_the_model() -> None:
    model = build(ARCHITECTURES["mini"], layer_drop=0.1, dropout=0.2, attention_dropout=0.3, activation_dropout=0.4)
    layer = model.encoder.transformer.layers[0]
    assert model.encoder.transformer.layer_drop == 0.1
    assert (model.encoder.feature_projection.dropout.p, layer.dropout.p, layer.feed_forward.output_dropout.p) == (
        0.2,
    ) * 3
    assert (layer.attention.dropout.p, layer.feed_forward.intermediate_dropout.p) == (0.3, 0.4)


def test_importing_costs_no_torch() -> None:
    code = (
        "import sys, parp_cli.models.speech.config, parp_cli.models.speech.prunable; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("shape", [(4_000,), (3, 4_000)])
def test_normalising(shape: tuple[int, ...]) -> None:
    wave = waveform(torch.Size(shape).numel()).reshape(shape)
    assert normalize(wave, ARCHITECTURES["wav2vec2-base"]) is wave
    normal = normalize(wave, ARCHITECTURES["mini"])
    assert normal.shape == wave.shape
    # torchaudio's bundles take another epsilon, which a signal this loud hides.
    torch.testing.assert_close(normal, torch.nn.functional.layer_norm(wave, wave.shape[-1:]), atol=1e-3, rtol=1e-3)
    assert normalize(torch.zeros(10), ARCHITECTURES["mini"]).abs().max() == 0
