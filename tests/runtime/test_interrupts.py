import signal
import threading

import pytest

from parp_cli.runtime.interrupts import stopping


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stopping() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_a_request_is_for_the_outer_block_too() -> None:
    with stopping() as outer:
        with stopping() as before:
            pass
        with stopping() as inner:
            signal.raise_signal(signal.SIGTERM)
        with stopping() as later:
            pass
    assert [stop.requested for stop in (before, inner, outer, later)] == [False, True, True, True]


def test_nothing_changes_in_another_thread() -> None:
    handlers = [signal.getsignal(signal.SIGINT)]

    def work() -> None:
        with stopping() as stop:
            handlers.append(signal.getsignal(signal.SIGINT))
            assert not stop.requested

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(handlers) == 2
    assert handlers[0] is handlers[1]
