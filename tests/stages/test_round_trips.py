"""Every target of `parp export`, on every family of networks, in its own runtime: the logits of the masked checkpoint,
and zeros where its mask is. ONNX files of more families are in tests/exporters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchaudio.models import wav2vec2_model, wavlm_model

from parp_cli.data.labels import Vocabulary
from parp_cli.errors import CheckpointError
from parp_cli.exporters import sparse
from parp_cli.exporters.check import network
from parp_cli.exporters.onnx import OnnxNetwork
from parp_cli.exporters.sherpa import MODEL, SherpaNetwork, symbols_of
from parp_cli.models.recognizer import encoder_of
from parp_cli.models.speech.config import Architecture, build
from parp_cli.models.speech.kernels import products
from parp_cli.models.speech.prunable import prunable_parameters
from parp_cli.models.speech.waveform import normalize
from parp_cli.pruning.masks import under
from parp_cli.stages import export as exporting
from parp_cli.stages.export import export
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Checkpoint, Metadata, Sparsity
from tests.models.oracle import builder_of
from tests.models.small import SMALL, randomise, waveform

LETTERS = Vocabulary(("<blank>", "|", "E", "T", "'", "Ä"), "letters")
SPEECH = [waveform(samples, seed=samples)[0] for samples in (1_500, 2_603, 4_000)]
UNEVEN: dict[str, Any] = {"heads": (1, 2, 3), "head_size": 8, "feed_forward": (48, 16, 20)}
CHANNELS: dict[str, Any] = {"conv_layers": ((11, 10, 5), (5, 3, 2), (9, 2, 2)), "conv_norm_channels": (16, 16, 16)}
FAMILIES = {
    **{name: SMALL[name] for name in ("wav2vec2-group-norm", "wav2vec2-layer-norm", "hubert-large", "wavlm-base")},
    "data2vec": SMALL["data2vec"],
    "uneven": replace(SMALL["hubert-large"], name="uneven", **UNEVEN, **CHANNELS),
}
Read = tuple[Callable[[Sequence[Tensor]], list[Tensor]], list[Tensor]]
"""What computes logits, and the weights that were written."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Checkpoints by family: half of the weights pruned, among them ten whole units, though none is zero."""
    folder = tmp_path_factory.mktemp("families")

    def made(family: str) -> Path:
        path = folder / f"{family}.safetensors"
        if not path.exists():
            write(FAMILIES[family], path)
        return path

    return made


def write(architecture: Architecture, path: Path) -> None:
    model = randomise(build(architecture, vocabulary_size=len(LETTERS)))
    generator = torch.Generator().manual_seed(1)
    names = prunable_parameters(model)
    masks = {name: torch.rand(weight.shape, generator=generator) > 0.5 for name, weight in names.items()}
    block = "encoder.transformer.layers.0.feed_forward."
    for part, rows in (
        ("intermediate_dense.weight", True),
        ("intermediate_dense.bias", True),
        ("output_dense.weight", False),
    ):
        mask = masks[block + part]
        (mask if rows else mask.T)[:10] = False
    total, kept = (sum(int(count(mask)) for mask in masks.values()) for count in (torch.numel, torch.count_nonzero))
    metadata = Metadata(
        stage="finetune",
        architecture=architecture.to_json(),
        task=LETTERS.to_json(),
        prunable=tuple(names),
        sparsity=Sparsity(target=0.5, pruned=total - kept, total=total),
    )
    checkpoint.write(path, Checkpoint(weights=dict(model.state_dict()), masks=masks, metadata=metadata))


def with_torch(theirs: Any, architecture: Architecture) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    def run(waveforms: Sequence[Tensor]) -> list[Tensor]:
        with torch.inference_mode():
            made = [theirs(normalize(waveform, architecture)[None]) for waveform in waveforms]
        return [(one.logits if hasattr(one, "logits") else one[0])[0] for one in made]

    return run


def by_torchaudio(path: Path, architecture: Architecture) -> Read:
    state = torch.load(path, weights_only=True)
    builder = wavlm_model if architecture.family == "wavlm" else wav2vec2_model
    theirs = builder(**builder_of(architecture), aux_num_out=len(LETTERS)).eval()
    theirs.load_state_dict(state)
    return with_torch(theirs, architecture), list(state.values())


def by_transformers(path: Path, architecture: Architecture) -> Read:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCTC.from_pretrained(path).eval()
    return with_torch(theirs, architecture), list(load_file(path / "model.safetensors").values())


def by_parp(path: Path, _: Architecture) -> Read:
    content = checkpoint.read(path)
    architecture, weights, *_rest = encoder_of(content, source="a test")
    assert all((weights[name][~mask] == 0).all() for name, mask in content.masks.items())
    return network(architecture, weights, content.kernels), list(weights.values())


def by_onnxruntime(path: Path, _: Architecture) -> Read:
    return OnnxNetwork(path), constants_of(path)


def by_sherpa(path: Path, _: Architecture) -> Read:
    return SherpaNetwork(path / MODEL), constants_of(path / MODEL)


def constants_of(path: Path) -> list[Tensor]:
    onnx = pytest.importorskip("onnx")
    return [torch.tensor(onnx.numpy_helper.to_array(one)) for one in onnx.load(path).graph.initializer]


TARGETS = {
    "torchaudio": by_torchaudio,
    "hf": by_transformers,
    "small": by_parp,
    "packed": by_parp,
    "sparse": by_parp,
    "onnx": by_onnxruntime,
    "sherpa": by_sherpa,
}
ONNX_FAMILIES = ("wav2vec2-layer-norm", "wavlm-base", "data2vec")
CASES = [
    (target, family)
    for target in TARGETS
    for family in (ONNX_FAMILIES if target in ("onnx", "sherpa") else FAMILIES)
    if not (family == "uneven" and target in ("hf", "torchaudio")) and (target, family) != ("torchaudio", "data2vec")
]


@pytest.mark.parametrize(("target", "family"), CASES)
def test_logits_and_zeros_are_the_masked_checkpoints(
    target: Any, family: str, checkpoints: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(model: Any, pruned: Any, *, int8: bool, each: Any) -> Mapping[str, str]:
        return dict.fromkeys(sorted(pruned & set(products(model))), "csr")

    if target in ("onnx", "sherpa"):
        pytest.importorskip("onnx", reason="the extra `onnx`")
    monkeypatch.setattr(sparse, "choose", choose)
    monkeypatch.setattr(exporting, "some_speech", lambda *_: SPEECH)
    architecture, path = FAMILIES[family], checkpoints(family)
    content = checkpoint.read(path)
    masked = under(content.masks, dict(content.weights))
    expected = network(architecture, masked)(SPEECH)
    if target == "sherpa":
        expected = [symbols_of(LETTERS, source="a test").logits(one) for one in expected]
    out = export(path, to=target, out=tmp_path / "out").path
    run, written = TARGETS[target](out, architecture)
    for speech, one in zip(SPEECH, expected, strict=True):
        torch.testing.assert_close(run([speech])[0], one, atol=1e-4, rtol=0)
    assert expected[0].std() > 0.1
    if target == "small":
        assert sum(one.numel() for one in written) < sum(one.numel() for one in masked.values())
        return
    for name in content.masks:
        whole = masked[name]
        parts = [whole] if any(equal(whole, one) for one in written) else whole.chunk(3)  # queries, keys and values
        assert all(any(equal(part, one) for one in written) for part in parts), name


def equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or (one.ndim == 2 and torch.equal(one.T, other))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mask_alone_is_the_checkpoints(family: str, checkpoints: Any, tmp_path: Path) -> None:
    path = checkpoints(family)
    found = checkpoint.read_masks(export(path, to="mask", out=tmp_path / "mask.safetensors").path)
    expected = checkpoint.read_masks(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(mask, expected[name]) for name, mask in found.items())


@pytest.mark.parametrize("target", ["hf", "torchaudio"])
def test_others_have_no_uneven_layers(target: Any, checkpoints: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="sizes that other projects' models cannot have"):
        export(checkpoints("uneven"), to=target, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())
