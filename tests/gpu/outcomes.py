"""A plugin of pytest that notes how each test ended as soon as it has, so that it is known when time is up."""

import json
import os

import pytest

PATH = "PARP_GPU_TESTS_OUTCOMES"
"""Names the environment variable with the file that lines are added to."""

_LINES = 40


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A line of JSON: the test's name, how it ended (passed, failed, skipped), and why, which begins with the error."""
    workers_own = "PYTEST_XDIST_WORKER" in os.environ  # the process that started it hears of it too
    if workers_own or (report.passed and report.when != "call"):
        return
    if isinstance(report.longrepr, tuple):  # of where it was skipped
        why = [report.longrepr[2]]
    else:
        crash = getattr(report.longrepr, "reprcrash", None)
        first = [] if crash is None else crash.message.splitlines()[:1]
        why = first + report.longreprtext.splitlines()[-_LINES:]
    line = {"name": report.nodeid, "outcome": report.outcome, "why": "\n".join(why)}
    with open(os.environ[PATH], "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
