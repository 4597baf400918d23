"""Processes that do one piece of work together, as `torchrun` starts them; or one alone, which exchanges nothing.

    torchrun --nproc-per-node 4 -m -- parp_cli finetune recipe.yaml

Sound, batches and utterances are dealt out among them; only the first writes files and speaks to people. Numbers go
through gloo, or on CUDA through NCCL where tensors lie there.
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
"""How long one waits for the others within an exchange of numbers: more than any file takes to write."""

_TURN = timedelta(days=7)
"""How long one waits for the first to prepare, which may be to download a corpus."""


class Processes:
    """Those that work together, seen from one of them. Each must call the same methods in the same order.

    Args:
        rank: number of this one, from 0.
        count: how many there are.
        store: where they leave notes for each other; only one alone needs none.

    Attributes:
        rank, count: as given.
    """

    def __init__(self, *, rank: int = 0, count: int = 1, store: "Store | None" = None) -> None:
        self.rank = rank
        self.count = count
        self._store = store
        self._turns = 0

    @property
    def is_first(self) -> bool:
        """Whether this one writes files and speaks to people."""
        return self.rank == 0

    @property
    def on_this_machine(self) -> int:
        """How many of them share its memory and disk."""
        return int(os.environ["LOCAL_WORLD_SIZE"]) if self.count > 1 else 1

    @property
    def group(self) -> "ProcessGroup | None":
        """All of them for torch; None for one alone."""
        return distributed.group.WORLD if self.count > 1 else None

    def device(self, chosen: torch.device) -> torch.device:
        """This process's own, where a kind of device was chosen.

        Raises:
            ResourceError: there are fewer CUDA devices than processes on this machine.
        """
        if self.count == 1 or chosen.type != "cuda":
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
        """Which pieces of work this process takes up, in turn: the number of each, and whether it counts.

        All take up as many, since a model that is divided among them needs them all in each pass: whoever has fewer
        takes up the last piece once more, in vain.
        """
        numbers = range(self.rank, self.rank + self.count * -(-pieces // self.count), self.count)
        return [(min(number, pieces - 1), number < pieces) for number in numbers]

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over all processes, of a tensor on the CPU."""
        if self.count > 1:
            numbers = numbers.clone()
            distributed.all_reduce(numbers)
        return numbers

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag whether it is set in any process."""
        return tuple(bool(flag) for flag in self.sum(torch.tensor(flags, dtype=torch.int64)).tolist())

    def wait(self) -> None:
        """Until all have come here."""
        self.any(False)

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in the order of their ranks; anything JSON can hold."""
        if self.count == 1:
            return [value]
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        distributed.all_gather(sizes, torch.tensor([len(own)]))
        width = max(int(size) for size in sizes)
        rows = [torch.zeros(width, dtype=torch.uint8) for _ in range(self.count)]
        distributed.all_gather(rows, torch.nn.functional.pad(own, (0, width - len(own))))
        return [json.loads(bytes(row[: int(size)].tolist())) for row, size in zip(rows, sizes, strict=True)]

    def from_first(self, value: Any) -> Any:
        """What the first has, in all of them; anything JSON can hold."""
        return self.gather(value if self.is_first else None)[0]

    def check_same(self, what: str, value: str) -> None:
        """Go on only if all processes have the same.

        Args:
            what: names it in the error.
            value: a hash of it.

        Raises:
            ParpError: they have not.
        """
        found = self.gather(value)
        if len(set(found)) > 1:
            raise ParpError(
                f"processes differ in {what}",
                details=[f"process {rank}: {value}" for rank, value in enumerate(found)],
                hint="give all of them the same files, the same recipe and the same version of parp and torch",
            )

    @contextmanager
    def one_after_the_first(self) -> Iterator[None]:
        """The first runs what is inside before the others do, so that they find its caches filled."""
        if self._store is None:
            yield
            return
        self._turns += 1
        turn = f"turn/{self._turns}"
        if not self.is_first:
            self._store.wait([turn], _TURN)
        try:
            yield
        finally:
            if self.is_first:
                self._store.set(turn, "over")

    def first_to_say(self, text: str) -> bool:
        """Whether none of the processes has said this before; what all of them find wrong is to be said once.

        Where nothing is given, whether none of them has said anything.
        """
        if self._store is None:
            return True
        try:
            if self._store.add("said", 1 if text else 0) > 0 and not text:
                return False
            return self._store.add(f"said/{hashlib.sha256(text.encode()).hexdigest()}", 1) == 1
        except RuntimeError:  # torchrun, which keeps the store, has gone
            return True


ALONE = Processes()
"""One process, which has nobody to share with."""

_current = ALONE


def current() -> Processes:
    """Those that this process was started with."""
    return _current


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that `torchrun` started, until the block ends; they are `current` meanwhile."""
    global _current
    if not launched():
        yield ALONE
        return
    store, rank, count = next(distributed.rendezvous("env://", timeout=_EXCHANGE))  # type: ignore[attr-defined]
    # What lies on the CPU, such as flags and figures, need not wait for what the device is doing.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_EXCHANGE)
    notes = distributed.PrefixStore("parp", store)  # type: ignore[attr-defined]
    _current = Processes(rank=rank, count=count, store=notes)
    try:
        yield _current
    finally:
        _current = ALONE
        gc.collect()  # what is left of models holds on to the threads that are to end now
    # Not after an error: the others may be waiting for this process, and would keep it from ending.
    distributed.destroy_process_group()


def lost_contact(error: BaseException) -> bool:
    """Whether an exchange failed since another process has ended; gloo says so in words alone."""
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error).lower()
    )
