"""What commands refuse without torch is what the selection itself would refuse."""

import subprocess
import sys

import pytest

from parp_cli.errors import UsageError
from parp_cli.pruning.patterns import Pattern, check_setting


@pytest.mark.parametrize(
    ("text", "kind", "sides"),
    [
        ("global", "global", (1, 1)),
        ("layer", "layer", (1, 1)),
        ("tensor", "tensor", (1, 1)),
        ("2:4", "n:m", (2, 4)),
        ("1:32", "n:m", (1, 32)),
        ("16x8", "block", (16, 8)),
    ],
)
def test_patterns_there_are(text: str, kind: str, sides: tuple[int, int]) -> None:
    assert Pattern.parse(text) == Pattern(kind, sides)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "Global", "4:2", "4:4", "0:4", "2:33", "2:", "0x4", "2:4 ", "-2:4"])
def test_patterns_there_are_not(text: str) -> None:
    with pytest.raises(UsageError, match="no pattern"):
        Pattern.parse(text)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 50.0, float("nan")])
def test_sparsities_outside_their_range(sparsity: float) -> None:
    with pytest.raises(UsageError, match=r"outside \[0, 1\)"):
        check_setting(sparsity, None)


def test_what_is_not_given_is_not_refused() -> None:
    check_setting(None, None)
    check_setting(0.0, "2:4")


def test_without_torch() -> None:
    script = "import sys, parp_cli.pruning.patterns; assert 'torch' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
