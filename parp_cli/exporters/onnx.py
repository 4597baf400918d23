"""An ONNX file for onnxruntime: from audio to logits, for any batch size and lengths.

B utterances, S samples, T frames, V tokens.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, gelu

from parp_cli.errors import CheckpointError, UsageError
from parp_cli.exporters.check import Check, refuse_different
from parp_cli.exporters.onnx_convolutions import integer_convolutions
from parp_cli.exporters.target import ExportResult, Job, Target, weights_beside
from parp_cli.exporters.text_check import TextCheck
from parp_cli.models.sources.names import MASK_EMBEDDING, without
from parp_cli.models.sources.torch_files import one_line
from parp_cli.models.speech.config import Architecture, build
from parp_cli.models.speech.encoder import padding
from parp_cli.models.speech.waveform import EPSILON
from parp_cli.storage.conventions import SAMPLE_RATE

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import SpeechNetwork

AnyCheck = TypeVar("AnyCheck", bound=Check | TextCheck)

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")

_MOST_BYTES = (1 << 31) - (1 << 24)
"""Of weights in one file: protobuf ends at 2 GiB, and the graph needs a little."""

_TRACED_SECONDS = 1.0
_INTEGER_PRODUCTS = ("MatMulInteger", "DynamicQuantizeMatMul")


def require_onnx() -> None:
    """Raises UsageError where the extra `onnx` is not installed."""
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise UsageError(f"exports to ONNX need the package {missing[0]}", hint="pip install 'parp-cli[onnx]'")


class _FromAudio(nn.Module):
    """A network that takes audio, which it normalises itself, in a batch whose padding has no influence."""

    def __init__(self, network: SpeechNetwork, architecture: Architecture) -> None:
        super().__init__()
        self.network = network
        self.normalizes = architecture.normalize_waveform

    def forward(self, waveforms: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V) of waveforms (B, S) with `lengths` (B,) valid samples, and the valid frames (B,)."""
        x, valid = waveforms[:, None], ~padding(lengths, waveforms.shape[1])[:, None]
        if self.normalizes:
            x = _standardized(x, valid, EPSILON)
        x = torch.where(valid, x, 0.0)
        for block in self.network.feature_extractor.conv_layers:
            norm: Any = block.layer_norm
            lengths = block.frames(lengths)  # type: ignore[operator]
            if isinstance(norm, nn.GroupNorm):
                x = _convolved_and_normed(x, lengths, block.conv, norm)
            else:
                x = block.conv(x)  # type: ignore[operator]
                x = x if norm is None else norm(x)
            x = gelu(x)
        features, encoder = x.transpose(1, 2), self.network.encoder
        hidden = encoder.encode(encoder.feature_projection(features), padding(lengths, features.shape[1]))
        return (hidden if self.network.aux is None else self.network.aux(hidden)), lengths


def _standardized(x: Tensor, valid: Tensor, epsilon: float) -> Tensor:
    """Each channel of x (B, C, S) at mean 0 and variance 1 over what is valid (B, 1, S)."""
    count = valid.sum(2, keepdim=True)
    centred = x - torch.where(valid, x, 0.0).sum(2, keepdim=True) / count
    variance = torch.where(valid, centred, 0.0).square().sum(2, keepdim=True) / count
    return centred / (variance + epsilon).sqrt()


def _convolved_and_normed(x: Tensor, lengths: Tensor, conv: Any, norm: nn.GroupNorm) -> Tensor:
    """The first convolution of waveforms (B, 1, S) and its group norm, one group per channel, over `lengths` (B,) valid
    frames: (B, C, T).

    As in `speech.convolutions`, the statistics are those of the K samples under the kernel, times the kernel, and the
    norm is built into it: C channels are written once, where a norm by itself would pass over them eight times.
    """
    kernels = conv.weight[:, 0].double()  # (C, K)
    # A convolution that takes each sample under the kernel as it is.
    windows = conv1d(x, torch.eye(kernels.shape[1])[:, None], stride=conv.stride)  # (B, K, T)
    valid = ~padding(lengths, windows.shape[2])[:, None]
    count = valid.sum(2, keepdim=True)
    mean = torch.where(valid, windows, 0.0).double().sum(2, keepdim=True) / count
    centred = torch.where(valid, windows - mean, 0.0)
    covariance = centred @ centred.transpose(1, 2) / count  # (B, K, K)
    variance = ((kernels @ covariance) * kernels).sum(2, keepdim=True).clamp(min=0.0)  # (B, C, 1)
    own = kernels * (norm.weight.double()[:, None] / (variance + norm.eps).sqrt())
    # The convolution's own bias is in its mean too, so that it has no effect.
    bias = norm.bias.double()[:, None] - own @ mean
    ones = torch.ones_like(windows[:, :1])
    return torch.cat([own, bias], 2).float() @ torch.cat([windows, ones], 1)


def export_onnx(
    architecture: Architecture,
    weights: Mapping[str, Tensor],
    vocabulary: Sequence[str] | None,
    path: Path,
    *,
    properties: Mapping[str, str],
) -> None:
    """Write a model with inputs `waveforms` (B, S), float32 at 16 kHz, not normalised, and `lengths` (B,), int64, and
    outputs `logits` (B, T, V), or hidden states without a head, and `frames` (B,).

    What is beyond an utterance's length has no influence on its frames. The weight norm is folded. A model that is
    larger than one file can be has its weights in another, as `write` says.

    Args:
        architecture, weights: of the network, zeros where it is pruned.
        vocabulary: V labels by id, the blank first; None for no head.
        properties: for the file's metadata, beside the vocabulary and the sample rate.
    """
    model = folded(architecture, weights)
    samples = round(_TRACED_SECONDS * SAMPLE_RATE)
    example = (torch.zeros(2, samples), torch.tensor([samples, samples // 2]))
    batch, length = torch.export.Dim("batch"), torch.export.Dim("samples")
    made = traced(
        _FromAudio(model, architecture),
        example,
        inputs={"waveforms": {0: batch, 1: length}, "lengths": {0: batch}},
        outputs=["logits", "frames"],
    )
    labels = {} if vocabulary is None else {"vocabulary": json.dumps(list(vocabulary), ensure_ascii=False)}
    write(made, path, {**properties, **labels, "sample_rate": str(SAMPLE_RATE)})


def require_one_file(name: str, weights: Mapping[str, Tensor]) -> None:
    """Raises UsageError where the weights of a model of this name are more than one file holds."""
    if (size := sum(weight.numel() for weight in weights.values()) * 4) > _MOST_BYTES:
        raise UsageError(
            f"{name} has {size / 1e9:.1f} GB of weights, and an ONNX file holds 2.1 GB",
            hint="remove structures first: pruning.pattern=structures and `parp export --to small`",
        )


def folded(architecture: Architecture, weights: Mapping[str, Tensor]) -> SpeechNetwork:
    """The network of these weights, its weight norm folded."""
    model = build(architecture, vocabulary_size=len(weights["aux.weight"]) if "aux.weight" in weights else None)
    model.load_state_dict(without(weights, [MASK_EMBEDDING]))
    for module in model.modules():
        if nn.utils.parametrize.is_parametrized(module, "weight"):
            nn.utils.parametrize.remove_parametrizations(module, "weight")
    return model


def traced(
    module: nn.Module, example: tuple[Tensor, ...], *, inputs: Mapping[str, Mapping[int, Any]], outputs: Sequence[str]
) -> Any:
    """The graph of a module, as onnx has it, without notes on where in the source its nodes are from.

    Args:
        inputs: by name, those of their dimensions that may be any.
        outputs: their names.
    """
    with _quietly(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            dynamic_shapes=tuple(dict(free) for free in inputs.values()),
            input_names=list(inputs),
            output_names=list(outputs),
            verbose=False,
        )
    assert program is not None
    made = program.model_proto
    for node in made.graph.node:
        del node.metadata_props[:]
    return made


def quantize(path: Path, out: Path) -> int:
    """Write a model whose products with constant matrices are of 8-bit integers, and its convolutions too, as
    `integer_convolutions` says; how many these are.

    Weights have a scale for each output, activations one that is measured as it runs.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quietly():
        quantize_dynamic(
            path,
            out,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=weights_beside(path).exists(),
        )
    made, before = onnx.load(out), onnx.load(path, load_external_data=False)
    integer_convolutions(made)
    write(made, out, {prop.key: prop.value for prop in before.metadata_props})
    return sum(node.op_type in _INTEGER_PRODUCTS for node in made.graph.node)


def write(model: Any, path: Path, properties: Mapping[str, str]) -> None:
    """Write a model of onnx with these properties as its metadata; where one file cannot hold it, its weights are in
    another, `weights_beside` it, which has to stay there under its name."""
    import onnx

    onnx.helper.set_model_props(model, dict(properties))
    beside = weights_beside(path)
    beside.unlink(missing_ok=True)  # what is there would be added to
    if sum(len(weight.raw_data) for weight in model.graph.initializer) > _MOST_BYTES:
        onnx.save_model(model, path, save_as_external_data=True, location=beside.name)
    else:
        onnx.save_model(model, path)


def session(path: Path, inputs: Sequence[str] | None = None) -> Any:
    """An ONNX file in onnxruntime, on the CPU, with as many threads as torch has.

    Raises CheckpointError: it cannot be read, or takes other inputs than these, if they are given.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        made = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the file's bytes decide which
        raise CheckpointError(
            f"{path} cannot be read by onnxruntime",
            details=[one_line(error)],
            hint="it may be damaged: export it again",
        ) from error
    if inputs is not None and (taken := [one.name for one in made.get_inputs()]) != list(inputs):
        raise CheckpointError(
            f"{path} takes {', '.join(taken)}, not {' and '.join(inputs)}", hint="name a file that `parp export` wrote"
        )
    return made


def checked(
    made: Path, int8: bool, ours: Any, opened: Callable[[Path], Any], compared: Callable[..., AnyCheck], *, source: str
) -> tuple[AnyCheck, int | None]:
    """How a file compares with the checkpoint; and with `int8` how the one compares that takes its place, and of how
    many products it is. Raises CheckpointError where either failed."""
    check, products = compared(ours, opened(made), exact=True), None
    refuse_different(check.largest_difference, source, exact=True)
    if int8:
        with TemporaryDirectory() as folder:
            plain = Path(folder) / made.name
            for path, place in ((made, plain), (weights_beside(made), weights_beside(plain))):
                if path.exists():
                    shutil.move(path, place)
            products = quantize(plain, made)
        check = compared(ours, opened(made), exact=False)
        refuse_different(check.largest_difference, source, exact=False)
    return check, products


class OnnxNetwork:
    """A file of `export_onnx` in onnxruntime, on the CPU, with as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        self._session = session(path, ("waveforms", "lengths"))

    def __call__(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Logits (T, V) of each of the waveforms (S,), which are padded together."""
        padded = nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        logits, frames = self._session.run(None, {"waveforms": padded.numpy(), "lengths": lengths.numpy()})
        return [torch.from_numpy(row[:count]) for row, count in zip(logits, frames, strict=True)]


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's own log messages and warnings."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _write(job: Job) -> ExportResult:
    architecture, weights, trial = job.encoder.architecture, job.encoder.weights, job.trial()
    ours = trial.network(architecture, weights)
    with job.made() as made:
        trial.write_onnx(architecture, weights, path=made, properties=job.properties)
        check, products = checked(made, job.int8, ours, trial.onnx, trial.compared, source=str(job.source))
    return job.for_runtime(check, products)


ONNX = Target(
    name="onnx", title="for onnxruntime", write=_write, of_texts=True, int8=True, require=require_onnx, with_zeros=True
)
