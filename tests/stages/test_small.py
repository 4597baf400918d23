"""Structured pruning through whole runs, and small checkpoints through every stage."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parp_cli.data.probe import imitation, some_speech
from parp_cli.errors import CheckpointError, MaskError, UsageError
from parp_cli.models.network import read_architecture
from parp_cli.pruning.masks import count_pruned
from parp_cli.runtime.progress import silent
from parp_cli.stages import export as exporting
from parp_cli.stages.evaluate import evaluate
from parp_cli.stages.export import export
from parp_cli.stages.finetune import finetune
from parp_cli.stages.mask import mask
from parp_cli.stages.reprune import reprune
from parp_cli.stages.transcribe import transcribe
from parp_cli.storage import checkpoint
from tests.stages.spies import Change
from tests.tiny import World

HEAD, UNIT = 4 * 16 * 32 + 3 * 16, 2 * 32 + 1
"""Weights of a head and of a unit of the tiny encoder, which has four heads and 128 units."""

TOTAL = 4 * HEAD + 128 * UNIT

METHODS: dict[str, tuple[str, ...]] = {
    "parp": (),
    "parp-p": (),
    "mpi": (),
    "rp": (),
    "omp": (),
    "imp": ("pruning.rounds.step=0.25", "pruning.rounds.updates=2"),
    "pap": (),
    "taylor": (),
    "wanda": (),
}


def whole_groups(masks: dict[str, Tensor]) -> tuple[int, int]:
    """Heads and units that are pruned; all have to be whole."""
    heads = units = 0
    for layer in range(2):
        block = f"encoder.transformer.layers.{layer}."
        attention, dense = f"{block}attention.", f"{block}feed_forward."
        rows = [masks[f"{attention}{which}_proj.weight"].reshape(2, -1) for which in "qkv"]
        flags = torch.cat([*rows, masks[f"{attention}out_proj.weight"].T.reshape(2, -1)], 1)
        assert torch.equal(flags.all(1), flags.any(1))
        heads += int((~flags.all(1)).sum())
        flags = torch.cat([masks[f"{dense}intermediate_dense.weight"], masks[f"{dense}output_dense.weight"].T], 1)
        assert torch.equal(flags.all(1), flags.any(1))
        units += int((~flags.all(1)).sum())
    return heads, units


@pytest.mark.parametrize("method", METHODS)
def test_methods_prune_whole_structures(world: World, tmp_path: Path, method: str) -> None:
    recipe = world.recipe(f"pruning.method={method}", "pruning.pattern=structures", *METHODS[method])
    result = finetune(recipe, run=tmp_path)
    for path in (result.path, result.last):
        content = checkpoint.read(path)
        amount = content.metadata.sparsity
        assert amount is not None
        heads, units = whole_groups(dict(content.masks))
        biases = method != "wanda"
        assert (
            amount.pruned
            == count_pruned(content.masks)
            == heads * (HEAD - 48 * (not biases)) + units * (UNIT - (not biases))
        )
        assert amount.target == 0.5
        assert abs(amount.exact - 0.5) <= HEAD / 2 / TOTAL
        assert all((content.weights[name][~kept] == 0).all() for name, kept in content.masks.items())


def test_a_pruned_unit_may_come_back(world: World, changes: list[Change], tmp_path: Path) -> None:
    finetune(world.recipe("pruning.pattern=structures", "training.learning_rate=0.1"), run=tmp_path)
    assert sum(change.record.revived for change in changes) > 0
    assert all(change.record.revived % UNIT == 0 or change.record.revived >= HEAD for change in changes)
    for change in changes:
        whole_groups(change.after)


def test_units_that_cannot_come_back_are_told(world: World, tmp_path: Path) -> None:
    path = mask(str(world.encoder), out=tmp_path / "mask.safetensors", pattern="structures").path

    def warnings(*settings: str, init: Path | None) -> list[str]:
        told: list[str] = []
        recipe = world.recipe("training.updates=1", *settings)
        finetune(recipe, run=tmp_path / str(settings), init=init, notify=lambda step: told.append(step.warning))
        return [text for text in told if "none will come back" in text]

    assert len(warnings(init=path)) == 1
    assert not warnings("pruning.method=mpi", init=path), "nothing is to come back"
    assert not warnings("pruning.pattern=structures", init=None)
    assert not warnings(f"pruning.initial={path}", init=None), "the model's own weights"


@pytest.fixture(scope="module")
def structured(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PARP run that knows some letters, with heads and units pruned."""
    settings = ("training.updates=300", "training.validate_every=100", "pruning.interval=20", "training.layer_drop=0")
    recipe = world.recipe("pruning.pattern=structures", *settings, "training.activation_dropout=0")
    return finetune(recipe, run=tmp_path_factory.mktemp("structured")).path


@pytest.fixture(scope="module")
def small(structured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(structured, to="small", out=tmp_path_factory.mktemp("small") / "small.safetensors").path


def test_what_is_reported(structured: Path, small: Path, tmp_path: Path) -> None:
    result = export(structured, to="small", out=tmp_path / "small.safetensors")
    assert result.path.read_bytes() == small.read_bytes(), "the same content, the same bytes"
    masks = checkpoint.read_masks(structured)
    heads, units = whole_groups(masks)
    before, after, check = result.before, result.after, result.check
    assert before is not None
    assert after is not None
    assert check is not None
    assert (before.heads, before.units, before.blocks) == (4, 128, 4)
    assert (after.heads, after.units) == (4 - heads, 128 - units)
    assert heads + units > 0
    assert before.parameters - after.parameters == heads * HEAD + units * UNIT
    assert (before.bytes, after.bytes) == (structured.stat().st_size, small.stat().st_size)
    assert before.bytes - after.bytes > 4 * (heads * HEAD + units * UNIT)
    assert check.largest_difference < 1e-5
    assert len(check.seconds) == 3
    metadata = checkpoint.read_metadata(small)
    assert metadata.stage == "export"
    assert metadata.parents[-1].sha256 == checkpoint.file_hash(structured)
    assert metadata.sparsity is None
    assert not checkpoint.read_masks(small)
    architecture = read_architecture(metadata.architecture)
    assert architecture.name == "tiny-small"
    assert sum(architecture.sizes_of_layer(layer)[2] for layer in range(2)) == after.units


def test_it_recognises_the_same(world: World, structured: Path, small: Path, tmp_path: Path) -> None:
    texts = []
    for path in (structured, small):
        result = evaluate(path, out=tmp_path / f"{path.stem}.jsonl")
        (made,) = transcribe(path, [str(world.folder / "test-0.wav")]).transcriptions
        texts.append((result.as_it_is.report.metrics[0].errors, made.rendered("text")))
    assert texts[0] == texts[1]
    assert texts[0][1].strip()


def test_every_stage_takes_it(world: World, small: Path, tmp_path: Path) -> None:
    assert whole_small(mask(str(small), out=tmp_path / "mask.safetensors", pattern="units", sparsity=0.3).path)
    with pytest.raises(CheckpointError, match="has no mask whose sparsity to keep"):
        reprune(small, out=tmp_path / "reprune.safetensors")
    again = reprune(small, out=tmp_path / "reprune.safetensors", sparsity=0.5)
    assert again.pattern == "structures"
    smaller = export(again.path, to="small", out=tmp_path / "smaller.safetensors")
    assert smaller.after is not None
    assert smaller.before is not None
    assert smaller.after.parameters < smaller.before.parameters
    further = finetune(world.recipe("model=null", "training.updates=4"), run=tmp_path / "run", init=small)
    content = checkpoint.read(further.last)
    assert content.metadata.architecture == checkpoint.read_metadata(small).architecture
    assert content.metadata.sparsity is not None
    dense = finetune(world.recipe("pruning.method=dense", "training.updates=4"), run=tmp_path / "dense", init=small)
    assert dense.sparsity is None
    for target in ("hf", "torchaudio"):
        with pytest.raises(CheckpointError, match="sizes that other projects' models cannot have") as caught:
            export(small, to=target, out=tmp_path / target)
        assert "export what it was made from" in (caught.value.hint or "")
        assert not (tmp_path / target).exists()


def whole_small(path: Path) -> bool:
    masks = checkpoint.read_masks(path)
    return bool(masks) and all(
        torch.equal(mask.unsqueeze(-1).flatten(1).all(1), mask.unsqueeze(-1).flatten(1).any(1))
        for name, mask in masks.items()
        if "intermediate" in name
    )


def test_after_unstructured_pruning_it_says_that_nothing_can_be_removed(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MaskError, match=r"no attention head, feed-forward unit or channel .* 8,416 pruned weights"
    ) as caught:
        export(trained, to="small", out=tmp_path / "small.safetensors")
    assert "pruning.pattern=structures" in (caught.value.hint or "")
    assert not (tmp_path / "small.safetensors").exists()


def test_an_encoder_without_a_head(world: World, tmp_path: Path) -> None:
    path = mask(str(world.encoder), out=tmp_path / "mask.safetensors", pattern="structures", sparsity=0.9).path
    result = export(path, to="small", out=tmp_path / "small.safetensors")
    assert result.check is not None
    assert result.check.seconds == (1.0, 4.0, 10.0)
    assert result.check.largest_difference < 1e-5


def test_a_failed_check_leaves_nothing_behind(
    structured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = exporting.network

    def off(architecture: Any, weights: Any) -> Any:
        run = made(architecture, weights)
        wrong = architecture.name == "tiny-small"
        return (lambda waveforms: [one + 1e-3 for one in run(waveforms)]) if wrong else run

    monkeypatch.setattr(exporting, "network", off)
    with pytest.raises(CheckpointError, match="gives other logits, and is not written") as caught:
        export(structured, to="small", out=tmp_path / "small.safetensors")
    assert "0.001" in caught.value.details[0]
    assert not list(tmp_path.iterdir())


def test_a_scope_without_structures(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no whole heads, units or channels") as caught:
        finetune(world.recipe("pruning.pattern=structures", "pruning.scope=*.q_proj.*"), run=tmp_path)
    assert "channels in front-end or everything" in (caught.value.hint or "")


@pytest.mark.parametrize("method", ["parp", "mpi", "omp", "taylor"])
def test_channels_are_pruned_removed_and_what_is_left_goes_on(world: World, tmp_path: Path, method: str) -> None:
    """Pruned, made small, fine-tuned further, pruned again, and made smaller."""
    channels = ("pruning.pattern=channels", "pruning.scope=everything", "training.train_front_end=true")
    result = finetune(world.recipe(*channels, f"pruning.method={method}"), run=tmp_path / "run")
    once = export(result.path, to="small", out=tmp_path / "once.safetensors")
    assert once.before is not None
    assert once.after is not None
    assert once.before.channels == 48
    assert 3 <= once.after.channels < 48
    assert (once.after.heads, once.after.units) == (4, 128)
    assert once.check is not None
    assert once.check.largest_difference < 1e-5
    amount = checkpoint.read_metadata(result.path).sparsity
    assert amount is not None
    assert once.before.parameters - once.after.parameters == amount.pruned
    again = finetune(
        world.recipe("model=null", *channels, "pruning.method=mpi"), run=tmp_path / "again", init=once.path
    )
    twice = export(again.path, to="small", out=tmp_path / "twice.safetensors")
    assert twice.after is not None
    assert twice.after.channels < once.after.channels
    architecture = read_architecture(checkpoint.read_metadata(twice.path).architecture)
    assert architecture.norm_channels == (16, 16, 16)
    for target in ("hf", "torchaudio"):
        with pytest.raises(CheckpointError, match="sizes that other projects' models cannot have"):
            export(twice.path, to=target, out=tmp_path / target)


def test_a_method_that_does_not_prune_structures(world: World) -> None:
    with pytest.raises(UsageError, match="method rigl takes no structures"):
        world.recipe("pruning.method=rigl", "pruning.pattern=structures")


def test_speech_to_try_a_network_on(world: World) -> None:
    data = world.recipe().data
    own = some_speech(data, silent)
    assert len(own) == 3
    assert [len(one) for one in own] == sorted(map(len, own))
    for elsewhere in (None, replace(data, manifest="/nowhere.jsonl")):
        assert [len(one) / 16_000 for one in some_speech(elsewhere, silent)] == [1.0, 4.0, 10.0]
    assert 0.01 < float(imitation(2.0).std()) < 1
    assert torch.equal(imitation(1.0), imitation(1.0))
