"""Recipes: what a fine-tuning run does, in frozen dataclasses read from strict YAML.

A recipe is checked whole before any model loads; `strict_yaml.py` does the reading, and the limits stand in the
annotations here. The defaults of `Recipe` are those of recipes/mini/10min.yaml, but for `model`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from parp_cli.config.values import (
    Count,
    CountOrZero,
    FilePath,
    Flag,
    NameOrPath,
    Positive,
    PositiveOrZero,
    Section,
    Seed,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    ShareUpToHalf,
)
from parp_cli.errors import UsageError
from parp_cli.pruning.limits import read_pattern


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """What is learnt from, and what it is judged on."""

    corpus: Literal["generated", "librispeech", "librilight", "manifest"] = "generated"
    """Where utterances come from: synthetic speech, LibriSpeech, Libri-light limited (to train on; it is validated
    and tested on LibriSpeech's splits), or a list of one's own."""

    root: FilePath | None = None
    """The corpus's folder, for librilight one that holds both LibriSpeech and librispeech_finetuning; null is the
    user's cache. Nothing to `manifest`."""

    manifest: FilePath | None = None
    """The TSV or JSON Lines file of corpus `manifest`, and of no other."""

    train: str = "train-10min"
    """The split to learn from."""

    valid: str = "dev-clean"
    """The split that decides which checkpoint is best."""

    test: str = "test-clean"
    """The split that `parp eval` takes where none is named."""

    labels: Literal["letters", "phones"] = "letters"
    """What the CTC head spells."""

    alphabet: Literal["english", "found"] = "english"
    """Letters of a new head: A to Z and the apostrophe, or those of the training transcripts. Nothing to phones."""

    strip_stress: Flag = False
    """Read phones without their stress digits (AH0 as AH). Nothing to letters."""

    unusable: Literal["refuse", "skip"] = "refuse"
    """What to do about utterances that cannot be trained on, such as those with more labels than frames."""

    download: Flag = False
    """Fetch the splits that are not in `root`; several GB for LibriSpeech."""

    max_valid_utterances: Count | None = None
    """Validate on so many utterances only; null is all."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Values that do not go together."""
        if self.corpus == "manifest" and self.manifest is None:
            yield "manifest", "corpus manifest needs the path of one"
        if self.corpus != "manifest" and self.manifest is not None:
            yield "manifest", f"is not read by corpus {self.corpus}; set data.corpus to manifest, or remove it"


@dataclass(frozen=True, kw_only=True)
class SearchRounds(Section):
    """IMP's rounds: train, prune some more, rewind; the run proper follows."""

    step: ShareAboveZero = 0.1
    """Share of all prunable weights that a round prunes; the last one prunes what is left to the sparsity."""

    updates: Count | None = None
    """Length of a round, in updates; null is a sixth of training.updates, as published."""

    learning_rate: Positive | None = None
    """Peak of a round's schedule; null is training.learning_rate."""


@dataclass(frozen=True, kw_only=True)
class Pruning(Section):
    """Which weights go, and whether they may come back. What a method does not read makes no difference to it."""

    method: Literal["dense", "fixed", "mpi", "rp", "omp", "imp", "parp", "parp-p", "pap", "rigl"] = "parp"
    """dense: nothing is pruned. parp: pruned weights train too, and are pruned anew at intervals; parp-p: so, while
    the sparsity grows. fixed: what the first mask prunes stays zero; mpi and rp: so, with a mask of magnitudes or a
    random one; omp: with one of magnitudes after a dense fine-tuning; imp: after rounds of them; pap: with parp's last
    one; each trains from the pre-trained weights again. rigl: a share of the mask is swapped at intervals."""

    sparsity: ShareBelowOne | None = None
    """Share of the prunable weights that is zero at the end; null is that of the mask the run starts from, or of an
    N:M pattern, else 0.5. Nothing to method `dense`."""

    initial: NameOrPath | None = None
    """The first mask, where the run starts from a model without one: magnitude, random, random-weights (magnitudes of
    a network that has learnt nothing), or the path (with `./`) of a checkpoint whose mask is laid over the model. Null
    is random for method rp, else magnitude."""

    scope: str | None = None
    """Prunable layers: transformer (attention and feed-forward, as in the paper), attention, feed-forward, front-end,
    everything, or a pattern of parameter names such as `*.layers.[0-5].*`. Null is that of the mask the run starts
    from, else transformer. What does not train cannot come back (the front end without `training.train_front_end`)."""

    biases: Flag | None = None
    """Whether the biases of prunable layers are prunable; null is as in the mask the run starts from, else true."""

    pattern: str | None = None
    """Which weights compete with which: global, layer, tensor, N:M (2:4 keeps the 2 largest of each 4 in a row), or
    blocks of RxC (16x16). What cannot hold N:M or blocks, such as biases, is not pruned then. Null is that of the mask
    the run starts from, else global."""

    interval: Positive | None = None
    """Between two re-prunings, in `interval_unit`; null is what was published for the split and the size of the model,
    or 50 updates."""

    interval_unit: Literal["updates", "epochs", "seconds"] = "updates"
    """Of `interval`; seconds are of audio."""

    start: CountOrZero = 0
    """The first update after which an interval counts."""

    end: Count | None = None
    """The last one; null is the end of the run, for rigl three quarters of it."""

    final: Flag = True
    """Whether parp and parp-p re-prune at the end; without it the mask stays fixed from the last re-pruning on."""

    start_sparsity: ShareBelowOne | None = None
    """Where the sparsity of parp-p starts; null is that of the mask the run starts from, else half of `sparsity`."""

    growth: Literal["linear", "cubic"] = "linear"
    """How the sparsity of parp-p grows from re-pruning to re-pruning."""

    rewind: FilePath | None = None
    """A checkpoint whose weights omp, imp and pap go back to; null is the model they began from."""

    rounds: SearchRounds = SearchRounds()
    """Of imp."""

    drop_fraction: Share = 0.3
    """Share of the kept weights that rigl swaps at first; it falls to zero along half a cosine."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Values that do not go together."""
        if self.interval is not None and self.interval_unit == "updates" and self.interval != int(self.interval):
            yield "interval", f"{self.interval:g} updates: expected a whole number"
        if self.end is not None and self.end < self.start:
            yield "end", f"{self.end} is before start, {self.start}"
        if self.start_sparsity is not None and self.sparsity is not None and self.start_sparsity > self.sparsity:
            yield "start_sparsity", f"{self.start_sparsity:g} is more than sparsity, {self.sparsity:g}"
        pattern = self.pattern or "global"
        try:
            read_pattern(pattern)
        except UsageError as error:
            yield "pattern", f"{error.message}: {error.hint}"
        if self.method in ("imp", "parp-p") and ":" in pattern:
            yield "pattern", f"{pattern} has one sparsity, and that of method {self.method} grows"
        if self.method == "rigl" and any(sign in pattern for sign in ":x"):
            yield "pattern", f"rigl swaps single weights, which {pattern} does not allow"
        if self.method in ("omp", "imp", "pap", "dense") and self.initial is not None:
            yield "initial", f"method {self.method} does not start from a mask; remove it"
        own = {"mpi": "magnitude", "rp": "random"}.get(self.method)
        if own and self.initial in ("magnitude", "random", "random-weights") and not self.initial.startswith(own):
            yield "initial", f"method {self.method} has a {own} mask, and {self.initial} is none; remove it"


@dataclass(frozen=True, kw_only=True)
class Training(Section):
    """How the network is optimised. Times are in updates, sound in seconds."""

    updates: Count = 2500
    """Length of the run, in updates."""

    batch_seconds: Positive = 16.0
    """Sound in one update, in seconds, at most and padding included."""

    micro_batch_seconds: Positive = 48.0
    """Most sound in one forward pass, padding included, in seconds: as much as memory holds. An update is divided
    into as many passes as it needs."""

    learning_rate: Positive = 2e-3
    """Peak of the schedule, for the encoder, and for the head unless it has its own."""

    head_learning_rate: Positive | None = None
    """Peak of the schedule for the CTC head; null is `learning_rate`."""

    warmup: Share = 0.1
    """Share of the updates in which the rate rises to its peak. With hold and decay 1."""

    hold: Share = 0.4
    """Share of the updates at the peak."""

    decay: Share = 0.5
    """Share of the updates in which the rate falls, exponentially, to `final_scale` of the peak."""

    final_scale: ShareAboveZero = 0.05
    """Rate at the end, as a share of the peak."""

    adam_betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.98)
    """Decay of Adam's two moments."""

    adam_epsilon: Positive = 1e-8
    """Adam's epsilon."""

    weight_decay: PositiveOrZero = 0.0
    """Decoupled weight decay, per unit of learning rate."""

    gradient_clip: Positive | None = None
    """Largest norm of the whole gradient; null does not clip."""

    layer_drop: ShareBelowOne = 0.0
    """Probability that a Transformer layer is skipped in an update."""

    dropout: ShareBelowOne = 0.0
    """Dropout probability after projections and before the head."""

    attention_dropout: ShareBelowOne = 0.0
    """Dropout probability of attention weights."""

    activation_dropout: ShareBelowOne = 0.1
    """Dropout probability within the feed-forward layers."""

    time_mask_probability: Share = 0.25
    """Share of frames hidden from the encoder, before spans overlap."""

    time_mask_length: Count = 10
    """Length of a hidden span, in frames of 20 ms."""

    channel_mask_probability: Share = 0.1
    """Share of feature channels hidden from the encoder, before spans overlap."""

    channel_mask_length: Count = 16
    """Length of a hidden span, in channels."""

    speed_change: ShareUpToHalf = 0.0
    """How much faster or slower each update may hear an utterance, as a share: 0.1 is from 0.9 to 1.1 times as fast.
    Above 0, the front end's features have to be computed in each update; slower speech takes more memory."""

    train_front_end: Flag = False
    """Whether the convolutional front end trains; frozen in the paper."""

    freeze_encoder_updates: CountOrZero = 0
    """Updates at the start in which only the head trains."""

    validate_every: Count = 250
    """Updates between two validations; there is another one at the end."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What the encoder computes in; auto is bfloat16 where the device has it, else float32. Weights and CTC loss are
    float32 always. A checkpoint records what auto came to."""

    save_minutes: Positive = 10.0
    """The longest time between two savings of the state that `--resume` goes on from, in minutes; it is also saved at
    every validation. Changes no result."""

    most_skipped_updates: CountOrZero = 10
    """Updates whose loss or gradient is not finite are skipped; after so many in a row the run stops."""

    checkpoint_activations: Flag = False
    """Compute each Transformer layer's activations again in the backward pass instead of keeping them: much less memory
    for about a third more time."""

    deterministic: Flag = False
    """Compute the same bits every time on CUDA too, which is slower; the CPU always does, with as many threads."""

    shard_weights: Flag = False
    """Divide weights, gradients and moments among processes that train together (FSDP2), for models that one device
    cannot hold, such as xls-r-2b. Changes no result."""

    compile: Flag = False
    """Compile the Transformer layers, which takes minutes at the start."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Values that do not go together."""
        total = self.warmup + self.hold + self.decay
        if abs(total - 1) > 1e-6:
            yield "warmup", f"warmup, hold and decay sum to {total:.7g}: expected 1"
        if self.freeze_encoder_updates > self.updates:
            yield "freeze_encoder_updates", f"{self.freeze_encoder_updates} is more than training.updates"


Task = Literal["ctc"]
"""Every task that a recipe can name."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Section):
    """A fine-tuning run."""

    task: Task = "ctc"
    """What the network is trained for; it decides which keys `data` and `training` have. ctc: speech recognition."""

    model: NameOrPath | None = None
    """The encoder to start from: a name, a folder or file, or a hub name. `./` or `~/` makes it a path that is
    relative to the recipe. Null is that of the checkpoint the run starts from, else `mini`."""

    seed: Seed = 0
    """Of everything random: data order, masking, dropout, the new head."""

    data: Data = Data()
    pruning: Pruning = Pruning()
    training: Training = Training()


RECIPES: Final[dict[Task, type[Recipe]]] = {"ctc": Recipe}
"""By task, what a recipe is read as: another task is another class here, with its own `data` and `training`."""


def __getattr__(name: str) -> Any:
    """What moved to `load.py`, for modules that still look for it here."""
    if name not in ("load_recipe", "recipe_to_dict", "recipe_from_dict", "dump_yaml"):
        raise AttributeError(name)
    from parp_cli.config import load

    return getattr(load, name)
