"""Adjusting: what trains, what stays zero, what is saved, and what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parp_cli.errors import CheckpointError, DataError, MaskError, UsageError
from parp_cli.pruning.masks import count_pruned
from parp_cli.pruning.pruner import Pruner, Repruning
from parp_cli.stages.evaluate import Options, evaluate
from parp_cli.stages.finetune import finetune, plan
from parp_cli.stages.mask import mask
from parp_cli.storage import checkpoint
from parp_cli.tasks.ctc.features import FrontEndFeatures
from parp_cli.training.observe import Observer, observing
from parp_cli.training.run import TrainingRun
from tests.tiny import World, write_manifest

HALF = 8416
"""Of the 16832 prunable weights."""


class Spy:
    """What the weights are after every update, and the mask they were under until then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.under: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []
        self.repruned: list[int] = []
        after_step = Pruner.after_step

        def spying_step(pruner: Pruner, update: int, optimizer: Any = None) -> Repruning | None:
            masks = {name: kept.clone() for name, kept in pruner.masks.items()}
            before = {name: weight.detach().clone() for name, weight in pruner.weights.items()}
            repruning = after_step(pruner, update, optimizer)
            if repruning is None:
                before = {name: weight.detach().clone() for name, weight in pruner.weights.items()}
            else:  # what trained freely, not what the re-pruning left of it
                self.repruned.append(update)
                assert zeros(pruner.weights, pruner.masks) == count_pruned(pruner.masks) == HALF
            self.under.append(masks)
            self.weights.append(before)
            return repruning

        monkeypatch.setattr(Pruner, "after_step", spying_step)


def zeros(weights: Mapping[str, Tensor], names: Any) -> int:
    return sum(int((weights[name] == 0).sum()) for name in names)


def log(run: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "finetune.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def test_parp_lets_pruned_weights_grow_and_prunes_exactly_k(
    world: World, masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    quick = ("training.layer_drop=0", "training.learning_rate=0.1")
    result = finetune(world.recipe(*quick), run=tmp_path, init=masked)
    first = checkpoint.read_masks(masked)
    for under, weights in zip(spy.under, spy.weights, strict=True):
        pruned = torch.cat([weights[name][~kept] for name, kept in under.items()])
        assert (pruned != 0).float().mean() > 0.9, "pruned weights train too"
    assert all(torch.equal(spy.under[0][name], first[name]) for name in first)
    assert spy.repruned == [3, 6, 9, 12]
    assert [r.update for r in result.reprunings] == spy.repruned
    assert [line["revived"] for line in log(tmp_path, "reprune")] == [r.revived for r in result.reprunings]
    assert all(r.revived == r.dropped for r in result.reprunings)
    assert sum(r.revived for r in result.reprunings) > 0
    assert all(r.sparsity == 0.5 for r in result.reprunings)
    for r in result.reprunings:
        assert set(r.layers) == {"0", "1"}
        assert (r.revived, r.dropped) == tuple(map(sum, zip(*r.layers.values(), strict=True)))
    for path in (result.path, result.last):
        content = checkpoint.read(path)
        assert content.metadata.sparsity is not None
        assert content.metadata.sparsity.pruned == zeros(content.weights, content.masks) == HALF
        assert all((content.weights[name][~kept] == 0).all() for name, kept in content.masks.items())


def test_there_is_a_re_pruning_at_the_end(
    world: World, masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    recipe = world.recipe("training.updates=7", "pruning.interval=3")
    planned = plan(recipe, init=masked)
    result = finetune(recipe, run=tmp_path, init=masked)
    assert spy.repruned == [3, 6, 7]
    assert (planned.reprunings, planned.updates) == (3, len(spy.under))
    assert planned == result.plan


def test_fixed_keeps_pruned_weights_at_zero(
    world: World, masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    first = checkpoint.read_masks(masked)
    recipe = world.recipe("pruning.method=fixed", "training.weight_decay=0.01")
    result = finetune(recipe, run=tmp_path, init=masked)
    for weights in spy.weights:
        assert all((weights[name][~kept] == 0).all() for name, kept in first.items())
    kept_ones = [(spy.weights[0][name][kept], spy.weights[-1][name][kept]) for name, kept in first.items()]
    assert any(not torch.equal(before, after) for before, after in kept_ones), "the others train"
    for path in (result.path, result.last):
        masks = checkpoint.read_masks(path)
        assert all(torch.equal(masks[name], first[name]) for name in first)
    assert result.reprunings == ()


def test_fixed_keeps_the_moments_at_zero(world: World, masked: Path, tmp_path: Path) -> None:
    first = checkpoint.read_masks(masked)
    updates: list[int] = []

    class Looks(Observer):
        def update_ends(self, run: TrainingRun) -> None:
            updates.append(run.update)
            for name, kept in first.items():
                state = run.optimizer.state[run.pruner.weights[name]]
                assert (state["exp_avg"][~kept] == 0).all()
                assert (state["exp_avg_sq"][~kept] == 0).all()

    with observing(Looks()):
        finetune(world.recipe("pruning.method=fixed"), run=tmp_path, init=masked)
    assert updates == list(range(1, 13))


def test_dense_has_no_mask(world: World, tmp_path: Path) -> None:
    result = finetune(world.recipe("pruning.method=dense"), run=tmp_path)
    content = checkpoint.read(result.path)
    assert content.masks == {}
    assert content.metadata.sparsity is None
    assert (result.sparsity, result.reprunings) == (None, ())


@pytest.mark.parametrize(("validate_every", "interval"), [(6, 3), (5, 3), (4, 50)])
def test_what_is_saved_as_best_is_what_was_evaluated(
    world: World, trained: Path, tmp_path: Path, validate_every: int, interval: int
) -> None:
    """Also where a validation falls between two re-prunings, when the weights are dense."""
    recipe = world.recipe(f"training.validate_every={validate_every}", f"pruning.interval={interval}")
    result = finetune(recipe, run=tmp_path, init=trained)
    for path, validation in ((result.path, result.best), (result.last, result.validations[-1])):
        judged = evaluate(path, out=tmp_path / "eval.jsonl", options=Options(splits=("valid",))).as_it_is
        words, characters = judged.errors("words"), judged.errors("characters")
        metrics = checkpoint.read_metadata(path).metrics
        assert words is not None
        assert characters is not None
        assert (words.rate, characters.rate) == (metrics["word"], metrics["character"])
        assert (validation.metrics["word"], validation.metrics["character"], validation.update) == (
            metrics["word"],
            metrics["character"],
            metrics["update"],
        )
    assert result.best.score == min(validation.score for validation in result.validations)
    character = result.best.metrics["character"]
    assert character is not None
    assert character < 1, "or this would show nothing"


def test_the_front_end_does_not_train(world: World, tmp_path: Path) -> None:
    before = checkpoint.read(world.encoder).weights
    after = checkpoint.read(finetune(world.recipe(), run=tmp_path).last).weights
    front = [name for name in before if name.startswith("feature_extractor.")]
    assert front
    assert all(torch.equal(after[name], before[name].float()) for name in front)
    projection = "encoder.feature_projection.projection.weight"
    assert not torch.equal(after[projection], before[projection].float()), "what follows it does"
    trainable = finetune(world.recipe("training.train_front_end=true"), run=tmp_path)
    after = checkpoint.read(trainable.last).weights
    assert not all(torch.equal(after[name], before[name].float()) for name in front)


def test_a_frozen_encoder_is_as_it_was(world: World, masked: Path, tmp_path: Path) -> None:
    recipe = world.recipe("pruning.method=fixed", "training.updates=4", "training.freeze_encoder_updates=4")
    before, after = checkpoint.read(masked).weights, checkpoint.read(finetune(recipe, run=tmp_path, init=masked).last)
    assert all(torch.equal(after.weights[name], weight) for name, weight in before.items())


def test_the_same_seed_gives_the_same_bytes(world: World, masked: Path, tmp_path: Path) -> None:
    def made(folder: str, *overrides: str) -> bytes:
        return finetune(world.recipe(*overrides), run=tmp_path / folder, init=masked).path.read_bytes()

    first = made("a")
    assert first == made("b")
    assert first != made("c", "seed=1")


def test_phones(world: World, tmp_path: Path) -> None:
    result = finetune(world.recipe("data.labels=phones", "data.strip_stress=true"), run=tmp_path)
    metadata = checkpoint.read_metadata(result.path)
    assert (metadata.labels, metadata.vocabulary) == ("phones", ("<blank>", "AH", "B", "S"))
    judged = evaluate(result.path, out=tmp_path / "eval.jsonl", options=Options(splits=("valid",))).as_it_is
    assert (judged.errors("words"), judged.errors("characters")) == (None, None)
    phones = judged.errors("phones")
    assert phones is not None
    assert phones.rate == metadata.metrics["word"]
    assert metadata.metrics["character"] is None


def test_a_head_is_continued_where_the_labels_are_the_same(world: World, trained: Path, tmp_path: Path) -> None:
    """With a learning rate of next to nothing it is still there afterwards."""
    still = ("training.learning_rate=1e-12", "pruning.method=fixed", "training.updates=1")
    before = checkpoint.read(trained)
    after = checkpoint.read(finetune(world.recipe(*still), run=tmp_path / "letters", init=trained).last)
    torch.testing.assert_close(after.weights["aux.weight"], before.weights["aux.weight"])
    assert after.metadata.vocabulary == before.metadata.vocabulary
    assert [parent.stage for parent in after.metadata.parents][-2:] == ["mask", "finetune"]
    phones = checkpoint.read(
        finetune(world.recipe(*still, "data.labels=phones"), run=tmp_path / "phones", init=trained).last
    )
    assert phones.weights["aux.weight"].shape[0] == 4
    assert phones.metadata.labels == "phones"


def bad_manifest(world: World, folder: Path) -> Path:
    rows = [json.loads(line) for line in world.manifest.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(world.folder / row["audio"])
    rows[0] |= {"id": "long", "text": "AB" * 60}
    rows[1] |= {"id": "foreign", "text": "ÄB"}
    rows[2] |= {"id": "empty", "text": ""}
    return write_manifest(folder / "bad.jsonl", rows)


def test_unusable_utterances_are_refused_by_name(world: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="3 problems with the utterances of train") as caught:
        finetune(world.recipe(f"data.manifest={bad_manifest(world, tmp_path)}"), run=tmp_path / "run")
    details = [detail.strip() for detail in caught.value.details if detail.startswith("  ")]
    assert [detail.split(":")[0] for detail in details] == ["long", "foreign", "empty"]
    assert "labels need" in details[0]
    assert "Ä" in details[1]
    assert caught.value.hint is not None
    assert "data.unusable=skip" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_unusable_utterances_are_skipped_by_choice(world: World, tmp_path: Path) -> None:
    recipe = world.recipe(f"data.manifest={bad_manifest(world, tmp_path)}", "data.unusable=skip")
    result = finetune(recipe, run=tmp_path / "run")
    assert (result.plan.skipped, result.plan.train_items) == (3, 3)


def test_a_sparsity_that_is_not_the_masks(world: World, masked: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"sparsity 0\.7, but .*mask\.safetensors is pruned to 0\.5"):
        finetune(world.recipe("pruning.sparsity=0.7"), run=tmp_path, init=masked)


def test_the_sparsity_is_the_recipes_where_there_is_no_mask(world: World, tmp_path: Path) -> None:
    result = finetune(world.recipe("pruning.sparsity=0.7", "pruning.initial=random"), run=tmp_path)
    assert result.sparsity is not None
    assert result.sparsity.pruned == round(0.7 * 16832)


def test_a_mask_without_biases_needs_no_recipe_with_them(world: World, tmp_path: Path) -> None:
    init = mask(str(world.encoder), sparsity=0.5, out=tmp_path / "m.safetensors", biases=False).path
    with pytest.raises(CheckpointError, match="masks other weights") as caught:
        finetune(world.recipe("pruning.biases=true"), run=tmp_path, init=init)
    assert "pruning.biases" in (caught.value.hint or "")
    result = finetune(world.recipe("training.updates=2"), run=tmp_path, init=init)
    assert not any(name.endswith("bias") for name in checkpoint.read_masks(result.path))


def test_a_mask_of_another_model(world: World, masked: Path, tmp_path: Path) -> None:
    content = checkpoint.read(masked)
    masks = {name: torch.ones(5, 5, dtype=torch.bool) for name in content.masks}
    forged = tmp_path / "forged.safetensors"
    checkpoint.write(forged, checkpoint.Checkpoint(weights=content.weights, masks=masks, metadata=content.metadata))
    with pytest.raises(MaskError, match="mask does not fit") as caught:
        finetune(world.recipe(), run=tmp_path, init=forged)
    assert any("mask (5, 5), weight (32, 32)" in detail for detail in caught.value.details)


def test_a_checkpoint_of_another_model(world: World, masked: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a tiny, the recipe wants mini"):
        finetune(world.recipe("model=mini"), run=tmp_path, init=masked)


def test_plan_is_what_the_run_does(world: World, masked: Path, tmp_path: Path) -> None:
    recipe = world.recipe()
    planned = plan(recipe, init=masked)
    result = finetune(recipe, run=tmp_path, init=masked)
    assert result.plan == planned
    assert planned.reprunings == len(result.reprunings)
    assert planned.updates == result.validations[-1].update == 12
    assert planned.size_per_update * planned.updates == pytest.approx(result.cost.audio_seconds, rel=0.25)
    assert (planned.method, planned.rounds) == ("parp", (("parp", 12),))
    assert result.cost == result.own_cost
    assert (result.cost.updates, result.cost.seconds > 0) == (12, True)
    assert (planned.train_items, planned.valid_items, planned.skipped) == (6, 3, 0)


def test_dense_does_not_start_from_a_pruned_checkpoint(world: World, masked: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is pruned"):
        finetune(world.recipe("pruning.method=dense"), run=tmp_path, init=masked)


def test_deterministic_algorithms_are_what_the_cpu_has_anyway(world: World, masked: Path, tmp_path: Path) -> None:
    usual = finetune(world.recipe(), run=tmp_path / "usual", init=masked)
    during: list[bool] = []
    strict = finetune(
        world.recipe("training.deterministic=true"),
        run=tmp_path / "strict",
        init=masked,
        notify=lambda step: during.append(torch.are_deterministic_algorithms_enabled()),
    )
    assert any(during)
    assert not torch.are_deterministic_algorithms_enabled()
    one, other = checkpoint.read(usual.path).weights, checkpoint.read(strict.path).weights
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_validation_keeps_nothing_for_a_backward_pass(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the front end neither, though it trains: its activations of a validation batch would fill the memory."""
    needed: dict[bool, set[bool]] = {True: set(), False: set()}
    call = FrontEndFeatures.__call__

    def noted(self: FrontEndFeatures, utterances: Any, *, update: int | None = None) -> list[Tensor]:
        features = call(self, utterances, update=update)
        needed[update is None] |= {item.requires_grad for item in features}
        return features

    monkeypatch.setattr(FrontEndFeatures, "__call__", noted)
    finetune(world.recipe("training.train_front_end=true", "training.updates=2"), run=tmp_path)
    assert needed == {True: {False}, False: {True}}


@pytest.mark.parametrize("method", ["fixed", "parp"])
def test_the_gradient_norm_in_the_log_is_that_of_what_is_clipped(
    world: World, masked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    clipped: list[float] = []
    clip = torch.nn.utils.clip_grads_with_norm_

    def noted(parameters: Any, limit: float, norm: Tensor) -> None:
        parameters = list(parameters)
        clipped.append(float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])))
        clip(parameters, limit, norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grads_with_norm_", noted)
    settings = (f"pruning.method={method}", "training.gradient_clip=0.5", "training.updates=4")
    finetune(world.recipe(*settings), run=tmp_path, init=masked)
    lines = [json.loads(line) for line in (tmp_path / "finetune.jsonl").read_text().splitlines()]
    assert [line["gradient_norm"] for line in lines if line["event"] == "update"] == pytest.approx(clipped, rel=1e-6)
