"""Standard streams that are closed, whose reader exits, or that cannot encode what is written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from parp_cli.storage import checkpoint
from tests.tiny import World

PARP = [sys.executable, "-m", "parp_cli"]


def closed(*numbers: int) -> str:
    return " ".join(f"{number}>&-" for number in numbers)


@pytest.mark.parametrize("numbers", [(1,), (2,), (0, 1, 2)])
def test_closed_streams_change_no_exit_code(numbers: tuple[int, ...], masked: Path, tmp_path: Path) -> None:
    def code(*arguments: object) -> int:
        command = " ".join(map(str, [*PARP, *arguments, closed(*numbers)]))
        return subprocess.run(command, shell=True, check=False, cwd=tmp_path, stdout=subprocess.DEVNULL).returncode

    copy = tmp_path / "copy.safetensors"
    assert code("reprune", masked, "--sparsity", 0.75, "--out", copy) == 0
    assert checkpoint.read_metadata(copy).stage == "reprune", "nothing printed is in it"
    assert code("inspect", "absent.safetensors") == 4


def test_training_goes_on_when_the_reader_of_its_notes_exits(world: World, tmp_path: Path) -> None:
    settings = " ".join(f"--set {value}" for value in (*world.settings, "training.validate_every=1"))
    command = f"{' '.join(PARP)} finetune {settings} --run run 2>&1 >shown | head -1; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], check=False, cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout.splitlines()) == 1
    assert (tmp_path / "run" / "finetune-last.safetensors").exists()
    assert "wrote run/finetune.safetensors" in (tmp_path / "shown").read_text()


@pytest.mark.parametrize("command", ["finetune --keys", "--help", "--version", "inspect {}"])
def test_results_that_nobody_reads_are_no_error(command: str, masked: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    arguments = command.format(masked).split()
    ended = subprocess.run([*PARP, *arguments], check=False, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_locale_without_letters(world: World, tmp_path: Path) -> None:
    """What it cannot encode is escaped, and text from standard input is UTF-8 in any locale."""
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def run(*arguments: object, text: str = "") -> subprocess.CompletedProcess[bytes]:
        command = [*PARP, *map(str, arguments)]
        return subprocess.run(command, check=False, env=plain, cwd=tmp_path, input=text.encode(), capture_output=True)

    built = run("lm", "build", "-", "--out", "é.arpa", "--order", 1, text="\ufeffÉTÉ\n")
    assert (built.returncode, built.stderr.count(b"Traceback")) == (0, 0)
    assert "ÉTÉ\tÉ T É |\n" in (tmp_path / "é-lexicon.txt").read_text(encoding="utf-8")
    masked = run("mask", "--model", world.encoder, "--out", "é.safetensors")
    assert (masked.returncode, masked.stderr.count(b"Traceback")) == (0, 0)
    assert (tmp_path / "é.safetensors").exists()
