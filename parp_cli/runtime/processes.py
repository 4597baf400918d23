"""The processes that `torchrun` starts, and what they exchange; a single process exchanges nothing.

    torchrun --nproc-per-node 4 -m -- parp_cli finetune recipe.yaml

Batches and utterances are distributed over the ranks; only rank 0 writes files and prints. CPU tensors are exchanged
through gloo, CUDA tensors through NCCL.
"""

import gc
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from parp_cli.errors import ParpError, ResourceError
from parp_cli.runtime.device import launched

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.distributed_c10d import Store

_EXCHANGE = timedelta(minutes=30)
"""Timeout of a collective: longer than writing any file takes."""

_TURN = timedelta(days=7)
"""Timeout while rank 0 prepares, which may include downloading a corpus."""


class World:
    """The processes that work together, seen from one of them, which has the given rank (from 0); `store` is torch's
    key-value store that all share. All ranks must call the same methods in the same order."""

    def __init__(self, *, rank: int = 0, world_size: int = 1, store: "Store | None" = None) -> None:
        self.rank = rank
        self.world_size = world_size
        self._store = store
        self._turns = 0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the files and prints."""
        return self.rank == 0

    @property
    def local_world_size(self) -> int:
        """How many of the processes run on this machine and share its memory and disk."""
        return int(os.environ["LOCAL_WORLD_SIZE"]) if self.world_size > 1 else 1

    @property
    def group(self) -> "ProcessGroup | None":
        """torch's process group of all ranks; None for a single process."""
        return distributed.group.WORLD if self.world_size > 1 else None

    def device(self, chosen: torch.device) -> torch.device:
        """The device of this rank: its own CUDA device where CUDA was chosen, or a ResourceError where it has none."""
        if self.world_size == 1 or chosen.type != "cuda":
            return chosen
        number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= there:
            raise ResourceError(
                f"process {self.rank} has no CUDA device of its own: this machine has {there}",
                hint=f"torchrun --nproc-per-node {there}",
            )
        torch.cuda.set_device(number)
        return torch.device("cuda", number)

    def share(self, pieces: int) -> list[tuple[int, bool]]:
        """The pieces of work of this rank, round robin: the index of each, and whether its result counts. Every rank
        gets equally many, as a sharded model needs all of them in each pass: where there are too few, the last one is
        repeated and does not count."""
        numbers = range(self.rank, self.rank + self.world_size * -(-pieces // self.world_size), self.world_size)
        return [(min(number, pieces - 1), number < pieces) for number in numbers]

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum of a CPU tensor over all ranks."""
        if self.world_size > 1:
            numbers = numbers.clone()
            distributed.all_reduce(numbers)
        return numbers

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any rank."""
        return tuple(bool(flag) for flag in self.sum(torch.tensor(flags, dtype=torch.int64)).tolist())

    def wait(self) -> None:
        """Wait until all ranks have called this (a barrier)."""
        self.any(False)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in rank order; anything that JSON can hold."""
        if self.world_size == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        distributed.all_gather(sizes, torch.tensor([len(own)]))
        width = max(int(size) for size in sizes)
        rows = [torch.zeros(width, dtype=torch.uint8) for _ in range(self.world_size)]
        distributed.all_gather(rows, torch.nn.functional.pad(own, (0, width - len(own))))
        return [json.loads(bytes(row[: int(size)].tolist())) for row, size in zip(rows, sizes, strict=True)]

    def from_main(self, value: Any) -> Any:
        """The value of rank 0, on all ranks; anything that JSON can hold."""
        return self.gather(value if self.is_main else None)[0]

    def check_same(self, what: str, value: str) -> None:
        """Raise a ParpError, which names `what`, unless its hash `value` is the same on all ranks."""
        values = self.gather(value)
        if len(set(values)) > 1:
            raise ParpError(
                f"processes differ in {what}",
                details=[f"process {rank}: {value}" for rank, value in enumerate(values)],
                hint="give all of them the same files, the same recipe and the same version of parp and torch",
            )

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 runs the block before the other ranks do, so that they find caches filled."""
        if self._store is None:
            yield
            return
        self._turns += 1
        turn = f"turn/{self._turns}"
        if not self.is_main:
            self._store.wait([turn], _TURN)
        try:
            yield
        finally:
            if self.is_main:
                self._store.set(turn, "over")

    def says_first(self, text: str) -> bool:
        """True for the first rank that reports this message, so that it is printed once; for an empty text, if no rank
        has reported anything yet."""
        if self._store is None:
            return True
        try:
            if self._store.add("said", 1 if text else 0) > 0 and not text:
                return False
            return self._store.add(f"said/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1
        except RuntimeError:  # torchrun, which keeps the store, has gone
            return True


SINGLE = World()
"""The world of a single process."""

_current = SINGLE


def current() -> World:
    """The world that this process belongs to."""
    return _current


@contextmanager
def joined() -> Iterator[World]:
    """Join the process group that `torchrun` set up, until the block ends; inside, it is the `current` world."""
    global _current
    if not launched():
        yield SINGLE
        return
    store, rank, world_size = next(distributed.rendezvous("env://", timeout=_EXCHANGE))  # type: ignore[attr-defined]
    # Flags and metrics are CPU tensors: exchanging them does not wait for the device.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=_EXCHANGE)
    notes = distributed.PrefixStore("parp", store)  # type: ignore[attr-defined]
    _current = World(rank=rank, world_size=world_size, store=notes)
    try:
        yield _current
    finally:
        _current = SINGLE
        gc.collect()  # remains of models would keep the backend's threads alive
    # Not after an error: other ranks may still be waiting for this one, and would keep it from ending.
    distributed.destroy_process_group()


def lost_contact(error: BaseException) -> bool:
    """Whether a collective failed because another process ended; gloo reports that only in its message."""
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    )
