"""Recipes of fine-tuning runs: frozen dataclasses, whose annotations hold the limits and whose docstrings are the help.

A recipe is checked as a whole before any model is loaded; `load.py` reads it. The defaults of `Recipe` are those of
recipes/mini/10min.yaml, except for `model`, `pruning.pattern` and `pruning.interval`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Literal, Protocol

from parp_cli.config.values import (
    Count,
    CountOrZero,
    FilePath,
    MethodName,
    NameOrPath,
    Names,
    NamesOrPaths,
    Positive,
    PositiveOrZero,
    Precision,
    Section,
    Seed,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    ShareUpToHalf,
    documented,
)
from parp_cli.pruning.methods import spec_of
from parp_cli.pruning.methods.spec import FOUND_MASKS

Corpus = Literal["generated", "librispeech", "librilight", "manifest"]

DEFAULT_MODEL: Final = "mini"
"""The encoder of a run that names none."""


class AnyData(Protocol):
    """The data of any task: the names of its three splits, and what it is of."""

    @property
    def train(self) -> str: ...

    @property
    def valid(self) -> str: ...

    @property
    def test(self) -> str: ...

    @property
    def domain(self) -> tuple[str, ...]:
        """The language or languages of speech, the task of texts; () where none is named."""

    def on(self, domain: tuple[str, ...]) -> Any:
        """The same of another domain, as `pruning.found_on` names it."""


@dataclass(frozen=True, kw_only=True)
class Data(Section):
    """The speech corpus of task ctc and its splits."""

    corpus: Corpus = "generated"
    """Source of the utterances: generated (synthetic speech), librispeech, librilight (Libri-light limited for
    training, LibriSpeech for validation and test), or manifest (a list of your own files)."""

    language: Names | None = None
    """Of generated speech, the language, or a list of languages whose splits are joined: en, es, fr, it, ky, nl, ru,
    sv, tr, tt, zh; null is en. Of a corpus whose utterances tell theirs, the languages to read; of others, the language
    in which espeak-ng makes phones of texts that have none."""

    temperature: Positive | None = None
    """For speech in several languages, how much their shares of training are evened out: a language of n seconds is
    drawn in proportion to n^(1/temperature), by repeating utterances of rarer languages. Null, like 1, is as it comes;
    2 draws a language with 4 times less speech only 2 times less often."""

    root: FilePath | None = None
    """Folder of the corpus; for librilight the folder that holds both LibriSpeech and librispeech_finetuning. Null is
    the user's cache. Ignored for corpus manifest."""

    manifest: FilePath | None = None
    """The list of utterances, a file in TSV, CSV or JSON, or the folder (or tar archive) of a corpus: Common Voice,
    FLEURS, MLS, NeMo, Hugging Face's audiofolder, or Kaldi. Required for corpus manifest, refused for the others."""

    lists: FilePath | None = None
    """A folder of lists of utterance ids, one per line: `train.txt` is the split train. They replace the splits of the
    manifest."""

    train: str = "train-10min"
    """Training split."""

    valid: str = "dev-clean"
    """Validation split, which decides which checkpoint is best."""

    test: str = "test-clean"
    """Split that `parp eval` uses unless one is named."""

    labels: Literal["letters", "phones"] = "letters"
    """Output units of the CTC head. Phones are those of the corpus, or what espeak-ng makes of its texts."""

    alphabet: Literal["english", "found"] = "english"
    """Letters of a new head: english is A to Z and the apostrophe, found is all letters of the training transcripts.
    Ignored for phones."""

    strip_punctuation: bool = False
    """Whether transcripts lose their punctuation and symbols, except apostrophes inside words. Ignored for phones."""

    strip_stress: bool = True
    """Whether phones lose their stress: AH0 becomes AH, and ˈa becomes a. Ignored for letters."""

    strip_length: bool = False
    """Whether phones lose their length: iː becomes i. Ignored for letters."""

    strip_tone: bool = False
    """Whether phones lose their tone: a˥˩ and a51 become a. Ignored for letters."""

    unusable: Literal["refuse", "skip"] = "refuse"
    """What to do with utterances that cannot be trained on, such as those with more labels than frames: stop before
    training, or leave them out."""

    download: bool = False
    """Download splits that are missing in `root`; several GB for LibriSpeech."""

    max_valid_utterances: Count | None = None
    """Number of utterances to validate on; null is all of them."""

    @property
    def domain(self) -> tuple[str, ...]:
        """The languages; () where none is named."""
        return self.language or ()

    def on(self, domain: tuple[str, ...]) -> "Data":
        """The same data in other languages."""
        return replace(self, language=domain)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.corpus == "manifest" and self.manifest is None:
            yield "manifest", "corpus manifest needs the path of a manifest"
        if self.corpus != "manifest" and self.manifest is not None:
            yield "manifest", f"is not read by corpus {self.corpus}; set data.corpus to manifest, or remove it"
        if self.corpus != "manifest" and self.lists is not None:
            yield "lists", f"is not read by corpus {self.corpus}, which has splits of its own"


@dataclass(frozen=True, kw_only=True)
class SearchRounds(Section):
    """The rounds of method imp: train, prune a step further, rewind. The final run follows them."""

    step: ShareAboveZero = 0.1
    """Share of all prunable weights that each round prunes; the last round prunes the remainder."""

    updates: Count | None = None
    """Length of a round, in updates; null is a sixth of training.updates, as published."""

    learning_rate: Positive | None = None
    """Peak learning rate of a round; null is training.learning_rate."""


@dataclass(frozen=True, kw_only=True)
class Pruning(Section):
    """Which weights are pruned, and whether they may come back. Keys that the method does not read are ignored."""

    method: MethodName = "parp"
    """What happens to the mask while the network trains."""

    sparsity: ShareBelowOne | None = None
    """Share of the prunable weights that is zero at the end. Null is the sparsity of the mask the run starts from or of
    an N:M pattern, else 0.5. Ignored for dense."""

    initial: NameOrPath | None = None
    """First mask, where the run starts from a model without one: magnitude, random, random-weights (magnitudes of an
    untrained network), or the path (starting with `./`) of a checkpoint whose mask is applied to the model; or omp (the
    magnitudes after a dense fine-tuning) or parp (the last mask of parp), for which the run that finds it comes first.
    Null is random for rp, else magnitude."""

    found_on: NamesOrPaths | None = None
    """The language, or a list of them, in which an `initial` of omp or parp is found, where it is not that of `data`;
    of texts the task of GLUE, or the folder (starting with `./`) of other files with the same columns. So a mask is
    carried from one language or task to another. Null is the data of the run itself."""

    scope: str | None = None
    """Prunable layers: transformer (attention and feed-forward, as in the paper), attention, feed-forward, front-end
    (the feature encoder), everything, or a pattern of parameter names such as `*.layers.[0-5].*`. Null is the scope of
    the mask the run starts from, else transformer. Weights that do not train cannot come back (the feature encoder's,
    unless `training.train_front_end` is set)."""

    biases: bool | None = None
    """Whether the biases of prunable layers are prunable. Null is as in the mask the run starts from, else true."""

    pattern: str | None = None
    """Which weights compete with each other: global, layer, tensor, row (those of one output), N:M (2:4 keeps the 2
    largest of every 4 in a row), blocks RxC (16x16), or structures: whole attention heads and feed-forward units, and
    with scope everything channels of the feature encoder, by their mean magnitude, which `parp export --to small` can
    remove for good (heads, units, channels: only these). Parameters that cannot hold the pattern, such as biases, stay
    dense. Null is the pattern of the mask the run starts from, else global, or the method's own (row for wanda)."""

    interval: Positive | None = None
    """Time between re-prunings, in `interval_unit`. Null is the interval published for the split and the size of the
    model, or 50 updates."""

    interval_unit: Literal["updates", "epochs", "seconds"] = "updates"
    """Unit of `interval`; seconds are of training audio."""

    start: CountOrZero = 0
    """Update from which intervals count."""

    end: Count | None = None
    """Last update at which to re-prune. Null is the end of the run, for rigl and taylor three quarters of it."""

    final: bool = True
    """Whether parp, parp-p and movement re-prune at the end of the run; if not, the mask stays fixed after the last
    interval."""

    start_sparsity: ShareBelowOne | None = None
    """First sparsity of parp-p and movement. Null is that of the mask the run starts from, else half of `sparsity` for
    parp-p and 0 for movement."""

    growth: Literal["linear", "cubic"] = "linear"
    """How the sparsity of parp-p grows from one re-pruning to the next."""

    rewind: FilePath | None = None
    """Checkpoint whose weights omp, imp and pap return to; null is the model the run starts from."""

    rounds: SearchRounds = SearchRounds()
    """Of method imp."""

    drop_fraction: Share = 0.3
    """Share of the kept weights that rigl swaps at first; it decays to zero along half a cosine."""

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.interval is not None and self.interval_unit == "updates" and self.interval != int(self.interval):
            yield "interval", f"{self.interval:g} updates: expected a whole number"
        if self.end is not None and self.end < self.start:
            yield "end", f"{self.end} is before start, {self.start}"
        if self.start_sparsity is not None and self.sparsity is not None and self.start_sparsity > self.sparsity:
            yield "start_sparsity", f"{self.start_sparsity:g} is more than sparsity, {self.sparsity:g}"
        if self.found_on is not None and self.initial not in FOUND_MASKS and "initial" in spec_of(self.method).reads:
            yield "found_on", f"needs a first mask that is found by training: set initial to {' or '.join(FOUND_MASKS)}"
        yield from spec_of(self.method).conflicts(self.pattern, self.initial)


@documented
@dataclass(frozen=True, kw_only=True)
class Optimization(Section):
    """How a network is trained, whatever its task. Lengths are in updates."""

    updates: Count = 2500
    """Length of the run, in updates."""

    learning_rate: Positive = 4e-3
    """Peak learning rate of the encoder, and of the head unless it has its own."""

    head_learning_rate: Positive | None = None
    """Peak learning rate of the head; null is `learning_rate`."""

    adam_betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.98)
    """Decay rates of Adam's two moments."""

    adam_epsilon: Positive = 1e-8
    """Adam's epsilon."""

    weight_decay: PositiveOrZero = 0.0
    """Decoupled weight decay, per unit of learning rate."""

    gradient_clip: Positive | None = None
    """Maximum norm of the whole gradient; null does not clip."""

    freeze_encoder_updates: CountOrZero = 0
    """Updates at the start in which only the head trains."""

    validate_every: Count = 250
    """Updates between validations; the end of the run is always validated."""

    precision: Precision = "auto"
    """What the encoder computes in. auto is bfloat16 where the device has it, else float32; tf32 is float32 with matrix
    products rounded to TF32, on GPUs that have it. Weights and the CTC loss are always float32. A checkpoint records
    what auto resolved to."""

    save_minutes: Positive = 10.0
    """Maximum time between saves of the state that `--resume` continues from, in minutes; it is also saved at every
    validation. Does not affect results."""

    most_skipped_updates: CountOrZero = 10
    """Updates whose loss or gradient is not finite are skipped; more than this many in a row stop the run."""

    checkpoint_activations: bool = False
    """Recompute the activations of each Transformer layer in the backward pass instead of keeping them: much less
    memory for about a third more time."""

    deterministic: bool = False
    """Use deterministic algorithms on CUDA too, which is slower; the CPU is always deterministic for a given number of
    threads."""

    shard_weights: bool = False
    """Shard weights, gradients and moments over the processes that train together (FSDP2), for models that do not fit
    on one device, such as xls-r-2b. Changes results by rounding alone; in bfloat16 on GPUs by more of it, as there
    the weights of norms and all biases are rounded too."""

    compile: bool = False
    """Compile the Transformer layers, which takes minutes at the start."""

    @property
    def update_size(self) -> float:
        """The most that an update may hold, padding included, in the unit of its task's items."""
        raise NotImplementedError

    @property
    def pass_size(self) -> float:
        """The most that a forward pass may hold, likewise."""
        raise NotImplementedError

    def conflicts(self) -> Iterator[tuple[str, str]]:
        if self.freeze_encoder_updates > self.updates:
            yield "freeze_encoder_updates", f"{self.freeze_encoder_updates} is more than training.updates"


@dataclass(frozen=True, kw_only=True)
class Training(Optimization):
    """How a network of task ctc is trained. Audio is in seconds."""

    batch_seconds: Positive = 16.0
    """Maximum audio per update, in seconds, padding included."""

    micro_batch_seconds: Positive = 48.0
    """Maximum audio per forward pass, in seconds, padding included: as much as fits in memory. An update is divided
    into as many passes as it needs."""

    warmup: Share = 0.1
    """Share of the updates in which the learning rate rises to its peak. warmup, hold and decay sum to 1."""

    hold: Share = 0.4
    """Share of the updates at the peak."""

    decay: Share = 0.5
    """Share of the updates in which the learning rate decays exponentially to `final_scale` of the peak."""

    final_scale: ShareAboveZero = 0.05
    """Final learning rate, as a share of the peak."""

    layer_drop: ShareBelowOne = 0.0
    """Probability that a Transformer layer is skipped in an update."""

    dropout: ShareBelowOne = 0.0
    """Dropout probability after projections and before the head."""

    attention_dropout: ShareBelowOne = 0.0
    """Dropout probability of attention weights."""

    activation_dropout: ShareBelowOne = 0.1
    """Dropout probability inside the feed-forward layers."""

    time_mask_probability: Share = 0.1
    """Share of frames masked at the encoder's input, before spans overlap."""

    time_mask_length: Count = 10
    """Length of a time mask, in frames of 20 ms."""

    channel_mask_probability: Share = 0.0
    """Share of feature channels masked at the encoder's input, before spans overlap."""

    channel_mask_length: Count = 16
    """Length of a channel mask, in channels."""

    speed_change: ShareUpToHalf = 0.0
    """Maximum change of an utterance's speed in an update, as a share: 0.1 is from 0.9 to 1.1 times as fast. Above 0,
    features are computed again in every update, and slowed speech takes more memory."""

    train_front_end: bool = False
    """Whether the convolutional feature encoder trains; frozen in the paper."""

    @property
    def update_size(self) -> float:
        return self.batch_seconds

    @property
    def pass_size(self) -> float:
        return self.micro_batch_seconds

    def conflicts(self) -> Iterator[tuple[str, str]]:
        total = self.warmup + self.hold + self.decay
        if abs(total - 1) > 1e-6:
            yield "warmup", f"warmup, hold and decay sum to {total:.7g}: expected 1"
        yield from super().conflicts()


@dataclass(frozen=True, kw_only=True)
class Distillation(Section):
    """A fine-tuned network, the teacher, to learn from beside the labels: what keeps errors down where much is pruned,
    above all whole structures. A pass of the teacher makes an update about a third longer."""

    teacher: NameOrPath | None = None
    """dense: this recipe without pruning, which is run first, from the recipe's model; or the path (starting with `./`)
    of a fine-tuned checkpoint with the same outputs, number of layers and width. Null is no teacher."""

    outputs: PositiveOrZero = 1.0
    """Weight of the divergence from the teacher's outputs; that of the loss of labels is 1."""

    layers: PositiveOrZero = 1.0
    """Weight of the distance from the outputs of the teacher's layers."""


Task = Literal["ctc", "classification", "masked-lm"]
"""Every task that a recipe can select."""


@documented
@dataclass(frozen=True, kw_only=True)
class AnyRecipe(Section):
    """A fine-tuning run, whatever its task.

    Attributes:
        default_model: the encoder of a run that names none and starts from no checkpoint.
    """

    default_model: ClassVar[str]

    task: Task
    """What the network learns, which decides the keys of `data` and `training`."""

    model: NameOrPath | None = None
    """Encoder to start from: a name, a file or folder, or a hub name. With parp come mini (English), mini-x (eleven
    languages) and mini-text. A path starts with `./` (relative to the recipe),
    `../` or `~/`, or is absolute. Null is the encoder of the checkpoint the run starts from, else mini, of
    texts mini-text."""

    seed: Seed = 0
    """Seed of everything random: data order, masking, dropout, the new head."""

    data: AnyData
    pruning: Pruning = Pruning()
    training: Optimization
    distil: Distillation = Distillation()


@dataclass(frozen=True, kw_only=True)
class Recipe(AnyRecipe):
    """A fine-tuning run of task ctc."""

    default_model: ClassVar[str] = DEFAULT_MODEL

    task: Task = "ctc"
    """What the network learns, which decides the keys of `data` and `training`. ctc: speech recognition."""

    data: Data = Data()
    training: Training = Training()
