"""What onnxruntime makes of an export, against our own networks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from parp_cli.errors import CheckpointError, UsageError
from parp_cli.exporters import onnx as exporter
from parp_cli.exporters.check import compared, network, refuse_different
from parp_cli.exporters.onnx import OnnxNetwork, export_onnx, quantize
from parp_cli.exporters.onnx_convolutions import integer_convolutions
from parp_cli.models.speech.config import Architecture, build
from tests.models.small import SMALL, randomise, waveform

onnx = pytest.importorskip("onnx", reason="the extra `onnx`")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx`")

LETTERS = ["<blank>", "|", "E", "T", "'", "Ä"]
SPEECH = [waveform(samples, seed=samples)[0] for samples in (1_500, 2_603, 4_000)]
UNEVEN: dict[str, Any] = {"heads": (0, 2, 3), "head_size": 8, "feed_forward": (48, 0, 7)}
CHANNELS: dict[str, Any] = {
    "conv_layers": ((11, 10, 5), (5, 3, 2), (9, 2, 2)),
    "conv_norm_channels": (16, 16, 16),
}
CASES = {
    "wav2vec2-group-norm": SMALL["wav2vec2-group-norm"],
    "hubert-large": replace(SMALL["hubert-large"], **UNEVEN, **CHANNELS),
    "hubert-base": replace(SMALL["hubert-base"], **CHANNELS),
    "wavlm-large": replace(SMALL["wavlm-large"], **UNEVEN, kept_heads=((), (1, 2), (0, 2, 3))),
}


@pytest.fixture(scope="module", params=CASES)
def exported(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Architecture, dict[str, Tensor], Path]:
    architecture = CASES[request.param]
    weights = dict(randomise(build(architecture, vocabulary_size=len(LETTERS))).state_dict())
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    export_onnx(architecture, weights, LETTERS, path, properties={"from": "a test"})
    return architecture, weights, path


def test_logits_are_ours_at_any_length_and_in_any_batch(exported: Any) -> None:
    architecture, weights, path = exported
    ours, theirs = network(architecture, weights), OnnxNetwork(path)
    expected = [ours([one])[0] for one in SPEECH]
    assert expected[0].std() > 0.1
    for found in ([theirs([one])[0] for one in SPEECH], theirs(SPEECH), theirs(SPEECH[::-1])[::-1]):
        for one, other in zip(expected, found, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    check = compared(ours, theirs, SPEECH, exact=True, recognises=True)
    assert check.largest_difference < 1e-5
    assert check.transcripts is None


def test_padding_has_no_influence(exported: Any) -> None:
    _, _, path = exported
    session = onnxruntime.InferenceSession(path)
    padded = torch.nn.utils.rnn.pad_sequence(SPEECH, batch_first=True).numpy()
    lengths = numpy.array([len(one) for one in SPEECH])
    logits, frames = session.run(None, {"waveforms": padded, "lengths": lengths})
    assert [item.name for item in session.get_outputs()] == ["logits", "frames"]
    assert frames.tolist() == [74, 129, 199]
    padded[0, 1_500:] = 7
    again, _ = session.run(None, {"waveforms": padded, "lengths": lengths})
    assert (logits[0, :74] == again[0, :74]).all()


def test_what_the_file_says_of_itself(exported: Any, tmp_path: Path) -> None:
    architecture, weights, path = exported
    model = onnx.load(path)
    onnx.checker.check_model(model)
    properties = {item.key: item.value for item in model.metadata_props}
    assert json.loads(properties["vocabulary"]) == LETTERS
    assert (properties["from"], properties["sample_rate"]) == ("a test", "16000")
    assert not any(node.metadata_props for node in model.graph.node)
    names = [tensor.name for tensor in model.graph.initializer]
    assert not [name for name in names if "original" in name], "the weight norm is folded"
    export_onnx(architecture, weights, LETTERS, tmp_path / "again.onnx", properties={"from": "a test"})
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_int8_products_are_counted_and_near(exported: Any, tmp_path: Path) -> None:
    architecture, weights, path = exported
    count = quantize(path, tmp_path / "int8.onnx")
    model = onnx.load(tmp_path / "int8.onnx")
    assert {item.key for item in model.metadata_props} >= {"vocabulary", "sample_rate", "from"}
    kinds = [node.op_type for node in model.graph.node]
    assert count == kinds.count("MatMulInteger") + kinds.count("DynamicQuantizeMatMul")
    heads = [architecture.sizes_of_layer(index)[0] for index in range(3)]
    units = [architecture.sizes_of_layer(index)[2] for index in range(3)]
    in_attention = 2 if architecture.family == "wavlm" else 4
    gates = sum(map(bool, heads)) if architecture.family == "wavlm" else 0
    assert count == in_attention * sum(map(bool, heads)) + gates + 2 * sum(map(bool, units)) + 4, (
        "projections of attention, gates, feed-forward blocks, of features, head, two convolutions"
    )
    assert kinds.count("Conv") == 2, "that of the waveform, and that of positions, in groups"
    onnx.checker.check_model(model, full_check=True)
    check = compared(
        network(architecture, weights), OnnxNetwork(tmp_path / "int8.onnx"), SPEECH, exact=False, recognises=True
    )
    assert 1e-4 < check.largest_difference < 1
    assert check.transcripts == 3
    assert check.transcripts_changed is not None


def test_transcripts_that_change_are_counted() -> None:
    def says(*labels: int) -> Any:
        return lambda waveforms: [torch.nn.functional.one_hot(torch.tensor(labels), 4).float() for _ in waveforms]

    same = compared(says(0, 1, 1, 0, 2), says(1, 0, 0, 2, 2), SPEECH, exact=False, recognises=True)
    assert (same.transcripts, same.transcripts_changed) == (3, 0)
    other = compared(says(0, 1, 1, 0, 2), says(0, 1, 0, 1, 2), SPEECH, exact=False, recognises=True)
    assert (other.transcripts_changed, other.largest_difference) == (3, 1.0)
    bare = compared(says(0, 1), says(1, 0), SPEECH, exact=False, recognises=False)
    assert bare.transcripts is None
    with pytest.raises(CheckpointError, match="gives other logits"):
        refuse_different(other.largest_difference, "x", exact=True)
    refuse_different(other.largest_difference, "x", exact=False)
    with pytest.raises(CheckpointError, match="gives other logits"):
        refuse_different(float("nan"), "x", exact=False)


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "_PACKAGES", ("onnx", "no_such_package"))
    with pytest.raises(UsageError, match="need the package no_such_package") as caught:
        exporter.require_onnx()
    assert "parp-cli[onnx]" in (caught.value.hint or "")


@pytest.mark.parametrize(("kernel", "stride", "bias"), [(3, 2, True), (2, 2, False), (5, 3, False), (1, 1, True)])
def test_convolutions_of_integers(kernel: int, stride: int, bias: bool) -> None:
    """Inputs of 0 to 255 and weights up to 127 have a scale of one, so that nothing is rounded."""
    generator = torch.Generator().manual_seed(kernel)
    convolution = torch.nn.Conv1d(3, 4, kernel, stride, bias=bias)
    with torch.no_grad():
        convolution.weight.copy_(torch.randint(-127, 128, convolution.weight.shape, generator=generator))
        convolution.weight[:, 0, 0] = 127
        convolution.weight[3] = 0  # pruned
    free = {0: torch.export.Dim("batch"), 2: torch.export.Dim("steps")}
    made = exporter.traced(convolution, (torch.zeros(2, 3, 30),), inputs={"x": free}, outputs=["y"])
    integer_convolutions(made)
    onnx.checker.check_model(made, full_check=True)
    assert not [node for node in made.graph.node if node.op_type == "Conv"]
    session = onnxruntime.InferenceSession(made.SerializeToString())
    for steps in (kernel, 17, 30, 31):
        x = torch.randint(0, 256, (2, 3, steps), generator=generator).float()
        x[0, 0, 0], x[1, 0, 0] = 0, 255
        with torch.no_grad():
            expected = convolution(x)
        torch.testing.assert_close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), expected)


def test_convolutions_that_stay_as_they_are() -> None:
    others = [
        torch.nn.Conv1d(1, 4, 3),  # of a waveform
        torch.nn.Conv1d(4, 4, 3, padding=1),
        torch.nn.Conv1d(4, 4, 3, groups=2),
        torch.nn.Conv1d(4, 4, 3, dilation=2),
    ]
    free = {2: torch.export.Dim("steps")}
    made = exporter.traced(torch.nn.Sequential(*others), (torch.zeros(1, 1, 30),), inputs={"x": free}, outputs=["y"])
    before = made.SerializeToString()
    integer_convolutions(made)
    assert made.SerializeToString() == before
