"""Several models on this machine: bytes, load time, memory, speed, and error rates."""

import importlib.util
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import torch
from torch import Tensor

from parp_cli.config.finetune import Recipe
from parp_cli.config.load import recipe_from_dict
from parp_cli.data.audio import read_audio
from parp_cli.data.corpora import load
from parp_cli.data.labels import vocabulary_of
from parp_cli.errors import CheckpointError, UsageError
from parp_cli.exporters.check import labels, least_seconds
from parp_cli.exporters.gguf import CrispNetwork, tokens_in, tokens_of
from parp_cli.exporters.huggingface import export_huggingface
from parp_cli.exporters.measure import (
    Loaded,
    Pass,
    Runtime,
    Worker,
    is_for_sherpa,
    open_network,
    runtime_of,
)
from parp_cli.exporters.sherpa import symbols_of
from parp_cli.exporters.target import bytes_of
from parp_cli.models.network import SMALL
from parp_cli.models.sources.load import random_encoder
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, frames
from parp_cli.pruning.plots import check_plot, save_figure
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.scoring.evaluation_set import EvaluationSet, evaluation_set
from parp_cli.scoring.metrics import ErrorRate, word_errors
from parp_cli.storage import checkpoint
from parp_cli.storage.run_folder import require_head

LENGTHS = (1.0, 10.0, 30.0)
BATCHES = (1, 8)
ROUNDS = 3


class Timed(Protocol):
    """A model that works when it is asked to, as `Worker`."""

    loaded: Loaded

    def run(self, seconds: float, batch: int) -> Pass: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of passes of `batch` utterances of `seconds` each.

    Attributes:
        real_time_factor: seconds of work per second of audio, in the fastest of the rounds.
        peak_bytes: the largest memory in them, beyond Python and its libraries; None where the system does not tell.
    """

    seconds: float
    batch: int
    real_time_factor: float
    peak_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Benched:
    """A model on this machine.

    Attributes:
        model: its file or folder, or what it is.
        bytes: of the file, or of all in the folder.
        loaded: its first pass was of the shortest length.
        errors: of greedy decoding; None where they were not asked for, or its weights are random.
    """

    model: str
    runtime: Runtime
    bytes: int
    loaded: Loaded
    speeds: tuple[Speed, ...]
    errors: ErrorRate | None = None

    @property
    def peak_bytes(self) -> int | None:
        """The largest memory of all passes."""
        return max((speed.peak_bytes for speed in self.speeds if speed.peak_bytes is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """Models in the order they were named.

    Attributes:
        dense: the dense network of the first checkpoint in transformers; None where it was not measured.
        load_average: of the machine before the first measurement; None where the system does not tell.
        split: that errors were counted on; None if they were not.
        metric: WER, or PER of phones.
    """

    models: tuple[Benched, ...]
    dense: Benched | None
    threads: int
    processor: str
    load_average: float | None
    split: str | None = None
    metric: str = "WER"

    @property
    def all(self) -> tuple[Benched, ...]:
        """What speeds are compared with comes first: the dense network, or the first model."""
        return self.models if self.dense is None else (self.dense, *self.models)


def bench(
    models: Sequence[Path],
    *,
    lengths: Sequence[float] = LENGTHS,
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    dense: bool = False,
    split: str | None = None,
    figure: Path | None = None,
    start: Callable[[Path, float], Timed] = Worker,
    notify: Notify = silent,
) -> BenchResult:
    """Load each model into a fresh process, and let all of them compute the same work in turn.

    Args:
        models: checkpoints of parp, folders of transformers, .onnx and .gguf files, folders for sherpa-onnx.
        lengths, batches: seconds of an utterance, and utterances per pass.
        rounds: the fastest counts; a pass before them does not.
        dense: measure transformers too, where it is installed, on a dense network of the first checkpoint's
            architecture.
        split: count errors on it: of the corpus and vocabulary that the first checkpoint was fine-tuned with.
        figure: draw error rate against speed.
        start: from a model and the seconds of its first pass.

    Raises:
        CheckpointError: a file is no model, or has other outputs than the first checkpoint.
        UsageError: a runtime is not installed, or options do not go together.
        DataError: there is no such split.
        ResourceError: memory ran out.
    """
    _check_work(lengths, batches, rounds)
    runtimes = [runtime_of(path) for path in models]  # all are looked at before any is measured
    own = next((path for path, runtime in zip(models, runtimes, strict=True) if runtime == "parp"), None)
    if figure is not None:
        check_plot(figure)
        if split is None:
            raise UsageError("--figure draws error rates", hint="add --split, for example --split test-clean")
    judge = None
    if split is not None:
        if own is None:
            raise UsageError(
                "error rates need a checkpoint of parp, which knows the vocabulary and the corpus",
                hint="name the checkpoint that the exports are from too",
            )
        judge = _Judge(own, split, notify)
    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    named = [
        _Model(str(path), path, runtime, None if judge is None else judge.errors(path))
        for path, runtime in zip(models, runtimes, strict=True)
    ]
    work = [(seconds, batch) for batch in dict.fromkeys(batches) for seconds in dict.fromkeys(lengths)]
    with TemporaryDirectory() as folder:
        reference = _dense_model(own, Path(folder)) if dense and own is not None else None
        first = [] if reference is None else [reference]
        benched = _in_turn([*first, *named], work, rounds, start, notify)
    result = BenchResult(
        models=tuple(benched[len(first) :]),
        dense=benched[0] if first else None,
        threads=torch.get_num_threads(),
        processor=_processor(),
        load_average=load_average,
        split=split,
        metric="WER" if judge is None else judge.metric,
    )
    if figure is not None:
        _draw(result, figure)
    return result


@dataclass(frozen=True)
class _Model:
    title: str
    path: Path
    runtime: Runtime
    errors: ErrorRate | None


def _in_turn(
    models: Sequence[_Model],
    work: Sequence[tuple[float, int]],
    rounds: int,
    start: Callable[[Path, float], Timed],
    notify: Notify,
) -> list[Benched]:
    shortest = min(seconds for seconds, _ in work)
    found: list[dict[tuple[float, int], Speed]] = [{} for _ in models]
    with ExitStack() as stack:
        workers = []
        for model in models:
            workers.append(start(model.path, shortest))
            stack.callback(workers[-1].close)
        # The least work first, so that the largest memory so far is that of the work.
        for number, (seconds, batch) in enumerate(sorted(work, key=lambda pair: pair[0] * pair[1])):
            notify(Progress("measuring", number, len(work), note=f"{seconds:g} s × {batch}"))
            peaks = [worker.run(seconds, batch).peak_bytes for worker in workers]
            timed = [partial(_seconds, worker, seconds, batch) for worker in workers]
            for speeds, spent, peak in zip(found, least_seconds(timed, rounds=rounds), peaks, strict=True):
                factor = spent / (seconds * batch)
                speeds[seconds, batch] = Speed(seconds=seconds, batch=batch, real_time_factor=factor, peak_bytes=peak)
        notify(Progress("measuring", len(work), len(work)))
        return [
            Benched(
                model=model.title,
                runtime=model.runtime,
                bytes=bytes_of(model.path),
                loaded=worker.loaded,
                speeds=tuple(speeds[one] for one in work),
                errors=model.errors,
            )
            for model, worker, speeds in zip(models, workers, found, strict=True)
        ]


def _seconds(worker: Timed, seconds: float, batch: int) -> float:
    return worker.run(seconds, batch).seconds


def _check_work(lengths: Sequence[float], batches: Sequence[int], rounds: int) -> None:
    """Raise UsageError for what cannot be measured."""
    if not lengths or not all(0.1 <= seconds <= 600 for seconds in lengths):
        raise UsageError("lengths are of 0.1 to 600 seconds", hint="for example --seconds 1 --seconds 10")
    if not batches or not all(1 <= batch <= 256 for batch in batches):
        raise UsageError("batches are of 1 to 256 utterances", hint="for example --batch 1 --batch 8")
    if rounds < 1:
        raise UsageError("there is at least one round", hint=f"for example --rounds {ROUNDS}")


def _dense_model(source: Path, folder: Path) -> _Model | None:
    """The dense network of a checkpoint in transformers, in a folder; None where sizes differ by layer and no name
    tells it, or transformers is not installed.

    Weights are random: they make no difference to speed.
    """
    architecture = Architecture.from_json(checkpoint.read_metadata(source).architecture)
    architecture = ARCHITECTURES.get(architecture.name.removesuffix(SMALL), architecture)
    uneven = isinstance(architecture.heads, tuple) or isinstance(architecture.feed_forward, tuple)
    if uneven or architecture.conv_norm_channels or importlib.util.find_spec("transformers") is None:
        return None
    export_huggingface(architecture, random_encoder(architecture).weights, None, folder)
    return _Model(f"{architecture.name}, dense", folder, "transformers", None)


def _processor() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class _Judge:
    """Errors of greedy decoding on a split, with the corpus and the vocabulary of a checkpoint."""

    def __init__(self, source: Path, split: str, notify: Notify) -> None:
        metadata = checkpoint.read_metadata(source)
        require_head(source, metadata)
        self._source, self._split, self._notify = source, split, notify
        self._vocabulary = vocabulary_of(source, metadata.task)
        self.metric = "PER" if self._vocabulary.labels == "phones" else "WER"
        recipe = recipe_from_dict(metadata.recipe or {})
        assert isinstance(recipe, Recipe)
        architecture = Architecture.from_json(metadata.architecture)
        listed = [(split, load(recipe.data, split, notify, lenient=True))]
        self._test: EvaluationSet = evaluation_set(listed, self._vocabulary, partial(frames, architecture), notify)

    def errors(self, path: Path) -> ErrorRate:
        """Of words; of phones where the labels are phones. Raises CheckpointError where outputs are of others."""
        transcribe, texts = self._transcriber(path), []
        for number, utterance in enumerate(self._test.utterances):
            texts.append(transcribe(read_audio(utterance.audio)))
            self._notify(Progress(f"recognising {self._split}", number + 1, len(self._test.utterances), note=str(path)))
        recognized = self._test.recognized(texts)
        return word_errors([one.reference for one in recognized], [one.hypothesis for one in recognized])

    def _transcriber(self, path: Path) -> Callable[[Tensor], str]:
        """What makes the transcript of a waveform (S,)."""
        run, outputs = open_network(path), len(self._vocabulary)
        if isinstance(run, CrispNetwork):
            if tokens_in(path) != tokens_of(self._vocabulary):
                raise CheckpointError(
                    f"{path} has other labels than {self._source}",
                    hint="name a checkpoint and what was exported from it",
                )
            return lambda waveform: run.transcribe([waveform])[0]
        text: Callable[[list[int]], str] = self._vocabulary.decode
        if is_for_sherpa(path):
            symbols = symbols_of(self._vocabulary, source=str(self._source))
            outputs, text = len(symbols.texts), symbols.text

        def transcribe(waveform: Tensor) -> str:
            (logits,) = run([waveform])
            if logits.shape[-1] != outputs:
                raise CheckpointError(
                    f"{path} has {logits.shape[-1]} outputs, and the vocabulary of {self._source} is for {outputs}",
                    hint="name a checkpoint and what was exported from it",
                )
            return text(labels(logits))

        return transcribe


def _draw(result: BenchResult, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    ax = figure.subplots()
    drawn = [(one, 100 * one.errors.rate) for one in result.models if one.errors is not None]
    for one, rate in drawn:
        ax.plot(1 / one.speeds[-1].real_time_factor, rate, "o", label=f"{one.model} ({one.runtime})")
    last = result.models[0].speeds[-1]
    ax.set_xlabel(f"seconds of audio per second, {last.seconds:g} s, batch {last.batch}")
    ax.set_ylabel(f"{result.metric} in %, {result.split}")
    ax.set_xlim(left=0)
    ax.set_ylim(0, 1.1 * max(rate for _, rate in drawn) or 1)
    ax.legend(loc="lower right")
    save_figure(figure, path)
