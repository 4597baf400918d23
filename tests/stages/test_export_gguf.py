"""Exports to GGUF: crispasr makes the same transcripts, or nothing is written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parp_cli.data.labels import Vocabulary
from parp_cli.errors import CheckpointError, UsageError
from parp_cli.exporters import gguf as exporter
from parp_cli.exporters.check import labels, network
from parp_cli.exporters.gguf import CrispNetwork, check_readable, export_gguf, tokens_of
from parp_cli.models.speech.config import Architecture, build
from parp_cli.stages.export import export
from parp_cli.storage import checkpoint
from tests.models.small import SMALL, randomise, waveform

gguf = pytest.importorskip("gguf", reason="the extra `gguf`")
pytest.importorskip("crispasr", reason="the extra `gguf`")

LETTERS = Vocabulary(("<blank>", "<unk>", "|", "E", "T", "Ä"), "letters", special={"<unk>": "unk"})
PHONES = Vocabulary(("<blank>", "AH", "|", "B", "ɪː", "T"), "phones")
UNEVEN: dict[str, Any] = {"heads": (0, 2, 3), "head_size": 8, "feed_forward": (48, 0, 7)}
NETWORKS = {
    "wav2vec2-layer-norm": SMALL["wav2vec2-layer-norm"],
    "xls-r": SMALL["xls-r"],
    "hubert-large": SMALL["hubert-large"],
    "uneven": replace(SMALL["hubert-large"], **UNEVEN),
}
SPEECH = [waveform(samples, seed=samples)[0] for samples in (3_200, 16_000, 24_001)]


def values(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name."""
    return {one.name: torch.tensor(one.data.reshape(tuple(one.shape)[::-1])) for one in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_ours_but_for_gelu(name: str, tmp_path: Path) -> None:
    architecture = NETWORKS[name]
    weights = dict(randomise(build(architecture, vocabulary_size=len(LETTERS))).state_dict())
    assert export_gguf(architecture, weights, LETTERS, tmp_path / "a.gguf", int8=False, properties={"from": "x"}) == 0
    ours, theirs = network(architecture, weights)(SPEECH), CrispNetwork(tmp_path / "a.gguf")(SPEECH)
    assert ours[0].std() > 0.1
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(other, one, atol=0.05, rtol=0)
        assert (one.argmax(-1) == other.argmax(-1)).float().mean() > 0.98


def test_a_fine_tuned_checkpoint(trained: Path, tmp_path: Path) -> None:
    result = export(trained, to="gguf", out=tmp_path / "new" / "model.gguf")
    check = result.check
    assert check is not None
    assert (check.transcripts, check.transcripts_changed) == (3, 0)
    assert check.transcribed_by is not None
    assert check.transcribed_by.startswith("crispasr 0.")
    assert check.largest_difference < 0.05
    assert result.size == result.path.stat().st_size
    masks, written = checkpoint.read(trained).masks, values(result.path)
    layer = "encoder.transformer.layers.0"
    for ours, theirs in (("attention.q_proj", "attn.q"), ("feed_forward.output_dense", "ffn.fc2")):
        mask = masks[f"{layer}.{ours}.weight"]
        assert not mask.all()
        assert ((written[f"enc.0.{theirs}.weight"] != 0) <= mask).all()


def test_int8_is_of_matrices_with_whole_blocks(trained: Path, tmp_path: Path) -> None:
    whole = export(trained, to="gguf", out=tmp_path / "model.gguf")
    result = export(trained, to="gguf", int8=True, out=tmp_path / "int8.gguf")
    assert result.integer_products == 6 * 2 + 1, "of the head too, but not of features, of which there are 16"
    assert result.size < whole.size
    assert result.check is not None
    assert result.check.transcripts_changed in range(4)


def test_what_it_prints_for_each_label() -> None:
    assert tokens_of(LETTERS) == ["", "", "|", "E", "T", "Ä"]
    assert tokens_of(PHONES) == ["", " AH", "", " B", " ɪː", " T"]
    assert tokens_of(replace(LETTERS, separator=""))[2] == ""


@pytest.mark.parametrize("vocabulary", [LETTERS, PHONES, replace(LETTERS, separator="")])
def test_transcripts(vocabulary: Vocabulary, tmp_path: Path) -> None:
    architecture = NETWORKS["hubert-large"]
    weights = dict(randomise(build(architecture, vocabulary_size=len(vocabulary))).state_dict())
    export_gguf(architecture, weights, vocabulary, tmp_path / "a.gguf", int8=False, properties={})
    network = CrispNetwork(tmp_path / "a.gguf")
    (text,), (logits,) = network.transcribe([SPEECH[1]]), network([SPEECH[1]])
    assert text.split() == vocabulary.decode(labels(logits)).split()
    assert text


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        (SMALL["wav2vec2-group-norm"], "group norm"),
        (SMALL["wavlm-large"], "its family is wavlm"),
        (SMALL["data2vec"], "its family is data2vec-audio"),
        (replace(SMALL["hubert-large"], conv_norm_channels=(16, 17, 16)), "channels were removed"),
    ],
)
def test_networks_that_it_computes_otherwise(architecture: Architecture, reason: str) -> None:
    with pytest.raises(CheckpointError, match=r"crispasr has no network like that of base\.safetensors") as caught:
        check_readable(architecture, source="base.safetensors")
    assert reason in "\n".join(caught.value.details)


def test_other_transcripts_leave_nothing_behind(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        exporter, "tokens_of", lambda vocabulary: [*tokens_of(vocabulary)[:2], *"XYZ"][: len(vocabulary)]
    )
    with pytest.raises(
        CheckpointError, match=r"makes other transcripts of 3 of 3 utterances than .*: nothing is written"
    ):
        export(trained, to="gguf", out=tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF but not")
    with pytest.raises(CheckpointError, match=r"a\.gguf cannot be read by crispasr"):
        CrispNetwork(tmp_path / "a.gguf")


def test_a_missing_package_is_named(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="exports to GGUF need the package gguf"):
        export(trained, to="gguf", out=tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())
