"""One training run: the updates from the first to the last, what is written meanwhile, and going on after a stop."""

import hashlib
import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parp_cli.data.utterances import Utterance
from parp_cli.errors import CheckpointError, Interrupted, ParpError, UsageError, first_few
from parp_cli.models.speech.forward import compile_layers
from parp_cli.models.speech.prunable import touches_front_end
from parp_cli.pruning.masks import masks_hash
from parp_cli.pruning.pruner import Repruning
from parp_cli.pruning.sharded import full_tensor, full_tensors, local_shard
from parp_cli.runtime.interrupts import Stop
from parp_cli.runtime.processes import World
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage import checkpoint
from parp_cli.storage.atomic import write_text
from parp_cli.storage.checkpoint import Checkpoint, Sparsity
from parp_cli.storage.run_folder import BEST, FEATURES, FINISHED, JOURNAL, last_beside, state_path
from parp_cli.tasks.ctc.advise import blank_diagnosis, divergence, validation_news
from parp_cli.tasks.ctc.objective import UpdateBatches, UpdateLoss
from parp_cli.tasks.ctc.validate import validate
from parp_cli.training.distributed import Encoder, averaging, check_divisible, divide
from parp_cli.training.journal import Journal
from parp_cli.training.keys import trained_on
from parp_cli.training.masks import calibration_examples, first_masks, pruner
from parp_cli.training.memory import try_largest
from parp_cli.training.plan import Round
from parp_cli.training.preparation import Preparation
from parp_cli.training.records import Cost, Validation
from parp_cli.training.schedule import tri_stage
from parp_cli.training.setup import (
    build_model,
    checkpoint_metadata,
    freeze,
    front_end_features,
    objective,
    optimizer,
)
from parp_cli.training.state import check_same_run, load_state, read_position, save_state


class TrainingRun:
    """One fine-tuning run: the model, what changes with every update, and where it is written.

    Args:
        this: the run among those of its method.
        preparation: what it begins from, and its data.
        run: the run folder, for the state, the log, and results without `out`.
        out: where the best checkpoint goes; the last one goes beside it.
        device: to train on.
        features_folder: where front-end features are kept between runs; None for nowhere.
        tensorboard: folder for TensorBoard's event files; None for none.
        world: that train together, of which the first writes and notifies.
        notify: hears of every update.
    """

    def __init__(
        self,
        this: Round,
        preparation: Preparation,
        *,
        run: Path,
        out: Path | None,
        device: torch.device,
        features_folder: Path | None,
        tensorboard: Path | None,
        world: World,
        notify: Notify,
    ) -> None:
        recipe = this.recipe
        self._began = time.monotonic()
        self._name, self._recipe, self._preparation = this.name, recipe, preparation
        self._world = world
        self._notify = notify if world.is_main else silent
        self.best_path = out or run / BEST
        self.last_path = last_beside(self.best_path)
        self._state_path = state_path(run)
        self._finished_path = run / FINISHED
        self._journal = Journal(run / JOURNAL, tensorboard=tensorboard if world.is_main else None)
        torch.manual_seed(recipe.seed)
        self._model = build_model(recipe, preparation)
        if recipe.training.compile:
            compile_layers(self._model, device)
        self._divided = recipe.training.shard_weights and world.world_size > 1
        if not self._divided:
            self._model.to(device)
        masks = first_masks(recipe, preparation.start, preparation.settings, self._model)
        frozen = not recipe.training.train_front_end and not touches_front_end(masks)
        self._encoder = Encoder(self._model)
        if self._divided:
            check_divisible(train_front_end=recipe.training.train_front_end, prunes_front_end=not frozen)
            divide(self._encoder, world, device)
        group = world.group if self._divided else None
        self._pruner = pruner(recipe, preparation.settings, self._model, masks, group)
        self._scratch = self._state_path.parent / FEATURES
        self._features = front_end_features(
            recipe, preparation, self._model, world, frozen=frozen, folder=features_folder, scratch=self._scratch
        )
        self._objective = objective(recipe, preparation, self._model, self._encoder, self._features, world)
        self._optimizer = optimizer(recipe, self._model)
        self._batches = UpdateBatches(
            [utterance.seconds for utterance in preparation.train],
            batch_seconds=recipe.training.batch_seconds,
            micro_batch_seconds=recipe.training.micro_batch_seconds,
            seed=recipe.seed,
        )
        # What a run must have in common with one that goes on from its state.
        self._identity: dict[str, Any] = {
            "recipe": trained_on(recipe),
            "parents": [asdict(parent) for parent in preparation.start.parents],
            "data": preparation.data_hash(),
        }
        self._update = 0
        self._audio_seconds = 0.0
        self._seconds_before = 0.0
        self._saved_at = self._began
        self.skipped_updates = self._skipped_in_a_row = 0
        self.validations: list[Validation] = []
        self._losses: list[float] = []
        self._figures: dict[str, float] = {}
        self._said_smaller = world.world_size == 1  # nothing to say then
        self._check_alike()

    @property
    def reprunings(self) -> list[Repruning]:
        """So far, in order."""
        return self._pruner.history

    @property
    def best(self) -> Validation:
        """The validation whose checkpoint is kept."""
        return min(self.validations, key=lambda validation: validation.score)

    @property
    def cost(self) -> Cost:
        """So far, over all sittings."""
        seconds = self._seconds_before + time.monotonic() - self._began
        return Cost(updates=self._update, audio_seconds=self._audio_seconds, seconds=seconds)

    # ------------------------------------------------------------------------------------------------- beginning

    def begin(self) -> None:
        """Prune, and forget what an earlier run left.

        Raises:
            UsageError: it is this very run, stopped before its end.
        """
        self._check_not_stopped()
        examples = calibration_examples(self._recipe, self._preparation.train)
        self._pruner.start(partial(self._objective.forward, examples) if examples else None)
        if not self._world.is_main:
            return
        # What a resumed run would take for its own goes first, and the log only after it.
        for path in (self._finished_path, self._state_path):
            path.unlink(missing_ok=True)
        self._journal.begin()
        if skipped := len(self._preparation.skipped):
            kinds = Counter(problem.kind for problem in self._preparation.skipped)
            said = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
            self._tell(warning=f"{skipped} utterances are left out ({said}); {self._journal.path} says which and why")
        for problem in self._preparation.skipped:
            self._log("unusable", {"utterance": problem.utterance_id, "why": problem.message})
        for note in self._preparation.notes:
            self._log("note", {"text": note})

    def resume(self) -> None:
        """Go on where the state in the run folder is.

        Raises:
            CheckpointError: it is of a run with another recipe or beginning, or no state; or the best checkpoint so far
                is not where it should be.
        """
        position, pruning = load_state(self._state_path, self._model, self._optimizer)
        check_same_run(position, self._identity, self._state_path)
        self._take(position)
        if self.validations and not self.best_path.exists():
            raise CheckpointError(
                f"{self.best_path} is not there, where this run wrote its best checkpoint so far",
                hint="resume with the --out the run began with, or start anew without --resume",
            )
        self._pruner.load_state(pruning)
        if self._world.is_main:
            self._journal.go_on_after(self._update)
        self._check_alike()
        self._tell(news=f"going on after update {self._update} of {self._recipe.training.updates}")

    def recall(self, position: Mapping[str, Any]) -> None:
        """Take over what a finished run noted, without its weights.

        Args:
            position: from `finished`.

        Raises:
            CheckpointError: it was a run with another recipe or beginning.
        """
        check_same_run(position, self._identity, self._finished_path)
        self._take(position)
        self._tell(news=f"finished already, after update {self._update}; nothing is left to do")

    def _check_not_stopped(self) -> None:
        """Nobody means to throw hours away by leaving out an option."""
        if not self._state_path.exists():
            return
        with suppress(CheckpointError):  # no state, or of another run
            position = read_position(self._state_path)
            check_same_run(position, self._identity, self._state_path)
            raise UsageError(
                f"this run was stopped after update {position['update']}; its state is in {self._state_path.parent}",
                hint="go on with --resume; to begin anew, delete that folder or name another one with --run",
            )

    def _check_alike(self) -> None:
        """All processes must be about to train the same.

        Raises:
            ParpError: they are not.
        """
        if self._world.world_size == 1:
            return
        content = json.dumps([self._identity, self._update], sort_keys=True)
        self._world.check_same("recipe, beginning or data", hashlib.sha256(content.encode()).hexdigest())
        self._check_masks()

    def _check_masks(self) -> None:
        """Every process must have the same masks, unless it has those of its rows alone."""
        if self._world.world_size > 1 and not self._divided:
            self._world.check_same(f"their masks after update {self._update}", masks_hash(self._pruner.masks))

    # -------------------------------------------------------------------------------------------------- training

    def train(self, stop: Stop) -> None:
        """All updates that are left, with validations.

        Raises:
            Interrupted: by the user; the state is saved.
            DataError: too many updates in a row had no finite loss or gradient.
            ResourceError: the disk is full, and the last files written are whole; or memory does not suffice.
        """
        training = self._recipe.training
        self._model.train()
        try:
            if self._update < training.updates:
                self._try_largest()
            while self._update < training.updates:
                # The signal reaches one process in this update and another in the next: they stop together.
                stops, saves = self._world.any(
                    stop.requested, time.monotonic() - self._saved_at > 60 * training.save_minutes
                )
                if stops:
                    self._save_state()
                    raise Interrupted(
                        f"stopped after update {self._update} of {training.updates}; the state is saved",
                        hint="go on with the same command and --resume",
                    )
                self._step()
                if self._update % training.validate_every == 0 or self._update == training.updates:
                    self._validate()
                    self._save_state()
                elif saves:
                    self._save_state()
            self._finish()
        except BaseException:
            with suppress(ParpError):  # what ended the run is what to tell
                self._journal.close()
            raise
        finally:
            self._features.close()
        self._journal.close()

    def _finish(self) -> None:
        self._write(self.last_path, self._pruner.masks, self.validations[-1])
        if self._world.is_main:
            with suppress(FileNotFoundError):
                os.utime(self.best_path)  # the newest of the run folder, which later stages take
            write_text(self._finished_path, json.dumps(self._position(), sort_keys=True) + "\n")
            self._state_path.unlink(missing_ok=True)
            shutil.rmtree(self._scratch, ignore_errors=True)
        self._world.wait()  # what others read is there

    def _try_largest(self) -> None:
        """Memory gives out now, or never; then gradients can be exchanged."""
        training = self._recipe.training
        seconds = min(training.micro_batch_seconds, training.batch_seconds)
        # Where the system ends processes that take too much memory, this is all that people see.
        self._tell(news=f"trying whether {seconds:g} s of sound fit into memory")
        freeze(self._model, train_front_end=training.train_front_end, only_head=False)
        try_largest(
            self._objective,
            self._optimizer,
            self._preparation.train,
            batch_seconds=training.batch_seconds,
            update=self._update,
        )
        if self._world.world_size > 1 and not self._divided:
            self._objective = replace(self._objective, encoder=averaging(self._encoder))

    def _freeze(self) -> None:
        training = self._recipe.training
        only_head = self._update < training.freeze_encoder_updates
        freeze(self._model, train_front_end=training.train_front_end, only_head=only_head)

    def _step(self) -> None:
        training = self._recipe.training
        share = tri_stage(
            self._update,
            training.updates,
            warmup=training.warmup,
            hold=training.hold,
            decay=training.decay,
            final_scale=training.final_scale,
        )
        for group in self._optimizer.param_groups:
            group["lr"] = group["peak"] * share
        self._freeze()
        utterances = [self._preparation.train[index] for index in self._batches.take()]
        self._objective.prefetch(utterances)
        if self._update + 1 < training.updates:
            self._objective.prefetch([self._preparation.train[index] for index in self._batches.upcoming()])
        self._tell_if_smaller(utterances)
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._objective.backward(utterances, self._update)
        norm = self._gradient_norm()
        self._update += 1
        if math.isfinite(loss.mean) and math.isfinite(norm):
            self._skipped_in_a_row = 0
            self._losses.append(loss.mean)
            self._pruner.before_step(self._update, learning_rate=training.learning_rate * share)
            if training.gradient_clip is not None:
                nn.utils.clip_grad_norm_(self._model.parameters(), training.gradient_clip)
            self._optimizer.step()
        else:
            self._skip(loss, norm, [utterance.id for utterance in utterances])
        seconds = sum(utterance.seconds for utterance in utterances)
        self._audio_seconds += seconds
        self._figures = {"learning_rate": training.learning_rate * share, "gradient_norm": norm}
        self._log("update", {"loss": loss.mean, **self._figures, "audio_seconds": round(seconds, 3)})
        repruning = self._pruner.after_step(self._update, self._optimizer)
        if repruning is not None:
            self._check_masks()
            self._log("reprune", asdict(repruning))
        note = f"loss {loss.mean:.3f}"
        if self.validations:
            note += f", best {self.best.word:.1%}"
        self._tell(note=note)

    def _gradient_norm(self) -> float:
        """Of the whole gradient; not finite where any part is not."""
        gradients = [weight.grad for weight in self._model.parameters() if weight.grad is not None]
        return float(full_tensor(nn.utils.get_total_norm(gradients)))

    def _tell_if_smaller(self, utterances: list[Utterance]) -> None:
        """Say once that an update is too small for so many processes."""
        if self._said_smaller or self._objective.spreads(utterances):
            return
        self._said_smaller = True
        count, seconds = self._world.world_size, self._recipe.training.micro_batch_seconds
        self._tell(
            warning=f"an update has fewer forward passes of {seconds:g} s than the {count} processes: they are made "
            "smaller, and what dropout and masking draw differs from that with fewer processes"
        )

    def _skip(self, loss: UpdateLoss, norm: float, utterances: list[str]) -> None:
        """Leave the weights as they were after an update without a finite loss and gradient.

        Raises:
            DataError: it was one too many.
        """
        self.skipped_updates += 1
        self._skipped_in_a_row += 1
        culprits = list(dict.fromkeys(loss.not_finite or utterances))
        limit = self._recipe.training.most_skipped_updates
        what = f"loss {loss.mean:g}, gradient norm {norm:g}"
        self._log("skipped", {"why": what, "utterances": culprits})
        self._tell(warning=f"update {self._update} skipped: {what} ({', '.join(first_few(culprits, 5))})")
        if self._skipped_in_a_row > limit:
            own = [name for name, weight in self._model.named_parameters() if not local_shard(weight).isfinite().all()]
            raise divergence(
                what,
                update=self._update,
                in_a_row=self._skipped_in_a_row,
                utterances=culprits,
                own_loss=bool(loss.not_finite),
                weights=list(dict.fromkeys(name for names in self._world.gather(own) for name in names)),
                log=self._journal.path,
            )

    def _validate(self) -> None:
        """Judge the model as it would be shipped, and keep it if it is the best so far."""
        with self._pruner.pruned_view() as (masks, changed):
            validation, example = validate(
                self._model,
                self._features,
                self._preparation.valid,
                self._preparation.vocabulary,
                update=self._update,
                train_loss=sum(self._losses) / len(self._losses) if self._losses else None,
                sample=len(self.validations),
                encoder=self._encoder,
                precision=self._recipe.training.precision,
                world=self._world,
            )
            self._losses.clear()
            since = self.validations[-1].update if self.validations else 0
            self.validations.append(validation)
            pruned, covered = self._pruner.counts(masks)
            figures = {
                **asdict(validation),
                **self._figures,
                "sparsity": pruned / covered if masks else 0.0,
                "revived": sum(change.revived for change in self.reprunings if change.update > since),
                "example": example,
            }
            self._log("validation", figures)
            kept = self._features.report()
            if kept.anew and len(self.validations) == 1:
                self._tell(warning=str(kept))
            self._tell(news=validation_news(figures))
            if self.best is validation:
                self._write(self.best_path, masks, validation, changed=changed)
        training = self._recipe.training
        advice = blank_diagnosis(
            self.validations,
            updates=training.updates,
            only_head_updates=training.freeze_encoder_updates,
            sparsity=figures["sparsity"],
        )
        if advice is not None:
            self._log("diagnosis", {"text": advice})
            self._tell(warning=advice)

    # --------------------------------------------------------------------------------------------------- writing

    def _write(self, path: Path, masks: Mapping[str, Tensor], validation: Validation, *, changed: bool = False) -> None:
        """Write a checkpoint, whole however its weights are sharded: all put it together, the first writes."""
        reprunings = self._pruner.history
        if changed:  # between two re-prunings: pruned for this file
            reprunings = [*reprunings, self._pruner.compare(masks)]
        amount = None
        if masks:
            pruned, covered = self._pruner.counts(masks)
            amount = Sparsity(target=self._preparation.settings.sparsity, pruned=pruned, total=covered)
        metadata = checkpoint_metadata(
            self._recipe,
            self._preparation,
            prunable=tuple(self._pruner.weights),
            sparsity=amount,
            metrics={**asdict(validation), "reprunings": [asdict(repruning) for repruning in reprunings]},
        )
        weights = full_tensors(self._model.state_dict(), keep=self._world.is_main)
        masks = self._pruner.whole(masks)
        if self._world.is_main:
            checkpoint.write(path, Checkpoint(weights=weights, masks=masks, metadata=metadata))

    def _log(self, event: str, values: Mapping[str, Any]) -> None:
        if self._world.is_main:
            self._journal.log(event, self._update, values)

    def _tell(self, *, note: str = "", warning: str = "", news: str = "") -> None:
        task = f"fine-tuning ({self._name})"
        self._notify(Progress(task, self._update, self._recipe.training.updates, note, warning, news, kind="training"))

    def _save_state(self) -> None:
        if self._world.is_main:
            self._journal.flush()
        pruning = self._pruner.state()
        writes = self._world.is_main
        save_state(self._state_path, self._model, self._optimizer, self._position(), pruning, writes=writes)
        self._saved_at = time.monotonic()

    def _position(self) -> dict[str, Any]:
        """Where the run is, in plain values; randomness and data order follow from it."""
        return {
            **self._identity,
            "update": self._update,
            "epoch": self._batches.epoch,
            "group": self._batches.group,
            "skipped_updates": self.skipped_updates,
            "skipped_in_a_row": self._skipped_in_a_row,
            "cost": asdict(self.cost),
            "losses": self._losses,
            "validations": [asdict(validation) for validation in self.validations],
            "reprunings": [asdict(repruning) for repruning in self._pruner.history],
        }

    def _take(self, position: Mapping[str, Any]) -> None:
        """Be where `_position` said."""
        cost = Cost(**position["cost"])
        self._update = self._pruner.update = position["update"]
        self._batches.epoch, self._batches.group = position["epoch"], position["group"]
        self.skipped_updates, self._skipped_in_a_row = position["skipped_updates"], position["skipped_in_a_row"]
        self._audio_seconds, self._seconds_before = cost.audio_seconds, cost.seconds
        self._losses = list(position["losses"])
        self.validations = [Validation(**values) for values in position["validations"]]
        self._pruner.history = [Repruning.from_json(values) for values in position["reprunings"]]
