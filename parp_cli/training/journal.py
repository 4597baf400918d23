"""The log of a training run: JSON Lines, and TensorBoard's event files where they are asked for."""

import importlib.util
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parp_cli.errors import UsageError
from parp_cli.storage.atomic import replacing, write_error

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Journal:
    """Events of a run, each with the update it happened after. A line is written at once: a kill loses nothing.

    `path` is the JSON Lines file; `tensorboard` a folder for TensorBoard, without which it raises UsageError then.
    All that writes raises ResourceError where no space is left, and UsageError where nothing can be written.
    """

    def __init__(self, path: Path, *, tensorboard: Path | None = None) -> None:
        self.path = path
        self._tensorboard_folder = tensorboard
        self._tensorboard: SummaryWriter | None = None
        if tensorboard is not None:
            require_tensorboard()

    def begin(self) -> None:
        """Forget what an earlier run logged here."""
        with _writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.unlink(missing_ok=True)
            if self._tensorboard_folder is not None:
                for file in self._tensorboard_folder.glob("events.out.tfevents.*"):
                    file.unlink()
        self._open_tensorboard(0)

    def go_on_after(self, update: int) -> None:
        """Drop what a killed run logged after its last saved state: it will happen, and be logged, again."""
        if self.path.exists():
            # Bytes: a kill or a full disk may have torn a letter apart, and a transcript may hold other line ends.
            lines = self.path.read_bytes().split(b"\n")[:-1]
            with replacing(self.path) as temporary:
                temporary.write_bytes(b"".join(line + b"\n" for line in lines if _update_of(line) <= update))
        self._open_tensorboard(update + 1)

    def log(self, event: str, update: int, values: Mapping[str, Any]) -> None:
        """Note an event, such as "update", "validation", "reprune" or "skipped".

        Values are for JSON, where numbers that are not finite become null. TensorBoard takes numbers and texts.
        """
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        line = json.dumps({"event": event, "update": update, **values}, ensure_ascii=False, allow_nan=False)
        with _writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self._tensorboard is not None:
            with _writing(self._tensorboard_folder):
                for key, value in values.items():
                    _add(self._tensorboard, f"{event}/{key}", value, update)

    def flush(self) -> None:
        """Write what TensorBoard holds back, so that nothing before a saved state is lost by a kill."""
        if self._tensorboard is not None:
            with _writing(self._tensorboard_folder):
                self._tensorboard.flush()

    def close(self) -> None:
        """Write what TensorBoard holds back, and end its thread."""
        if self._tensorboard is not None:
            writer, self._tensorboard = self._tensorboard, None
            with _writing(self._tensorboard_folder):
                writer.close()

    def _open_tensorboard(self, first_update: int) -> None:
        """Have TensorBoard forget what event files hold from this update on."""
        if self._tensorboard_folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            with _writing(self._tensorboard_folder):
                self._tensorboard = SummaryWriter(str(self._tensorboard_folder), purge_step=first_update)


def require_tensorboard() -> None:
    """Raise a UsageError where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "TensorBoard is not installed", hint="pip install 'parp-cli[tensorboard]', or leave --tensorboard out"
        )


@contextmanager
def _writing(path: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise write_error(path or Path(), error) from error


def _update_of(line: bytes) -> float:
    """The update an event happened after; infinity where a crash of the machine left no event."""
    try:
        return float(json.loads(line)["update"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def _add(writer: "SummaryWriter", name: str, value: Any, update: int) -> None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        writer.add_scalar(name, value, update)
    elif isinstance(value, str):
        writer.add_text(name, value, update)
    elif isinstance(value, Mapping) and all(isinstance(part, str) for part in value.values()):
        text = "  \n".join(f"{key}: {part}" for key, part in value.items())
        writer.add_text(name, text, update)
