"""Recognise splits, count the errors, and compute how far the error rates can be trusted.

One checkpoint, or one checkpoint under several masks: the data is read once, and all are evaluated on the same
utterances.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from parp_cli.config.finetune import AnyData, Data, Recipe
from parp_cli.config.load import recipe_from_dict
from parp_cli.data.check import Problem, refusal
from parp_cli.data.corpora import load
from parp_cli.data.labels import vocabulary_of
from parp_cli.decoding.choose import Chosen, Decoding, choose
from parp_cli.decoding.recognizer import Precision, Recognizer, Tunable, Tuning
from parp_cli.errors import DataError, UsageError, first_few
from parp_cli.models.recognizer import rebuild
from parp_cli.models.sources.load import load_masks
from parp_cli.models.speech.config import Architecture, frames
from parp_cli.pruning.masks import Masks, both, check_meant_for, sparsity, under
from parp_cli.runtime.device import tensor_cores, versions
from parp_cli.runtime.processes import SINGLE, World
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.scoring.comparison import check_comparable
from parp_cli.scoring.evaluation_set import EvaluationSet, evaluation_set
from parp_cli.scoring.metrics import METRICS, ErrorRate, Unit
from parp_cli.scoring.outputs import Outputs, check_outputs, check_trn, outputs
from parp_cli.scoring.report import Report, build_report
from parp_cli.scoring.results import Recognition, read_results
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Metadata
from parp_cli.storage.run_folder import require_head, shortest_labels
from parp_cli.tasks.ctc.features import MEMORY_BYTES, FrontEndFeatures


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to evaluate.

    Attributes:
        splits: by default the test split of the data.
        masks: files with masks of the same model, under each of which it is evaluated too.
        tuned: tune the language model's weights on the validation split of the data, separately per system.
        workers: processes that decode; by default one per core where it pays.
        against: results files of other systems on the same utterances, to test the difference from.
        trn: prefix of two files for sclite, which end in ".ref.trn" and ".hyp.trn".
        seed: of the bootstrap.
        precision: of the encoder. With bfloat16 a transcript may depend on its batch, by rounding.
        batch_seconds: padded audio per forward pass. Changes no transcript.
    """

    splits: tuple[str, ...] = ()
    masks: tuple[Path, ...] = ()
    decoding: Decoding = field(default_factory=Decoding)
    tuned: bool = False
    workers: int | None = None
    against: tuple[Path, ...] = ()
    html: Path | None = None
    trn: Path | None = None
    seed: int = 0
    precision: Precision = "float32"
    batch_seconds: float = 60.0


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
class EvaluateResult:
    """A checkpoint as it is, then under each mask.

    Attributes:
        left_out, notes: why utterances could not be evaluated, and what is unusual about others.
        unusable: what the recipe does about utterances that are left out.
    """

    systems: tuple[Evaluated, ...]
    left_out: tuple[Problem, ...]
    notes: tuple[str, ...]
    unusable: Literal["refuse", "skip"]

    @property
    def as_it_is(self) -> Evaluated:
        """The checkpoint without a mask other than its own."""
        return self.systems[0]

    def error(self) -> DataError | None:
        """What to raise after showing the result; None where no utterance was left out, or the recipe skips such."""
        return refusal(self.left_out, (), left_out=True) if self.left_out and self.unusable == "refuse" else None


@dataclass(frozen=True, kw_only=True)
class _System:
    """The checkpoint as it is, or under a mask; `masks` is all that is pruned, by its own mask and by this one."""

    name: str
    masks: Masks
    outputs: Outputs
    mask: Path | None = None


def evaluate(
    source: Path,
    *,
    out: Path,
    data: AnyData | None = None,
    options: Options | None = None,
    device: torch.device | None = None,
    world: World = SINGLE,
    notify: Notify = silent,
) -> EvaluateResult:
    """Recognise all utterances of splits that can be read, and count the errors.

    Args:
        source: a checkpoint with an output head.
        out: where the results go; the metrics go beside it, as `.json`. Under a mask, its label is added to all names.
        data: the corpus; by default the one that the checkpoint was fine-tuned on.
        world: processes that recognise together. Each calls with the same arguments; the main one writes, and all
            return the same but for the time it took.

    Raises:
        CheckpointError: the checkpoint cannot be read, or has no head.
        MaskError: a file has no mask, or one of another model.
        UsageError: options do not go together, or the extra `lm` is not installed.
        DataError: there is no such split, none of its utterances can be evaluated, or another system's results have
            none of its utterances, or other references.
    """
    options = options or Options()
    with tensor_cores(options.precision):
        assert data is None or isinstance(data, Data), "the data of task ctc"
        return _Evaluator(source, out, data, options, device or torch.device("cpu"), world, notify).result()


def recorded_recipe(metadata: Metadata, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of the run that made a checkpoint (the defaults, if none did), with `overrides` as `--set` takes them.

    Raises `UsageError`: neither the run nor an override names a corpus; an override is no recipe key, or wrong.
    """
    values = metadata.recipe if metadata.recipe is not None and "data" in metadata.recipe else {}
    names_corpus = any(override.partition("=")[0].strip() == "data.corpus" for override in overrides)
    if not values and not names_corpus:
        raise UsageError(
            "the checkpoint was not fine-tuned by parp, and records no corpus to be evaluated on",
            hint="name one: --set data.corpus=manifest --set data.manifest=FILE --split SPLIT",
        )
    if names_corpus and values:
        # The new corpus is not where the old one was.
        values = {**values, "data": {**values["data"], "root": None, "manifest": None, "lists": None, "language": None}}
    return recipe_from_dict(values, overrides)


@dataclass
class _Evaluator:
    """Everything that is read before anything is computed; `result` then evaluates one system after another."""

    source: Path
    out: Path
    data: Data | None
    options: Options
    device: torch.device
    world: World
    notify: Notify

    def __post_init__(self) -> None:
        source, options = self.source, self.options
        self._content = checkpoint.read(source)
        metadata = self._content.metadata
        require_head(source, metadata)
        self._data = self.data or recorded_recipe(metadata).data
        self._splits = options.splits or (self._data.test,)
        self._architecture = Architecture.from_json(metadata.architecture)
        self._vocabulary = vocabulary_of(source, metadata.task)
        names = shortest_labels([source if options.masks else self.out, *options.masks, *options.against])
        self._systems = [self._system(names[0] if len(names) > 1 else str(source), None)]
        self._systems += map(self._system, names[1:], options.masks)
        self._check_files()
        self._chosen = choose(options.decoding, self._vocabulary, device=str(self.device), notify=self.notify)
        if options.tuned:
            self._check_tunable()
        self._against = dict(zip(names[len(self._systems) :], map(read_results, options.against), strict=True))
        with self.world.main_first():
            self._test = self._read(self._splits)
            self._valid = self._read((self._data.valid,)) if options.tuned else None
        # Incomparable results and transcripts that sclite cannot take are refused before anything is recognised.
        for other, theirs in self._against.items():
            check_comparable(self._test.recognitions, theirs, name=self._systems[0].name, other=other)
        if options.trn is not None:
            check_trn(self._test.recognitions)
        self._notes = (*self._test.notes, *self._chosen.notes(self._test.references))
        self._left_out = self._test.left_out + (self._valid.left_out if self._valid is not None else ())
        self._features: FrontEndFeatures | None = None

    def result(self) -> EvaluateResult:
        """Evaluate all systems and write their files."""
        warnings = list(self._notes)
        if self._content.masks and len(self._systems) > 1:
            pruned = f"{self.source} is itself pruned to {sparsity(self._content.masks):.1%}"
            warnings.append(f"{pruned}: what it prunes stays so under each mask")
        for warning in warnings if self.world.is_main else ():
            self.notify(Progress("evaluating", 0, 0, warning=warning))
        evaluated: list[Evaluated] = []
        against: dict[str, Sequence[Recognition]] = dict(self._against)
        for system in self._systems:
            recognitions, result = self._evaluate(system, against)
            if not evaluated:
                against = {system.name: recognitions, **against}
            evaluated.append(result)
        return EvaluateResult(
            systems=tuple(evaluated), left_out=self._left_out, notes=self._notes, unusable=self._data.unusable
        )

    def _evaluate(
        self, system: _System, against: Mapping[str, Sequence[Recognition]]
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
            sparsity=sparsity(system.masks) if system.masks else 0.0,
            report=report,
            decoding=chosen.describe(),
            tuning=tuning,
            audio_seconds=self._test.audio_seconds,
            seconds=seconds,
            outputs=system.outputs,
        )
        if self.world.is_main:
            about = {"data": self._data, "left_out": self._left_out, "notes": self._notes, "versions": versions()}
            metrics = {**result.to_json(), **about, "precision": self.options.precision}
            system.outputs.write(recognitions, report, metrics)
        return recognitions, result

    def _recognizer(self, system: _System) -> Recognizer:
        weights = under(system.masks, self._content.weights)
        architecture, model = rebuild(replace(self._content, weights=weights), self.device, source=str(self.source))
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
        listed = [(split, load(self._data, split, self.notify, lenient=True)) for split in dict.fromkeys(splits)]
        return evaluation_set(listed, self._vocabulary, partial(frames, self._architecture), self.notify)

    def _origin(self, system: _System, chosen: Chosen, tuning: Tuning | None) -> list[tuple[str, str]]:
        """Where the numbers come from, for people."""
        files = {"checkpoint": self.source, "mask": system.mask}
        tuned = "" if tuning is None else f", tuned on {self._data.valid} in {len(tuning.trials)} trials"
        rows = [(name, f"{path}, SHA-256 {checkpoint.file_hash(path)}") for name, path in files.items() if path]
        rows += [
            ("sparsity", f"{sparsity(system.masks):.2%}" if system.masks else "dense"),
            ("corpus", f"{self._data.corpus}, {', '.join(self._splits)}"),
            ("decoding", chosen.describe() + tuned),
            ("precision", self.options.precision),
        ]
        if self._left_out:
            count = len({(problem.split, problem.utterance_id) for problem in self._left_out})
            some = first_few([f"{problem.utterance_id}: {problem.kind}" for problem in self._left_out], 10)
            rows.append(("left out", f"{count:,} utterances: {'; '.join(some)}"))
        rows += [("note", note) for note in self._notes]
        return [*rows, ("versions", ", ".join(f"{name} {version}" for name, version in versions().items()))]

    def _system(self, name: str, mask: Path | None) -> _System:
        own, options = self._content.masks, self.options
        if mask is None:
            return _System(name=name, masks=own, outputs=outputs(self.out, options.html, options.trn))
        masks, _ = load_masks(mask)
        check_meant_for(mask, masks, self._content.weights, what=str(self.source))
        files = outputs(self.out, options.html, options.trn, name.replace("/", "-"))
        return _System(name=name, mask=mask, masks=both(masks, own), outputs=files)

    def _check_files(self) -> None:
        """No file may be named twice, or overwrite another."""
        options = self.options
        twice = [str(path) for path, count in Counter([*options.masks, *options.against]).items() if count > 1]
        if twice:
            raise UsageError(f"{' and '.join(twice)} named twice", hint="name each file once")
        maybe = {
            "--lexicon": options.decoding.lexicon,
            "--lm": options.decoding.lm,
            "data.manifest": self._data.manifest,
        }
        read = {name: [Path(path)] for name, path in maybe.items() if path is not None}
        read |= {"the checkpoint": [self.source], "--mask": [*options.masks], "--against": [*options.against]}
        check_outputs([system.outputs for system in self._systems], read)

    def _check_tunable(self) -> None:
        valid = self._data.valid
        if not isinstance(self._chosen.search, Tunable):
            hint = "add --lm and --decoder lexicon (or beam), or leave out --tune"
            raise UsageError("there are no weights to tune", hint=hint)
        if self.world.world_size > 1:
            hint = "tune without torchrun, then give --lm-weight and --word-score"
            raise UsageError("weights are tuned by one process", hint=hint)
        if valid in self._splits:
            hint = "evaluate another split, or name another to tune on: --set data.valid=SPLIT"
            raise UsageError(f"weights would be tuned on {valid}, which is evaluated", hint=hint)
