"""One training run: the updates from the first to the last, what is written meanwhile, and going on after a stop."""

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parp_cli.errors import CheckpointError, DataError, Interrupted, ParpError, first_few
from parp_cli.pruning.masks import Masks, masks_hash
from parp_cli.pruning.pruner import Repruning
from parp_cli.pruning.sharded import full_tensor, full_tensors, is_sharded, local_shard
from parp_cli.runtime.interrupts import Stop
from parp_cli.runtime.processes import World
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Checkpoint, Sparsity
from parp_cli.tasks.task import UpdateLoss, Validation
from parp_cli.training import state as states
from parp_cli.training.distributed import average, shard
from parp_cli.training.journal import Journal
from parp_cli.training.memory import try_largest
from parp_cli.training.observe import tell_observers
from parp_cli.training.optimizer import adam, freeze
from parp_cli.training.passes import Passes
from parp_cli.training.setup import RunSetup


class TrainingRun:
    """One training run: a network, what changes with every update, and where it is written.

    Of the processes of the `world`, which train together, the main one writes and notifies. `record` is what the run
    has come to.
    """

    def __init__(
        self, setup: RunSetup, files: states.RunFiles, *, device: torch.device, world: World, notify: Notify
    ) -> None:
        training = setup.training
        self.record = states.Record()
        self._setup, self._training, self._task, self._world = setup, training, setup.task, world
        self._notify = notify if world.is_main else silent
        self.name, self.files = setup.name, files
        self.journal = Journal(files.journal, tensorboard=files.tensorboard if world.is_main else None)
        self.network = setup.network
        self._sharded = training.shard_weights and world.world_size > 1
        if not self._sharded:
            self.network.to(device)
        masks = setup.masks(self.network)
        self.objective = objective = setup.task.objective(
            self.network, masked=masks, sharded=self._sharded, device=device, world=world, scratch=files.scratch
        )
        if self._sharded:
            shard(objective, world, device, precision=training.precision)
        self.pruner = setup.pruner(self.network, masks, world.group if self._sharded else None)
        self.optimizer = adam(training, objective)
        self._passes = Passes(
            task=setup.task,
            objective=objective,
            module=objective.module,
            micro_batch_size=training.pass_size,
            seed=setup.seed,
            world=world,
        )
        self._batches = setup.task.batches()
        self._saved_at = time.monotonic()
        self._only_head: bool | None = None
        self._latest: dict[str, float] = {}  # learning rate and gradient norm
        self._said_smaller = world.world_size == 1  # nothing to say then
        self._check_alike()

    @property
    def module(self) -> nn.Module:
        """What computes, distributed among processes where there are several."""
        return self._passes.module

    @property
    def update(self) -> int:
        """How many updates are done."""
        return self.record.update

    # ------------------------------------------------------------------------------------------------- beginning

    def _begin(self, *, keeps: bool) -> None:
        """Prune, and make room where an earlier run left something."""
        if keeps:
            states.check_not_lost(self.files, self._setup.identity)
            self._world.wait()  # all have looked
        items = self._setup.calibration
        self.pruner.start(partial(self.objective.forward, self.module, items) if items else None)
        if not self._world.is_main:
            return
        if keeps and (kept := states.keep_other_run(self.files)):
            self._tell(news=f"another run's files were here, and are now in {', '.join(map(str, kept))}")
        # What a resumed run would take for its own goes first, and the log only after it.
        for path in (self.files.finished, self.files.state):
            path.unlink(missing_ok=True)
        self.journal.begin()
        if warning := self._task.warning():
            self._tell(warning=f"{warning}; {self.journal.path} says which and why")
        for event, values in self._task.findings():
            self._log(event, values)

    def _resume(self) -> None:
        """Go on where the saved state is."""
        states.check_same_run(states.read_position(self.files.state), self._setup.identity, self.files.state)
        position, pruning = states.load_state(self.files.state, self.network, self.optimizer)
        self._go_to(position)
        if self.record.validations and self.files.best is not None and not self.files.best.exists():
            raise CheckpointError(
                f"{self.files.best} is not there, where this run wrote its best checkpoint so far",
                hint="resume with the --out the run began with, or start over without --resume",
            )
        self.pruner.load_state(pruning)
        if self._world.is_main:
            self.journal.go_on_after(self.update)
        self._check_alike()
        self._tell(news=f"going on after update {self.update} of {self._training.updates}")

    def recall(self, position: Mapping[str, Any]) -> None:
        """Take over what a finished run noted, without its weights.

        Raises CheckpointError where it was a run with another recipe or beginning.
        """
        states.check_same_run(position, self._setup.identity, self.files.finished)
        self._go_to(position)
        self._tell(news=f"finished already, after update {self.update}; nothing is left to do")

    def _check_alike(self) -> None:
        """All processes must be about to train the same; raises ParpError where they are not."""
        if self._world.world_size == 1:
            return
        content = json.dumps([self._setup.identity, self.update], sort_keys=True)
        self._world.check_same("recipe, beginning or data", hashlib.sha256(content.encode()).hexdigest())
        self._check_masks()

    def _check_masks(self) -> None:
        """Every process must have the same masks, unless it has those of its shards alone."""
        if self._world.world_size > 1 and not self._sharded:
            self._world.check_same(f"their masks after update {self.update}", masks_hash(self.pruner.masks))

    # -------------------------------------------------------------------------------------------------- training

    def train(self, stop: Stop, *, resume: bool, keeps: bool) -> None:
        """All updates that are left, with validations.

        Args:
            resume: go on where the saved state is.
            keeps: whether files of an earlier run are kept, those of this very one by refusing to start over.

        Raises:
            CheckpointError: the state is of a run with another recipe or beginning, of an earlier version, or none; or
                the best checkpoint so far is not where it should be.
            UsageError: it was this very run that was stopped or has finished.
            Interrupted: by the user; the state is saved.
            DataError: too many updates in a row had no finite loss or gradient.
            ResourceError: the disk is full, and the last files written are whole; or memory does not suffice.
        """
        training = self._training
        if resume:
            self._resume()
        else:
            self._begin(keeps=keeps)
        self.network.train()
        try:
            tell_observers(self, "begins")
            if self.update < training.updates:
                self._try_largest()
            while self.update < training.updates:
                # The signal reaches one process in this update and another in the next: they stop together.
                late = time.monotonic() - self._saved_at > 60 * training.save_minutes
                stops, saves = self._world.any(stop.requested, late)
                if stops:
                    self._save_state()
                    where = f"{self._setup.where} after update {self.update} of {training.updates}"
                    hint = "go on with the same command and --resume"
                    raise Interrupted(f"stopped{where}; the state is saved", hint=hint)
                tell_observers(self, "update_begins")
                self._step()
                tell_observers(self, "update_ends")
                last = self.update == training.updates
                if last or self.update % training.validate_every == 0:
                    self._validate()
                if last or saves or self.update % self._setup.save_every == 0:
                    self._save_state()
            self._finish()
        except BaseException:
            with suppress(ParpError):  # what ended the run is what to tell
                self.journal.close()
            raise
        finally:
            self.objective.close()
        self.journal.close()

    def _finish(self) -> None:
        self._write(self.files.last, self.pruner.masks, self.record.validations[-1])
        if self._world.is_main:
            if self.files.best is not None:
                with suppress(FileNotFoundError):
                    os.utime(self.files.best)  # the newest of the run folder, which later stages take
            states.note_finished(self.files, self._position())
            self.files.state.unlink(missing_ok=True)
            shutil.rmtree(self.files.scratch, ignore_errors=True)
        self._world.wait()  # what others read is there

    def _try_largest(self) -> None:
        """Try the largest micro-batch now, so that memory runs out here or never; then distribute the module."""
        training, task = self._training, self._task
        size = min(training.pass_size, training.update_size)
        # Where the system ends processes that take too much memory, this is all that people see.
        self._tell(news=f"trying whether {size:g} {task.size_unit} fit into memory")
        freeze(self.objective, only_head=False)
        key = self._setup.micro_batch_key
        try_largest(self._passes, self.optimizer, batch_size=training.update_size, update=self.update, key=key)
        if self._world.world_size > 1 and not self._sharded:
            uses_all = training.freeze_encoder_updates == 0 and self.objective.uses_all
            self._passes = replace(self._passes, module=average(self.objective, uses_all=uses_all))
            if uses_all:
                # DDP fixes the order in which it sums after its first pass: here, not within a first update.
                smallest = min(task.train, key=task.size)
                self._passes.backward([smallest] * self._world.world_size, self.update)
                self.optimizer.zero_grad(set_to_none=True)

    def _step(self) -> None:
        training, share = self._training, self._setup.schedule(self.update)
        learning_rate = training.learning_rate * share
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * share
        only_head = self.update < training.freeze_encoder_updates
        if only_head != self._only_head:
            self._only_head = only_head
            freeze(self.objective, only_head=only_head)
        items = self._batches.take()
        self._passes.prefetch(items)
        if self.update + 1 < training.updates:
            self._passes.prefetch(self._batches.upcoming())
        self._tell_if_smaller(items)
        pending = self._passes.backward(items, self.update)
        tell_observers(self, "gradients")
        whole, given = self._gradient_norms()
        loss, (norm, norm_given) = pending.get(whole, given)  # waits for the device, once an update
        self.record.update += 1
        if math.isfinite(loss.mean) and math.isfinite(norm):
            self.record.learned(loss)
            self._optimize(given, learning_rate)
            norm = norm_given
        else:
            self._skip(loss, norm, items)
        size = sum(map(self._task.size, items))
        self.record.size += size
        self._latest = {"learning_rate": learning_rate, "gradient_norm": norm}
        metrics = dict(zip(self.objective.metric_names, loss.metrics, strict=True))
        self._log("update", {"loss": loss.mean, **metrics, **self._latest, self._task.size_name: round(size, 3)})
        if (repruning := self.pruner.after_step(self.update, self.optimizer)) is not None:
            self._check_masks()
            self._log("reprune", asdict(repruning))
        self.optimizer.zero_grad(set_to_none=True)  # their memory is for validating and saving
        brief = f", {self._task.brief(self.record.validations)}" if self.record.validations else ""
        self._tell(note=f"loss {loss.mean:.3f}{brief}")

    def _optimize(self, norm: Tensor, learning_rate: float) -> None:
        """Prune gradients, which then have this norm, clip them and let the optimizer step."""
        self.pruner.before_step(self.update, learning_rate=learning_rate)
        if (clip := self._training.gradient_clip) is not None:
            nn.utils.clip_grads_with_norm_(self.network.parameters(), clip, norm)
        self.optimizer.step()

    def _gradient_norms(self) -> tuple[Tensor, Tensor]:
        """Of the whole gradient, not finite where any part is not; and of what the optimizer is given, before clipping.

        Both are still on the device."""
        gradients = {name: weight.grad for name, weight in self.network.named_parameters() if weight.grad is not None}
        whole = given = full_tensor(nn.utils.get_total_norm(gradients.values()))
        left = {n: g if is_sharded(g) else torch.linalg.vector_norm(g) for n, g in self.pruner.gradients_left()}
        if left:
            given = full_tensor(nn.utils.get_total_norm({**gradients, **left}.values()))
        return whole, given

    def _tell_if_smaller(self, items: Sequence[Any]) -> None:
        """Say once that an update is too small for so many processes."""
        if not self._said_smaller and not self._passes.spreads(items):
            self._said_smaller = True
            size = f"{self._training.pass_size:g} {self._task.size_unit}"
            few = f"an update has fewer forward passes of {size} than the {self._world.world_size} processes"
            differs = "what dropout and masking draw differs from that with fewer processes"
            self._tell(warning=f"{few}: they are made smaller, and {differs}")

    def _skip(self, loss: UpdateLoss[Any], norm: float, items: Sequence[Any]) -> None:
        """Leave the weights as they were after an update without a finite loss and gradient.

        Raises DataError where it was one too many.
        """
        self.record.skipped += 1
        self.record.skipped_in_a_row += 1
        names = list(dict.fromkeys(map(self._task.name, loss.not_finite or items)))
        reason = f"loss {loss.mean:g}, gradient norm {norm:g}"
        self._log("skipped", {"why": reason, "utterances": names})
        self._tell(warning=f"update {self.update} skipped: {reason} ({', '.join(first_few(names, 5))})")
        if self.record.skipped_in_a_row > self._training.most_skipped_updates:
            raise self._diverged(reason, names, loss)

    def _diverged(self, reason: str, names: Sequence[str], loss: UpdateLoss[Any]) -> DataError:
        """What ends the run: the items to blame, or else those of the last update, and weights that are not finite."""
        own = [name for name, weight in self.network.named_parameters() if not local_shard(weight).isfinite().all()]
        weights = list(dict.fromkeys(name for some in self._world.gather(own) for name in some))
        in_a_row = self.record.skipped_in_a_row
        many = f"update {self.update}" if in_a_row == 1 else f"{in_a_row} updates in a row"
        whose = "their loss is not finite" if loss.not_finite else "in the last of these updates"
        details = [f"{whose}: {', '.join(first_few(names, 8))}"]
        hint = "look at these, lower training.learning_rate, or set training.gradient_clip"
        if weights:
            details.append(f"weights that are not finite: {', '.join(first_few(weights, 4))}")
            hint = "begin from another checkpoint"
        return DataError(
            f"{many} had no finite loss or gradient ({reason})",
            details=[*details, f"{self.journal.path} names those of each update"],
            hint=hint,
        )

    def _validate(self) -> None:
        """Judge the network as it would be shipped, and keep it if it is the best so far."""
        names = self.objective.metric_names
        train_loss, *train_metrics = self.record.train_means(len(names))
        with self.pruner.pruned_view() as (masks, changed):
            number = len(self.record.validations)
            judged = self.objective.validate(self.module, dict(zip(names, train_metrics, strict=True)), number)
            since = self.record.validations[-1].update if self.record.validations else 0
            validation = Validation(
                update=self.update, train_loss=train_loss, score=judged.score, metrics=judged.metrics
            )
            self.record.validations.append(validation)
            pruned, covered = self.pruner.counts(masks)
            values: dict[str, Any] = {
                **validation.record(),
                **self._latest,
                "sparsity": pruned / covered if masks else 0.0,
                "revived": sum(change.revived for change in self.pruner.history if change.update > since),
            }
            if judged.example is not None:
                values["example"] = judged.example
            self._log("validation", values)
            if number == 0 and (report := self.objective.report()):
                self._tell(warning=report)
            self._tell(news=self._task.message(values))
            if self.files.best is not None and self.record.best is validation:
                self._write(self.files.best, masks, validation, changed=changed)
        if advice := self._task.advise(self.record.validations, sparsity=values["sparsity"]):
            self._log("diagnosis", {"text": advice})
            self._tell(warning=advice)
        tell_observers(self, "validated")

    # --------------------------------------------------------------------------------------------------- writing

    def _write(self, path: Path, masks: Masks, validation: Validation, *, changed: bool = False) -> None:
        metrics = {**validation.record(), "reprunings": [asdict(change) for change in self.pruner.history]}
        if changed:  # between two re-prunings: pruned for this file
            metrics["reprunings"].append(asdict(self.pruner.compare(masks)))
        sparsity = None
        if masks:
            pruned, covered = self.pruner.counts(masks)
            sparsity = Sparsity(target=self._setup.target, pruned=pruned, total=covered)
        # Whole however the weights are sharded: all processes put them together.
        weights, whole = full_tensors(self.network.state_dict(), keep=self._world.is_main), self.pruner.whole(masks)
        if self._world.is_main:
            given = self._setup.metadata
            prunable = tuple(self.pruner.weights) or given.prunable
            metadata = replace(given, prunable=prunable, sparsity=sparsity, metrics=metrics)
            checkpoint.write(path, Checkpoint(weights=self._setup.exported(weights), masks=whole, metadata=metadata))

    def _log(self, event: str, values: Mapping[str, Any]) -> None:
        if self._world.is_main:
            self.journal.log(event, self.update, values)

    def _tell(self, *, note: str = "", warning: str = "", news: str = "") -> None:
        total = self._training.updates
        self._notify(Progress(self._setup.doing, self.update, total, note, warning, news, kind="training"))

    def _save_state(self) -> None:
        writes = self._world.is_main
        if writes:
            self.journal.flush()
        pruning = self.pruner.state()
        states.save_state(self.files.state, self.network, self.optimizer, self._position(), pruning, writes=writes)
        self._saved_at = time.monotonic()
        tell_observers(self, "saved")

    def _position(self) -> dict[str, Any]:
        """Where the run is, in plain values; randomness and data order follow from it."""
        return {
            **self._setup.identity,
            **self.record.to_json(),
            "version": states.STATE_VERSION,
            "batches": self._batches.position,
            "reprunings": [asdict(repruning) for repruning in self.pruner.history],
        }

    def _go_to(self, position: Mapping[str, Any]) -> None:
        self.record.load_json(position)
        self.pruner.update = self.update
        self._batches.position = position["batches"]
        self.pruner.history = [Repruning.from_json(values) for values in position["reprunings"]]
