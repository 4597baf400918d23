"""Where encoders come from: one function for every kind of file, folder and name."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from parp_cli.errors import CheckpointError, MaskError, UsageError
from parp_cli.models.recognizer import encoder_of
from parp_cli.models.sources import fairseq, fairseq2, huggingface, published, torch_files, torch_prune
from parp_cli.models.sources.names import (
    MASK_EMBEDDING,
    Encoder,
    Rules,
    fit,
    fit_masks,
    head_note,
    pack_attention,
    renamed,
    shapes,
    with_current_names,
    without,
)
from parp_cli.models.speech.config import ARCHITECTURES, Architecture
from parp_cli.models.speech.prunable import layer_of
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Metadata, Sparsity

BUNDLED = "mini"
"""The speech encoder that comes with parp."""

_ALL_BUNDLED = (BUNDLED, "mini-x", "mini-text")

_RANDOM = "random:"  # before an architecture's name: an encoder that has learned nothing, for comparison

_FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def load_encoder(source: str, *, architecture: str | None = None, notify: Notify = silent) -> Encoder:
    """Read an encoder, with its CTC head if it comes with the labels for it.

    Args:
        source: `mini`, `mini-x` or `mini-text`; the name of another architecture, whose published weights torchaudio
            has; `random:NAME`, an architecture, or that of any other source, with random weights; a folder of Hugging
            Face transformers; a name on the Hugging Face hub; a file of `torch.save` with torchaudio's state dict, or
            fairseq's or fairseq2's checkpoint; a checkpoint of parp. A registered name goes before a file or folder of
            that name (`./mini` is the folder).
        architecture: the name of the architecture, where a file does not say it, or several have its sizes.
        notify: is told of a download's progress, and of what could not be kept.

    Raises:
        CheckpointError: nothing is there, or it is broken, or of another kind, or its weights don't fit.
        UsageError: `architecture` is not registered.
    """
    named = None if architecture is None else _registered(architecture)
    encoder = _load(source, named, notify)
    for note in encoder.notes:
        notify(Progress("reading", 1, 1, warning=note))
    if named is None:
        return encoder
    found = encoder.architecture
    if not found.same_network(named):
        ours, theirs = found.to_json(), named.to_json()
        raise CheckpointError(
            f"{source} is {found.name} ({found.family}), not {named.name}",
            details=[
                f"{key}: {ours.get(key)} in the file, {theirs.get(key)} in {named.name}"
                for key in sorted({*ours, *theirs} - {"name", "normalize_waveform"})
                if ours.get(key) != theirs.get(key)
            ],
        )
    return encoder._replace(architecture=replace(found, name=named.name))


def _load(source: str, named: Architecture | None, notify: Notify) -> Encoder:
    if source in _ALL_BUNDLED:
        with bundled_file(source) as path:
            return _read_parp(path)
    if source.startswith(_RANDOM):
        return _random(source.removeprefix(_RANDOM), notify)
    if source in published.FILES:
        return published.load(source, notify)
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path, notify)
    if path.suffix == ".safetensors" and path.is_file():
        if (path.parent / huggingface.CONFIG).is_file() and not checkpoint.is_checkpoint(path):
            return _read_folder(path.parent, notify)
        return _read_parp(path)
    if path.is_file():
        return _read_torch(path, named)
    if huggingface.HUB_NAME.fullmatch(source) and path.suffix not in _FILE_SUFFIXES:
        return _read_folder(huggingface.download(source), notify)
    raise CheckpointError(f"there is no model {source}", hint=_nearest(source))


def is_bundled(source: str) -> bool:
    """Whether a model of this name comes with parp."""
    return source in _ALL_BUNDLED


def bundled_file(name: str) -> AbstractContextManager[Path]:
    """The file of a model that comes with parp."""
    return resources.as_file(resources.files("parp_cli") / "assets" / f"{name}.safetensors")


def is_name(source: str) -> bool:
    """Whether a model is known by this name, whatever files there are."""
    return source in ARCHITECTURES


def random_encoder(architecture: Any, seed: int = 0) -> Encoder:
    """A freshly initialised encoder of any kind, the same one for the same seed."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(architecture, architecture.build().state_dict(), None)


def _random(source: str, notify: Notify) -> Encoder:
    """By an architecture's name, or that of a file or folder, of which all is kept that does not train: a tokenizer."""
    if source in ARCHITECTURES or not (is_bundled(source) or Path(source).expanduser().exists()):
        return random_encoder(_registered(source))
    encoder = _load(source, None, notify)
    fresh = random_encoder(encoder.architecture)
    kept = {name: weight for name, weight in encoder.weights.items() if not weight.is_floating_point()}
    return fresh._replace(weights={**fresh.weights, **kept})


def _read_folder(path: Path, notify: Notify) -> Encoder:
    """Of transformers, or one in its form: a speech encoder, or with its extra a text encoder."""
    if huggingface.is_speech_model(path) or importlib.util.find_spec("transformers") is None:
        return huggingface.read_directory(path)
    from parp_cli.models.sources import text

    return text.read_folder(path, notify) if text.is_text_model(path) else huggingface.read_directory(path)


def _read_parp(path: Path) -> Encoder:
    content = checkpoint.read(path)
    return encoder_of(content, source=str(path), parents=checkpoint.lineage(path, content.metadata))


def _read_torch(path: Path, named: Architecture | None) -> Encoder:
    content = torch_files.load(path)
    state = torch_files.state_dict(content)
    if state is not None and fairseq2.is_state(state):
        return fairseq2.read(state, source=str(path))
    if fairseq.is_checkpoint(content):
        return fairseq.read(content, path, architecture=named)
    if state is None:
        raise CheckpointError(
            f"{path} holds neither a state dict nor a fairseq checkpoint",
            hint="parp reads state dicts, .pt files of fairseq and fairseq2, and Hugging Face folders",
        )
    if torch_prune.masks_alone(state, source=str(path)) is not None:
        raise CheckpointError(
            f"{path} holds masks alone", hint=f"lay them over a model: `parp mask --from {path} --apply MODEL`"
        )
    state, rules = _bare(state, path)
    weights, masks = torch_prune.split(state, source=str(path))
    weights = {renamed(name, rules): tensor for name, tensor in weights.items()}
    if any("rel_attn_embed" in name for name in weights):
        weights = pack_attention(weights)
    notes: tuple[str, ...] = ()
    if (head := weights.get("aux.weight")) is not None:
        notes = (head_note(str(path), len(head), "a folder of transformers has a vocab.json for them"),)
        weights = without(weights, ("aux.",))
    architecture = named or _recognise(weights, path)
    weights = fit(weights, architecture, source=str(path))
    return Encoder(
        architecture, weights, None, masks=fit_masks(masks, weights, source=str(path), rules=rules), notes=notes
    )


def load_masks(path: Path) -> tuple[Mapping[str, Tensor], Metadata]:
    """The masks of a file or folder by our names of their weights, and what is known of it.

    Args:
        path: a checkpoint of parp; a model that torch.nn.utils.prune pruned, as `load_encoder` takes it; or a file of
            such masks alone, with an empty architecture, as nothing says which model they are for.

    Raises:
        CheckpointError: it cannot be read.
        MaskError: it has no masks, or some that do not fit its weights.
    """
    if path.exists() and not checkpoint.is_checkpoint(path):
        masks, architecture = _foreign_masks(path)
        pruned, total = (sum(map(count, masks.values())) for count in (lambda m: int((~m).sum()), Tensor.numel))
        amount = Sparsity(target=pruned / max(1, total), pruned=pruned, total=total)
        metadata = Metadata(stage="import", architecture=architecture, prunable=tuple(masks), sparsity=amount)
    else:
        masks, metadata = checkpoint.read_masks(path), checkpoint.read_metadata(path)
    if not masks:
        raise MaskError(f"{path} has no mask", hint="make one with `parp mask`")
    return masks, metadata


def _foreign_masks(path: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """The masks of another project's file or folder, and the architecture as JSON, empty where nothing says it."""
    if path.is_file():
        in_safetensors = path.suffix == ".safetensors"
        state = huggingface.read_part(path) if in_safetensors else torch_files.state_dict(torch_files.load(path))
        alone = torch_prune.masks_alone(torch_files.unwrapped(state or {}), source=str(path)) if state else None
        if alone is not None:
            bare, rules = _bare(alone, path)
            return fit_masks(bare, None, source=str(path), rules=rules), {}
    encoder = load_encoder(str(path))
    return encoder.masks, encoder.architecture.to_json()


def _bare(state: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], Rules]:
    """A state dict without what its project puts around the encoder, and the rules from its names to ours."""
    if any(name.startswith("encoder.transformer.") for name in state):
        return state, ()
    if any(".self_attn." in name or ".fc1." in name for name in state):
        return fairseq.stripped(state), fairseq.NAMES
    if any(re.search(r"(^|\.)encoder\.layers\.\d", name) for name in state):
        return huggingface.stripped(state), huggingface.NAMES
    raise CheckpointError(
        f"{path} has none of torchaudio's names",
        details=list(state)[:3],
        hint="for a Hugging Face model give its folder, with config.json",
    )


def _recognise(weights: dict[str, Tensor], path: Path) -> Architecture:
    """The one registered architecture with these names and shapes."""
    weights = with_current_names(without(weights, [MASK_EMBEDDING]))
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    layers = len({layer_of(name) for name in found} - {None})
    candidates = [
        known
        for known in ARCHITECTURES.values()
        if known.layers == layers and shapes(known) == found  # the first is the cheap one
    ]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = ", ".join(candidate.name for candidate in candidates)
        raise CheckpointError(
            f"{path} fits several architectures", details=[names], hint="name it: `parp mask --architecture NAME`"
        )
    raise CheckpointError(
        f"{path} fits no architecture that parp knows",
        details=[f"{len(found)} tensors"],
        hint="name the one it should fit (`parp mask --architecture NAME`), and what differs is listed",
    )


def _registered(name: str) -> Architecture:
    if name not in ARCHITECTURES:
        raise UsageError(f"there is no architecture {name}", hint=_nearest(name))
    return ARCHITECTURES[name]


def _nearest(name: str) -> str:
    names = dict.fromkeys((*_ALL_BUNDLED, *ARCHITECTURES))
    near = difflib.get_close_matches(name, names, n=1)
    known = f"known names are {', '.join(names)}"
    return f"did you mean {near[0]}?" if near else f"{known}; or give a file or folder"
