"""Adjust and re-prune: fine-tune a pruned encoder with CTC while its mask may change (PARP, steps 2 and 3)."""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parp_cli import checkpoint
from parp_cli.checkpoint import Checkpoint, Metadata, Sparsity, lineage
from parp_cli.decoding.metrics import character_errors, word_errors
from parp_cli.decoding.transcribe import transcribe
from parp_cli.environment import resolve_precision, versions
from parp_cli.errors import CheckpointError, Interrupted
from parp_cli.files import write_error, write_text
from parp_cli.interrupts import Stop, stopping
from parp_cli.models.prunable import layers_of, touches_front_end
from parp_cli.progress import Notify, Progress, silent
from parp_cli.pruning.masks import count_all, count_pruned
from parp_cli.pruning.pruner import Repruning
from parp_cli.recipe import Recipe, recipe_to_dict
from parp_cli.training import preparation as preparing
from parp_cli.training.ctc import UpdateBatches
from parp_cli.training.features import FrontEndFeatures
from parp_cli.training.preparation import Plan, Preparation, prepare, prepare_round
from parp_cli.training.rounds import Round, pattern_in, round_key, rounds_of, start_key, trained_on
from parp_cli.training.schedule import tri_stage
from parp_cli.training.setup import build_model, freeze, objective, optimizer, pruner
from parp_cli.training.starts import Start, rewound
from parp_cli.training.state import load_state, save_state

_BEST, _LAST, _COST = "finetune.safetensors", "finetune-last.safetensors", "finetune-cost.json"

_VALIDATION_BATCH_SECONDS = 60.0
"""Padded sound in one forward pass of a validation."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Error rates on the validation split, of the pruned model, after an update. `character` is None for phones."""

    update: int
    train_loss: float
    word: float
    character: float | None

    @property
    def score(self) -> tuple[float, float]:
        """Lower is better; characters decide where as many words are wrong."""
        return (self.word, 0.0 if self.character is None else self.character)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What training took: updates, seconds of audio heard in them, and seconds of wall time."""

    updates: int = 0
    audio_seconds: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            updates=self.updates + other.updates,
            audio_seconds=self.audio_seconds + other.audio_seconds,
            seconds=self.seconds + other.seconds,
        )


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What `parp finetune` wrote and how it went.

    Attributes:
        path: the best checkpoint on the validation split, pruned as evaluated.
        last: the one after the last update.
        best: the validation that chose `path`.
        reprunings: in order, the last one at the end of the run.
        skipped: why each utterance that was left out cannot be trained on.
        cost: of the method in all, with the runs that found its mask, wherever they were made.
        own_cost: of the run proper alone.
    """

    path: Path
    last: Path
    sha256: str
    best: Validation
    validations: tuple[Validation, ...]
    reprunings: tuple[Repruning, ...]
    sparsity: Sparsity | None
    plan: Plan
    skipped: tuple[str, ...]
    cost: Cost
    own_cost: Cost


def plan(recipe: Recipe, *, init: Path | None = None, notify: Notify = silent) -> Plan:
    """What `finetune` would do, without training."""
    recipe = rounds_of(recipe, init)[-1].recipe
    return preparing.plan(recipe, prepare(recipe, init, notify))


def finetune(
    recipe: Recipe,
    *,
    run: Path,
    init: Path | None = None,
    out: Path | None = None,
    device: torch.device | None = None,
    resume: bool = False,
    rounds_folder: Path | None = None,
    features_folder: Path | None = None,
    notify: Notify = silent,
) -> FinetuneResult:
    """Fine-tune as the recipe says.

    Args:
        recipe: the whole run.
        run: the run folder, for the state that `resume` needs, the log, and results without `out`.
        init: the checkpoint to begin from; None for the recipe's model, which is then pruned first.
        out: where the best checkpoint goes; the last one goes beside it.
        device: by default the CPU.
        resume: go on from the state in the run folder.
        rounds_folder: where the runs are kept that find a method's mask (`training.rounds`), each in a folder named
            by its content; finished ones are not run again. By default in the run folder.
        features_folder: where front-end features are kept between runs; by default they are not.

    Raises:
        CheckpointError, DataError, UsageError: as `training.preparation.prepare`; or the state is of another run.
        Interrupted: by the user; the state is saved.
        ResourceError: the disk is full; the last files written are whole.
    """
    device = device or torch.device("cpu")
    precision = resolve_precision(recipe.training.precision, device)
    recipe = replace(recipe, training=replace(recipe.training, precision=precision))
    rounds = rounds_of(recipe, init)
    recipe = rounds[-1].recipe
    whole = prepare(recipe, init, notify)
    start = start_key(recipe, init)
    folders = [(rounds_folder or run / "rounds") / round_key(rounds[:count], start) for count in range(1, len(rounds))]
    if resume and not (_state_of(run).exists() or any(folder.exists() for folder in folders)):
        raise CheckpointError(f"nothing to resume in {run}", hint="start anew without --resume")
    before: Path | None = None
    cost = own = Cost()
    with stopping() as stop:
        for this, folder in zip(rounds, (*folders, run), strict=True):
            last = folder == run
            found = None if last else finished_cost(folder)
            if found is None:
                begins = whole if len(rounds) == 1 else prepare_round(whole, this, _round_start(whole, this, before))
                training = _Run(this, begins, folder, out if last else None, device, features_folder, notify)
                # Rounds are named by their content, so that a state there can only be of the same run.
                training.start(resume=resume or not last)
                training.train(stop)
                found = training.cost
            before, own = folder / _LAST, found
            cost += own
        return training.result(preparing.plan(recipe, whole), cost, own)


def finished_cost(run: Path) -> Cost | None:
    """What the training run in a folder took; None where it has not come to its end."""
    if not all((run / name).exists() for name in (_BEST, _LAST, _COST)):
        return None
    return Cost(**json.loads((run / _COST).read_text(encoding="utf-8")))


def _round_start(whole: Preparation, this: Round, before: Path | None) -> Start:
    """What a run begins from: the first one from the method's start, later ones from rewound weights and a new mask."""
    start = whole.start
    if before is None:
        return start
    found = checkpoint.read(before)
    masks = found.masks
    if this.take is not None:
        weights = {name: found.weights[name] for name in found.metadata.prunable}
        pattern = pattern_in(this.recipe.pruning)
        masks = dict(pattern.masks(weights, this.take, layers_of(weights)))
    if this.recipe.pruning.rewind is not None:
        start = rewound(start, Path(this.recipe.pruning.rewind))
    parents = tuple(dict.fromkeys((*start.parents, *lineage(before, found.metadata))))
    return replace(start, masks=masks, target=this.take, parents=parents)


def _state_of(run: Path) -> Path:
    return run / "state" / "finetune.safetensors"


class _Run:
    """One fine-tuning run: the model, what changes with every update, and where it is written."""

    def __init__(
        self,
        this: Round,
        preparation: Preparation,
        run: Path,
        out: Path | None,
        device: torch.device,
        features_folder: Path | None,
        notify: Notify,
    ) -> None:
        recipe = this.recipe
        self._began = time.monotonic()
        self._name, self._recipe, self._preparation, self._notify = this.name, recipe, preparation, notify
        self._best_path = out or run / _BEST
        self._last_path = self._best_path.with_name(self._best_path.stem + "-last.safetensors")
        self._state_path = _state_of(run)
        self._log_path = run / "finetune.jsonl"
        self._cost_path = run / _COST
        torch.manual_seed(recipe.seed)
        self._model = build_model(recipe, preparation).to(device)
        self._pruner = pruner(recipe, preparation, self._model)
        self._features = FrontEndFeatures(
            self._model,
            preparation.start.architecture,
            frozen=not recipe.training.train_front_end and not touches_front_end(self._pruner.masks),
            folder=features_folder,
        )
        self._objective = objective(recipe, preparation, self._model, self._features)
        self._optimizer = optimizer(recipe, self._model)
        self._batches = UpdateBatches(
            [utterance.seconds for utterance in preparation.train],
            batch_seconds=recipe.training.batch_seconds,
            micro_batch_seconds=recipe.training.micro_batch_seconds,
            seed=recipe.seed,
        )
        self._update = 0
        self._audio_seconds = 0.0
        self._seconds_before = 0.0
        self._validations: list[Validation] = []
        self._losses: list[float] = []

    def start(self, *, resume: bool) -> None:
        """Begin, or go on where an earlier run was stopped, if one was."""
        if resume and self._state_path.exists():
            self._resume()
        else:
            self._begin()

    def _begin(self) -> None:
        """Prune, and forget what an earlier run left."""
        self._pruner.start()
        try:
            self._log_path.parent.mkdir(parents=True, exist_ok=True)
            for path in (self._log_path, self._state_path, self._cost_path):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(self._log_path, error) from error
        for problem in self._preparation.skipped:
            self._log("skipped", {"utterance": problem.utterance_id, "why": problem.message})

    def train(self, stop: Stop) -> None:
        """All updates that are left, with validations."""
        training = self._recipe.training
        self._model.train()
        while self._update < training.updates:
            if stop.requested:
                self._save_state()
                raise Interrupted(
                    f"stopped after update {self._update} of {training.updates}; the state is saved",
                    hint="go on with the same command and --resume",
                )
            self._step()
            at_end = self._update == training.updates
            if self._update % training.validate_every == 0 or at_end:
                self._validate()
                self._save_state()
        self._write(self._last_path, self._pruner.masks, self._validations[-1])
        with suppress(FileNotFoundError):
            self._best_path.touch()  # the newest of the run folder, which later stages take
        write_text(self._cost_path, json.dumps(asdict(self.cost)) + "\n")
        self._state_path.unlink(missing_ok=True)

    @property
    def cost(self) -> Cost:
        """So far, over all sittings."""
        return Cost(updates=self._update, audio_seconds=self._audio_seconds, seconds=self._seconds())

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began

    def result(self, plan: Plan, cost: Cost, own: Cost) -> FinetuneResult:
        """The finished run."""
        written = checkpoint.read_metadata(self._best_path)
        return FinetuneResult(
            path=self._best_path,
            last=self._last_path,
            sha256=checkpoint.file_hash(self._best_path),
            best=self._best(),
            validations=tuple(self._validations),
            reprunings=tuple(self._pruner.history),
            sparsity=written.sparsity,
            plan=plan,
            skipped=tuple(problem.message for problem in self._preparation.skipped),
            cost=cost,
            own_cost=own,
        )

    def _best(self) -> Validation:
        return min(self._validations, key=lambda validation: validation.score)

    def _step(self) -> None:
        training = self._recipe.training
        # All randomness of an update follows from its number, so that a resumed run needs no random states.
        torch.manual_seed(self._recipe.seed * 10_000_019 + self._update)
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
        freeze(
            self._model,
            train_front_end=training.train_front_end,
            only_head=self._update < training.freeze_encoder_updates,
        )
        utterances = [self._preparation.train[index] for index in self._batches.take()]
        self._optimizer.zero_grad(set_to_none=True)
        self._losses.append(self._objective.backward(utterances))
        self._pruner.before_step(self._update + 1)
        if training.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self._model.parameters(), training.gradient_clip)
        self._optimizer.step()
        self._update += 1
        self._audio_seconds += sum(utterance.seconds for utterance in utterances)
        repruning = self._pruner.after_step(self._update, self._optimizer)
        if repruning is not None:
            self._log("reprune", asdict(repruning))
        note = f"loss {self._losses[-1]:.3f}"
        if self._validations:
            note += f", best error rate {self._best().word:.1%}"
        self._notify(Progress(f"fine-tuning ({self._name})", self._update, training.updates, note))

    def _validate(self) -> None:
        """Judge the model as it would be shipped, and keep it if it is the best so far."""
        with self._pruner.pruned_view() as masks:
            hypotheses = transcribe(
                self._model,
                self._features,
                self._preparation.valid,
                self._preparation.vocabulary,
                batch_seconds=_VALIDATION_BATCH_SECONDS,
            )
            references = [self._preparation.vocabulary.reference(u) for u in self._preparation.valid]
            letters = self._preparation.vocabulary.labels == "letters"
            validation = Validation(
                update=self._update,
                train_loss=sum(self._losses) / max(1, len(self._losses)),
                word=word_errors(references, hypotheses).rate,
                character=character_errors(references, hypotheses).rate if letters else None,
            )
            self._losses.clear()
            self._validations.append(validation)
            self._log("validation", {**asdict(validation), "example": [references[0], hypotheses[0]]})
            if self._best() is validation:
                self._write(self._best_path, masks, validation)

    def _write(self, path: Path, masks: Mapping[str, Tensor], validation: Validation) -> None:
        start = self._preparation.start
        reprunings = self._pruner.history
        if masks is not self._pruner.masks:  # between two re-prunings: pruned for this file
            reprunings = [*reprunings, self._pruner.compare(masks)]
        amount = None
        if masks:
            amount = Sparsity(target=self._preparation.sparsity, pruned=count_pruned(masks), total=count_all(masks))
        metadata = Metadata(
            stage="finetune",
            architecture=start.architecture.to_json(),
            vocabulary=self._preparation.vocabulary.symbols,
            labels=self._preparation.vocabulary.labels,
            prunable=tuple(self._pruner.weights),
            sparsity=amount,
            recipe=recipe_to_dict(self._recipe),
            seed=self._recipe.seed,
            parents=start.parents,
            metrics={
                **asdict(validation),
                "reprunings": [asdict(repruning) for repruning in reprunings],
            },
            versions=versions(),
        )
        checkpoint.write(path, Checkpoint(weights=self._model.state_dict(), masks=masks, metadata=metadata))

    def _log(self, event: str, values: Mapping[str, Any]) -> None:
        line = json.dumps({"event": event, "update": self._update, **values}, ensure_ascii=False)
        with self._log_path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def _forget_log_after(self, update: int) -> None:
        """Drop what a killed run logged after its last saved state: it will happen, and be logged, again."""
        if self._log_path.exists():
            lines = self._log_path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = (line for line in lines if line.endswith("\n"))
            write_text(self._log_path, "".join(line for line in whole if json.loads(line)["update"] <= update))

    def _save_state(self) -> None:
        position = {
            "recipe": trained_on(self._recipe),
            "parents": [asdict(parent) for parent in self._preparation.start.parents],
            "update": self._update,
            "epoch": self._batches.epoch,
            "group": self._batches.group,
            "audio_seconds": self._audio_seconds,
            "seconds": self._seconds(),
            "losses": self._losses,
            "validations": [asdict(validation) for validation in self._validations],
            "reprunings": [asdict(repruning) for repruning in self._pruner.history],
        }
        save_state(self._state_path, self._model, self._optimizer, position, self._pruner.masks)

    def _resume(self) -> None:
        """Go on where the state in the run folder is.

        Raises:
            CheckpointError: it is of a run with another recipe or beginning.
        """
        position, masks = load_state(self._state_path, self._model, self._optimizer)
        mine = {
            "recipe": trained_on(self._recipe),
            "parents": [asdict(parent) for parent in self._preparation.start.parents],
        }
        for key, value in mine.items():
            if position[key] != value:
                raise CheckpointError(
                    f"the state in {self._state_path} is of a run with another {key.rstrip('s')}",
                    details=_differences(position[key], value),
                    hint="resume with the recipe and --init the run began with, or start anew without --resume",
                )
        self._update = position["update"]
        self._forget_log_after(self._update)
        self._batches.epoch, self._batches.group = position["epoch"], position["group"]
        self._audio_seconds, self._losses = position["audio_seconds"], position["losses"]
        self._seconds_before, self._pruner.update = position["seconds"], self._update
        self._validations = [Validation(**values) for values in position["validations"]]
        self._pruner.history = [
            Repruning(**{**values, "layers": {label: tuple(counts) for label, counts in values["layers"].items()}})
            for values in position["reprunings"]
        ]
        self._pruner.masks = {name: mask.to(self._pruner.masks[name].device) for name, mask in masks.items()}


def _differences(before: Any, after: Any, key: str = "") -> list[str]:
    """Dotted keys whose values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        prefix = f"{key}." if key else ""
        return [
            line
            for name in sorted({*before, *after})
            for line in _differences(before.get(name), after.get(name), prefix + name)
        ]
    return [] if before == after else [f"{key}: {before} before, {after} now"]
