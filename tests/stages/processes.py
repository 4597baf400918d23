"""Fine-tuning in a process of its own, for tests that kill it, and what a run folder came to in the end."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FILES = ("finetune.safetensors", "finetune-last.safetensors")


def started(run: Path, settings: Sequence[str], *options: str) -> "subprocess.Popen[str]":
    """`parp finetune` in a run folder."""
    sets = [part for value in settings for part in ("--set", value)]
    command = ["finetune", *sets, "--run", str(run), "--quiet", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "parp_cli", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(happened: Callable[[], object], process: "subprocess.Popen[str]", *, seconds: int = 300) -> None:
    """Until something is so, which has to be while the process runs."""
    for _ in range(200 * seconds):
        if happened():
            return
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.005)
    raise AssertionError("it takes too long")


def wait_for_state(run: Path, process: "subprocess.Popen[str]", after: int = 0, *, seconds: int = 300) -> None:
    """Until the state is newer than `after` (nanoseconds)."""
    state = run / "state" / "finetune.safetensors"
    wait_for(lambda: state.exists() and state.stat().st_mtime_ns > after, process, seconds=seconds)


def outcome(run: Path) -> dict[str, Any]:
    """All that a run leaves, but for times: the same for equal runs, however often they were broken off."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = str(path.relative_to(run))
        if path.suffix == ".jsonl":
            found[name] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        elif path.suffix == ".json":
            noted = json.loads(path.read_text(encoding="utf-8"))
            del noted["cost"]["seconds"]
            found[name] = noted
        else:
            found[name] = path.read_bytes()
    return found
