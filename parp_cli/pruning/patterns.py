"""Which weights compete with which for being kept: all of them (PARP's), those of a layer, a tensor, a row, or a few.

    global    all weights together
    layer     the weights of each layer
    tensor    the weights of each tensor
    row       the weights of each row of a matrix, which all lead to one output
    2:4       N:M: of each M consecutive entries of a row the N largest are kept, as sparse tensor cores want it
    16x16     blocks of R rows and C columns are kept or pruned whole, and all blocks compete

Rows, N:M and blocks take a tensor as a matrix (out, rest): a linear layer's as it is, a convolution's as it multiplies
unfolded patches. In every pattern the counts are exact, and of equal magnitudes those that come first are pruned.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from parp_cli.errors import ParpError, UsageError, first_few
from parp_cli.pruning.limits import WHOLE, PatternKind, check_sparsity, read_pattern, same_sparsity
from parp_cli.pruning.select import magnitude_masks, prune_count, total_count
from parp_cli.pruning.sharded import from_all_ranks

_CHUNK = 1 << 18
"""Entries ranked together, which bounds the memory beyond the masks; these and their ranks stay in the cache."""


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
    def parse(cls, text: str) -> "Pattern":
        """Read a pattern; raises as `limits.read_pattern`."""
        return cls(*read_pattern(text))

    def __str__(self) -> str:
        if self.kind not in ("n:m", "block"):
            return self.kind
        return (":" if self.kind == "n:m" else "x").join(map(str, self.sides))

    @property
    def sparsity(self) -> float | None:
        """The only sparsity that N:M has, 1 - N/M; None where it is free."""
        return 1 - self.sides[0] / self.sides[1] if self.kind == "n:m" else None

    def carries(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape can hold the pattern; for rows, N:M and blocks it takes a fitting matrix."""
        if self.kind in WHOLE:
            return True
        rows, columns = self._cell
        return len(shape) >= 2 and shape[0] % rows == 0 and math.prod(shape[1:]) % columns == 0

    def among(self, weights: Mapping[str, Tensor], *, where: str) -> dict[str, Tensor]:
        """Those of the weights that can hold the pattern; the others are not pruned.

        Args:
            weights: by name.
            where: names them in the error.

        Raises:
            UsageError: none can.
        """
        carrying = {name: weight for name, weight in weights.items() if self.carries(tuple(weight.shape))}
        if not carrying:
            raise UsageError(
                f"no weight of {where} can hold pattern {self}",
                details=[f"{name}: {tuple(weight.shape)}" for name, weight in list(weights.items())[:3]],
                hint="its sides must be multiples of the pattern's; choose another pattern or scope",
            )
        return carrying

    def masks(
        self,
        scores: Mapping[str, Tensor],
        sparsity: float,
        layers: Mapping[str, str],
        *,
        group: ProcessGroup | None = None,
    ) -> dict[str, Tensor]:
        """Masks of this pattern that keep the largest magnitudes.

        Args:
            scores: what is ranked by magnitude, mostly the weights themselves; float32, float16 or bfloat16.
            sparsity: share to prune. Of n entries (or n blocks) that compete, round(s·n) are pruned.
            layers: the label of each name's layer, which the pattern "layer" alone needs.
            group: processes over which the scores are sharded, as for `select.magnitude_masks`; all must call this,
                and all raise if one does. A block must lie within one shard.

        Returns:
            For each name a boolean tensor of the score's shape and device, True = kept.

        Raises:
            UsageError: the sparsity is outside [0, 1) or not N:M's own, or a tensor, or a process's shard of it, cannot
                hold the pattern.
            ParpError: a score is NaN (the parameter is named).
        """
        check_sparsity(sparsity)
        self._check_carried(scores, group)
        match self.kind:
            case "global":
                return _competing(scores, sparsity, group)
            case "layer":
                return _competing_within(scores, sparsity, group, lambda name: layers[name])
            case "tensor":
                return _competing_within(scores, sparsity, group, lambda name: name)
            case "block":
                return _block_masks(scores, sparsity, group, *self.sides)
            case "row":
                _check_numbers(scores, group)
                return {name: _row_mask(score, sparsity) for name, score in scores.items()}
            case "n:m":
                self._check_own(sparsity)
                _check_numbers(scores, group)
                return {name: _n_of_m_mask(score, *self.sides) for name, score in scores.items()}

    @property
    def _cell(self) -> tuple[int, int]:
        """Rows and columns of what N:M and blocks repeat."""
        return (1, self.sides[1]) if self.kind == "n:m" else self.sides

    def _check_carried(self, scores: Mapping[str, Tensor], group: ProcessGroup | None) -> None:
        shapes = {name: tuple(score.shape) for name, score in scores.items() if not self.carries(tuple(score.shape))}
        shapes = _of_all(shapes, group)
        how = "" if group is None else ", sharded over the processes as it is,"
        if wrong := list(shapes):
            rows, columns = self._cell
            raise UsageError(
                f"{wrong[0]}{how} cannot hold the pattern {self}",
                details=first_few([f"{name}: {shapes[name]}" for name in wrong], 10),
                hint=f"a matrix can, whose rows are a multiple of {rows} and its columns of {columns}",
            )

    def _check_own(self, sparsity: float) -> None:
        own = self.sparsity
        if own is not None and not same_sparsity(sparsity, own):
            raise UsageError(f"the pattern {self} cannot have sparsity {sparsity:g}", hint=f"it must be {own:.6g}")


GLOBAL = Pattern("global")
"""PARP's: all prunable weights compete."""


def _competing(scores: Mapping[str, Tensor], sparsity: float, group: ProcessGroup | None) -> dict[str, Tensor]:
    return magnitude_masks(scores, prune_count(sparsity, total_count(scores, group)), group=group)


def _competing_within(
    scores: Mapping[str, Tensor], sparsity: float, group: ProcessGroup | None, label: Callable[[str], str]
) -> dict[str, Tensor]:
    """Entries compete with those of the same label."""
    sets: dict[str, dict[str, Tensor]] = {}
    for name, score in scores.items():
        sets.setdefault(label(name), {})[name] = score
    masks = {name: mask for rivals in sets.values() for name, mask in _competing(rivals, sparsity, group).items()}
    return {name: masks[name] for name in scores}


def _block_masks(
    scores: Mapping[str, Tensor], sparsity: float, group: ProcessGroup | None, rows: int, columns: int
) -> dict[str, Tensor]:
    """A block's score is the sum of its magnitudes."""
    sums = {}
    for name, score in scores.items():
        down, across = score.shape[0] // rows, math.prod(score.shape[1:]) // columns
        blocks = score.detach().reshape(down, rows, across, columns)
        # How a sum is vectorised shows in the last bits of float64, which float32 does not keep.
        sums[name] = blocks.abs().sum((1, 3), dtype=torch.float64).float()
    return {
        name: mask.repeat_interleave(rows, 0).repeat_interleave(columns, 1).reshape(scores[name].shape)
        for name, mask in _competing(sums, sparsity, group).items()
    }


def _of_all(found: Mapping[str, Any], group: ProcessGroup | None) -> dict[str, Any]:
    """What all ranks of a group found: if one of them raised by itself, the others would wait for it in vain."""
    return {name: value for one in from_all_ranks(found, group)[0] for name, value in one.items()}


def _check_numbers(scores: Mapping[str, Tensor], group: ProcessGroup | None) -> None:
    # A sum of magnitudes is NaN only where one of them is, which is ten times quicker than to look at each.
    for name in _of_all(
        {name: None for name, score in scores.items() if torch.linalg.vector_norm(score.detach(), 1).isnan()}, group
    ):
        raise ParpError(f"{name} holds NaN, which has no magnitude to rank", hint="the model has diverged")


def _row_mask(score: Tensor, sparsity: float) -> Tensor:
    rows = score.detach().flatten(1).abs()
    order = rows.argsort(dim=1, stable=True)
    kept = torch.ones_like(rows, dtype=torch.bool)
    return kept.scatter_(1, order[:, : prune_count(sparsity, rows.shape[1])], False).reshape(score.shape)


def _n_of_m_mask(score: Tensor, n: int, m: int) -> Tensor:
    groups = score.detach().reshape(-1, m)
    kept = torch.empty(groups.shape, dtype=torch.bool, device=score.device)
    step = _CHUNK // m
    for chunk, mask in zip(torch.split(groups, step), torch.split(kept, step), strict=True):
        places = chunk.T.contiguous().abs()  # (M, G): what is compared lies together
        torch.ge(_ranks(places).T, m - n, out=mask)
    return kept.reshape(score.shape)


def _ranks(places: Tensor) -> Tensor:
    """How many of its column in (M, G) are to be pruned before an entry: those smaller, and equal ones before it.

    All pairs of rows are compared, which for so few takes a third of the time of sorting the columns.
    """
    ranks = torch.zeros(places.shape, dtype=torch.int8, device=places.device)
    for later in range(1, len(places)):
        earlier_first = places[:later] <= places[later]
        ranks[later] += earlier_first.sum(0, dtype=torch.int8)
        ranks[:later] += ~earlier_first
    return ranks
