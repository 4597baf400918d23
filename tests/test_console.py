"""What long work shows: how far it is, and lines that stay."""

import io
import json
import os
import sys

import pytest
from rich.console import Console

from parp_cli.console import Output, show_error
from parp_cli.errors import DataError
from parp_cli.runtime.progress import Progress

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


NOT_UTF8 = os.fsdecode(b"\xff.flac")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_what_cannot_be_encoded_is_shown_as_escapes(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or one file's name would keep all that comes after it from being shown."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    output = Output()
    output.verbatim(f"{NOT_UTF8}\tÉTÉ 語\n")
    output.text(f"wrote {NOT_UTF8}")
    output.table("files", ["name"], [[NOT_UTF8]])
    output.note(f"warning: {NOT_UTF8}")
    show_error(DataError(NOT_UTF8, details=[NOT_UTF8], hint=NOT_UTF8))
    for stream, count in ((out, 3), (err, 4)):
        stream.flush()
        stream.seek(0)
        assert stream.read().count("\\udcff.flac") == count
    out.seek(0)
    letters = {"utf-8": "ÉTÉ 語", "latin-1": "ÉTÉ \\u8a9e", "ascii": "\\xc9T\\xc9 \\u8a9e"}
    assert out.read().splitlines()[0] == f"\\udcff.flac\t{letters[encoding]}"


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_json_is_json_whatever_it_holds(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ({"file": NOT_UTF8, "text": "ÉTÉ"}, {"text": "ÉTÉ 語 😀"}):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", out)
        Output(as_json=True).json(value)
        out.seek(0)
        assert json.loads(out.read()) == value


def test_letters_of_json_are_readable(capsys: pytest.CaptureFixture[str]) -> None:
    Output(as_json=True).json({"text": "ÉTÉ"})
    assert capsys.readouterr().out == '{"text": "ÉTÉ"}\n'
