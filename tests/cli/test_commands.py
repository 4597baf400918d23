"""Commands: results on stdout and nothing else, the rest on stderr; one object with --json; silence with --quiet."""

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import parp_cli
from parp_cli.cli.quickstart_small import quickstart_small
from parp_cli.console import Output
from parp_cli.exporters import onnx as onnx_exporter
from parp_cli.exporters import sparse
from parp_cli.models.speech.kernels import products
from tests.tiny import World

SMOKE = Path(__file__).parents[2] / "recipes" / "mini" / "smoke.yaml"
COMMANDS = (
    *("mask", "finetune", "reprune", "eval", "export", "shrink"),
    *("inspect", "compare", "sweep", "pretrain", "quickstart"),
)


def sets(settings: list[str]) -> list[str]:
    return [part for value in settings for part in ("--set", value)]


@pytest.fixture
def run_folder(trained: Path, tmp_path: Path) -> Path:
    """A run folder with a fine-tuned checkpoint."""
    folder = tmp_path / "parp-run"
    folder.mkdir()
    shutil.copy(trained, folder / "finetune.safetensors")
    return folder


@pytest.fixture
def arguments(world: World, masked: Path, run_folder: Path) -> dict[str, list[object]]:
    """Every stage's command, on the tiny world."""
    return {
        "mask": ["mask", "--model", world.encoder],
        "finetune": ["finetune", "--init", masked, *sets([*world.settings, "training.updates=2"])],
        "dry-run": ["finetune", "--dry-run", "--init", masked, *sets(world.settings)],
        "reprune": ["reprune"],
        "eval": ["eval"],
        "export": ["export", "--to", "torchaudio"],
        "inspect": ["inspect"],
        "pretrain": ["pretrain", world.folder / "pretrain.yaml"],
    }


@pytest.fixture(autouse=True)
def pretrain_recipe(world: World) -> None:
    (world.folder / "pretrain.yaml").write_text(
        "data: [{kind: folder, path: .}]\ncrop_seconds: 0.4\nbatch_seconds: 0.4\nlog_every: 1\nsave_every: 1\n"
        "stages: [{targets: mfcc, clusters: 3, updates: 1}]\n"
    )


STAGES = ("mask", "finetune", "dry-run", "reprune", "eval", "export", "inspect", "pretrain")


@pytest.mark.parametrize("name", STAGES)
def test_json_is_one_object_on_stdout(parp: Any, arguments: Any, name: str) -> None:
    answer = parp(*arguments[name], "--json")
    assert answer.code == 0, answer.err
    assert answer.out.count("\n") == 1
    assert isinstance(json.loads(answer.out), dict)


@pytest.mark.parametrize("name", STAGES)
def test_stdout_is_the_result_and_quiet_silences_the_rest(parp: Any, arguments: Any, name: str) -> None:
    quiet = [] if name == "inspect" else ["--quiet"]
    answer = parp(*arguments[name], *quiet)
    assert (answer.code, answer.err) == (0, "")
    assert answer.out
    if name not in ("dry-run", "inspect"):
        paths = [line.removeprefix("wrote ") for line in answer.out.splitlines() if line.startswith("wrote ")]
        assert paths
        assert all(Path(path).exists() for path in paths)


def test_progress_goes_to_stderr(parp: Any, arguments: Any) -> None:
    answer = parp(*arguments["finetune"])
    assert "fine-tuning (parp): 2/2" in answer.err
    assert "fine-tuning" not in answer.out
    assert "recognising: 3/3" in parp(*arguments["eval"]).err


def test_the_json_is_the_result(parp: Any, arguments: Any, run_folder: Path) -> None:
    result = json.loads(parp(*arguments["eval"], "--split", "valid", "--json").out)["systems"][0]
    assert (result["splits"], result["utterances"]) == (["valid"], 3)
    assert result["outputs"]["hypotheses"] == "parp-run/eval-valid.jsonl"
    assert result["real_time_factor"] > 0
    dry = json.loads(parp(*arguments["dry-run"], "--json").out)
    assert dry["recipe"]["training"]["updates"] == dry["plan"]["updates"] == 12
    assert not (run_folder / "finetune.jsonl").exists()
    inspected = json.loads(parp("inspect", "--json").out)
    assert inspected["overall"]["pruned"] == 8416
    assert inspected["metadata"]["stage"] == "finetune"


def test_dry_run_shows_a_recipe_that_can_be_read(parp: Any, arguments: Any, tmp_path: Path) -> None:
    out = parp(*arguments["dry-run"]).out
    (tmp_path / "shown.yaml").write_text(out[: out.index("The run")])
    again = parp("finetune", "shown.yaml", "--dry-run", *arguments["dry-run"][2:4])
    assert again.out == out


def test_a_dry_run_shows_the_runs_and_the_re_prunings(parp: Any, world: World) -> None:
    imp = ["finetune", "--dry-run", *sets([*world.settings, "pruning.method=imp", "pruning.sparsity=0.2"])]
    shown = json.loads(parp(*imp, "--json").out)["plan"]
    assert (shown["method"], shown["rounds"]) == ("imp", [["round 1 of 2", 2], ["round 2 of 2", 2], ["imp", 12]])
    assert "16 in 3 runs" in parp(*imp).out
    default = ["finetune", "--dry-run", *sets([*world.settings, "pruning.interval=null", "training.updates=120"])]
    shown = json.loads(parp(*default, "--json").out)["plan"]
    assert (shown["repruning_interval"], shown["reprunings"]) == (50, 3)
    assert "3, every 50 updates" in parp(*default).out


def test_a_method_of_several_runs(parp: Any, world: World, tmp_path: Path) -> None:
    settings = sets([*world.settings, "pruning.method=imp", "pruning.sparsity=0.2", "training.updates=6"])
    answer = parp("finetune", *settings)
    assert answer.code == 0, answer.err
    for line in ("fine-tuning (round 1 of 2): 1/1", "fine-tuning (round 2 of 2): 1/1", "fine-tuning (imp): 6/6"):
        assert line in answer.err
    assert len(list((tmp_path / "parp-run" / "rounds").iterdir())) == 2
    refused = parp("finetune", *settings)
    assert (refused.code, refused.out) == (2, "")
    assert "this run has finished, after update 6" in refused.err
    again = parp("finetune", *settings, "--resume", "--json")
    assert "round 1 of 2" not in again.err
    result = json.loads(again.out)
    assert (result["cost"]["updates"], result["own_cost"]["updates"]) == (8, 6)
    judged = json.loads(parp("eval", "--split", "valid", "--json").out)["systems"][0]
    assert judged["checkpoint"] == "parp-run/finetune.safetensors"


@pytest.mark.parametrize(
    ("rate", "interval", "within", "decided"), [(1e-12, 2, 2, True), (1e-12, 50, 4, True), (0.05, 2, 2, False)]
)
def test_a_run_says_when_its_first_mask_decided(
    parp: Callable[..., Any], world: World, rate: float, interval: int, within: int, decided: bool
) -> None:
    keys = [f"pruning.interval={interval}", "training.updates=4", f"training.learning_rate={rate}"]
    said = " ".join(parp("finetune", *sets([*world.settings, *keys])).out.split())
    assert (f"the first mask decided: in {within} updates no pruned weight outgrew a kept one" in said) == decided
    assert (", 0 weights revived in all" in said) == decided


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(parp: Any, command: str) -> None:
    answer = parp(command, "--help")
    assert (answer.code, answer.err) == (0, "")
    _, example, after = answer.out.partition("Example")
    assert example
    assert f" parp {command}" in after


def test_help_shows_the_way(parp: Any) -> None:
    answer = parp("--help")
    assert answer.code == 0
    for line in ("parp mask --sparsity 0.5", "parp finetune recipe.yaml", "parp eval --split test-clean"):
        assert line in answer.out


def test_version(parp: Any) -> None:
    assert parp("--version").out == f"parp {parp_cli.__version__}\n"


def test_python_m_and_help_without_torch() -> None:
    code = (
        "import sys, runpy; sys.argv = ['parp', '--help']\n"
        "try: runpy.run_module('parp_cli', run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; sys.exit(code)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "parp quickstart" in ended.stdout


def test_a_reader_that_goes_away(trained: Path) -> None:
    """As in `parp inspect FILE --json | true`: nothing is complained about."""
    command = f"{sys.executable} -m parp_cli inspect {trained} --json | true; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.fixture
def short_corpus(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The generated corpus with half a minute a split: enough to see that everything works."""
    pytest.importorskip("espeakng_loader", reason="generated speech needs the extra demo")
    pytest.importorskip("babel", reason="generated speech needs the extra demo")
    from parp_cli.data import generated

    monkeypatch.setenv("PARP_CACHE", str(tmp_path_factory.mktemp("cache")))
    for name, split in generated.SPLITS.items():
        short = generated.Split(part=split.part, minutes=0.5, speakers=2, condition=split.condition)
        monkeypatch.setitem(generated.SPLITS, name, short)


@pytest.mark.usefixtures("short_corpus")
def test_quickstart(parp: Callable[..., Any], tmp_path: Path) -> None:
    answer = parp("quickstart", "--updates", "2", "--json")
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    assert [(row["method"], row["sparsity"]) for row in result["rows"]] == [
        ("dense", 0.0),
        ("MPI (fixed mask)", 0.5),
        ("PARP", 0.5),
    ]
    rates = ("word", "character", "word_lm", "character_lm")
    assert all(row[rate] >= 0 for row in result["rows"] for rate in rates)
    assert {name: len(sentences) for name, sentences in result["compared"].items()} == {"word": 2, "word_lm": 2}
    again = parp("quickstart", "--updates", "2", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["rows"] == result["rows"]
    files = ("checkpoint", "hypotheses", "hypotheses_lm")
    small = result["small"]
    assert [row["model"] for row in small["rows"]] == ["dense", "small", "small, ONNX int8"]
    assert small["rows"][0]["size"] == result["rows"][0]["size"]
    assert small["rows"][1]["parameters"] < 0.7 * small["rows"][0]["parameters"]
    assert small["rows"][2]["size"] < 0.5 * small["rows"][1]["size"]
    assert small["rows"][2]["size"] == (tmp_path / small["written"][-1]).stat().st_size
    assert small["rows"][1]["word"] >= 0
    assert small["transcripts_changed"] in range(small["transcripts"] + 1)
    assert all(row["real_time_factor"] > 0 for row in small["rows"])
    assert len(small["compared"]) == 1
    written = [result["mask"], *(row[key] for row in result["rows"] for key in files), *small["written"]]
    assert all((tmp_path / path).is_file() for path in written)


def test_the_quickstart_says_that_it_needs_onnx_for_a_small_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_exporter, "_PACKAGES", ("no_such_package",))
    dense = {"checkpoint": tmp_path / "missing.safetensors"}
    assert quickstart_small(Output(), tmp_path, dense, (), updates=6, device="cpu") is None
    shown = capsys.readouterr().out
    assert "no small model: exports to ONNX need the package no_such_package" in shown
    assert "parp-cli[onnx]" in shown


@pytest.mark.usefixtures("short_corpus")
def test_quickstart_on_sentences(parp: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("babel")
    answer = parp("quickstart", "--task", "classification", "--updates", "30", "--sparsity", "0.6", "--json")
    assert answer.code == 0, answer.err
    rows = json.loads(answer.out)["rows"]
    assert [row["method"] for row in rows] == ["dense", "MPI (fixed mask)", "PARP"]
    assert [row["sparsity"] for row in rows] == pytest.approx([0.0, 0.6, 0.6], abs=1e-4)
    assert [len(row["comparisons"]) for row in rows] == [0, 1, 2]
    assert rows[0]["metrics"]["accuracy"]["value"] > 0.5  # of four classes
    assert all((tmp_path / row[key]).is_file() for row in rows for key in ("checkpoint", "predictions"))


@pytest.mark.usefixtures("short_corpus")
def test_three_bare_commands_in_an_empty_folder(parp: Callable[..., Any], tmp_path: Path) -> None:
    shutil.copy(SMOKE, "recipe.yaml")
    commands = (
        ["mask", "--sparsity", "0.5"],
        ["finetune", "recipe.yaml"],
        ["eval", "--split", "test-clean"],
    )
    written = []
    for command in commands:
        answer = parp(*command)
        assert answer.code == 0, answer.err
        written += [line.removeprefix("wrote ") for line in answer.out.splitlines() if line.startswith("wrote ")]
    assert written == [
        "parp-run/mask.safetensors",
        "parp-run/finetune.safetensors",
        "parp-run/finetune-last.safetensors",
        "parp-run/eval-test-clean.jsonl",
        "parp-run/eval-test-clean.json",
    ]
    assert all((tmp_path / path).is_file() for path in written)


def test_what_recipe_keys_mean(parp: Any) -> None:
    answer = parp("finetune", "--keys")
    assert answer.code == 0
    assert 'pruning.method: "parp"\n    one of dense, fixed, mpi' in answer.out
    assert {"name", "expected", "default", "meaning"} == set(
        json.loads(parp("finetune", "--keys", "--json").out)["keys"][0]
    )


def test_a_small_checkpoint_and_what_it_saves(parp: Any, world: World, tmp_path: Path) -> None:
    masked = parp("mask", "--model", world.encoder, "--pattern", "structures", "--run", tmp_path)
    assert masked.code == 0, masked.err
    assert "128 weights in biases cannot hold structures and are not pruned" in masked.err
    shown = parp("export", "--to", "small", "--run", tmp_path)
    assert shown.code == 0, shown.err
    for part in (
        "attention heads",
        "feed-forward units",
        "parameters",
        "seconds per second of speech",
        "times as fast",
    ):
        assert part in shown.out
    small = tmp_path / "small.safetensors"
    assert f"wrote {small}" in shown.out
    other = tmp_path / "other.safetensors"
    assert parp("shrink", tmp_path / "mask.safetensors", "--out", other, "--quiet").code == 0
    assert other.read_bytes() == small.read_bytes()
    other.unlink()
    result = json.loads(parp("shrink", tmp_path / "mask.safetensors", "--run", tmp_path, "--json").out)
    assert result["path"] == str(small)
    assert result["after"]["parameters"] < result["before"]["parameters"]
    again = parp("export", "--to", "hf", "--run", tmp_path)
    assert again.code == 4
    assert "tiny-small has layers of sizes" in again.err
    assert "hint: export what it was made from" in again.err
    nothing = parp("export", "--to", "small", "--run", tmp_path)
    assert nothing.code == 4
    assert "nothing in it is pruned" in nothing.err


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="the extra `onnx`")
def test_int8_of_a_small_checkpoint(parp: Any, world: World, tmp_path: Path) -> None:
    assert parp("mask", "--model", world.encoder, "--pattern", "structures", "--run", tmp_path).code == 0
    assert parp("export", "--to", "small", "--run", tmp_path).code == 0
    shown = parp("export", "--to", "onnx", "--int8", "--run", tmp_path)
    assert shown.code == 0, shown.err
    assert "matrix products of 8-bit integers; all else stays float32" in shown.out
    assert f"wrote {tmp_path / 'model-int8.onnx'}" in shown.out
    assert "transcripts" not in shown.out, "it has no head"
    assert "zeros" not in shown.out, "it has none left"
    assert "torchvision" not in shown.err


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="the extra `onnx`")
def test_a_folder_for_sherpa_onnx(parp: Any, run_folder: Path) -> None:
    shown = parp("export", "--to", "sherpa", "--run", run_folder)
    assert shown.code == 0, shown.err
    for part in (
        "for sherpa-onnx",
        "seconds per second of speech",
        "transcripts changed: 0 of 3, by ",
        "zeros gain nothing there",
    ):
        assert part in shown.out
    assert f"wrote {run_folder / 'export-sherpa'}" in shown.out


def test_a_sparse_checkpoint_and_whether_it_gains(
    parp: Any, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(kind: str) -> Any:
        return lambda model, pruned, *, int8, each: dict.fromkeys(products(model), kind)

    assert parp("mask", "--model", world.encoder, "--run", tmp_path).code == 0
    monkeypatch.setattr(sparse, "choose", choose("dense"))
    shown = parp("export", "--to", "sparse", "--run", tmp_path)
    assert shown.code == 0, shown.err
    assert "matrices: 13 dense" in shown.out
    assert "no gain: " in shown.out
    monkeypatch.setattr(sparse, "choose", choose("csr"))
    shown = parp("export", tmp_path / "mask.safetensors", "--to", "sparse", "--int8", "--run", tmp_path)
    assert shown.code == 0, shown.err
    assert "matrices: 13 as compressed rows" in shown.out
    assert "no gain" not in shown.out
    assert f"wrote {tmp_path / 'sparse-int8.safetensors'}" in shown.out
