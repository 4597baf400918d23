"""A GGUF file for crispasr, which computes with ggml on processors and graphics cards: its type wav2vec2.

What it computes as we do are networks of wav2vec 2.0 and HuBERT with layer norms in the feature encoder and before each
half of a layer, as large, XLSR and XLS-R have; of those with a group norm, as base has, its logits are other ones.
It normalises audio itself, approximates GELU by a hyperbolic tangent, which changes logits by hundredths, and has one
count of heads for all layers.

S samples, T frames, V tokens, D features, H heads of d features.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from parp_cli.data.labels import Vocabulary, vocabulary_of
from parp_cli.errors import CheckpointError, UsageError
from parp_cli.exporters.check import compared, network, refuse_different, refuse_other_transcripts, with_transcripts
from parp_cli.exporters.onnx import folded
from parp_cli.exporters.target import ExportResult, Job, Target
from parp_cli.storage.conventions import SAMPLE_RATE
from parp_cli.storage.run_folder import require_head

if TYPE_CHECKING:
    from parp_cli.models.speech.config import Architecture

_ARCHITECTURE = "wav2vec2"
_EPSILON = 1e-5
_PACKAGES = ("gguf", "crispasr")
_TRANSFORMER = "encoder.transformer"
_LAYER = {
    "ln1": "layer_norm",
    "attn.q": "attention.q_proj",
    "attn.k": "attention.k_proj",
    "attn.v": "attention.v_proj",
    "attn.out": "attention.out_proj",
    "ln2": "final_layer_norm",
    "ffn.fc1": "feed_forward.intermediate_dense",
    "ffn.fc2": "feed_forward.output_dense",
}
"""What crispasr calls the modules of a layer, and what they are called here."""


def require_gguf() -> None:
    """Raises UsageError where the extra `gguf` is not installed."""
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise UsageError(f"exports to GGUF need the package {missing[0]}", hint="pip install 'parp-cli[gguf]'")


def crispasr_version() -> str:
    """Its name and version."""
    return f"crispasr {importlib.metadata.version('crispasr')}"


def check_readable(architecture: Architecture, *, source: str) -> None:
    """Raises CheckpointError where crispasr computes a network otherwise; the `source` is named."""
    reasons = {
        f"its family is {architecture.family}": architecture.family not in ("wav2vec2", "hubert"),
        "its feature encoder has a group norm": architecture.conv_norm != "layer",
        "its layer norms come after attention and feed-forward blocks": not architecture.norm_first,
        "it was trained on waveforms that are not normalised": not architecture.normalize_waveform,
        "channels were removed from its feature encoder": architecture.conv_norm_channels is not None,
    }
    if wrong := [reason for reason, applies in reasons.items() if applies]:
        raise CheckpointError(
            f"crispasr has no network like that of {source}", details=wrong, hint="export it with --to onnx or sherpa"
        )


def tokens_of(vocabulary: Vocabulary) -> list[str]:
    """What crispasr is to print for each label: nothing for the blank and for what stands for nothing spoken."""
    texts = [vocabulary.decode([label]) for label in range(len(vocabulary))]
    if vocabulary.labels == "phones":
        return [f" {text}" if text else "" for text in texts]
    if vocabulary.delimiter is not None:
        texts[vocabulary.symbols.index(vocabulary.delimiter)] = vocabulary.separator.replace(" ", "|")
    return texts


def export_gguf(
    architecture: Architecture,
    weights: Mapping[str, Tensor],
    vocabulary: Vocabulary,
    path: Path,
    *,
    int8: bool,
    properties: Mapping[str, str],
) -> int:
    """Write a file for crispasr, weights in float32; how many matrices are of 8-bit integers.

    Args:
        architecture, weights: of a network with a CTC head that is `check_readable`, zeros where it is pruned. Heads
            that a layer lacks are written as zeros, since all layers have equally many.
        vocabulary: of its head.
        int8: write matrices with whole blocks of 32 columns as 8-bit integers with a scale for each block (Q8_0).
        properties: for the file's metadata.
    """
    import gguf

    writer = gguf.GGUFWriter(path, arch=_ARCHITECTURE)
    for key, value in _sizes(architecture, len(vocabulary)).items():
        writer.add_uint32(f"{_ARCHITECTURE}.{key}", value)
    writer.add_float32(f"{_ARCHITECTURE}.layer_norm_eps", _EPSILON)
    writer.add_array("tokenizer.ggml.tokens", tokens_of(vocabulary))
    writer.add_uint32("tokenizer.ggml.padding_token_id", 0)
    for key, text in properties.items():
        writer.add_string(f"parp.{key}", text)
    quantised = 0
    for name, tensor in _tensors(architecture, weights):
        values = tensor.detach().float().contiguous().numpy()
        if int8 and values.ndim == 2 and values.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
            quantised += 1
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return quantised


def _sizes(architecture: Architecture, tokens: int) -> dict[str, int]:
    """What the file says of the network."""
    inner = [architecture.sizes_of_layer(layer)[2] for layer in range(architecture.layers)]
    found = {
        "vocab_size": tokens,
        "hidden_size": architecture.width,
        "num_hidden_layers": architecture.layers,
        "num_attention_heads": _heads(architecture),
        "intermediate_size": max(inner),
        "num_feat_extract_layers": len(architecture.conv_layers),
        "num_conv_pos_embeddings": architecture.positional_kernel,
        "num_conv_pos_embedding_groups": architecture.positional_groups,
        "feat_extract_norm_type": 1,
        "do_stable_layer_norm": 1,
        "pad_token_id": 0,
    }
    for layer, sizes in enumerate(architecture.conv_layers):
        names = (f"conv_{size}_{layer}" for size in ("dim", "kernel", "stride"))
        found |= zip(names, sizes, strict=True)
    return found


def _heads(architecture: Architecture) -> int:
    """Of every layer, in the file."""
    return architecture.width // architecture.sizes_of_layer(0)[1]


def _tensors(architecture: Architecture, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Under crispasr's names; without a weight norm."""
    own = folded(architecture, weights).state_dict()
    width = architecture.width
    modules = {
        "feat_proj.ln": "encoder.feature_projection.layer_norm",
        "feat_proj": "encoder.feature_projection.projection",
        "pos_conv": f"{_TRANSFORMER}.pos_conv_embed.conv",
        "enc.ln": f"{_TRANSFORMER}.layer_norm",
        "lm_head": "aux",
    }
    for layer in range(len(architecture.conv_layers)):
        place = f"feature_extractor.conv_layers.{layer}"
        modules |= {f"cnn.{layer}.conv": f"{place}.conv", f"cnn.{layer}.norm": f"{place}.layer_norm"}
    for name, module in modules.items():
        for part in ("weight", "bias"):
            if f"{module}.{part}" in own:
                yield f"{name}.{part}", own[f"{module}.{part}"]
    # Without heads or units only a bias is left of a block: one that adds this alone takes its place.
    nothing = {"ffn.fc1.weight": (1, width), "ffn.fc1.bias": (1,), "ffn.fc2.weight": (width, 1)}
    left = {"attn.out.bias": "attention.bias", "ffn.fc2.bias": "feed_forward.bias"}
    for layer in range(architecture.layers):
        place = f"{_TRANSFORMER}.layers.{layer}"
        for module, ours in _LAYER.items():
            for part in ("weight", "bias"):
                name = f"{module}.{part}"
                shape = nothing.get(name, (width, width)[: 2 if part == "weight" else 1])
                tensor = own.get(f"{place}.{ours}.{part}", own.get(f"{place}.{left.get(name)}", torch.zeros(shape)))
                yield f"enc.{layer}.{name}", _padded(tensor, shape) if module.startswith("attn.") else tensor


def _padded(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor with zeros after it in each dimension."""
    found = torch.zeros(shape)
    found[tuple(slice(size) for size in tensor.shape)] = tensor
    return found


def tokens_in(path: Path) -> list[str]:
    """What a file has crispasr print for each label."""
    import gguf

    field = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"]
    return [bytes(field.parts[index]).decode() for index in field.data]


class CrispNetwork:
    """A file of `export_gguf` in crispasr, with as many threads as torch has. Raises CheckpointError: it cannot be
    read."""

    def __init__(self, path: Path) -> None:
        from crispasr import Session

        try:
            self._session: Any = Session(str(path), backend=_ARCHITECTURE, n_threads=torch.get_num_threads())
        except (RuntimeError, ValueError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read by crispasr", details=[str(error)]) from error

    def __call__(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Logits (T, V) of each of the waveforms (S,), one at a time. Raises CheckpointError where it recognises
        nothing, and gives none."""
        found = []
        for waveform in waveforms:
            _, logits = self._session.transcribe_with_logits(waveform.numpy(), SAMPLE_RATE)
            if logits is None:
                raise CheckpointError(
                    "crispasr gives no logits where it recognises nothing, "
                    f"as in {len(waveform) / SAMPLE_RATE:.1f} s of speech",
                    hint="the checkpoint may be trained too little to be of use",
                )
            found.append(torch.from_numpy(logits))
        return found

    def transcribe(self, waveforms: Sequence[Tensor]) -> list[str]:
        """The transcript of each of the waveforms (S,), one at a time."""
        runs = (self._session.transcribe(waveform.numpy(), SAMPLE_RATE) for waveform in waveforms)
        return [" ".join(segment.text for segment in run) for run in runs]


def _write(job: Job) -> ExportResult:
    source = str(job.source)
    require_head(job.source, job.content.metadata)
    architecture, weights, task, *_ = job.encoder
    check_readable(architecture, source=source)
    vocabulary, speech, ours = vocabulary_of(job.source, task), job.speech(), network(architecture, weights)
    with job.made() as made:
        matrices = export_gguf(architecture, weights, vocabulary, made, int8=job.int8, properties=job.properties)
        theirs = CrispNetwork(made)
        check = compared(ours, theirs, speech, exact=False, recognises=False)
        refuse_different(check.largest_difference, source, exact=False)
        texts = theirs.transcribe(speech)
        check = with_transcripts(check, texts, crispasr_version(), ours=ours, vocabulary=vocabulary, speech=speech)
        if not job.int8:
            difference = f"the largest difference of a logit is {check.largest_difference:.2g}"
            refuse_other_transcripts(check, source, difference, hint="export it with --to onnx or sherpa")
    return job.for_runtime(check, matrices if job.int8 else None)


GGUF = Target(name="gguf", title="for crispasr", write=_write, int8=True, require=require_gguf, with_zeros=True)
