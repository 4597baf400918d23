"""Threads that read ahead: in order, with errors handed over, and never in the way of a program's end."""

import subprocess
import sys
import threading
from concurrent.futures import CancelledError

import pytest

from parp_cli.tasks.ctc.readers import Readers


def test_results_and_errors_are_handed_over_in_order() -> None:
    readers = Readers(1)
    done: list[int] = []

    def job(number: int) -> int:
        done.append(number)
        return 10 // number

    futures = [readers.submit(lambda number=number: job(number)) for number in (3, 0, 2)]
    assert futures[2].result(5) == 5
    assert futures[0].result(5) == 3
    with pytest.raises(ZeroDivisionError):
        futures[1].result(5)
    assert done == [3, 0, 2]
    readers.close()


def test_jobs_that_have_not_begun_are_forgotten() -> None:
    readers = Readers(1)
    begun, go_on = threading.Event(), threading.Event()

    def wait() -> bool:
        begun.set()
        return go_on.wait(5)

    first, second = readers.submit(wait), readers.submit(lambda: True)
    assert begun.wait(5)
    threading.Timer(0.05, go_on.set).start()
    readers.close()
    assert first.result(0)
    with pytest.raises(CancelledError):
        second.result(0)
    assert readers.submit(lambda: 7).result(5) == 7
    readers.close()
    readers.close()


def test_a_program_ends_while_a_job_waits_for_a_dead_disk() -> None:
    code = (
        "import time; from parp_cli.tasks.ctc.readers import Readers\n"
        "readers = Readers(2); readers.submit(lambda: time.sleep(600)); readers.submit(lambda: 1).result()\n"
        "print('the end')"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "the end\n", "")
