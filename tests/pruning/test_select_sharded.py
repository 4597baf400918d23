"""Two ranks (gloo), each with its shard of every weight, get the mask that one process computes.

This file is also what the two ranks run: `python test_select_sharded.py RANK FOLDER`.
"""

import itertools
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, distributed

from parp_cli.errors import ParpError
from parp_cli.pruning.patterns import Pattern
from parp_cli.pruning.select import magnitude_masks

Weights = dict[str, Tensor]
Case = tuple[str, str, str, int]
RANKS = 2
DTYPES = (torch.float32, torch.bfloat16)
KINDS = ("random", "all alike", "half zero", "few magnitudes", "empty")
SHARDINGS: dict[str, Callable[[int], int]] = {
    "as FSDP2": lambda rows: math.ceil(rows / RANKS),
    "uneven": lambda rows: rows // 5,
    "all on the first": lambda rows: rows,
    "all on the second": lambda rows: 0,
}
"""How many of so many rows the first rank has."""

LARGE = 300_000


def make(kind: str, dtype: torch.dtype) -> Weights:
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (31, 40), "bias": (31,), "one": (1, 7), "none": (0, 4), "vector": (501,)}
    if kind == "empty":
        shapes = {"none": (0, 4), "nothing": (0,)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for weight in weights.values():
        if kind == "all alike":
            weight.copy_(weight.sign() * 0.25)
        elif kind == "half zero":
            weight.mul_(torch.rand(weight.shape, generator=generator) < 0.5)
        elif kind == "few magnitudes":
            weight.round_()
    return {name: weight.to(dtype) for name, weight in weights.items()}


def counts(weights: Weights) -> list[int]:
    total = sum(weight.numel() for weight in weights.values())
    return sorted({0, total // 3, (total + 1) // 2, total})


def shard(weights: Weights, rank: int, rows_of_first: Callable[[int], int]) -> Weights:
    first = {name: rows_of_first(len(weight)) for name, weight in weights.items()}
    return {name: weight[: first[name]] if rank == 0 else weight[first[name] :] for name, weight in weights.items()}


def large() -> Weights:
    return {"large": torch.randn(LARGE, generator=torch.Generator().manual_seed(3))}


def cases() -> Iterator[tuple[Case, Weights, int]]:
    for kind, dtype in itertools.product(KINDS, DTYPES):
        weights = make(kind, dtype)
        for sharding, k in itertools.product(SHARDINGS, counts(weights)):
            yield (kind, str(dtype), sharding, k), weights, k


def refused(weights: Weights, k: int) -> str:
    with pytest.raises((ParpError, ValueError)) as caught:
        magnitude_masks(weights, k, group=distributed.group.WORLD)
    return str(caught.value)


def work(rank: int, folder: Path) -> None:
    """What one of the processes does: the masks of every case, then what is refused, then what it all costs."""
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=RANKS)
    group = distributed.group.WORLD
    masks = {}
    for case, weights, k in cases():
        _, _, sharding, _ = case
        masks[case] = magnitude_masks(shard(weights, rank, SHARDINGS[sharding]), k, group=group)

    broken = make("random", torch.float32)
    broken["bias"][-1] = math.nan  # on the second
    refusals = [refused(shard(broken, rank, SHARDINGS["uneven"]), 5), refused({"a": torch.ones(2 + rank)}, 6)]

    # Only the second has a shard that is no whole number of blocks, and only it has NaN in its rows.
    for text, score in (
        ("2x1", torch.ones(2 + rank, 4)),
        ("row", torch.tensor([[1.0, 2.0], [1.0, [3.0, math.nan][rank]]])),
    ):
        with pytest.raises(ParpError) as caught:
            Pattern.parse(text).masks({"a": score}, 0.5, {}, group=group)
        refusals.append(str(caught.value))

    sent = []

    def all_reduce(tensor: Tensor, **options: object) -> None:
        sent.append(tensor.numel())
        real(tensor, **options)

    real = distributed.all_reduce
    with mock.patch.object(distributed, "all_reduce", all_reduce):
        mask = magnitude_masks(shard(large(), rank, SHARDINGS["uneven"]), LARGE // 2, group=group)["large"]
        for_large = list(sent)
        sent.clear()
        magnitude_masks({"small": large()["large"][:1_000]}, 1_000, group=group)
    torch.save((masks, refusals, (for_large, sent), mask), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, __file__]
    processes = [
        subprocess.Popen([*command, str(rank), str(folder)], stderr=subprocess.PIPE, text=True) for rank in range(RANKS)
    ]
    try:
        errors = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * RANKS, "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def test_the_mask_of_one_process(results: list[tuple[Any, ...]]) -> None:
    shards = [found[0] for found in results]
    seen = 0
    for case, weights, k in cases():
        expected = magnitude_masks(weights, k)
        for name, mask in expected.items():
            assert torch.equal(torch.cat([masks[case][name] for masks in shards]), mask), (case, name)
        seen += 1
    assert seen == len(shards[0]) > 100


def test_every_process_refuses_alike(results: list[tuple[Any, ...]]) -> None:
    first, second = (found[1] for found in results)
    assert first == second
    assert "bias holds NaN" in first[0]
    assert first[1] == "cannot prune 6 of 5 weights"
    assert first[2].startswith("a, sharded over the processes as it is, cannot hold the pattern 2x1")
    assert "a holds NaN" in first[3]


def test_only_counts_are_exchanged(results: list[tuple[Any, ...]]) -> None:
    """As many numbers of few weights as of many, and all of them are sums."""
    (alone,) = magnitude_masks(large(), LARGE // 2).values()
    assert torch.equal(torch.cat([found[3] for found in results]), alone)
    for _, _, (for_large, for_small), _ in results:
        assert for_large == for_small
        assert 0 < sum(for_large) < LARGE / 2


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
