import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from parp_cli.cli.lm import app
from parp_cli.errors import UsageError
from tests.decoding.arpa import read_arpa
from tests.tiny import TEXTS, World


def run(*arguments: str, stdin: str = "") -> str:
    result = CliRunner().invoke(app, arguments, input=stdin, catch_exceptions=False)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_of_the_training_split(world: World, tmp_path: Path) -> None:
    settings = [part for setting in world.settings for part in ("--set", setting)]
    shown = run("build", "--run", str(tmp_path), "--order", "2", *settings)
    assert f"counted {len(TEXTS['train'])} sentences" in shown
    assert read_arpa(tmp_path / "lm.arpa").order == 2
    assert (tmp_path / "lm-lexicon.txt").is_file()


def test_of_standard_input_as_json(tmp_path: Path) -> None:
    shown = run("build", "-", "--out", str(tmp_path / "my.arpa"), "--json", stdin="hello there\nhello\n")
    result = json.loads(shown)
    assert (result["sentences"], result["words"], result["vocabulary"]) == (2, 3, 2)
    assert result["path"] == str(tmp_path / "my.arpa")


def test_text_and_corpus_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at once"):
        run("build", str(tmp_path / "text.txt"), "--split", "train")


def test_nothing_that_is_read_is_overwritten(world: World, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("A B\n")
    with pytest.raises(UsageError, match=r"--out .*t\.txt would overwrite the text .*t\.txt"):
        run("build", "-", str(text), "--out", str(text))
    with pytest.raises(UsageError, match=r"--lexicon .* would overwrite --out"):
        run("build", str(text), "--out", str(tmp_path / "x"), "--lexicon", str(tmp_path / "x"))
    settings = [part for setting in world.settings for part in ("--set", setting)]
    before = world.manifest.read_bytes()
    with pytest.raises(UsageError, match=r"--out .* would overwrite data\.manifest"):
        run("build", *settings, "--out", str(world.manifest))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training: {updates: 3}\n")
    with pytest.raises(UsageError, match=r"--lexicon .* would overwrite --recipe"):
        run("build", "--recipe", str(recipe), *settings, "--run", str(tmp_path), "--lexicon", str(recipe))
    assert (text.read_text(), recipe.read_text()) == ("A B\n", "training: {updates: 3}\n")
    assert world.manifest.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml", "t.txt"]


def test_help_does_without_torch() -> None:
    script = """
import sys
from typer.testing import CliRunner
from parp_cli.cli.lm import app
for arguments in (["--help"], ["build", "--help"]):
    assert CliRunner().invoke(app, arguments).exit_code == 0
assert not {"torch", "numpy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
