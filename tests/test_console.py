"""What long work shows: how far it is, and lines that stay."""

import io

import pytest
from rich.console import Console

from parp_cli.console import Output
from parp_cli.progress import Progress

STEPS = [
    Progress("training", 1, 4, note="loss 2"),
    Progress("training", 2, 4, news="update 2: WER [50%]"),
    Progress("training", 3, 4, warning="update 3 skipped"),
    Progress("training", 4, 4, note="loss 1"),
]


def shown(*, terminal: bool, quiet: bool = False) -> str:
    """On stderr."""
    output = Output(quiet=quiet)
    written = io.StringIO()
    output._err = Console(file=written, force_terminal=terminal, width=120, highlight=False, color_system=None)
    with output.progress() as notify:
        for step in STEPS:
            notify(step)
    return written.getvalue()


def test_without_a_terminal() -> None:
    assert shown(terminal=False).splitlines() == [
        "training: 1/4, loss 2",
        "update 2: WER [50%]",
        "warning: update 3 skipped",
        "training: 4/4, loss 1",
    ]


def test_on_a_terminal() -> None:
    """Lines are printed once, above the bar, which goes on from where it was."""
    text = shown(terminal=True)
    assert text.count("update 2: WER [50%]\n") == 1
    assert text.count("warning: update 3 skipped\n") == 1
    last = text[text.rindex("training") :]
    assert "4/4" in last
    assert "loss 1" in last
    assert text.rindex("warning: ") < text.rindex("4/4")


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet(terminal: bool) -> None:
    assert shown(terminal=terminal, quiet=True) == ""
