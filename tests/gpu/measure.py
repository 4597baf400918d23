"""The tests of a GPU, then the benchmarks on it: one JSON file and one of Markdown tables. `run.sh` calls it."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from xml.etree import ElementTree

import torch

BENCHMARKS = "tests/benchmarks/bench_"

FULL = (
    ("training", "--model", "base", "--precision", "float32", "tf32", "bfloat16"),
    ("training", "--model", "large", "--precision", "tf32", "bfloat16"),
    ("training", "--model", "1b", "--precision", "bfloat16", "--rounds", "3"),
    ("recognition", "--model", "base", "--batch-seconds", "240", "--utterances", "192"),
    ("recognition", "--model", "large", "--batch-seconds", "240", "--utterances", "192"),
    ("selection",),
)
QUICK = (
    ("training", "--model", "tiny", "--rounds", "1"),
    ("recognition", "--model", "base", "--utterances", "3", "--sides", "ours", "--precision", "float32"),
    ("selection", "--models", "base", "--repeat", "0", "--only", "scale"),
)

LIBRARIES = ("torch", "torchaudio", "transformers", "numpy", "triton")

TEST_SECONDS, BENCHMARK_SECONDS = 900, 600


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
    """A command with what it wrote to its standard output."""
    print("$", *command, flush=True)
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    code: int | None
    try:
        output, errors = process.communicate(timeout=seconds)
        code = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        (output, errors), code = process.communicate(), None
    print(output, errors, flush=True)
    step = Step(command=" ".join(command), exit_code=code, seconds=round(time.monotonic() - began, 1))
    if code != 0:
        step.failed = "\n".join(f"{output}\n{errors}".splitlines()[-30:])
    return step, output


def tested(out: Path, device: str) -> Tests:
    """All tests that are marked `gpu`; on a CPU those that can take it in the place of a GPU."""
    report = out / "tests.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    if device == "cpu":
        os.environ["PARP_GPU_TESTS_DEVICE"] = "cpu"
        command += ["tests/gpu/test_masks.py", "tests/gpu/test_numbers.py"]
    step, _ = run(command, TEST_SECONDS)
    failed: dict[str, str] = {}
    skipped: dict[str, str] = {}
    passed = 0
    for case in ElementTree.parse(report).iter("testcase") if report.exists() else ():
        name = f"{case.get('classname')}::{case.get('name')}"
        ends = {part.tag: part.get("message") or "" for part in case}
        if "failure" in ends or "error" in ends:
            failed[name] = ends.get("failure", ends.get("error", ""))
        elif "skipped" in ends:
            skipped[name] = ends["skipped"]
        else:
            passed += 1
    return Tests(step=step, passed=passed, failed=failed, skipped=skipped)


def measured(name: str, options: Sequence[str], device: str) -> Step:
    step, output = run([sys.executable, f"{BENCHMARKS}{name}.py", *options, "--device", device], BENCHMARK_SECONDS)
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


def markdown(about: dict[str, str | float], tests: Tests, steps: Sequence[Step]) -> str:
    """Everything as tables; what failed with its last lines."""
    counts = f"{tests.passed} passed, {len(tests.failed)} failed, {len(tests.skipped)} skipped"
    lines = ["# Results on a GPU", "", ", ".join(f"{key} {value}" for key, value in about.items()), ""]
    lines += ["## Tests", "", f"{counts}, in {tests.step.seconds:.0f} s", ""]
    lines += [f"- {name}: {reason.splitlines()[0] if reason else ''}" for name, reason in tests.failed.items()]
    lines += [f"- {name} (skipped): {reason}" for name, reason in tests.skipped.items()]
    for step in steps:
        lines += ["", f"## `{step.command.partition(' ')[2]}`", "", f"{step.seconds:.0f} s", ""]
        for table in step.tables:
            lines += [row(table.columns), row(["---"] + ["---:"] * (len(table.columns) - 1)), *map(row, table.rows), ""]
        lines += [f"- {remark}" for remark in step.remarks] if not step.failed else ["```", step.failed, "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="the smallest benchmarks")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device can be used; --device cpu --quick tries the script without one")
    about = machine(options.device)
    tests = tested(options.out, options.device)
    steps: list[Step] = []
    for name, *arguments in QUICK if options.quick else FULL:
        steps.append(measured(name, arguments, options.device))
        # After each, so that a machine that is taken away leaves what was found by then.
        found = {"machine": about, "tests": asdict(tests), "benchmarks": [asdict(step) for step in steps]}
        (options.out / "results.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
        (options.out / "results.md").write_text(markdown(about, tests, steps), encoding="utf-8")
    print(f"wrote {options.out / 'results.json'} and {options.out / 'results.md'}")
    sys.exit(any(step.exit_code != 0 for step in (tests.step, *steps)))


if __name__ == "__main__":
    main()
