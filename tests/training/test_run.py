"""One bad update is skipped and told, many stop the run; and what else a run tells of itself."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parp_cli.data.utterances import Utterance
from parp_cli.errors import DataError, Interrupted
from parp_cli.pruning.masks import count_pruned
from parp_cli.runtime.progress import Progress
from parp_cli.stages.finetune import FinetuneResult, finetune
from parp_cli.tasks.ctc.features import FrontEndFeatures
from parp_cli.training.observe import Observer, observing
from parp_cli.training.run import TrainingRun
from tests.stops import StopsAfter
from tests.tiny import World

FILES = ("finetune.safetensors", "finetune-last.safetensors")


@dataclass
class Run:
    """A run of the tiny world, and what it told."""

    world: World
    init: Path
    folder: Path
    told: list[Progress] = field(default_factory=list)

    def __call__(self, *overrides: str, resume: bool = False, tensorboard: bool = False) -> FinetuneResult:
        recipe = self.world.recipe(*overrides)
        return finetune(
            recipe,
            run=self.folder,
            init=self.init,
            resume=resume,
            tensorboard=tensorboard,
            notify=self.told.append,
        )

    def log(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.folder / "finetune.jsonl").read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    @property
    def warnings(self) -> list[str]:
        return [step.warning for step in self.told if step.warning]

    @property
    def news(self) -> list[str]:
        return [step.news for step in self.told if step.news]

    @property
    def bytes(self) -> list[bytes]:
        return [(self.folder / name).read_bytes() for name in FILES]


@pytest.fixture
def run(world: World, masked: Path, tmp_path: Path) -> Run:
    return Run(world, masked, tmp_path / "run")


Poison = Callable[..., None]


@pytest.fixture
def poison() -> Iterator[Poison]:
    """Makes the gradient of updates (numbers from 1) infinite, by an otherwise finite loss."""

    class Poisoner(Observer):
        updates: tuple[int, ...] = ()

        def gradients(self, run: TrainingRun) -> None:
            if run.update + 1 in self.updates:
                gradient = next(w.grad for w in reversed(list(run.network.parameters())) if w.grad is not None)
                gradient.view(-1)[0] = math.inf

    poisoner = Poisoner()

    def make(*updates: int) -> None:
        poisoner.updates = updates

    with observing(poisoner):
        yield make


@pytest.fixture
def poison_sound(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a NaN into the features of an utterance."""

    def make(utterance_id: str) -> None:
        call = FrontEndFeatures.__call__

        def poisoned(self: FrontEndFeatures, utterances: Sequence[Utterance], **named: Any) -> list[Tensor]:
            features = call(self, utterances, **named)
            bad = [index for index, utterance in enumerate(utterances) if utterance.id == utterance_id]
            for index in bad:
                features[index] = features[index].clone()
                features[index][0, 0] = math.nan
            return features

        monkeypatch.setattr(FrontEndFeatures, "__call__", poisoned)

    return make


class Snapshots(Observer):
    """Whether weights or moments changed in each update."""

    def __init__(self) -> None:
        self.changed: dict[int, bool] = {}
        self._before: list[bytes] = []

    def update_begins(self, run: TrainingRun) -> None:
        self._before = self.bits(run)

    def update_ends(self, run: TrainingRun) -> None:
        self.changed[run.update] = self._before != self.bits(run)

    @staticmethod
    def bits(run: TrainingRun) -> list[bytes]:
        moments = [value for state in run.optimizer.state_dict()["state"].values() for value in state.values()]
        tensors = [*run.network.state_dict().values(), *moments]
        return [tensor.detach().numpy().tobytes() for tensor in tensors]


class TestNotFinite:
    def test_one_bad_update_changes_nothing(self, run: Run, poison: Poison) -> None:
        poison(5)
        with observing(snapshots := Snapshots()):
            result = run("pruning.interval=50", "training.weight_decay=0.1")
        assert [update for update, changed in snapshots.changed.items() if not changed] == [5]
        assert set(snapshots.changed) == set(range(1, 13))
        assert result.skipped_updates == 1
        assert [(line["update"], line["gradient_norm"]) for line in run.log("update")][4] == (5, None)
        (skipped,) = run.log("skipped")
        assert skipped["update"] == 5
        assert skipped["why"].endswith("gradient norm inf")
        assert {name.split("-")[0] for name in skipped["utterances"]} == {"train"}
        assert len(set(skipped["utterances"])) == len(skipped["utterances"])
        (warning,) = [line for line in run.warnings if "skipped" in line]
        assert warning.startswith("update 5 skipped: loss ")
        assert skipped["utterances"][0] in warning

    def test_the_first_update(self, run: Run, poison: Poison) -> None:
        poison(1)
        assert run("pruning.method=fixed").skipped_updates == 1

    def test_an_utterance_with_a_bad_loss_is_named(self, run: Run, poison_sound: Callable[[str], None]) -> None:
        poison_sound("train-2")
        result = run("training.most_skipped_updates=100", "training.batch_seconds=2")
        assert 0 < result.skipped_updates < 12
        assert {tuple(line["utterances"]) for line in run.log("skipped")} == {("train-2",)}
        assert {line["update"] for line in run.log("skipped")} == {
            line["update"] for line in run.log("update") if line["loss"] is None
        }
        assert all(math.isfinite(weight.sum()) for weight in weights(result.last).values())

    @pytest.mark.parametrize("method", ["parp", "rigl"])
    def test_a_re_pruning_after_a_skipped_update(self, run: Run, poison: Poison, method: str) -> None:
        poison(1, 2, 3)
        run(f"pruning.method={method}", "pruning.interval=3", "pruning.end=9", "training.learning_rate=0.1")
        first, *others = run.log("reprune")
        assert (first["update"], first["revived"], first["sparsity"]) == (3, 0, 0.5)
        assert sum(line["revived"] for line in others) > 0
        assert {line["sparsity"] for line in others} == {0.5}

    @pytest.mark.parametrize("limit", [0, 3])
    def test_too_many_in_a_row(self, run: Run, poison: Poison, limit: int) -> None:
        poison(2, *range(4, 13))
        settings = (f"training.most_skipped_updates={limit}", "training.validate_every=3")
        with pytest.raises(DataError) as caught:
            run(*settings)
        last = 2 if limit == 0 else 7
        assert caught.value.exit_code == 3
        many = "4 updates in a row" if limit else "update 2"
        assert caught.value.message.startswith(f"{many} had no finite loss or gradient (loss ")
        skipped = run.log("skipped")
        assert [line["update"] for line in skipped] == ([2] if limit == 0 else [2, 4, 5, 6, 7])
        whose, log = caught.value.details
        assert whose == f"in the last of these updates: {', '.join(skipped[-1]['utterances'])}"
        assert str(run.folder / "finetune.jsonl") in log
        assert "training.learning_rate" in (caught.value.hint or "")
        assert max(line["update"] for line in run.log("update")) == last - 1

    def test_utterances_are_to_blame(self, run: Run, poison_sound: Callable[[str], None]) -> None:
        poison_sound("train-2")
        with pytest.raises(DataError) as caught:
            run("training.most_skipped_updates=0")
        assert caught.value.details[0] == "their loss is not finite: train-2"

    def test_weights_are_to_blame(self, run: Run) -> None:
        class Breaks(Observer):
            def begins(self, run: TrainingRun) -> None:
                run.network.state_dict()["encoder.feature_projection.projection.bias"][3] = math.nan

        with observing(Breaks()), pytest.raises(DataError, match="4 updates in a row") as caught:
            run("training.most_skipped_updates=3")
        assert caught.value.details[1] == "weights that are not finite: encoder.feature_projection.projection.bias"
        assert caught.value.hint == "begin from another checkpoint"

    def test_the_counts_survive_a_stop(self, run: Run, poison: Poison, masked: Path, tmp_path: Path) -> None:
        """The number in all, and the number in a row, which is what the limit is about."""
        poison(2, 5, 6, 7, 8)
        settings = ("training.most_skipped_updates=3", "training.validate_every=6")
        with observing(StopsAfter(7)), pytest.raises(Interrupted):
            run(*settings)
        with pytest.raises(DataError, match="4 updates in a row"):
            run(*settings, resume=True)

    def test_a_stop_changes_nothing(self, run: Run, poison: Poison, tmp_path: Path) -> None:
        poison(2, 6, 7)
        whole = Run(run.world, run.init, tmp_path / "whole")
        assert whole().skipped_updates == 3
        with observing(StopsAfter(6)), pytest.raises(Interrupted):
            run()
        assert run(resume=True).skipped_updates == 3
        assert run.bytes == whole.bytes
        assert [(e["update"], e["utterances"]) for e in run.log("skipped")] == [
            (e["update"], e["utterances"]) for e in whole.log("skipped")
        ]

    def test_no_update_between_two_validations(self, run: Run, poison: Poison) -> None:
        poison(*range(5, 9))
        result = run("training.validate_every=4")
        assert [validation.train_loss is None for validation in result.validations] == [False, True, False]
        assert run.log("validation")[1]["train_loss"] is None
        assert [step for step in run.news if step.startswith("update 8: ") and "loss" not in step]


def weights(path: Path) -> dict[str, Tensor]:
    from parp_cli.storage import checkpoint

    return dict(checkpoint.read(path).weights)


class TestWhatIsTold:
    def test_every_validation(self, run: Run) -> None:
        result = run("training.learning_rate=0.1")
        validations, updates = run.log("validation"), {line["update"]: line for line in run.log("update")}
        assert [line["update"] for line in validations] == [5, 10, 12]
        references = ["BA C", "CB A", "ACB"]
        since = 0
        for line, validation, reference in zip(validations, result.validations, references, strict=True):
            assert (line["word"], line["character"], line["blank_rate"]) == (
                validation.metrics["word"],
                validation.metrics["character"],
                validation.metrics["blank_rate"],
            )
            last = updates[line["update"]]
            assert (line["learning_rate"], line["gradient_norm"]) == (last["learning_rate"], last["gradient_norm"])
            losses = [updates[update]["loss"] for update in range(since + 1, line["update"] + 1)]
            assert line["train_loss"] == pytest.approx(sum(losses) / len(losses))
            assert line["sparsity"] == 0.5
            assert line["revived"] == sum(r.revived for r in result.reprunings if since < r.update <= line["update"])
            assert line["example"]["reference"] == reference, "another one each time"
            since = line["update"]
        assert sum(line["revived"] for line in validations) > 0
        assert len({line["gradient_norm"] for line in updates.values()}) == 12
        assert {line["learning_rate"] for line in updates.values()} >= {0.1}
        assert sum(line["audio_seconds"] for line in updates.values()) == pytest.approx(
            result.cost.audio_seconds, abs=0.01
        )
        lines = [line for line in run.news if line.startswith("update ")]
        assert [line.split(":")[0] for line in lines] == ["update 5", "update 10", "update 12"]
        assert all("“" in line and "50.0% sparse" in line for line in lines)

    def test_dense(self, world: World, tmp_path: Path) -> None:
        dense = Run(world, world.encoder, tmp_path)
        finetune(world.recipe("pruning.method=dense"), run=tmp_path, notify=dense.told.append)
        assert {(line["sparsity"], line["revived"]) for line in dense.log("validation")} == {(0.0, 0)}
        assert not [line for line in dense.news if "sparse" in line]

    def test_tensorboard(self, run: Run) -> None:
        """A run that was stopped and went on draws one line."""
        accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

        class Breaks(Observer):
            def saved(self, run: TrainingRun) -> None:
                if run.update == 5:
                    run.journal.log("update", run.update, {"loss": 1e6})
                    raise KeyboardInterrupt

        with observing(Breaks()), pytest.raises(KeyboardInterrupt):
            run(tensorboard=True)
        run(tensorboard=True, resume=True)
        found = accumulators.EventAccumulator(str(run.folder / "tensorboard"))
        found.Reload()
        assert {"update/loss", "update/gradient_norm", "update/learning_rate", "validation/blank_rate"} <= set(
            found.Tags()["scalars"]
        )
        steps = [event.step for event in found.Scalars("update/gradient_norm")]
        assert steps == list(range(1, 13))
        assert not [thread for thread in found.Scalars("update/loss") if thread.step > 5 and thread.value == 1e6]
        assert "validation/example/text_summary" in found.Tags()["tensors"]


def test_what_is_pruned_is_exact_though_updates_are_skipped(run: Run, poison: Poison) -> None:
    from parp_cli.storage import checkpoint

    poison(11, 12)
    result = run("pruning.interval=6")
    masks = checkpoint.read_masks(result.last)
    assert count_pruned(masks) == 8416
    assert not torch.cat([weights(result.last)[name][~kept] for name, kept in masks.items()]).any()
