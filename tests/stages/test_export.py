"""What is exported is zero wherever the mask is, and others load it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchaudio.models import wav2vec2_model

from parp_cli.data.audio import read_audio
from parp_cli.errors import MaskError
from parp_cli.models.recognizer import rebuild
from parp_cli.models.speech.waveform import normalize
from parp_cli.stages.export import export
from parp_cli.storage import checkpoint
from tests.models.oracle import builder_of
from tests.tiny import TINY, World


@pytest.fixture
def grown(trained: Path, tmp_path: Path) -> Path:
    """A checkpoint whose pruned weights are not zero."""
    content = checkpoint.read(trained)
    weights = {name: weight + 0.01 if name in content.masks else weight for name, weight in content.weights.items()}
    path = tmp_path / "grown.safetensors"
    checkpoint.write(path, checkpoint.Checkpoint(weights=weights, masks=content.masks, metadata=content.metadata))
    return path


def pruned_logits(path: Path, waveform: Tensor) -> Tensor:
    content = checkpoint.read(path)
    weights = dict(content.weights)
    weights |= {name: weights[name].masked_fill(~kept, 0) for name, kept in content.masks.items()}
    pruned = checkpoint.Checkpoint(weights=weights, masks=content.masks, metadata=content.metadata)
    _, model = rebuild(pruned, torch.device("cpu"), source="test")
    with torch.inference_mode():
        logits: Tensor = model(normalize(waveform, TINY)[None])[0]
    return logits


def test_torchaudio_loads_it(world: World, grown: Path, tmp_path: Path) -> None:
    result = export(grown, to="torchaudio", out=tmp_path / "model.pt")
    state = torch.load(result.path, weights_only=True)
    masks = checkpoint.read_masks(grown)
    assert all((state[name][~kept] == 0).all() for name, kept in masks.items())
    assert all((state[name][kept] != 0).any() for name, kept in masks.items())
    assert result.zeros == sum(int((state[name] == 0).sum()) for name in masks) >= 8416
    assert result.size == result.path.stat().st_size
    theirs = wav2vec2_model(**builder_of(TINY), aux_num_out=len(state["aux.weight"]))
    theirs.load_state_dict(state)
    waveform = read_audio(world.folder / "test-0.wav")
    with torch.inference_mode():
        logits = theirs.eval()(normalize(waveform, TINY)[None])[0]
    torch.testing.assert_close(logits, pruned_logits(grown, waveform), atol=1e-5, rtol=0)


def test_transformers_loads_it(world: World, grown: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is what the export is for")
    result = export(grown, to="hf", out=tmp_path / "hf")
    state = load_file(result.path / "model.safetensors")
    assert sum(int((tensor == 0).sum()) for tensor in state.values()) >= 8416
    theirs, loading = transformers.AutoModelForCTC.from_pretrained(result.path, output_loading_info=True)
    assert not any(loading.values())
    processor = transformers.Wav2Vec2Processor.from_pretrained(result.path)
    waveform = read_audio(world.folder / "test-0.wav")
    inputs = processor(waveform.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():
        logits = theirs.eval()(inputs).logits
    torch.testing.assert_close(logits, pruned_logits(grown, waveform), atol=1e-4, rtol=0)


def test_a_mask_of_another_model(masked: Path, tmp_path: Path) -> None:
    content = checkpoint.read(masked)
    masks = {name: torch.ones(3, dtype=torch.bool) for name in content.masks}
    path = tmp_path / "forged.safetensors"
    checkpoint.write(path, checkpoint.Checkpoint(weights=content.weights, masks=masks, metadata=content.metadata))
    with pytest.raises(MaskError, match=r"mask does not fit .*forged\.safetensors"):
        export(path, to="torchaudio", out=tmp_path / "model.pt")
