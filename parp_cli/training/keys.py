"""Names of training runs by their content: what makes a difference to them, and what they begin from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import parp_cli
from parp_cli.config.finetune import AnyRecipe
from parp_cli.config.load import recipe_to_dict
from parp_cli.models.sources.load import bundled_file, is_bundled, is_name
from parp_cli.pruning.methods.spec import FIRST_MASKS, FOUND_MASKS
from parp_cli.storage.checkpoint import file_hash
from parp_cli.training.plan import Round

_NO_DIFFERENCE: Mapping[str, tuple[str, ...]] = {
    "data": ("test", "download"),
    "training": ("save_minutes", "most_skipped_updates", "checkpoint_activations", "shard_weights"),
}
"""Recipe keys, by section, that make no difference to training."""


def trained_on(recipe: AnyRecipe) -> dict[str, Any]:
    """What of a recipe makes a difference to training, as plain values for JSON."""
    values = recipe_to_dict(recipe)
    for section, without in _NO_DIFFERENCE.items():
        values[section] = {key: value for key, value in values[section].items() if key not in without}
    return values


def round_key(rounds: Sequence[Round], start: str, data: Sequence[str]) -> str:
    """Names the last of a method's first `rounds`, which begin from what `start_key` names, each on data that the
    task's `data_key` names: equal keys, equal files."""
    # Only the last run of all learns from a teacher.
    runs = [
        [trained_on(one), each.prune_to, _hash_or_name(one.pruning.rewind), _hash_or_name(one.distil.teacher), named]
        for each, named in zip(rounds, data, strict=True)
        for one in [each.recipe]
        if not each.teaches or each is rounds[-1] or rounds[-1].recipe.distil.teacher
    ]
    content = [parp_cli.__version__, torch.__version__, start, runs]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def start_key(recipe: AnyRecipe, init: Path | None = None, *, device: torch.device | None = None) -> str:
    """Names what a method's first run begins from: the hashes of its files (of a model that is no file, its name).

    And the kind of device, on which the last bits depend.
    """
    model, initial = recipe.model or recipe.default_model, recipe.pruning.initial
    if is_bundled(model):
        with bundled_file(model) as path:
            named = file_hash(path)
    else:
        named = model if is_name(model) else _hash_or_name(model)
    # One that is found by training is not there at the beginning.
    masked = str(initial) if initial in FIRST_MASKS else _hash_or_name(None if initial in FOUND_MASKS else initial)
    on_cuda = device is not None and device.type == "cuda"
    where = torch.cuda.get_device_name(device) if on_cuda else str(device or "cpu")
    return " ".join([named, _hash_or_name(init), masked, where])


def _hash_or_name(source: str | Path | None) -> str:
    if source is None:
        return ""
    path = Path(source)
    if path.is_dir():  # a model of transformers: of what is deeper in it, sizes and times
        files = sorted(file for file in path.rglob("*") if file.is_file())
        deep = [
            (str(file.relative_to(path)), file.stat().st_size, file.stat().st_mtime_ns)
            for file in files
            if file.parent != path
        ]
        names = [hashlib.sha256(json.dumps(deep).encode()).hexdigest()] if deep else []
        return " ".join([*names, *(file_hash(file) for file in files if file.parent == path)])
    return file_hash(path) if path.is_file() else str(source)
