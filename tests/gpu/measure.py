"""The tests of a GPU, then the benchmarks on it: one JSON file and one of Markdown tables. `run.sh` calls it."""

import argparse
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tests.gpu import outcomes

BENCHMARKS = "tests/benchmarks/bench_"

FULL = (
    ("training", "--model", "base", "--precision", "bfloat16", "--utterances", "32"),
    ("training", "--model", "large", "--precision", "bfloat16", "--utterances", "32"),
    ("selection",),
    ("recognition", "--model", "base", "--batch-seconds", "240", "--utterances", "192"),
    ("semi_structured",),
    ("training", "--model", "base", "--precision", "bfloat16", "--utterances", "32", "--compile"),
    ("training", "--model", "large", "--precision", "bfloat16", "--utterances", "32", "--compile"),
    ("training", "--model", "1b", "--precision", "bfloat16", "--utterances", "8", "--rounds", "3"),
    ("training", "--model", "base", "--precision", "float32", "tf32", "bfloat16"),
    ("training", "--model", "large", "--precision", "tf32", "bfloat16"),
    ("recognition", "--model", "large", "--batch-seconds", "240", "--utterances", "192"),
)
"""What matters the most comes first: the machine may be taken away."""

QUICK = (
    ("training", "--model", "tiny", "--rounds", "1", "--utterances", "1", "--precision", "bfloat16"),
    ("recognition", "--model", "base", "--utterances", "3", "--sides", "ours", "--precision", "float32"),
    ("selection", "--models", "base", "--repeat", "0", "--only", "scale"),
    ("semi_structured", "--models", "base", "--seconds", "10"),
)

LIBRARIES = ("torch", "torchaudio", "transformers", "numpy", "triton")

TEST_SECONDS, BENCHMARK_SECONDS = 900, 600
LEAST_SECONDS = 30
"""Less is no time for a benchmark."""

PARTS = ("tests", "benchmarks")


@dataclass(frozen=True)
class Table:
    """A Markdown table: the names of its columns, and the cells of each row."""

    columns: list[str]
    rows: list[list[str]]


@dataclass
class Step:
    """A command: how it ended (None: it took too long), how long it took, and its last lines where it failed."""

    command: str
    exit_code: int | None
    seconds: float
    tables: list[Table] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    failed: str = ""


@dataclass(frozen=True)
class Tests:
    """How many tests ended how; those that failed or were skipped by name, with the reason."""

    step: Step
    passed: int
    failed: dict[str, str]
    skipped: dict[str, str]


def step_of(values: dict[str, Any]) -> Step:
    """As `asdict` gave it."""
    return Step(**{**values, "tables": [Table(**table) for table in values["tables"]]})


def tests_of(values: dict[str, Any]) -> Tests:
    """As `asdict` gave it."""
    return Tests(**{**values, "step": step_of(values["step"])})


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables_in(text: str) -> tuple[list[Table], list[str]]:
    """The Markdown tables of a text, and its other lines."""
    tables: list[Table] = []
    others: list[str] = []
    block: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            block.append(cells(line))
            continue
        if block and len(block) > 1 and set("".join(block[1])) <= set("-: "):
            tables.append(Table(block[0], block[2:]))
        elif block and tables:  # the table goes on after what was said between
            tables[-1].rows.extend(block)
        block = []
        if line.strip():
            others.append(line.strip())
    return tables, others


def run(command: Sequence[str], seconds: float) -> tuple[Step, str]:
    """A command with what it wrote to its standard output, also where it took too long."""
    print("$", *command, flush=True)
    began = time.monotonic()
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    code: int | None
    try:
        output, errors = process.communicate(timeout=seconds)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
        (output, errors), code = process.communicate(), None
        errors += f"\nended after {seconds:.0f} s"
    print(output, errors, flush=True)
    step = Step(command=" ".join(command), exit_code=code, seconds=round(time.monotonic() - began, 1))
    if code != 0:
        step.failed = "\n".join(f"{output}\n{errors}".splitlines()[-30:])
    return step, output


def tested(out: Path, device: str, quick: bool, seconds: float) -> Tests:
    """All tests that are marked `gpu`; on a CPU, which takes the place of a GPU, quickly or all of `tests/gpu`."""
    path = out / "tests.jsonl"
    path.write_text("", encoding="utf-8")
    os.environ[outcomes.PATH] = str(path)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "-p", outcomes.__name__]
    if device == "cpu":
        os.environ["PARP_GPU_TESTS_DEVICE"] = "cpu"
        command += ["tests/gpu/test_masks.py", "tests/gpu/test_numbers.py"] if quick else ["tests/gpu"]
    elif importlib.util.find_spec("xdist") is not None:
        command += ["--numprocesses", "4", "--dist", "loadfile"]  # most of the time is not the device's
    step, _ = run(command, min(TEST_SECONDS, seconds))
    ends: dict[str, dict[str, str]] = {outcome: {} for outcome in ("passed", "failed", "skipped")}
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        ends[line["outcome"]][line["name"]] = line["why"]
    passed = len(ends["passed"].keys() - ends["failed"].keys())  # where it failed as it tidied up
    return Tests(step=step, passed=passed, failed=ends["failed"], skipped=ends["skipped"])


def measured(name: str, options: Sequence[str], device: str, seconds: float) -> Step:
    command = [sys.executable, f"{BENCHMARKS}{name}.py", *options, "--device", device]
    step, output = run(command, min(BENCHMARK_SECONDS, seconds))
    step.tables, step.remarks = tables_in(output)
    return step


def machine(device: str) -> dict[str, str | float]:
    found: dict[str, str | float] = {"python": platform.python_version(), "cpu_cores": os.cpu_count() or 0}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "gpu_gb": round(properties.total_memory / 1e9, 1)}
        found["cuda"] = torch.version.cuda or ""
    return found


def row(values: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, values))} |"


def markdown(about: dict[str, str | float], tests: Tests | None, steps: Sequence[Step]) -> str:
    """Everything as tables; what failed with its last lines."""
    lines = ["# Results on a GPU", "", ", ".join(f"{key} {value}" for key, value in about.items()), ""]
    if tests is not None:
        counts = f"{tests.passed} passed, {len(tests.failed)} failed, {len(tests.skipped)} skipped"
        lines += ["## Tests", "", f"{counts}, in {tests.step.seconds:.0f} s", ""]
        lines += [f"- {name}: {reason.splitlines()[0] if reason else ''}" for name, reason in tests.failed.items()]
        lines += [f"- {name} (skipped): {reason}" for name, reason in tests.skipped.items()]
        lines += ["", "```", tests.step.failed, "```"] if tests.step.exit_code not in (0, 1) else []  # not all were run
    for step in steps:
        lines += ["", f"## `{step.command.partition(' ')[2]}`", "", f"{step.seconds:.0f} s", ""]
        for table in step.tables:
            lines += [row(table.columns), row(["---"] + ["---:"] * (len(table.columns) - 1)), *map(row, table.rows), ""]
        lines += [f"- {remark}" for remark in step.remarks]
        lines += ["", "```", step.failed, "```"] if step.failed else []
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="the smallest benchmarks")
    parser.add_argument("--only", choices=PARTS, help="one of the two parts; the other's results stay")
    parser.add_argument("--minutes", type=float, default=60.0, help="what is not done by then is left out")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device can be used; --device cpu --quick tries the script without one")
    until = time.monotonic() + 60 * options.minutes
    about, path = machine(options.device), options.out / "results.json"
    before = json.loads(path.read_text(encoding="utf-8")) if options.only and path.exists() else {}
    tests = tests_of(before["tests"]) if before.get("tests") else None
    steps = [step_of(values) for values in before.get("benchmarks", [])]

    def write() -> None:
        """After each, so that a machine that is taken away leaves what was found by then."""
        found = {
            "machine": about,
            "tests": None if tests is None else asdict(tests),
            "benchmarks": [asdict(step) for step in steps],
        }
        path.write_text(json.dumps(found, indent=1), encoding="utf-8")
        path.with_suffix(".md").write_text(markdown(about, tests, steps), encoding="utf-8")

    if options.only in (None, "tests"):
        tests = tested(options.out, options.device, options.quick, until - time.monotonic())
        write()
    if options.only in (None, "benchmarks"):
        steps.clear()
        for name, *arguments in QUICK if options.quick else FULL:
            if (left := until - time.monotonic()) < LEAST_SECONDS:
                print(f"no time is left for {name} {' '.join(arguments)}")
                continue
            steps.append(measured(name, arguments, options.device, left))
            write()
    print(f"wrote {path} and {path.with_suffix('.md')}")
    sys.exit(any(step.exit_code != 0 for step in ([] if tests is None else [tests.step]) + steps))


if __name__ == "__main__":
    main()
