"""Other patterns and scopes than PARP's own, on whole runs."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from parp_cli.errors import CheckpointError, UsageError
from parp_cli.pruning.masks import count_pruned
from parp_cli.stages.finetune import finetune
from parp_cli.stages.mask import mask
from parp_cli.storage import checkpoint
from parp_cli.tasks.ctc import task as module
from parp_cli.tasks.ctc.features import FrontEndFeatures
from tests.stages.spies import Change
from tests.tiny import World

N = 16832
"""Prunable weights of the tiny encoder."""


@pytest.mark.parametrize(
    ("method", "pattern", "kept", "of"), [("parp", "2:4", 2, 4), ("parp", "4:8", 4, 8), ("omp", "1:4", 1, 4)]
)
def test_n_of_m_holds_in_every_group(
    world: World, changes: list[Change], tmp_path: Path, method: str, pattern: str, kept: int, of: int
) -> None:
    recipe = world.recipe(f"pruning.method={method}", f"pruning.pattern={pattern}", "training.learning_rate=0.1")
    result = finetune(recipe, run=tmp_path)
    content = checkpoint.read(result.path)
    seen = [change.after for change in changes] + [content.masks, checkpoint.read_masks(result.last)]
    assert len(seen) == (6 if method == "parp" else 2)
    for masks in seen:
        assert len(masks) == 12, "two layers of six matrices; no biases"
        assert all((mask.reshape(-1, of).sum(1) == kept).all() for mask in masks.values())
    assert all(
        ((weight.reshape(-1, of) != 0).sum(1) <= kept).all() for n, weight in content.weights.items() if n in masks
    )
    if method == "parp":
        assert sum(change.record.revived for change in changes) > 0


@pytest.mark.parametrize("pattern", ["layer", "tensor", "16x16"])
def test_patterns(world: World, changes: list[Change], tmp_path: Path, pattern: str) -> None:
    settings = (f"pruning.pattern={pattern}", "pruning.sparsity=0.75", "training.learning_rate=0.1")
    result = finetune(world.recipe(*settings), run=tmp_path)
    seen = [change.after for change in changes] + [checkpoint.read_masks(result.path)]
    assert len(seen) == 5
    for masks in seen:
        if pattern == "tensor":
            assert all(int((~kept).sum()) == round(0.75 * kept.numel()) for kept in masks.values())
        elif pattern == "layer":
            for layer in ("layers.0.", "layers.1."):
                assert count_pruned({name: kept for name, kept in masks.items() if layer in name}) == round(
                    0.75 * N / 2
                )
        else:
            blocks = [kept.unfold(0, 16, 16).unfold(1, 16, 16).flatten(2).float().mean(2) for kept in masks.values()]
            whole = torch.cat([block.flatten() for block in blocks])
            assert set(whole.tolist()) == {0.0, 1.0}
            assert int((whole == 0).sum()) == 48
            assert len(whole) == 64


@pytest.mark.parametrize("scope", ["attention", "*.layers.1.feed_forward.*"])
def test_scopes(world: World, tmp_path: Path, scope: str) -> None:
    result = finetune(world.recipe(f"pruning.scope={scope}", "training.updates=3"), run=tmp_path)
    content = checkpoint.read(result.last)
    part = "attention" if scope == "attention" else "layers.1.feed_forward"
    assert set(content.masks) == {name for name in content.weights if f".{part}." in name and "norm" not in name}
    assert count_pruned(content.masks) == round(0.5 * sum(kept.numel() for kept in content.masks.values()))


@pytest.mark.parametrize("method", ["parp", "omp"])
def test_features_of_a_pruned_front_end_are_not_kept(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Its convolutions are pruned anew as the other weights' magnitudes move: the sound has new features then."""
    settings = (f"pruning.method={method}", "pruning.scope=everything", "training.updates=6")
    recipe = world.recipe(*settings, "pruning.sparsity=0.3", "training.learning_rate=0.1", "training.validate_every=6")

    def made(run: str, frozen: bool | None) -> dict[str, Tensor]:
        with monkeypatch.context() as patch:
            if frozen is not None:
                patch.setattr(
                    module,
                    "FrontEndFeatures",
                    lambda *given, **named: FrontEndFeatures(*given, **{**named, "frozen": frozen}),
                )
            # They share omp's dense run, whose front end is frozen: features with gradients are others by rounding.
            folders = {"features_folder": tmp_path / "features", "rounds_folder": tmp_path / "rounds"}
            result = finetune(recipe, run=tmp_path / run, **folders)
        return dict(checkpoint.read(result.last).weights)

    ours, anew = made("ours", None), made("anew", frozen=False)
    assert all(torch.equal(ours[name], weight) for name, weight in anew.items())
    assert any((ours[name] == 0).any() for name in ours if name.startswith("feature_extractor."))
    if method == "parp":
        kept = made("kept", frozen=True)
        assert any(not torch.equal(ours[name], weight) for name, weight in kept.items()), "or this would show nothing"


def test_a_scope_that_matches_nothing(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no prunable parameter matches the scope 'atention'") as caught:
        finetune(world.recipe("pruning.scope=atention"), run=tmp_path)
    assert caught.value.hint == "did you mean attention?"


def test_a_pattern_that_nothing_can_hold(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no weight of scope transformer can hold pattern 7x7") as caught:
        finetune(world.recipe("pruning.pattern=7x7"), run=tmp_path)
    assert "pruning.pattern" in (caught.value.hint or "")


def test_a_mask_of_another_scope(world: World, tmp_path: Path) -> None:
    init = mask(str(world.encoder), sparsity=0.5, out=tmp_path / "attention.safetensors", scope="attention").path
    for settings, start in ((), init), ((f"pruning.initial={init}",), None):
        settings = ("pruning.scope=transformer", *settings)
        with pytest.raises(CheckpointError, match=r"attention\.safetensors masks other weights") as caught:
            finetune(world.recipe(*settings), run=tmp_path / "run", init=start)
        assert "pruning.scope" in (caught.value.hint or "")
        assert any("feed_forward" in detail for detail in caught.value.details)
    result = finetune(world.recipe("training.updates=1"), run=tmp_path / "run", init=init)
    assert result.sparsity is not None
