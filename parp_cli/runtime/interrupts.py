"""Ctrl-C and SIGTERM, answered between two steps, where nothing is half done."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether the user asked the run to stop: a signal handler that passes the request on to an outer one."""

    def __init__(self, outer: "Stop | None" = None) -> None:
        self.requested: bool = outer is not None and outer.requested
        self._outer = outer

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        """Record a signal; the second one interrupts."""
        if self.requested:
            raise KeyboardInterrupt
        self.request()

    def request(self) -> None:
        """Ask the run to stop, and the one that it is part of."""
        self.requested = True
        if self._outer is not None:
            self._outer.request()


@contextmanager
def stopping() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a request that the loop inside can answer between two steps.

    A second signal interrupts at once. For nested blocks a request is for both: the outer one stops even if the inner
    one has finished meanwhile. Outside the main thread signals cannot be caught, and nothing changes.
    """
    around = signal.getsignal(signal.SIGINT)
    stop = Stop(around if isinstance(around, Stop) else None)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
