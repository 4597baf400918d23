"""What commands refuse without torch is what the selection itself would refuse."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from parp_cli.errors import UsageError
from parp_cli.pruning.limits import check_setting, read_pattern
from parp_cli.pruning.patterns import Pattern


@pytest.mark.parametrize(
    "text",
    [
        "global",
        "layer",
        "tensor",
        "2:4",
        "1:32",
        "16x16",
        "1x1",
        "",
        "Global",
        "4:2",
        "4:4",
        "0:4",
        "2:33",
        "2:",
        "0x4",
    ],
)
def test_the_same_patterns_as_the_masks_have(text: str) -> None:
    def said(read: Callable[[str], object]) -> object:
        try:
            return read(text)
        except UsageError as error:
            return str(error)

    def parsed(text: str) -> object:
        pattern = Pattern.parse(text)
        return pattern.kind, pattern.sides

    assert said(read_pattern) == said(parsed)


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 50.0, float("nan")])
def test_sparsities_outside_their_range(sparsity: float) -> None:
    with pytest.raises(UsageError, match=r"outside \[0, 1\)"):
        check_setting(sparsity, None)


def test_what_is_not_given_is_not_refused() -> None:
    check_setting(None, None)
    check_setting(0.0, "2:4")


def test_without_torch() -> None:
    script = "import sys, parp_cli.pruning.limits; assert 'torch' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
