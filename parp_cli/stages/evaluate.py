"""Recognise a split and count the errors."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from parp_cli import checkpoint
from parp_cli.data.labels import Vocabulary, recorded_vocabulary
from parp_cli.data.problems import shown
from parp_cli.data.utterances import Utterance
from parp_cli.decoding.metrics import ErrorRate, character_errors, word_errors
from parp_cli.decoding.transcribe import transcribe
from parp_cli.errors import CheckpointError, DataError
from parp_cli.files import write_text
from parp_cli.models.recognizer import rebuild
from parp_cli.processes import ALONE, Processes
from parp_cli.progress import Notify, silent
from parp_cli.recipe import Data, Recipe, recipe_from_dict
from parp_cli.run_folder import require_head
from parp_cli.training.features import FrontEndFeatures
from parp_cli.training.preparation import load


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """Errors of one checkpoint on one split.

    Attributes:
        words: word errors; None for phones.
        characters: character errors; None for phones.
        phones: phone errors; None for letters.
        sparsity: of the checkpoint's mask, 0 without one.
        audio_seconds: recognised.
        seconds: it took, reading included.
        hypotheses: JSON Lines of id, reference, hypothesis.
        figures: all of this as JSON.
    """

    checkpoint: Path
    split: str
    utterances: int
    words: ErrorRate | None
    characters: ErrorRate | None
    phones: ErrorRate | None
    sparsity: float
    audio_seconds: float
    seconds: float
    hypotheses: Path
    figures: Path

    @property
    def real_time_factor(self) -> float:
        """Seconds of work a second of audio."""
        return self.seconds / self.audio_seconds


def evaluate(
    source: Path,
    *,
    out: Path,
    split: str | None = None,
    data: Data | None = None,
    device: torch.device | None = None,
    batch_seconds: float = 60.0,
    processes: Processes = ALONE,
    notify: Notify = silent,
) -> EvaluateResult:
    """Recognise all utterances of a split greedily.

    Args:
        source: a checkpoint with an output head.
        out: where the hypotheses go; the figures go beside it, as `.json`.
        split: by default the test split of `data`.
        data: the corpus; by default the one the checkpoint was fine-tuned on.
        batch_seconds: padded sound in one forward pass. Changes no transcript.
        processes: that recognise it together. Each calls with the same; the first writes, and all return the same but
            for the time it took.

    Raises:
        CheckpointError: the checkpoint cannot be read, or has no head.
        DataError: there is no such split, or an utterance has no reference.
    """
    content = checkpoint.read(source)
    require_head(source, content.metadata)
    architecture, model = rebuild(content, device or torch.device("cpu"), source=str(source))
    if data is None:
        data = recorded_recipe(content.metadata).data
    split = split or data.test
    vocabulary = _vocabulary(source, content.metadata)
    with processes.one_after_the_first():
        utterances = load(data, split, notify)
    references = _references(utterances, vocabulary, split)
    began = time.monotonic()
    transcripts = transcribe(
        model,
        FrontEndFeatures(model, architecture, frozen=True, device_bytes=0, memory_bytes=0),
        utterances,
        vocabulary,
        batch_seconds=batch_seconds,
        processes=processes,
        notify=notify,
    )
    seconds = time.monotonic() - began
    hypotheses = [transcript.text for transcript in transcripts]
    letters = vocabulary.labels == "letters"
    words = word_errors(references, hypotheses)
    result = EvaluateResult(
        checkpoint=source,
        split=split,
        utterances=len(utterances),
        words=words if letters else None,
        characters=character_errors(references, hypotheses) if letters else None,
        phones=None if letters else words,
        sparsity=0.0 if content.metadata.sparsity is None else content.metadata.sparsity.exact,
        audio_seconds=sum(utterance.seconds for utterance in utterances),
        seconds=seconds,
        hypotheses=out,
        figures=out.with_name(out.stem + ("-figures.json" if out.suffix == ".json" else ".json")),
    )
    if not processes.is_first:
        return result
    rows = (
        {"id": utterance.id, "reference": reference, "hypothesis": hypothesis}
        for utterance, reference, hypothesis in zip(utterances, references, hypotheses, strict=True)
    )
    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    figures = {**asdict(result), "real_time_factor": result.real_time_factor}
    write_text(result.figures, json.dumps(figures, default=str, indent=2, sort_keys=True) + "\n")
    return result


def recorded_recipe(metadata: checkpoint.Metadata, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of the run that made a checkpoint (the defaults, if none did), with `overrides` as `--set` takes them.

    Raises:
        RecipeError: an override is no recipe key, or has a wrong value.
    """
    values = metadata.recipe if metadata.recipe is not None and "data" in metadata.recipe else {}
    if any(override.partition("=")[0].strip() == "data.corpus" for override in overrides) and values:
        # Where the old corpus lay is nothing to the new one.
        values = {**values, "data": {**values["data"], "root": None, "manifest": None}}
    return recipe_from_dict(values, overrides)


def _vocabulary(source: Path, metadata: checkpoint.Metadata) -> Vocabulary:
    vocabulary = recorded_vocabulary(metadata.vocabulary, metadata.labels)
    if vocabulary is None:
        raise CheckpointError(f"{source} tells apart {metadata.labels}, not letters or phones")
    return vocabulary


def _references(utterances: list[Utterance], vocabulary: Vocabulary, split: str) -> list[str]:
    references = [vocabulary.reference(utterance) for utterance in utterances]
    empty = [utterance.id for utterance, reference in zip(utterances, references, strict=True) if not reference]
    if empty:
        raise DataError(
            f"{len(empty)} utterances of {split} have no {vocabulary.labels} to compare with",
            details=shown(empty),
            hint="add them, or name a checkpoint with other labels",
        )
    return references
