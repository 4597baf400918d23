"""All output: results on stdout; progress, notes and errors on stderr.

With `json` a command's result is one JSON object on stdout. Progress is a bar on a terminal, and otherwise one plain
line now and then.
"""

import dataclasses
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from parp_cli.errors import ParpError
from parp_cli.runtime.progress import Notify, Progress, silent

_PLAIN_LINE_SECONDS = 15.0  # time between two lines of progress where there is no terminal


class Output:
    """What one command shows.

    Args:
        as_json: results as one JSON object.
        quiet: no progress and no notes; results and errors stay.
        mute: no results either, where another process shows them.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, mute: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet or mute
        self._mute = mute
        self._shows_text = not as_json and not mute
        _show_all(sys.stdout)
        _show_all(sys.stderr)
        # Piped tables keep their columns: 120 characters where there is no terminal to ask.
        width = None if sys.stdout.isatty() else 120
        self._out = Console(highlight=False, width=width, soft_wrap=not sys.stdout.isatty())
        self._err = Console(stderr=True, highlight=False)

    @property
    def width(self) -> int:
        """Characters in a line of the result."""
        return self._out.width

    def note(self, text: str) -> None:
        """A line on stderr, not part of the result."""
        if not self.quiet:
            self._err.print(escape(text), soft_wrap=True)

    def text(self, *lines: str) -> None:
        """Lines of the result."""
        for line in lines if self._shows_text else ():
            self._out.print(escape(line), soft_wrap=True)

    def wrote(self, *paths: Path) -> None:
        """A line of the result for each file."""
        self.text(*(f"wrote {path}" for path in paths))

    def verbatim(self, text: str) -> None:
        """A part of the result that another program may read: tabs stay, nothing is folded."""
        if self._shows_text:
            sys.stdout.write(text)
            sys.stdout.flush()

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table of the result; named columns after the first are of numbers, and nameless ones of text."""
        if not self._shows_text:
            return
        table = Table(title=title, title_justify="left", title_style="bold", show_header=any(columns))
        for index, column in enumerate(columns):
            table.add_column(column, justify="right" if index > 0 and column else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        self._out.print(table)

    def json(self, value: Any) -> None:
        """The result as one object, where JSON was asked for."""
        if self.as_json and not self._mute:
            line = json.dumps(jsonable(value), ensure_ascii=False, sort_keys=True)
            try:
                line.encode(sys.stdout.encoding or "utf-8")
            except UnicodeEncodeError:  # JSON has escapes of its own
                line = json.dumps(json.loads(line), sort_keys=True)
            sys.stdout.write(line + "\n")
            sys.stdout.flush()  # here, where a closed pipe can still be answered

    @contextmanager
    def progress(self) -> Iterator[Notify]:
        """A function for stages to report to, drawn until the block ends."""
        if self.quiet:
            yield silent
        elif self._err.is_terminal:
            yield from self._bars()
        else:
            yield self._plain_lines()

    def _bars(self) -> Iterator[Notify]:
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *times)
        tasks: dict[str, TaskID] = {}
        with Bar(*columns, console=self._err) as bar:

            def notify(step: Progress) -> None:
                if step.is_line:
                    self._line(step)
                    return
                if step.task not in tasks or bar.tasks[tasks[step.task]].total != step.total:
                    tasks[step.task] = bar.add_task(escape(step.task), total=step.total, note="")
                elif step.done < bar.tasks[tasks[step.task]].completed:  # the same task once more
                    bar.reset(tasks[step.task], total=step.total)
                bar.update(tasks[step.task], completed=step.done, note=escape(step.note))

            yield notify

    def _line(self, step: Progress) -> None:
        if step.warning:
            self.note(f"warning: {step.warning}")
        if step.news:
            self.note(step.news)

    def _plain_lines(self) -> Notify:
        began: dict[str, tuple[float, int]] = {}  # when, and with how much already done
        last_shown = 0.0

        def notify(step: Progress) -> None:
            nonlocal last_shown
            if step.is_line:
                self._line(step)
                return
            now = time.monotonic()
            start, first = began.setdefault(step.task, (now, step.done))
            if step.done >= step.total:
                began.pop(step.task)
            elif now - last_shown < _PLAIN_LINE_SECONDS:
                return
            last_shown = now
            text = f"{step.task}: {step.done}/{step.total}"
            if first < step.done < step.total:
                text += f", {duration((now - start) / (step.done - first) * (step.total - step.done))} left"
            self.note(text + (f", {step.note}" if step.note else ""))

        return notify


def show_error(error: ParpError, traceback: str = "") -> None:
    """Print an error on stderr, after the traceback of a bug."""
    _show_all(sys.stderr)
    console = Console(stderr=True, highlight=False)
    console.print(escape(traceback), end="", soft_wrap=True)
    console.print(f"[bold red]parp: error:[/] {escape(error.message)}", soft_wrap=True)
    for detail in error.details:
        console.print(f"  {escape(detail)}", soft_wrap=True)
    if error.hint is not None:
        console.print(f"  [bold]hint:[/] {escape(error.hint)}", soft_wrap=True)


def open_streams() -> None:
    """Prepare the standard streams of this process: closed ones take everything and show nothing, and a reader that
    exits, as in `parp finetune 2>&1 | head`, does not end the work."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # or the next file to be opened would get the number, and what is printed
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    # Of the class, because Typer makes consoles of its own.
    Console.on_broken_pipe = lambda console: discard(console.file)  # type: ignore


def discard(stream: IO[str]) -> None:
    """Drop what is buffered for a stream and written to it from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _show_all(stream: IO[str]) -> None:
    """Let a stream escape what it cannot encode, such as file names that are not valid text."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def jsonable(value: Any) -> Any:
    """Dataclasses (by their `to_json`, else with their properties), paths and tuples as plain values."""
    if hasattr(value, "to_json"):
        return jsonable(value.to_json())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        names += [name for name, member in vars(type(value)).items() if isinstance(member, property)]
        return {name: jsonable(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else " ".join(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def duration(seconds: float) -> str:
    """A duration as text: 45 s, 3 min 20 s, 2 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def size(count: int) -> str:
    """A number of bytes as text, with its unit."""
    for power, unit in enumerate(("B", "kB", "MB")):
        if count < 1000 ** (power + 1):
            return f"{count / 1000**power:.{min(power, 1)}f} {unit}"
    return f"{count / 1000**3:.2f} GB"


def percent(share: float | None) -> str:
    """A share in percent, or a dash."""
    return "–" if share is None else f"{share:.1%}"
