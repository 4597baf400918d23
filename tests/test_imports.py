"""Who may import whom: cli → stages → {training, exporters, decoding, scoring, pruning, models, data} → the small
modules."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import parp_cli

ROOT = Path(parp_cli.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

PARTS = {"pruning", "models", "data", "tasks", "training", "decoding", "scoring", "exporters"}
GROUND = {"errors", "storage", "config", "runtime"}

MAY_IMPORT: dict[str, set[str]] = {
    "": set(),
    "__main__": {"cli"},
    "errors": set(),
    "runtime": {"", "errors"},
    # Files, of whatever kind of model.
    "storage": {"errors"},
    # Of pruning, only what does without torch: `parp --help` reads recipes.
    "config": {"errors", "pruning"},
    # No speech in these: another kind of model can be pruned with them.
    "pruning": {"errors", "storage"},
    "data": GROUND,
    # Of data, only what labels are: `test_models_know_no_data`.
    "models": {"errors", "storage", "runtime", "data"},
    # Of pruning, what makes weights zero where their mask prunes.
    "exporters": {"errors", "storage", "runtime", "data", "models", "pruning"},
    # What was recognised, however it was.
    "scoring": {"errors", "storage", "runtime", "data"},
    "decoding": {"errors", "storage", "runtime", "data", "models", "scoring"},
    "tasks": GROUND | {"data", "models", "pruning", "decoding", "scoring"},
    # Of tasks, only what all of them have in common.
    "training": GROUND | {"", "models", "pruning", "tasks"},
    "stages": GROUND | PARTS,
    # A sweep runs stages, so that they need not know of each other.
    "sweep": GROUND | PARTS | {"stages"},
    "console": {"errors", "runtime"},
    "cli": GROUND | PARTS | {"", "stages", "sweep", "console"},
}
"""By top-level module or package; "" is `parp_cli` itself, with the version. Within a package all may import."""


def unit_of(path: Path) -> str:
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted names that a module imports, anywhere in it and under TYPE_CHECKING too, with their lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module
            # `from parp_cli import checkpoint` is of the module, `from parp_cli.errors import ParpError` of its content
            if (ROOT.parent / node.module.replace(".", "/")).is_dir():
                yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield node.module, node.lineno


def named(path: Path) -> str:
    return str(path.relative_to(ROOT.parent))


def test_what_prunes_and_trains_knows_no_family_of_networks() -> None:
    """Not even speech's own: what differs between families is said in `models` and `tasks`."""
    families = re.compile("bert|xlnet|electra|wavlm|data2vec", re.IGNORECASE)
    for path in MODULES:
        if unit_of(path) in ("pruning", "stages", "training", "storage"):
            found = families.search(path.read_text(encoding="utf-8"))
            assert found is None, f"{named(path)}: {found}"


def test_every_unit_has_its_rule() -> None:
    assert {unit_of(path) for path in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_arrows_go_one_way(path: Path) -> None:
    unit = unit_of(path)
    for name, line in imports(path):
        package, *rest = name.split(".")
        if package != "parp_cli":
            continue
        imported = rest[0] if rest and (rest[0] in MAY_IMPORT) else ""
        allowed = imported == unit or imported in MAY_IMPORT[unit]
        assert allowed, f"{named(path)}:{line}: {unit} may not import {imported or 'parp_cli'}"


ANY_TASK = [ROOT / "stages" / f"{name}.py" for name in ("finetune", "mask", "reprune", "inspect", "compare")]
"""Stages of whatever task and network."""


@pytest.mark.parametrize(
    "path", [path for path in MODULES if unit_of(path) in ("training", "pruning", "storage")] + ANY_TASK, ids=named
)
def test_training_and_pruning_know_no_single_task_or_network(path: Path) -> None:
    known = {name for name, _ in imports(path) if name.startswith(("parp_cli.tasks", "parp_cli.models"))}
    assert known <= {
        "parp_cli.tasks.task",
        "parp_cli.models.network",
        "parp_cli.models.recognizer",
        "parp_cli.models.sources.load",
        "parp_cli.models.sources.names",
    }


@pytest.mark.parametrize("path", [path for path in MODULES if unit_of(path) in ("models", "exporters")], ids=named)
def test_models_know_no_data(path: Path) -> None:
    assert {name for name, _ in imports(path) if name.startswith("parp_cli.data")} <= {"parp_cli.data.labels"}


@pytest.mark.parametrize("path", [path for path in MODULES if unit_of(path) == "stages"], ids=named)
def test_stages_never_import_each_other(path: Path) -> None:
    assert not [f"{named(path)}:{line}" for name, line in imports(path) if name.startswith("parp_cli.stages")]


@pytest.mark.parametrize(
    "path", [path for path in MODULES if unit_of(path) not in ("cli", "console", "__main__")], ids=named
)
def test_only_the_command_line_knows_the_terminal(path: Path) -> None:
    assert not [
        f"{named(path)}:{line}: {name}" for name, line in imports(path) if name.split(".")[0] in ("typer", "rich")
    ]
    prints = [
        f"{named(path)}:{node.lineno}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not prints


@pytest.mark.parametrize("path", [path for path in MODULES if unit_of(path) in ("pruning", "storage")], ids=named)
def test_pruning_knows_nothing_of_speech(path: Path) -> None:
    assert "torchaudio" not in {name.split(".")[0] for name, _ in imports(path)}


def test_nothing_is_unpickled() -> None:
    """torch.load has weights_only=True wherever it is called, and nobody imports pickle to load with."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "pickle.loads"):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("weights_only") == "True", f"{named(path)}:{node.lineno}"


def test_help_does_without_torch() -> None:
    script = """
import contextlib, io, sys
from parp_cli.cli.app import app, main

names = [command.name or command.callback.__name__ for command in app.registered_commands]
assert len(names) > 5, names
for arguments in ([], *([name] for name in names)):
    sys.argv = ["parp", *arguments, "--help"]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        try:
            main()
        except SystemExit as exit:
            assert exit.code == 0, (arguments, exit.code)
    assert "Usage" in shown.getvalue(), arguments
    assert "parp " + " ".join(arguments[:1]) in shown.getvalue(), arguments
    heavy = {"torch", "torchaudio", "numpy", "soundfile", "safetensors", "transformers"} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "path", sorted((ROOT.parent / "tests" / "benchmarks").glob("*.py")), ids=lambda path: path.stem
)
def test_benchmarks_import_what_there_is(path: Path) -> None:
    """No test runs them, and so none would notice."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("parp_cli"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                there = hasattr(module, alias.name) or importlib.util.find_spec(submodule) is not None
                assert there, f"{path.name}:{node.lineno}: no {submodule}"
