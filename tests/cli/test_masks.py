"""Masks on the command line: made from others, compared, and what became of them during a run."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parp_cli.cli.render import sparkline
from parp_cli.storage import checkpoint
from tests.tiny import World


@pytest.fixture
def random(parp: Any, world: World, tmp_path: Path) -> Path:
    """The tiny encoder, half pruned at random."""
    path = tmp_path / "random.safetensors"
    assert parp("mask", "--model", world.encoder, "--method", "random", "--out", path).code == 0
    return path


def test_a_mask_from_others(parp: Any, world: World, masked: Path, random: Path) -> None:
    answer = parp("mask", "--from", masked, "--union", random, "--minus", random, "--apply", world.encoder)
    assert answer.code == 0, answer.err
    result = json.loads(
        parp("mask", "--from", masked, "--union", random, "--minus", random, "--apply", world.encoder, "--json").out
    )
    first, second = (checkpoint.read_masks(path) for path in (masked, random))
    kept = sum(int((first[name] & ~second[name]).sum()) for name in first)
    assert result["sparsity"]["total"] - result["sparsity"]["pruned"] == kept
    assert f"of 16,832 weights of {world.encoder}" in answer.out
    recipe = json.loads(parp("inspect", "--json").out)["metadata"]["recipe"]
    assert (recipe["from"], recipe["union"], recipe["minus"]) == (str(masked), [str(random)], [str(random)])


@pytest.mark.parametrize(
    "option",
    [
        ("--sparsity", "0.5"),
        ("--method", "magnitude"),
        ("--model", "mini"),
        ("--biases",),
        ("--no-biases",),
        ("--scope", "transformer"),
        ("--pattern", "global"),
        ("--seed", "0"),
    ],
)
def test_from_excludes_what_makes_a_new_mask(parp: Any, masked: Path, option: tuple[str, ...]) -> None:
    """Even where it is the default that is given."""
    answer = parp("mask", "--from", masked, *option)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("parp: error: --from takes an existing mask, --")


def test_what_is_not_expected_of_a_mask_is_noted(parp: Any, world: World, masked: Path) -> None:
    answer = parp("mask", "--model", world.encoder, "--pattern", "2:4", "--out", "24.safetensors")
    assert answer.err == "448 weights in biases cannot hold 2:4 and are not pruned\n"
    arguments = ("mask", "--model", world.encoder, "--pattern", "32x64", "--out", "blocks.safetensors")
    assert "tensors such as encoder.transformer.layers.0.attention.k_proj.weight cannot" in parp(*arguments).err
    assert not parp(*arguments, "--quiet").err
    arguments = ("mask", "--from", masked, "--intersect", "24.safetensors")
    answer = parp(*arguments)
    first = "encoder.transformer.layers.0.attention.k_proj.bias"
    assert (
        answer.err
        == f"24.safetensors has no mask for 12 tensors that others mask, such as {first}: it keeps them whole\n"
    )
    result = json.loads(parp(*arguments, "--json").out)
    assert result["method"] == "combined"
    assert result["completed"]["24.safetensors"][0] == first


@pytest.mark.parametrize("option", [("--sparsity", "50"), ("--pattern", "4:2"), ("--pattern", "diagonal")])
def test_mistyped_numbers_are_refused_before_anything_is_read(parp: Any, option: tuple[str, str]) -> None:
    for command in (("mask", "--model", "absent"), ("reprune", "absent.safetensors")):
        answer = parp(*command, *option)
        assert (answer.code, answer.out) == (2, "")
        assert option[1].strip("'") in answer.err.splitlines()[0]


def test_weights_that_come_back_as_zeros(parp: Any, masked: Path) -> None:
    assert "are zero" not in parp("reprune", masked).out
    # 30 % of 16,832 are 5,050 instead of 8,416; the others come back with nothing in them.
    lines = parp("reprune", masked, "--sparsity", "0.3").out.splitlines()
    assert lines[1] == "revived 3,366, dropped 0"
    assert (
        lines[2]
        == "3,366 of the kept weights are zero (50.0% of all are): as good as pruned, until they are trained on"
    )
    assert json.loads(parp("reprune", masked, "--sparsity", "0.3", "--json").out)["kept_zeros"] == 3366


@pytest.mark.parametrize("option", ["--union", "--intersect", "--minus", "--apply"])
def test_operations_need_a_mask_to_begin_with(parp: Any, masked: Path, option: str) -> None:
    answer = parp("mask", option, masked)
    assert answer.code == 2
    assert f"{option} needs a mask to begin with" in answer.err


def test_patterns_decide_their_sparsity(parp: Any, world: World) -> None:
    answer = parp("mask", "--model", world.encoder, "--pattern", "1:4", "--scope", "attention", "--json")
    assert json.loads(answer.out)["sparsity"]["target"] == 0.75
    assert json.loads(parp("reprune", "--json").out)["pattern"] == "1:4"
    assert json.loads(parp("reprune", "--pattern", "2:4", "--json").out)["sparsity"]["exact"] == 0.5


def test_two_masks_compared(parp: Any, masked: Path, random: Path) -> None:
    answer = parp("compare", masked, random)
    assert (answer.code, answer.err) == (0, "")
    for said in (
        "mask – random",
        "agreement",
        "by chance: masks that are random within each tensor",
        "by layer",
        "by kind of module",
        "q_proj",
        "50.0%",
    ):
        assert said in answer.out
    result = json.loads(parp("compare", masked, random, "--json").out)
    (pair,) = result["pairs"]
    assert pair["overall"]["iou_by_chance_pooled"] == pytest.approx(1 / 3)
    assert pair["overall"]["iou_by_chance"] == pytest.approx(1 / 3, abs=0.01)
    assert set(pair["by_layer_and_kind"]) == {
        f"{layer} {kind}" for layer in "01" for kind in ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
    }
    assert [file["label"] for file in result["files"]] == ["mask", "random"]


def test_five_masks_fit_a_page(parp: Any, masked: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"a-rather-long-name-[{number}].safetensors" for number in range(5)]
    for path in paths:
        path.write_bytes(masked.read_bytes())
    lines = parp("compare", *paths).out.splitlines()
    assert max(map(len, lines)) <= 120
    assert sum("a-rather-long-name-[3] – a-rather-long-name-[4]" in line for line in lines) == 1
    assert any("100 (35)" in line and line.count("(") == 10 for line in lines)


def test_masks_of_different_scope(parp: Any, world: World, masked: Path) -> None:
    assert parp("mask", "--model", world.encoder, "--no-biases", "--out", "weights.safetensors").code == 0
    assert "left out 12 tensors that only some of the masks cover" in parp("compare", masked, "weights.safetensors").out


def test_figures(parp: Any, masked: Path, random: Path, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra plot")
    answer = parp("compare", masked, random, trained, "--plot", "overlap.svg")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.endswith("wrote overlap.svg\n")
    assert "all pairs" in (tmp_path / "overlap.svg").read_text()
    assert parp("inspect", trained, "--plot", "run.png").out.endswith("wrote run.png\n")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", ["compare", "inspect"])
def test_figures_that_cannot_be(parp: Any, masked: Path, command: str, tmp_path: Path) -> None:
    paths = [masked] * (2 if command == "compare" else 1)
    answer = parp(command, *paths, "--plot", "figure.jpeg")
    assert (answer.code, answer.out) == (2, "")
    assert "cannot draw figure.jpeg" in answer.err
    assert not list(tmp_path.iterdir())


def test_a_figure_of_no_reprunings(parp: Any, masked: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra plot")
    answer = parp("inspect", masked, "--plot", "run.png")
    assert (answer.code, answer.out) == (2, "")
    assert "records no re-prunings" in answer.err


def test_reprunings_are_drawn(parp: Any, trained: Path, tmp_path: Path) -> None:
    answer = parp("inspect", trained)
    content = checkpoint.read(trained)
    recorded = content.metadata.metrics["reprunings"]
    assert f"Re-pruned {len(recorded)} times, update 20 to {recorded[-1]['update']}" in answer.out
    assert f"{sum(r['revived'] for r in recorded):,}" in answer.out
    assert "from" not in answer.out[: answer.out.index("Recipe")]  # the sparsity stays, and is not drawn

    def drawn(records: list[dict[str, Any]]) -> tuple[str, dict[str, list[str]]]:
        """All that is said, and the cells of the table's rows."""
        path = tmp_path / "changed.safetensors"
        checkpoint.write(path, replace(content, metadata=replace(content.metadata, metrics={"reprunings": records})))
        out = parp("inspect", path).out
        table = out[out.index("Re-pruned") :].split("└")[0]
        rows = [
            [cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in table.splitlines() if line[0] in "│┃"
        ]
        return out, {row[0]: row[1:] for row in rows}

    def record(update: int, revived: tuple[int, int], dropped: tuple[int, int]) -> dict[str, Any]:
        layers = {"7": [revived[0], dropped[0]], "8": [revived[1], dropped[1]]}
        share = update / 10
        return {"update": update, "sparsity": share, "revived": sum(revived), "dropped": sum(dropped), "layers": layers}

    out, rows = drawn([record(n, (n - 1, 4 * (n - 1)), (n - 1, 0)) for n in range(1, 9)])
    assert "sparsity ▁▂▃▄▅▆▇█ from 10.0% to 80.0%" in out
    rising = sparkline(range(8), 48)
    assert rows == {
        "layer": ["revived", "in all", "dropped", "in all"],
        "7": ["▁▁▁▁▂▂▂▂", "28", rising, "28"],  # to the scale of the larger layer
        "8": [rising, "112", "▁" * 8, "0"],
        "all": [rising, "140", rising, "28"],
    }
    _, rows = drawn([record(n, (0, 0), (1, 3)) for n in (1, 2)])
    assert rows == {"layer": ["dropped", "in all"], "7": ["▃▃", "2"], "8": ["██", "6"], "all": ["██", "8"]}
    _, rows = drawn([record(n, (n, 1), (n, 1)) for n in (1, 2)])
    assert rows["layer"] == ["swapped", "in all"]
    out, _ = drawn([record(1200, (1, 2), (2, 1))])
    assert "Re-pruned once, at update 1,200\n" in out


@pytest.mark.parametrize("columns", ["1", "40", "80"])
def test_narrow_terminals(parp: Any, trained: Path, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    answer = parp("inspect", trained)
    assert (answer.code, answer.err) == (0, "")
    assert "Re-pruned" in answer.out


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8], 48, "▁▁▂▃▄▅▆▇█"),
        ([0, 0], 48, "▁▁"),
        ([8, 0, 4, 4, 1, 7], 3, "███"),
        ([5], 48, "█"),
        ([1] * 50 + [0] * 50, 200, "█" * 24 + "▁" * 24),
    ],
)
def test_sparklines(values: list[float], width: int, drawn: str) -> None:
    assert sparkline(values, width) == drawn


def test_a_sparkline_to_the_scale_of_others() -> None:
    assert sparkline([1, 2, 4], 48, 8) == "▁▂▄"
    assert sparkline([0, 0], 48, 0) == "▁▁"
    assert sparkline([1, 3], -5) == "█"


def test_a_mask_that_a_new_one_replaces(parp: Any, masked: Path) -> None:
    answer = parp("mask", "--model", masked, "--sparsity", "0.3")
    assert answer.out.splitlines()[:2] == [
        f"pruned 5,050 of 16,832 weights of {masked} (30.0%)",
        "3,366 of the kept weights are zero (50.0% of all are): as good as pruned, until they are trained on",
    ]
    assert f"{masked} has a mask that prunes 50.0%" in answer.err
    assert f"parp mask --from {masked}" in answer.err
    assert "replaces" not in parp("mask", "--from", masked).err
