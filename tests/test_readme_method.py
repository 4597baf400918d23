"""The README's example of a new method trains."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_a_method_in_the_readme(tmp_path: Path) -> None:
    _, heading, section = README.read_text(encoding="utf-8").partition("\n## Add a method\n")
    if not heading:
        pytest.skip("the README has no such section yet")
    block = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert block is not None
    code = block[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("finetune.safetensors"))
