"""data2vec-audio of transformers, through the stages."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from parp_cli.config.load import load_recipe
from parp_cli.models.sources.huggingface import config_of
from parp_cli.models.sources.load import load_encoder
from parp_cli.models.speech.prunable import KINDS
from parp_cli.stages.evaluate import evaluate
from parp_cli.stages.export import export
from parp_cli.stages.finetune import finetune
from parp_cli.stages.mask import mask
from parp_cli.storage import checkpoint
from tests.tiny import TEXTS, TINY, World

transformers = pytest.importorskip("transformers")


def test_from_a_folder_of_transformers_and_back(world: World, tmp_path: Path) -> None:
    architecture = replace(
        TINY, name="custom", family="data2vec-audio", norm_first=False, positional_kernel=5, positional_layers=2
    )
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**config_of(architecture), mask_time_prob=0.0)
    transformers.Data2VecAudioModel(config).save_pretrained(tmp_path / "theirs")
    masked = mask(str(tmp_path / "theirs"), sparsity=0.5, scope="everything", out=tmp_path / "mask.safetensors")
    metadata = checkpoint.read_metadata(masked.path)
    assert sum("pos_conv_embed" in name for name in metadata.prunable) == 4
    recipe = load_recipe(None, [*world.settings, f"model={tmp_path / 'theirs'}", "pruning.scope=everything"])
    tuned = finetune(recipe, run=tmp_path / "run", init=masked.path)
    assert tuned.sparsity is not None
    assert tuned.sparsity.exact == pytest.approx(0.5, abs=1e-3)
    judged = evaluate(tuned.path, out=tmp_path / "eval.jsonl")
    assert judged.as_it_is.report.utterances == len(TEXTS["test"])
    out = export(tuned.path, to="hf", out=tmp_path / "ours").path
    theirs = transformers.AutoModelForCTC.from_pretrained(out)
    assert type(theirs).__name__ == "Data2VecAudioForCTC"
    again = load_encoder(str(out))
    assert again.architecture == architecture
    weights = checkpoint.read(tuned.path)
    for name, kept in weights.masks.items():
        assert not again.weights[name][~kept].any()
    assert {architecture.kind_of(name) for name in weights.masks} <= set(KINDS)
