"""Recognise splits, count the errors, and compute how far the error rates can be trusted.

One checkpoint, or one checkpoint under several masks: the data is read once, and all are evaluated on the same
utterances.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from parp_cli.config.finetune import Data
from parp_cli.data.check import Problem, refusal
from parp_cli.data.corpora import load
from parp_cli.data.labels import vocabulary_of
from parp_cli.decoding.choose import Chosen, choose
from parp_cli.decoding.recognizer import Recognizer, Tunable, Tuning
from parp_cli.errors import DataError, UsageError, first_few
from parp_cli.models.recognizer import rebuild
from parp_cli.models.sources.load import load_masks
from parp_cli.models.speech.config import Architecture, frames
from parp_cli.pruning.masks import sparsity
from parp_cli.runtime.device import versions
from parp_cli.runtime.processes import World
from parp_cli.runtime.progress import Notify, Progress
from parp_cli.scoring.comparison import check_comparable
from parp_cli.scoring.evaluation_set import EvaluationSet, evaluation_set
from parp_cli.scoring.metrics import METRICS, ErrorRate, Unit
from parp_cli.scoring.outputs import Outputs, check_trn
from parp_cli.scoring.report import Report, build_report
from parp_cli.scoring.results import Recognition
from parp_cli.storage import checkpoint
from parp_cli.tasks.ctc.features import MEMORY_BYTES, FrontEndFeatures
from parp_cli.tasks.evaluation import Evaluation, Options, System, compared


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Errors of one system: a checkpoint, or a checkpoint under a mask.

    Attributes:
        mask: the file whose mask was applied; None for the checkpoint as it is.
        sparsity: of the weights it ran with, 0 without a mask.
        decoding: in words, with the weights used.
        tuning: how they were found; None where they were given.
        seconds: it took, reading included and tuning not. Under a mask the feature encoder's output is reused.
    """

    checkpoint: Path
    mask: Path | None
    splits: tuple[str, ...]
    sparsity: float
    report: Report
    decoding: str
    tuning: Tuning | None
    audio_seconds: float
    seconds: float
    outputs: Outputs

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of audio."""
        return self.seconds / self.audio_seconds

    def errors(self, unit: Unit) -> ErrorRate | None:
        """Of words and characters, or of phones; None for units that the checkpoint's labels do not have."""
        return next((metric.errors for metric in self.report.metrics if metric.unit == unit), None)

    def to_json(self) -> dict[str, Any]:
        """Everything, and the numbers that are read most beside the report."""
        read_most = {"utterances": self.report.utterances, "real_time_factor": self.real_time_factor}
        return {**asdict(self), **read_most, **{str(unit): self.errors(unit) for unit in METRICS}}


@dataclass(frozen=True, kw_only=True)
class SpeechEvaluation(Evaluation[Evaluated]):
    """Of speech; `left_out` are utterances."""

    left_out: tuple[Problem, ...]

    def refusal(self) -> DataError:
        return refusal(self.left_out, (), left_out=True)


@dataclass
class SpeechEvaluator:
    """Everything that is read before anything is computed; `result` then evaluates one system after another.

    Fields and errors are those of `stages.evaluate`.
    """

    source: Path
    out: Path
    data: Data
    options: Options
    device: torch.device
    world: World
    notify: Notify

    def __post_init__(self) -> None:
        source, options = self.source, self.options
        self._content = checkpoint.read(source)
        metadata = self._content.metadata
        self._splits = options.splits or (self.data.test,)
        self._architecture = Architecture.from_json(metadata.architecture)
        self._vocabulary = vocabulary_of(source, metadata.task)
        decoding = options.decoding
        read = {"--lexicon": decoding.lexicon, "--lm": decoding.lm, "data.manifest": self.data.manifest}
        self._systems, self._against = compared(source, self._content, self.out, options, read)
        self._chosen = choose(decoding, self._vocabulary, device=str(self.device), notify=self.notify)
        if options.tuned:
            self._check_tunable()
        with self.world.main_first():
            self._test = self._read(self._splits)
            self._valid = self._read((self.data.valid,)) if options.tuned else None
        # Incomparable results and transcripts that sclite cannot take are refused before anything is recognised.
        for other, theirs in self._against.items():
            check_comparable(self._test.recognitions, theirs, name=self._systems[0].name, other=other)
        if options.trn is not None:
            check_trn(self._test.recognitions)
        self._notes = (*self._test.notes, *self._chosen.notes(self._test.references))
        self._left_out = self._test.left_out + (self._valid.left_out if self._valid is not None else ())
        self._features: FrontEndFeatures | None = None

    def result(self) -> SpeechEvaluation:
        """Evaluate all systems and write their files."""
        warnings = list(self._notes)
        if self._content.masks and len(self._systems) > 1:
            pruned = f"{self.source} is itself pruned to {sparsity(self._content.masks):.1%}"
            warnings.append(f"{pruned}: what it prunes stays so under each mask")
        for warning in warnings if self.world.is_main else ():
            self.notify(Progress("evaluating", 0, 0, warning=warning, kind="data"))
        evaluated: list[Evaluated] = []
        against: dict[str, Sequence[Recognition]] = dict(self._against)
        for system in self._systems:
            recognitions, result = self._evaluate(system, against)
            if not evaluated:
                against = {system.name: recognitions, **against}
            evaluated.append(result)
        return SpeechEvaluation(
            systems=tuple(evaluated), left_out=self._left_out, notes=self._notes, unusable=self.data.unusable
        )

    def _evaluate(
        self, system: System, against: Mapping[str, Sequence[Recognition]]
    ) -> tuple[list[Recognition], Evaluated]:
        recognizer = self._recognizer(system)
        chosen, tuning = self._chosen, None
        if self._valid is not None and isinstance(chosen.search, Tunable):
            search, tuning = recognizer.tuned(chosen.search, self._valid.utterances, self._valid.references)
            chosen = replace(chosen, search=search)
        began = time.monotonic()
        recognitions = self._test.recognized(recognizer.texts(self._test.utterances, chosen.search))
        seconds = time.monotonic() - began
        report = build_report(
            recognitions,
            labels=self._vocabulary.labels,
            name=system.name,
            origin=self._origin(system, chosen, tuning),
            against=against,
            seed=self.options.seed,
        )
        result = Evaluated(
            checkpoint=self.source,
            mask=system.mask,
            splits=self._test.splits,
            sparsity=system.sparsity,
            report=report,
            decoding=chosen.describe(),
            tuning=tuning,
            audio_seconds=self._test.audio_seconds,
            seconds=seconds,
            outputs=system.outputs,
        )
        if self.world.is_main:
            about = {"data": self.data, "left_out": self._left_out, "notes": self._notes, "versions": versions()}
            metrics = {**result.to_json(), **about, "precision": self.options.precision}
            system.outputs.write(recognitions, report, metrics)
        return recognitions, result

    def _recognizer(self, system: System) -> Recognizer:
        architecture, model = rebuild(system.pruned(self._content), self.device, source=str(self.source))
        # The output of the checkpoint's own feature encoder is computed once, for all masks that do not touch it.
        own = system.mask is not None and any(map(architecture.is_feature_encoder, load_masks(system.mask)[0]))
        features = self._features
        if features is None or own:
            kept = MEMORY_BYTES if len(self._systems) > 1 and not own else 0
            features = FrontEndFeatures(model, self._architecture, frozen=True, device_bytes=0, memory_bytes=kept)
        self._features = self._features or features
        return Recognizer(
            model=model,
            features=features,
            precision=self.options.precision,
            batch_seconds=self.options.batch_seconds,
            workers=self.options.workers,
            world=self.world,
            notify=self.notify,
        )

    def _read(self, splits: Sequence[str]) -> EvaluationSet:
        listed = [(split, load(self.data, split, self.notify, lenient=True)) for split in dict.fromkeys(splits)]
        return evaluation_set(listed, self._vocabulary, partial(frames, self._architecture), self.notify)

    def _origin(self, system: System, chosen: Chosen, tuning: Tuning | None) -> list[tuple[str, str]]:
        """Where the numbers come from, for people."""
        files = {"checkpoint": self.source, "mask": system.mask}
        tuned = "" if tuning is None else f", tuned on {self.data.valid} in {len(tuning.trials)} trials"
        rows = [(name, f"{path}, SHA-256 {checkpoint.file_hash(path)}") for name, path in files.items() if path]
        rows += [
            ("sparsity", f"{system.sparsity:.2%}" if system.masks else "dense"),
            ("corpus", f"{self.data.corpus}, {', '.join(self._splits)}"),
            ("decoding", chosen.describe() + tuned),
            ("precision", self.options.precision),
        ]
        if self._left_out:
            count = len({(problem.split, problem.utterance_id) for problem in self._left_out})
            some = first_few([f"{problem.utterance_id}: {problem.kind}" for problem in self._left_out], 10)
            rows.append(("left out", f"{count:,} utterances: {'; '.join(some)}"))
        rows += [("note", note) for note in self._notes]
        return [*rows, ("versions", ", ".join(f"{name} {version}" for name, version in versions().items()))]

    def _check_tunable(self) -> None:
        valid = self.data.valid
        if not isinstance(self._chosen.search, Tunable):
            hint = "add --lm and --decoder lexicon (or beam), or leave out --tune"
            raise UsageError("there are no weights to tune", hint=hint)
        if self.world.world_size > 1:
            hint = "tune without torchrun, then give --lm-weight and --word-score"
            raise UsageError("weights are tuned by one process", hint=hint)
        if valid in self._splits:
            hint = "evaluate another split, or name another to tune on: --set data.valid=SPLIT"
            raise UsageError(f"weights would be tuned on {valid}, which is evaluated", hint=hint)
