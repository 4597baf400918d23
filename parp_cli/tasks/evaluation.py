"""How a checkpoint is evaluated, whatever its task: what can be asked for, what is compared, and what comes out."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from parp_cli.decoding.choose import Decoding
from parp_cli.decoding.recognizer import Precision
from parp_cli.errors import DataError, UsageError
from parp_cli.models.sources.load import load_masks
from parp_cli.pruning.masks import Masks, both, check_meant_for, sparsity, under
from parp_cli.scoring.outputs import Outputs, check_outputs, outputs
from parp_cli.scoring.results import Recognition, read_results
from parp_cli.storage.checkpoint import Checkpoint
from parp_cli.storage.run_folder import shortest_labels

Evaluated = TypeVar("Evaluated")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to evaluate.

    Attributes:
        splits: by default the test split of the data.
        masks: files with masks of the same model, under each of which it is evaluated too.
        against: results files of other systems on the same items, to test the difference from.
        seed: of the bootstrap.
        precision: of the encoder. With bfloat16 a result may depend on its batch, by rounding.
        html: a page to write.
        decoding, tuned, workers, trn, batch_seconds: of speech alone.
        tuned: tune the language model's weights on the validation split of the data, separately per system.
        workers: processes that decode; by default one per core where it pays.
        trn: prefix of two files for sclite, which end in ".ref.trn" and ".hyp.trn".
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

    def of_speech(self) -> list[str]:
        """The options given that are of speech alone, as the command line names them."""
        decoding = self.decoding
        pairs: list[tuple[Any, Any, str]]
        pairs = [(self, Options(), name) for name in ("trn", "tuned", "workers", "batch_seconds")]
        pairs += [(decoding, Decoding(), each.name) for each in fields(Decoding)]
        given = [name for ours, default, name in pairs if getattr(ours, name) != getattr(default, name)]
        if decoding.lm is not None or decoding.lexicon is not None:
            given = [name for name in given if name != "decoder"]  # which follows from these
        return ["--tune" if name == "tuned" else f"--{name.replace('_', '-')}" for name in given]


@dataclass(frozen=True, kw_only=True)
class System:
    """The checkpoint as it is, or under a mask; `masks` is all that is pruned, by its own mask and by this one."""

    name: str
    masks: Masks
    outputs: Outputs
    mask: Path | None = None

    @property
    def sparsity(self) -> float:
        """Of the weights it runs with, 0 without a mask."""
        return sparsity(self.masks)

    def pruned(self, content: Checkpoint) -> Checkpoint:
        """The checkpoint's content as this system runs it."""
        return replace(content, weights=under(self.masks, content.weights))


def compared(
    source: Path, content: Checkpoint, out: Path, options: Options, read: Mapping[str, str | Path | None]
) -> tuple[list[System], dict[str, list[Recognition]]]:
    """The systems to evaluate, and the results of others to test the difference from, by name.

    Args:
        out: the results file; a mask's label is added to its name, and to those of the other files.
        read: other files that are read, by what names them.

    Raises:
        MaskError: a file has no mask, or one of another model.
        UsageError: a file is named twice, cannot be written, or would overwrite another.
        DataError: results of another system cannot be read.
    """
    twice = [str(path) for path, count in Counter([*options.masks, *options.against]).items() if count > 1]
    if twice:
        raise UsageError(f"{' and '.join(twice)} named twice", hint="name each file once")
    names = shortest_labels([source if options.masks else out, *options.masks, *options.against])
    own = names[0] if len(names) > 1 else str(source)
    systems = [System(name=own, masks=content.masks, outputs=outputs(out, options.html, options.trn))]
    for name, path in zip(names[1:], options.masks, strict=False):
        masks, _ = load_masks(path)
        check_meant_for(path, masks, content.weights, what=str(source))
        files = outputs(out, options.html, options.trn, name.replace("/", "-"))
        systems.append(System(name=name, mask=path, masks=both(masks, content.masks), outputs=files))
    inputs: dict[str, Sequence[Path]] = {name: [Path(path)] for name, path in read.items() if path is not None}
    inputs |= {"the checkpoint": [source], "--mask": options.masks, "--against": options.against}
    check_outputs([system.outputs for system in systems], inputs)
    return systems, dict(zip(names[len(systems) :], map(read_results, options.against), strict=True))


@dataclass(frozen=True, kw_only=True)
class Evaluation(ABC, Generic[Evaluated]):
    """A checkpoint as it is, then under each mask.

    Attributes:
        left_out, notes: why items could not be evaluated, and what is unusual about others.
        unusable: what the recipe does about items that are left out.
    """

    systems: tuple[Evaluated, ...]
    left_out: tuple[Any, ...]
    notes: tuple[str, ...]
    unusable: Literal["refuse", "skip"]

    @property
    def as_it_is(self) -> Evaluated:
        """The checkpoint without a mask other than its own."""
        return self.systems[0]

    def error(self) -> DataError | None:
        """What to raise after showing the result; None where nothing was left out, or the recipe skips such."""
        return self.refusal() if self.left_out and self.unusable == "refuse" else None

    @abstractmethod
    def refusal(self) -> DataError:
        """The error that shows what was left out."""

    def to_json(self) -> dict[str, Any]:
        """Everything that was found."""
        return {"systems": self.systems, "left_out": self.left_out, "notes": self.notes}
