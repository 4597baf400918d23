"""omniASR's files, under fairseq2's names: made here from those of fairseq by the renaming that fairseq2 publishes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from parp_cli.errors import CheckpointError
from parp_cli.models.sources import fairseq2
from parp_cli.models.sources.load import load_encoder
from parp_cli.models.sources.names import renamed, shapes
from parp_cli.models.speech.config import ARCHITECTURES, Architecture
from parp_cli.stages.mask import mask
from tests.models.sources.test_fairseq import fairseq_weights

# fairseq2 names the same weights so.
_NAMES = (
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj", r"encoder.layers.\1.self_attn.output_proj"),
    (r"encoder\.layers\.(\d+)\.fc1", r"encoder.layers.\1.ffn.inner_proj"),
    (r"encoder\.layers\.(\d+)\.fc2", r"encoder.layers.\1.ffn.output_proj"),
    (r"encoder\.layers\.(\d+)\.final_layer_norm", r"encoder.layers.\1.ffn_layer_norm"),
    (r"encoder\.pos_conv\.0", "encoder_frontend.pos_encoder.conv"),
    (r"feature_extractor\.conv_layers\.(\d+)\.0", r"encoder_frontend.feature_extractor.layers.\1.conv"),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.1", r"encoder_frontend.feature_extractor.layers.\1.layer_norm"),
    (r"layer_norm", "encoder_frontend.post_extract_layer_norm"),
    (r"post_extract_proj", "encoder_frontend.model_dim_proj"),
    (r"mask_emb", "masker.temporal_mask_embed"),
    (r"quantizer\.vars", "quantizer.entries"),
    (r"project_q\.", "final_target_proj."),
)
SMALL = replace(ARCHITECTURES["xls-r-300m"], name="small", width=64, layers=2, feed_forward=96)


def weights_of(architecture: Architecture) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random weights under our names, and under fairseq2's."""
    ours, theirs = fairseq_weights(architecture)
    return ours, {renamed(name, _NAMES): tensor for name, tensor in theirs.items()}


@pytest.mark.parametrize("wrapped", [True, False])
def test_every_weight_is_accounted_for(wrapped: bool, tmp_path: Path) -> None:
    ours, theirs = weights_of(SMALL)
    theirs |= {"final_proj.weight": torch.zeros(5, 64), "final_proj.bias": torch.zeros(5)}
    path = tmp_path / "omniASR-W2V-tiny.pt"
    torch.save({"model": theirs, "fs2": True} if wrapped else theirs, path)
    encoder = load_encoder(str(path))
    assert encoder.architecture.same_network(SMALL)
    assert encoder.architecture.normalize_waveform
    assert set(encoder.weights) == set(ours)
    assert all(torch.equal(encoder.weights[name], tensor) for name, tensor in ours.items())
    assert encoder.notes == ()
    assert mask(str(path), sparsity=0.5, out=tmp_path / "mask.safetensors").path.is_file()


def test_a_head_of_ctc_is_left_out_and_said_so(tmp_path: Path) -> None:
    _, theirs = weights_of(SMALL)
    path = tmp_path / "omniASR-CTC-tiny.pt"
    bare = {name: tensor for name, tensor in theirs.items() if not name.startswith(("quantizer", "final", "masker"))}
    torch.save({"model": bare | {"final_proj.weight": torch.zeros(7, 64), "final_proj.bias": torch.zeros(7)}}, path)
    encoder = load_encoder(str(path))
    assert encoder.task is None
    assert "aux.weight" not in encoder.weights
    assert "7 labels" in encoder.notes[0]


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    _, theirs = weights_of(SMALL)
    path = tmp_path / "broken.pt"
    torch.save({"model": theirs | {"encoder.layers.0.lora.weight": torch.zeros(2)}}, path)
    with pytest.raises(CheckpointError) as caught:
        load_encoder(str(path))
    assert any("lora" in detail for detail in caught.value.details)
    torch.save({"model": {"encoder_frontend.model_dim_proj.weight": torch.zeros(2, 2)}}, path)
    with pytest.raises(CheckpointError, match=r"is no wav2vec 2\.0"):
        load_encoder(str(path))


@pytest.mark.parametrize(
    ("width", "layers", "parameters"),
    [(1024, 24, 317_390_592), (1280, 48, 965_514_752), (2048, 60, 3_064_124_672), (2048, 128, 6_488_487_168)],
)
def test_published_sizes(width: int, layers: int, parameters: int) -> None:
    """300M, 1B, 3B and 7B, whose published numbers of parameters include the parts of pre-training."""
    expected = replace(SMALL, width=width, layers=layers, feed_forward=4 * width)
    with torch.device("meta"):
        theirs = {
            name: torch.empty(shape)
            for name, shape in {
                "encoder.layers.0.ffn.inner_proj.weight": (4 * width, width),
                **{f"encoder.layers.{layer}.ffn.inner_proj.bias": (4 * width,) for layer in range(layers)},
            }.items()
        }
    found = fairseq2._architecture(theirs, "omniASR")
    assert found.same_network(expected)
    counted = sum(torch.Size(shape).numel() for shape in shapes(found).values())
    assert 0.99 * parameters < counted < parameters
