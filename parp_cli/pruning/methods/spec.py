"""What a pruning method says of itself (`MethodSpec`), and what it does while a network trains (`Method`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from parp_cli.errors import UsageError
from parp_cli.pruning.patterns import DEFAULT_PATTERN, GLOBAL, Pattern, PatternKind

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.distributed import ProcessGroup

    from parp_cli.pruning.masks import Masks
    from parp_cli.pruning.structures import Structure

FirstMask = Literal["magnitude", "random", "random-weights"]
"""How a new mask is chosen: the smallest magnitudes; a uniform random choice; or the smallest magnitudes of an
untrained network of the same architecture (as random pruning in the authors' release)."""

FIRST_MASKS: tuple[FirstMask, ...] = get_args(FirstMask)

FoundMask = Literal["omp", "parp"]
"""How a first mask is found by training: the magnitudes after a dense fine-tuning; or the last mask of PARP."""

FOUND_MASKS: tuple[FoundMask, ...] = get_args(FoundMask)

TIMES = ("interval", "interval_unit", "start", "end")
"""Recipe keys of a method that re-prunes at intervals; with "final" it may do so at the end of the run too."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """After which updates of a run, counted from 1, masks change.

    They do on the multiples of `interval` from `start` to `end` (None: the run's last), and with `final` at the end of
    the run's `updates` whatever the interval.
    """

    interval: int
    updates: int
    start: int = 0
    end: int | None = None
    final: bool = True

    def due(self, update: int) -> bool:
        """Whether masks change after this update."""
        if self.final and update == self.updates:
            return True
        return self.start <= update <= self.last and update % self.interval == 0

    @property
    def times(self) -> tuple[int, ...]:
        """All updates that are due."""
        return tuple(update for update in range(1, self.updates + 1) if self.due(update))

    @property
    def last(self) -> int:
        """The last update at which an interval counts."""
        return self.updates if self.end is None else self.end


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a method works with in one training run; `training/plan.py` derives it from the recipe.

    Attributes:
        sparsity: share of the prunable weights that is pruned in the end.
        start_sparsity: that of the first mask; None for `sparsity`.
        growth: of the sparsity from re-pruning to re-pruning: by equal steps, or fast at first, 1 - (1 - t)³ of the way
            at share t of the re-prunings (Zhu and Gupta 2017, equation 1).
        drop_fraction: RigL's share of kept weights that is swapped at first.
        layers: a label for each weight's name, for patterns by layer.
        structures: of the network in these weights, for patterns of whole structures.
        modules: the module that owns each weight, by the weight's name, for forward hooks.
        group: processes over which the weights are sharded, as for `select.magnitude_masks`; None where they are whole.
    """

    sparsity: float
    schedule: Schedule
    start_sparsity: float | None = None
    pattern: Pattern = GLOBAL
    growth: Literal["linear", "cubic"] = "linear"
    drop_fraction: float = 0.3
    layers: Mapping[str, str] = field(default_factory=dict)
    structures: Sequence[Structure] = ()
    modules: Mapping[str, nn.Module] = field(default_factory=dict)
    group: ProcessGroup | None = None

    @property
    def sparsity_at_start(self) -> float:
        """That of the first mask."""
        return self.sparsity if self.start_sparsity is None else self.start_sparsity

    def sparsity_after(self, update: int) -> float:
        """Share to prune at a re-pruning after this update; that of the last one is exactly `sparsity`."""
        times = self.schedule.times
        passed = sum(time <= update for time in times) / len(times) if times else 1.0
        if passed == 1:
            return self.sparsity
        grown = passed if self.growth == "linear" else 1 - (1 - passed) ** 3
        return self.sparsity_at_start + (self.sparsity - self.sparsity_at_start) * grown

    def keep_largest(self, scores: Mapping[str, Tensor], sparsity: float) -> Masks:
        """Masks of the run's pattern that keep the scores of largest magnitude; raises as `Pattern.masks`."""
        return self.pattern.masks(scores, sparsity, self.layers, structures=self.structures, group=self.group)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A network at some point of its training. Where weights are sharded, all tensors are this process's shards.

    Attributes:
        update: how many updates are done; of the one in progress, its number.
        weights, masks: the prunable ones, by name, and the current masks.
        gradients: of the update in progress, for `Method.observe` alone: of pruned weights too, before clipping.
            Weights that are frozen for now have none.
        learning_rate: of the update in progress.
    """

    update: int
    weights: Mapping[str, Tensor]
    masks: Masks
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    learning_rate: float = 0.0


class Method:
    """What is done to the masks of one training run. As it stands: nothing, the first mask stays.

    Attributes:
        observed: what a resumed run needs of what was observed so far, by the weights' names, or by a word, a slash,
            and these. A tensor has the rows of its weight, whatever its other dimensions.
        observes_whole: whether these tensors have whatever shape they like instead, and are the same in all processes.
    """

    observes_whole = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.observed: dict[str, Tensor] = {}

    def begin(self, snapshot: Snapshot, forward: Callable[[], None]) -> Masks | None:
        """The first masks, of a method with `calibration_examples`; None keeps those of the (unpruned) snapshot.

        `forward` passes the examples through the network, one at a time and without gradients.
        """

    def observe(self, snapshot: Snapshot) -> None:
        """Asked at every update, between the backward pass and the optimizer's step."""

    def masks(self, snapshot: Snapshot) -> Masks | None:
        """The masks to go on with, asked at each update that the schedule has; None for no change."""

    def final_masks(self, snapshot: Snapshot) -> Masks | None:
        """The masks the network would have if its training ended now; None for the current ones."""

    def adjusts(self, update: int) -> bool:
        """Whether pruned weights train from here (0: the beginning) to the next re-pruning."""
        del update
        return False


@dataclass(frozen=True, kw_only=True)
class Run:
    """One of several training runs that a method is made of.

    Attributes:
        name: for people.
        method: of this run; None for the method itself, under its whole recipe: the last run.
        pruning, training: recipe keys of these sections that are different in this run.
        prune_to: the sparsity that the last weights of the run before are pruned to for the first mask; None for the
            mask that the run before ended with.
    """

    name: str
    method: str | None = None
    pruning: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    prune_to: float | None = None


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """All there is to say of a method.

    Attributes:
        name, description: as recipes give it, and one line for people.
        build: makes the method of a run.
        reads: keys of a recipe's `pruning` that it reads besides method, scope, biases and pattern. With "interval" it
            re-prunes at intervals; without "sparsity" it prunes nothing.
        starts_from: masks that it may begin from: any; those of magnitudes, or random ones, alone; or none, since it
            finds its own.
        start_share: the share of the target sparsity that the first mask has, unless the recipe says otherwise.
        end_share: the share of the run after which re-pruning stops, unless the recipe says otherwise.
        patterns: kinds of pattern that it can prune by.
        pattern: the one without which the recipe leaves it open.
        only_matrices: whether weights of linear layers alone are prunable, not biases or convolutions.
        calibration_examples: how many training examples `Method.begin` may pass through the network.
        runs: the training runs it is made of, from the recipe and the target sparsity; None for the one of `build`.
    """

    name: str
    description: str
    build: Callable[[Settings], Method] = Method
    reads: tuple[str, ...] = ("sparsity", "initial", "found_on")
    starts_from: Literal["any", "magnitude", "random", "nothing"] = "any"
    start_share: float = 1.0
    end_share: float = 1.0
    patterns: tuple[PatternKind, ...] = get_args(PatternKind)
    pattern: str = DEFAULT_PATTERN
    only_matrices: bool = False
    calibration_examples: int = 0
    runs: Callable[[Any, float], tuple[Run, ...]] | None = None

    @property
    def prunes(self) -> bool:
        """Whether it has masks at all."""
        return "sparsity" in self.reads

    @property
    def reprunes(self) -> bool:
        """Whether masks change while the network trains, in the run of `build`."""
        return self.runs is None and "interval" in self.reads

    def accepts(self, chosen_by: str | None) -> bool:
        """Whether a mask that was chosen in this way (None: unknown) can be the first."""
        return self.starts_from == "any" or (chosen_by or "").startswith(self.starts_from)

    def conflicts(self, pattern: str | None, initial: str | None) -> Iterator[tuple[str, str]]:
        """Recipe keys, with what is wrong, whose values do not go with the method."""
        try:
            if Pattern.parse(pattern or self.pattern).kind not in self.patterns:
                yield "pattern", f"method {self.name} takes no {pattern}, but {', '.join(self.patterns)}"
        except UsageError as error:
            yield "pattern", f"{error.message}: {error.hint}"
        if initial is not None and self.starts_from == "nothing":
            yield "initial", f"method {self.name} does not start from a mask; remove it"
        elif initial in (*FIRST_MASKS, *FOUND_MASKS) and not self.accepts(initial):
            yield "initial", f"method {self.name} has a {self.starts_from} mask, and {initial} is none; remove it"
