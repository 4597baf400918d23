"""What tests/conftest.py promises to all other tests."""

import subprocess
import sys
from pathlib import Path

from hypothesis import settings

import parp_cli
from tests.conftest import CHECKOUT


def test_processes_of_tests_import_this_checkout(tmp_path: Path) -> None:
    script = tmp_path / "where.py"
    script.write_text("import parp_cli; print(parp_cli.__file__)")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert Path(run.stdout.strip()) == CHECKOUT / "parp_cli" / "__init__.py" == Path(parp_cli.__file__)


def test_no_example_has_a_deadline() -> None:
    assert settings().deadline is None
