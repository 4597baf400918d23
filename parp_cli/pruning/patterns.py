"""Which sparsities there are, and which weights compete with which for being kept.

    global    all weights together (PARP's)
    layer     the weights of each layer
    tensor    the weights of each tensor
    row       the weights of each row of a matrix, which all lead to one output
    2:4       N:M: of each M consecutive entries of a row the N largest are kept, as sparse tensor cores want it
    16x16     blocks of R rows and C columns are kept or pruned whole, and all blocks compete
    heads     attention heads are kept or pruned whole, and all heads compete; units: those of feed-forward blocks;
              channels: those of the feature encoder's convolutions
    structures  heads, units and channels, which compete with each other, by their mean magnitude

Rows, N:M and blocks take a tensor as a matrix (out, rest): a linear layer's as it is, a convolution's as it multiplies
unfolded patches. In every pattern the counts are exact (those of heads and units as nearly as whole ones allow), and of
equal magnitudes those that come first are pruned.
Importing this does not import torch, so that commands refuse a setting before it loads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from parp_cli.errors import ParpError, UsageError, first_few

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

    from parp_cli.pruning.structures import Structure

PatternKind = Literal["global", "layer", "tensor", "row", "n:m", "block", "structures", "heads", "units", "channels"]

WHOLE: Final = ("global", "layer", "tensor")
"""The kinds that any tensor can have."""

STRUCTURES: Final = ("structures", "heads", "units", "channels")
"""The kinds that prune what can be removed from a network for good."""

GROWING: Final = (*WHOLE, "row", "block", *STRUCTURES)
"""The kinds whose sparsity can grow; N:M has one."""

DEFAULT_SPARSITY, DEFAULT_SCOPE, DEFAULT_PATTERN = 0.5, "transformer", "global"
"""Where neither a recipe nor a command nor a checkpoint says what to prune."""

_CHUNK = 1 << 18
"""Entries ranked together, which bounds the memory beyond the masks; these and their ranks stay in the cache."""


def same_sparsity(one: float, other: float) -> bool:
    """Whether two sparsities are the same as far as a message shows them: to six digits."""
    return math.isclose(one, other, abs_tol=1e-6)


def check_setting(sparsity: float | None, pattern: str | None = None) -> None:
    """Refuse what is given of the two, if there is no such thing.

    Raises UsageError where the sparsity is outside [0, 1), or as `Pattern.parse`.
    """
    if sparsity is not None and not 0 <= sparsity < 1:
        raise UsageError(f"sparsity {sparsity:g} is outside [0, 1)", hint="0.5 prunes half of the weights")
    if pattern is not None:
        Pattern.parse(pattern)


@dataclass(frozen=True)
class Pattern:
    """Which weights compete with which. Make one with `parse`.

    Attributes:
        kind: what the sides mean.
        sides: N and M, or the rows and columns of a block; the other kinds have none.
    """

    kind: PatternKind
    sides: tuple[int, int] = (1, 1)

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read "global", "layer", "tensor", "row", a kind of structure, N:M such as "2:4", or a block such as "16x16".

        Raises UsageError where it is none of these, or not 1 <= N < M <= 32.
        """
        if text in (*WHOLE, "row", *STRUCTURES):
            return cls(cast(PatternKind, text))
        if match := re.fullmatch("([1-9][0-9]*)([:x])([1-9][0-9]*)", text):
            sides = (int(match[1]), int(match[3]))
            if match[2] == "x":
                return cls("block", sides)
            if sides[0] < sides[1] <= 32:
                return cls("n:m", sides)
        raise UsageError(
            f"no pattern {text!r}",
            hint="one of global, layer, tensor, row, structures, heads, units, channels, N of M weights "
            "(1 <= N < M <= 32) such as 2:4, or blocks such as 16x16",
        )

    def __str__(self) -> str:
        if self.kind not in ("n:m", "block"):
            return self.kind
        return (":" if self.kind == "n:m" else "x").join(map(str, self.sides))

    @property
    def sparsity(self) -> float | None:
        """The only sparsity that N:M has, 1 - N/M; None where it is free."""
        return 1 - self.sides[0] / self.sides[1] if self.kind == "n:m" else None

    @property
    def _cell(self) -> tuple[int, int]:
        """Rows and columns of what N:M and blocks repeat."""
        return (1, self.sides[1]) if self.kind == "n:m" else self.sides

    @property
    def structured(self) -> bool:
        """Whether it prunes what can be removed from a network for good."""
        return self.kind in STRUCTURES

    def chosen(self, structures: Sequence[Structure]) -> list[Structure]:
        """Those of a network's structures that it prunes; none where it prunes weights by themselves."""
        if self.kind not in STRUCTURES:
            return []
        return [structure for structure in structures if self.kind in ("structures", structure.kind)]

    def carries(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape can hold the pattern; for rows, N:M and blocks it takes a fitting matrix, and
        for structures (see `among`) more than a shape."""
        rows, columns = self._cell
        fits = len(shape) >= 2 and shape[0] % rows == 0 and math.prod(shape[1:]) % columns == 0
        return fits or self.kind in (*WHOLE, *STRUCTURES)

    def among(
        self, weights: Mapping[str, Tensor], *, where: str, structures: Sequence[Structure] = ()
    ) -> dict[str, Tensor]:
        """Those of the weights that can hold the pattern; the others are not pruned.

        The structures are those that the network has in these weights. Raises UsageError where none of those `where`
        it says can.
        """
        if self.kind in STRUCTURES:
            parts = {name for structure in self.chosen(structures) for name in structure.parts}
            if not parts:
                raise UsageError(
                    f"{where} holds no whole {'heads, units or channels' if self.kind == 'structures' else self.kind}",
                    hint="heads and units are in the scope transformer; channels in front-end or everything, with "
                    "biases (pruning.scope, --scope)",
                )
            return {name: weight for name, weight in weights.items() if name in parts}
        carrying = {name: weight for name, weight in weights.items() if self.carries(tuple(weight.shape))}
        if not carrying:
            raise UsageError(
                f"no weight of {where} can hold pattern {self}",
                details=[f"{name}: {tuple(weight.shape)}" for name, weight in list(weights.items())[:3]],
                hint="its sides must be multiples of the pattern's; choose another pruning.pattern or pruning.scope "
                "(--pattern, --scope)",
            )
        return carrying

    def rivals(self, names: Iterable[str], layers: Mapping[str, str]) -> dict[str, str]:
        """A label for each name; tensors that compete have the same one."""
        if self.kind == "layer":
            return {name: layers[name] for name in names}
        return {name: name if self.kind == "tensor" else "" for name in names}

    def masks(
        self,
        scores: Mapping[str, Tensor],
        sparsity: float,
        layers: Mapping[str, str],
        *,
        structures: Sequence[Structure] = (),
        group: ProcessGroup | None = None,
    ) -> dict[str, Tensor]:
        """Masks of this pattern that keep the largest magnitudes.

        Args:
            scores: what is ranked by magnitude, mostly the weights themselves; float32, float16 or bfloat16.
            sparsity: share to prune. Of n entries (or n blocks) that compete, round(s·n) are pruned; of heads and units
                so many that the number of their weights is nearest to it.
            layers: the label of each name's layer, which the pattern "layer" alone needs.
            structures: those of the network, which patterns of whole structures need.
            group: processes over which the scores are sharded, as for `select.magnitude_masks`; all must call this,
                and all raise if one does. A block must lie within one shard.

        Returns:
            For each name a boolean tensor of the score's shape and device, True = kept.

        Raises:
            UsageError: the sparsity is outside [0, 1) or not N:M's own, or a tensor, or a process's shard of it, cannot
                hold the pattern.
            ParpError: a score is NaN (the parameter is named).
        """
        from parp_cli.pruning.select import magnitude_masks, prune_count, total_count

        check_setting(sparsity)
        self._check_carried(scores, group)
        if self.sparsity is not None and not same_sparsity(sparsity, self.sparsity):
            raise UsageError(
                f"the pattern {self} cannot have sparsity {sparsity:g}", hint=f"it must be {self.sparsity:.6g}"
            )
        if self.kind in ("row", "n:m", *STRUCTURES):
            _check_numbers(scores, group)
        if self.kind in STRUCTURES:
            return self._structured(scores, sparsity, structures, group)
        if self.kind == "n:m":
            return {name: _n_of_m_mask(score, *self.sides) for name, score in scores.items()}
        if self.kind == "row":
            return {name: _row_mask(score, sparsity) for name, score in scores.items()}
        sets: dict[str, dict[str, Tensor]] = {}
        for name, label in self.rivals(scores, layers).items():
            ranked = _block_sums(scores[name], *self.sides) if self.kind == "block" else scores[name]
            sets.setdefault(label, {})[name] = ranked
        masks: dict[str, Tensor] = {}
        for rivals in sets.values():
            masks |= magnitude_masks(rivals, prune_count(sparsity, total_count(rivals, group)), group=group)
        if self.kind == "block":
            rows, columns = self.sides
            masks = {n: mask.repeat_interleave(rows, 0).repeat_interleave(columns, 1) for n, mask in masks.items()}
        return {name: masks[name].reshape(score.shape) for name, score in scores.items()}

    def _structured(
        self,
        scores: Mapping[str, Tensor],
        sparsity: float,
        structures: Sequence[Structure],
        group: ProcessGroup | None,
    ) -> dict[str, Tensor]:
        """Masks of whole groups, by the mean magnitude of their weights: else large ones would win by their size."""
        from parp_cli.pruning.structures import group_means, keep_groups

        chosen = self.chosen(structures)
        if wrong := set(scores) ^ {name for structure in chosen for name in structure.parts}:
            raise UsageError(
                f"{min(wrong)} cannot be pruned by the pattern {self}", hint="it takes the weights of whole structures"
            )
        means = group_means(scores, chosen, group)
        return keep_groups(means, scores, chosen, sparsity, rivals=dict.fromkeys(means, ""), group=group)

    def _check_carried(self, scores: Mapping[str, Tensor], group: ProcessGroup | None) -> None:
        shapes = {name: tuple(score.shape) for name, score in scores.items() if not self.carries(tuple(score.shape))}
        if wrong := _of_all(shapes, group):
            rows, columns = self._cell
            how = "" if group is None else ", sharded over the processes as it is,"
            raise UsageError(
                f"{next(iter(wrong))}{how} cannot hold the pattern {self}",
                details=first_few([f"{name}: {shape}" for name, shape in wrong.items()], 10),
                hint=f"a matrix can, whose rows are a multiple of {rows} and its columns of {columns}",
            )


GLOBAL = Pattern("global")
"""PARP's: all prunable weights compete."""


def _of_all(found: Mapping[str, Any], group: ProcessGroup | None) -> dict[str, Any]:
    """What all ranks of a group found: if one of them raised by itself, the others would wait for it forever."""
    from parp_cli.pruning.sharded import from_all_ranks

    return {name: value for one in from_all_ranks(found, group)[0] for name, value in one.items()}


def _check_numbers(scores: Mapping[str, Tensor], group: ProcessGroup | None) -> None:
    import torch

    # A sum of magnitudes is NaN only where one of them is, which is ten times quicker than to look at each.
    bad = {name: None for name, score in scores.items() if torch.linalg.vector_norm(score.detach(), 1).isnan()}
    for name in _of_all(bad, group):
        raise ParpError(f"{name} holds NaN, which has no magnitude to rank", hint="the model has diverged")


def _block_sums(score: Tensor, rows: int, columns: int) -> Tensor:
    """The sum of magnitudes of each block, (down, across)."""
    down, across = score.shape[0] // rows, math.prod(score.shape[1:]) // columns
    blocks = score.detach().reshape(down, rows, across, columns)
    # How a sum is vectorised shows in the last bits of float64, which float32 does not keep.
    return blocks.abs().double().sum((1, 3)).float()


def _row_mask(score: Tensor, sparsity: float) -> Tensor:
    from parp_cli.pruning.select import prune_count

    rows = score.detach().flatten(1).abs()
    smallest = rows.argsort(dim=1, stable=True)[:, : prune_count(sparsity, rows.shape[1])]
    return rows.new_ones(rows.shape).scatter_(1, smallest, 0).bool().reshape(score.shape)


def _n_of_m_mask(score: Tensor, n: int, m: int) -> Tensor:
    import torch

    groups = score.detach().reshape(-1, m)
    kept = torch.empty(groups.shape, dtype=torch.bool, device=score.device)
    step = _CHUNK // m
    for chunk, mask in zip(torch.split(groups, step), torch.split(kept, step), strict=True):
        places = chunk.T.contiguous().abs()  # (M, G): what is compared is contiguous
        # How many of its group are to be pruned before an entry: those smaller, and equal ones before it. To compare
        # all pairs takes, for so few, a third of the time of sorting.
        ranks = torch.zeros(places.shape, dtype=torch.int8, device=places.device)
        for later in range(1, m):
            earlier_first = places[:later] <= places[later]
            ranks[later] += earlier_first.sum(0, dtype=torch.int8)
            ranks[:later] += ~earlier_first
        torch.ge(ranks.T, m - n, out=mask)
    return kept.reshape(score.shape)
