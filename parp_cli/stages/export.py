"""Write a checkpoint in the formats of other tools, or without what its mask has emptied."""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from parp_cli.config.load import recipe_from_dict
from parp_cli.data.labels import Vocabulary, vocabulary_of
from parp_cli.data.probe import some_speech
from parp_cli.errors import CheckpointError, MaskError, UsageError
from parp_cli.exporters.card import card, card_path, results_of, write_card
from parp_cli.exporters.check import Check, Network, compared, labels, network, refuse_different
from parp_cli.exporters.gguf import CrispNetwork, check_readable, crispasr_version, export_gguf, require_gguf
from parp_cli.exporters.huggingface import export_huggingface
from parp_cli.exporters.onnx import OnnxNetwork, export_onnx, quantize, require_onnx
from parp_cli.exporters.sherpa import (
    MODEL,
    TOKENS,
    SherpaNetwork,
    export_sherpa,
    same_text,
    symbols_of,
    transcribed,
    write_tokens,
)
from parp_cli.exporters.small import export_small, shrink
from parp_cli.exporters.text import export_text
from parp_cli.exporters.text_check import TextCheck, compared_texts, text_network
from parp_cli.exporters.text_onnx import TextOnnxNetwork, export_text_onnx
from parp_cli.exporters.torchaudio import export_torchaudio
from parp_cli.models.recognizer import encoder_of
from parp_cli.models.sources.names import MASK_EMBEDDING, Encoder, without
from parp_cli.models.speech.config import Architecture, build
from parp_cli.models.speech.kernels import INT8, SEMI_STRUCTURED, choose, is_semi_structured
from parp_cli.pruning.masks import backbone_hash, check_fit, count_all, count_pruned, under
from parp_cli.pruning.methods import all_specs
from parp_cli.runtime.device import select_device, versions
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage import checkpoint
from parp_cli.storage.atomic import replacing, write_error
from parp_cli.storage.checkpoint import Checkpoint, Metadata
from parp_cli.storage.packed import Values
from parp_cli.storage.run_folder import require_head
from parp_cli.tasks.texts.probe import some_texts

Target = Literal["hf", "torchaudio", "small", "onnx", "sherpa", "gguf", "packed", "sparse", "mask"]

AnyCheck = TypeVar("AnyCheck", bound=Check | TextCheck)


@dataclass(frozen=True, kw_only=True)
class Size:
    """Of a model: bytes of its file, parameters, attention heads, feed-forward units, blocks with any of these, and
    channels of the feature encoder."""

    bytes: int
    parameters: int
    heads: int
    units: int
    blocks: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What `parp export` wrote.

    Attributes:
        size: bytes of the folder (hf, sherpa) or file in all.
        zeros: pruned weights that are zero in it.
        before, after: the checkpoint and the export, of targets that were compared; None for others.
        check: how they compare.
        integer_products: matrix products of 8-bit integers, of a quantised export.
        card: the model card that was written; None for other targets, or where a card of one's own was kept.
        kernels: how many matrix products are computed dense, from compressed rows (csr), in 8-bit integers (int8) and
            as 2:4, of a sparse export.
        measured_on: "cpu" or "cuda", of a sparse export.
    """

    path: Path
    target: Target
    source: Path
    size: int
    zeros: int
    before: Size | None = None
    after: Size | None = None
    check: Check | TextCheck | None = None
    integer_products: int | None = None
    card: Path | None = None
    kernels: Mapping[str, int] | None = None
    measured_on: str | None = None


def export(
    source: Path,
    *,
    to: Target,
    out: Path,
    int8: bool = False,
    values: Values | None = None,
    device: torch.device | None = None,
    notify: Notify = silent,
) -> ExportResult:
    """Export a checkpoint; every weight that its mask prunes is zero in what is written, or not there.

    Args:
        to: "hf", a directory that transformers loads; "torchaudio", a state dict for its builders (both with a model
            card, which lists what `parp eval` measured in the checkpoint's folder); "small", a checkpoint without the
            heads, units and channels that the mask has emptied; "onnx", a file for onnxruntime; "sherpa", a folder for
            sherpa-onnx; "gguf", a file for crispasr; "packed", a checkpoint with only the weights that are kept;
            "sparse", such a one that also names the fastest way to compute with each of its matrices, which is
            measured; "mask", the mask alone. Small, onnx, sherpa, gguf, packed and sparse ones are compared with the
            checkpoint before they are written.
        out: the directory or file to write.
        int8: matrix products with 8-bit integers; for "onnx", "sherpa" and "gguf", and for "sparse", where they are
            the fastest.
        values: number type of the kept weights, by default float32; for "packed" alone.
        device: what a "sparse" one is for; by default the GPU if there is one and the mask has 2:4 matrices, else the
            CPU.

    Raises:
        CheckpointError: the source cannot be read, the target has no such networks, or the comparison failed.
        MaskError: the mask does not fit, or has emptied nothing, or has nothing for sparse tensor cores.
        UsageError: an option does not go with the target, or the extra `onnx` is not installed.
        ResourceError: no space is left on the disk.
    """
    if int8 and to not in ("onnx", "sherpa", "gguf", "sparse"):
        raise UsageError(f"--int8 goes with --to onnx, sherpa, gguf or sparse, not with --to {to}")
    if values is not None and to != "packed":
        raise UsageError(f"--values goes with --to packed, not with --to {to}")
    if to in ("onnx", "sherpa"):
        require_onnx()
    if to == "gguf":
        require_gguf()
    content = checkpoint.read(source)
    encoder = encoder_of(content, source=str(source))
    architecture, weights, task, *_ = encoder
    check_fit(content.masks, weights, what=str(source))
    weights = under(content.masks, weights)
    zeros = sum(int((weights[name] == 0).sum()) for name in content.masks)
    if architecture.kind == "text" and to not in ("hf", "small", "onnx", "packed", "mask"):
        raise CheckpointError(
            f"{architecture.name} has no form for {to}",
            hint="text encoders are written with --to hf, small, onnx, packed or mask",
        )
    encoder = encoder._replace(weights=weights)
    if to in ("packed", "sparse", "mask"):
        if not content.masks and not int8:
            raise MaskError(f"{source} has no mask", hint="make one with `parp mask` or `parp finetune`")
        metadata = _descended(source, content.metadata)
        content = replace(content, weights=weights, metadata=metadata, kernels={})
        if to == "sparse":
            model = _model(architecture, content).to(_measured_on(source, content, int8, device))
            where = next(model.parameters()).device
            content = replace(content, kernels=_fastest(model, content, int8, notify))
            del model
            return replace(
                _packed(source, encoder, content, out, "float32", where, notify),
                target="sparse",
                kernels=dict(Counter(content.kernels.values())),
                measured_on=where.type,
            )
        if to == "packed":
            return _packed(source, encoder, content, out, values or "float32", torch.device("cpu"), notify)
        checkpoint.write_masks(out, _without_head(content), backbone_hash(content.masks, weights))
        return ExportResult(path=out, target=to, source=source, size=out.stat().st_size, zeros=zeros)
    if to == "small":
        return _small(source, encoder, content.metadata, out, notify)
    if to == "sherpa":
        return _sherpa(source, encoder, content.metadata, out, zeros, int8, notify)
    if to == "gguf":
        return _gguf(source, encoder, content.metadata, out, zeros, int8, notify)
    if to == "onnx":
        return _onnx(source, encoder, content.metadata, out, zeros, int8, notify)
    if architecture.kind == "text":
        export_text(architecture, weights, task, out)
    elif to == "hf":
        vocabulary = None if content.metadata.vocabulary is None else vocabulary_of(source, task)
        export_huggingface(architecture, weights, vocabulary, out)
    else:
        export_torchaudio(architecture, weights, out)
    written = _card(source, content, to, out)
    files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return ExportResult(path=out, target=to, source=source, size=size, zeros=zeros, card=written)


@dataclass(frozen=True)
class _Trial:
    """How exports of one kind of network are run, and compared on the same inputs.

    Attributes:
        network: from architecture and weights (and kernels, of speech), as parp runs it.
        onnx: from a file, as onnxruntime does.
        compared: two of them; `exact` where their outputs are to be equal.
    """

    network: Callable[..., Any]
    onnx: Callable[[Path], Any]
    compared: Callable[..., Check | TextCheck]


def _trial(source: Path, encoder: Encoder, metadata: Metadata, notify: Notify) -> _Trial:
    """Of a checkpoint, on data of the corpus that it was fine-tuned on, if it can be read."""
    data = _data(metadata)
    if encoder.architecture.kind == "text":
        length = (metadata.task or {}).get("max_length")
        texts = some_texts(data, encoder.architecture, encoder.weights, max_length=length, source=str(source))
        on_texts = partial(compared_texts, alone=texts.alone, together=texts.together)
        return _Trial(partial(text_network, task=encoder.task), TextOnnxNetwork, on_texts)
    recognises = metadata.vocabulary is not None
    return _Trial(network, OnnxNetwork, partial(compared, speech=some_speech(data, notify), recognises=recognises))


def _card(source: Path, content: Checkpoint, to: Target, out: Path) -> Path | None:
    metadata = content.metadata
    lineage = checkpoint.lineage(source, metadata)
    method = (metadata.recipe or {}).get("pruning", {}).get("method")
    known = all_specs().get(method)  # not a method of one's own, in a process that has not registered it
    text = card(
        metadata,
        target=to,
        method=method if known is None else f"{method}: {known.description}",
        pruned=(count_pruned(content.masks), count_all(content.masks)),
        lineage=lineage,
        results=results_of(source.parent, lineage[-1].sha256),
    )
    path = card_path(out)
    return path if write_card(path, text) else None


def _small(source: Path, encoder: Encoder, metadata: Metadata, out: Path, notify: Notify) -> ExportResult:
    architecture, weights = encoder.architecture, encoder.weights
    small = shrink(architecture, weights, encoder.masks, source=str(source))
    trial = _trial(source, encoder, metadata, notify)
    masked, made = trial.network(architecture, weights), trial.network(small.architecture, small.weights)
    check = trial.compared(masked, made, exact=True)
    refuse_different(check.largest_difference, str(source), exact=True)
    export_small(small, _descended(source, metadata), out)
    after = _size(small.architecture, small.weights, out)
    return ExportResult(
        path=out,
        target="small",
        source=source,
        size=after.bytes,
        zeros=sum(mask.numel() - int(mask.count_nonzero()) for mask in small.masks.values()),
        before=_size(architecture, weights, source),
        after=after,
        check=check,
    )


def _descended(source: Path, metadata: Metadata) -> Metadata:
    """The metadata of a checkpoint that an export writes."""
    return replace(metadata, stage="export", parents=checkpoint.lineage(source, metadata), versions=versions())


def _without_head(content: Checkpoint) -> Checkpoint:
    """Masks are of no task."""
    return replace(content, metadata=replace(content.metadata, task=None))


def _packed(
    source: Path,
    encoder: Encoder,
    content: Checkpoint,
    out: Path,
    values: Values,
    device: torch.device,
    notify: Notify,
) -> ExportResult:
    architecture = encoder.architecture
    exact = values == "float32" and not {INT8, SEMI_STRUCTURED} & set(content.kernels.values())
    device = torch.device("cpu") if exact else device
    with TemporaryDirectory() as folder:
        made = Path(folder) / "packed"
        try:
            checkpoint.write_packed(made, content, values)
            written = checkpoint.read(made)
            read = encoder_of(written, source=str(out)).weights
            trial = _trial(source, encoder, content.metadata, notify)
            where: dict[str, Any] = {"device": device} if written.kernels else {}
            computed = {**where, "kernels": written.kernels} if written.kernels else {}
            networks = (
                trial.network(architecture, content.weights, **where),
                trial.network(architecture, read, **computed),
            )
            check = trial.compared(*networks, exact=exact)
            refuse_different(check.largest_difference, str(source), exact=exact)
            with replacing(out) as temporary:
                shutil.copyfile(made, temporary)
        except OSError as error:
            raise write_error(out, error) from error
    before, after = (_size(architecture, content.weights, path) for path in (source, out))
    return ExportResult(
        path=out,
        target="packed",
        source=source,
        size=after.bytes,
        zeros=sum(int((read[name] == 0).sum()) for name in content.masks),
        before=before,
        after=after,
        check=check,
    )


def _model(architecture: Architecture, content: Checkpoint) -> Any:
    vocabulary = content.metadata.vocabulary
    model = build(architecture, vocabulary_size=None if vocabulary is None else len(vocabulary))
    model.load_state_dict(without(content.weights, [MASK_EMBEDDING]))
    return model


def _measured_on(source: Path, content: Checkpoint, int8: bool, device: torch.device | None) -> torch.device:
    """The device that a sparse export is for."""
    if int8:
        if device is not None and device.type != "cpu":
            raise UsageError("8-bit integers are for CPUs alone", hint="leave out --int8, or use --device cpu")
        return torch.device("cpu")
    if device is not None and device.type == "cpu":
        return device
    if any(is_semi_structured(content.weights[name]) for name, mask in content.masks.items() if mask.dim() == 2):
        return device or select_device("auto")
    if device is None:
        return torch.device("cpu")
    raise MaskError(
        f"{source} has no matrix that sparse tensor cores take",
        hint="they take 2:4 ones: prune with pruning.pattern=2:4; or measure what a CPU gains, with --device cpu",
    )


def _fastest(model: Any, content: Checkpoint, int8: bool, notify: Notify) -> dict[str, str]:
    """The fastest kernel for each matrix of the checkpoint, by weight name, where the model is."""
    pruned = {name for name, mask in content.masks.items() if not bool(mask.all())}
    return choose(
        model, pruned, int8=int8, each=lambda done, total: notify(Progress("measuring matrices", done, total))
    )


def _onnx(
    source: Path, encoder: Encoder, metadata: Metadata, out: Path, zeros: int, int8: bool, notify: Notify
) -> ExportResult:
    architecture, weights = encoder.architecture, encoder.weights
    trial = _trial(source, encoder, metadata, notify)
    ours = trial.network(architecture, weights)
    with TemporaryDirectory() as folder:
        made = Path(folder) / "model.onnx"
        try:
            if architecture.kind == "text":
                export_text_onnx(architecture, weights, encoder.task, made, properties=_properties(source))
            else:
                export_onnx(architecture, weights, metadata.vocabulary, made, properties=_properties(source))
            check, nodes = _checked(made, int8, ours, trial.onnx, trial.compared, source)
        except OSError as error:
            raise write_error(made, error) from error
        with replacing(out) as temporary:
            shutil.copyfile(made, temporary)
    return _for_runtime("onnx", source, encoder, out, [out], zeros, check, nodes)


def _sherpa(
    source: Path, encoder: Encoder, metadata: Metadata, out: Path, zeros: int, int8: bool, notify: Notify
) -> ExportResult:
    require_head(source, metadata)
    architecture, weights = encoder.architecture, encoder.weights
    vocabulary = vocabulary_of(source, metadata.task)
    symbols, speech = symbols_of(vocabulary, source=str(source)), some_speech(_data(metadata), notify)
    ours = network(architecture, weights)
    with TemporaryDirectory() as folder:
        made = Path(folder) / MODEL
        try:
            export_sherpa(architecture, weights, symbols, made, properties=_properties(source))
            write_tokens(symbols, made.with_name(TOKENS))
            check, nodes = _checked(
                made,
                int8,
                lambda waveforms: [symbols.logits(row) for row in ours(waveforms)],
                SherpaNetwork,
                partial(compared, speech=speech, recognises=False),
                source,
            )
            check = _transcribed(check, *transcribed(Path(folder), symbols, speech), ours, vocabulary, speech)
        except OSError as error:
            raise write_error(made, error) from error
        if check.transcripts_changed and not int8:
            raise _other_transcripts(
                check, source, hint="please report this, with the versions that `parp inspect` names"
            )
        write_tokens(symbols, out / TOKENS)
        with replacing(out / MODEL) as temporary:
            shutil.copyfile(made, temporary)
    return _for_runtime("sherpa", source, encoder, out, [out / MODEL, out / TOKENS], zeros, check, nodes)


def _gguf(
    source: Path, encoder: Encoder, metadata: Metadata, out: Path, zeros: int, int8: bool, notify: Notify
) -> ExportResult:
    require_head(source, metadata)
    architecture, weights = encoder.architecture, encoder.weights
    check_readable(architecture, source=str(source))
    vocabulary, speech = vocabulary_of(source, metadata.task), some_speech(_data(metadata), notify)
    ours = network(architecture, weights)
    with TemporaryDirectory() as folder:
        made = Path(folder) / "model.gguf"
        try:
            matrices = export_gguf(architecture, weights, vocabulary, made, int8=int8, properties=_properties(source))
        except OSError as error:
            raise write_error(made, error) from error
        theirs = CrispNetwork(made)
        check = compared(ours, theirs, speech, exact=False, recognises=False)
        refuse_different(check.largest_difference, str(source), exact=False)
        texts = [theirs.recognized(waveform)[0] for waveform in speech]
        check = _transcribed(check, texts, crispasr_version(), ours, vocabulary, speech)
        if check.transcripts_changed and not int8:
            difference = f"the largest difference of a logit is {check.largest_difference:.2g}"
            raise _other_transcripts(check, source, difference, hint="export it with --to onnx or sherpa")
        with replacing(out) as temporary:
            shutil.copyfile(made, temporary)
    return _for_runtime("gguf", source, encoder, out, [out], zeros, check, matrices if int8 else None)


def _for_runtime(
    target: Target,
    source: Path,
    encoder: Encoder,
    out: Path,
    files: Sequence[Path],
    zeros: int,
    check: Check | TextCheck,
    products: int | None,
) -> ExportResult:
    """What was written for another runtime, of the same network in these files."""
    before = _size(encoder.architecture, encoder.weights, source)
    size = sum(path.stat().st_size for path in files)
    return ExportResult(
        path=out,
        target=target,
        source=source,
        size=size,
        zeros=zeros,
        before=before,
        after=replace(before, bytes=size),
        check=check,
        integer_products=products,
    )


def _other_transcripts(check: Check, source: Path, *details: str, hint: str) -> CheckpointError:
    return CheckpointError(
        f"{check.transcribed_by} makes other transcripts of {check.transcripts_changed} of {check.transcripts} "
        f"utterances than {source}: nothing is written",
        details=details,
        hint=hint,
    )


def _transcribed(
    check: Check,
    texts: Sequence[str],
    program: str,
    ours: Network,
    vocabulary: Vocabulary,
    speech: Sequence[Tensor],
) -> Check:
    """The check with how many of a program's transcripts are not the greedy ones of ours."""
    expected = [vocabulary.decode(labels(ours([waveform])[0])) for waveform in speech]
    changed = sum(not same_text(*pair) for pair in zip(expected, texts, strict=True))
    return replace(check, transcripts=len(texts), transcripts_changed=changed, transcribed_by=program)


def _checked(
    made: Path, int8: bool, ours: Any, opened: Callable[[Path], Any], compared: Callable[..., AnyCheck], source: Path
) -> tuple[AnyCheck, int | None]:
    """How an ONNX file compares with the checkpoint; and with `int8` how the one compares that takes its place, and of
    how many products it is. Raises CheckpointError where either failed."""
    check, nodes = compared(ours, opened(made), exact=True), None
    refuse_different(check.largest_difference, str(source), exact=True)
    if int8:
        plain = made.rename(made.with_suffix(".float32"))
        nodes = quantize(plain, made)
        check = compared(ours, opened(made), exact=False)
        refuse_different(check.largest_difference, str(source), exact=False)
    return check, nodes


def _properties(source: Path) -> dict[str, str]:
    """What an ONNX file says of where it is from."""
    return {**versions(), "source_sha256": checkpoint.file_hash(source)}


def _size(architecture: Any, weights: Mapping[str, Tensor], path: Path) -> Size:
    sizes = [architecture.sizes_of_layer(index) for index in range(architecture.layers)]
    return Size(
        bytes=path.stat().st_size,
        parameters=sum(weight.numel() for weight in weights.values() if weight.is_floating_point()),
        heads=sum(heads for heads, _, _ in sizes),
        units=sum(units for _, _, units in sizes),
        blocks=sum(bool(count) for heads, _, units in sizes for count in (heads, units)),
        channels=architecture.channels,
    )


def _data(metadata: Metadata) -> Any:
    """Of the recipe that a checkpoint was made by; None where there is none."""
    recipe = metadata.recipe
    return recipe_from_dict(recipe).data if recipe is not None and "data" in recipe else None
