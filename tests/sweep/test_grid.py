import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from parp_cli.errors import RecipeError
from parp_cli.recipe import load_recipe
from parp_cli.sweep.grid import Sweep, load_sweep

CPU = torch.device("cpu")
SWEEPS = Path(__file__).parents[2] / "recipes" / "sweeps"


def load(path: Path, *overrides: str) -> Sweep:
    return load_sweep(path, overrides, device=CPU)


def test_every_combination_once_and_dense_once_a_seed(write_sweep: Any) -> None:
    path = write_sweep(
        "grid:\n  pruning.method: [dense, mpi, parp]\n  pruning.sparsity: [0.3, 0.5]\n  seed: [0, 1]\n"
        "set: {training.updates: 7}\n"
    )
    sweep = load(path)
    assert sweep.axes == ("pruning.method", "pruning.sparsity", "seed")
    expected = [("dense", None, seed) for seed in (0, 1)]
    expected += list(itertools.product(["mpi", "parp"], [0.3, 0.5], [0, 1]))
    assert [tuple(cell.values.values()) for cell in sweep.cells] == expected
    for cell, (method, sparsity, seed) in zip(sweep.cells, expected, strict=True):
        assert (cell.recipe.pruning.method, cell.recipe.pruning.sparsity, cell.recipe.seed) == (method, sparsity, seed)
        assert cell.recipe.training.updates == 7
        assert cell.splits == ("test",)
    assert len({cell.key for cell in sweep.cells}) == len(expected)


def test_shared_rounds_have_one_key(write_sweep: Any) -> None:
    path = write_sweep("grid: {pruning.method: [dense, omp, imp], pruning.sparsity: [0.2, 0.3]}")
    cells = load(path).cells
    dense, *omp, imp2, imp3 = cells
    assert [cell.keys[0] for cell in omp] == [dense.key, dense.key]
    assert imp3.keys[:2] == imp2.keys[:2]
    assert (len(imp2.keys), len(imp3.keys)) == (3, 4)
    assert imp2.keys[0] != dense.key  # rounds are shorter


def test_keys_are_of_the_content(write_sweep: Any) -> None:
    text = "grid: {pruning.sparsity: [0.3], seed: [0]}"
    one = load(write_sweep(text)).cells[0]
    same = load(write_sweep("grid: {seed: [0, 1]}\nset: {pruning: {sparsity: 0.3}}", name="other.yaml")).cells[0]
    assert one.key == same.key
    assert load(write_sweep(text, "training.updates=13")).cells[0].key != one.key


def test_paths_start_at_the_file_they_stand_in(
    write_sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = write_sweep("grid: {model: [./a.safetensors, mini]}\nset: {data.manifest: lists/b.jsonl}")
    first, second = load(path, "data.root=corpus").cells
    assert first.recipe.model == str(tmp_path / "a.safetensors")
    assert second.recipe.model == "mini"
    assert first.recipe.data.manifest == str(tmp_path / "lists" / "b.jsonl")
    assert first.recipe.data.root == str(tmp_path / "elsewhere" / "corpus")


def test_what_wins(write_sweep: Any) -> None:
    path = write_sweep("set: {training.updates: 3, seed: 5}\ngrid: {training.updates: [4]}\nsplits: [a, b, a]")
    (cell,) = load(path, "seed=6", "training.updates=2").cells
    assert (cell.recipe.training.updates, cell.recipe.seed) == (4, 6)
    assert cell.splits == ("a", "b")


def test_lists_are_values_too(write_sweep: Any) -> None:
    cells = load(write_sweep("grid: {training.adam_betas: [[0.9, 0.98], [0.9, 0.999]]}")).cells
    assert [cell.recipe.training.adam_betas for cell in cells] == [(0.9, 0.98), (0.9, 0.999)]


def test_everything_wrong_is_told_at_once(write_sweep: Any, tmp_path: Path) -> None:
    path = write_sweep(
        "set:\n  training.updatez: 3\ngrid:\n  pruning.sparsity: [0.3, 1.5]\n  pruning.method: [parp, prap]\n"
    )
    with pytest.raises(RecipeError, match=r"sweep\.yaml has 3 problems") as caught:
        load(path)
    updates, sparsity, method = sorted(caught.value.details, key=lambda detail: detail.split(":")[1])
    assert updates == f"{path}:3: unknown key training.updatez: did you mean training.updates?"
    assert sparsity == f"{path}:5: pruning.sparsity = 1.5: expected a number, at least 0 and below 1, or null"
    assert method.startswith(f"{path}:6: pruning.method = prap: expected one of dense, ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("grid: {seed: 3}", "grid: seed: expected a list of values"),
        ("grid: {seed: []}", "grid: seed: expected a list of values"),
        ("grid: [seed]", "found a list of 1: expected a mapping of recipe keys"),
        ("grid: {seed: [1], seed: [2]}", "duplicate key seed"),
        ("set: {seed: 1}", "grid is missing: expected a mapping"),
        ("grid: {seed: [1]}\nsplits: []", "splits: names none"),
        ("grid: {seed: [1]}\nsets: {}", "unknown key sets: did you mean set?"),
        ("grid: {pruning.pattern: ['2:4'], pruning.sparsity: [0.3]}", "pattern 2:4 prunes 0.5 of the weights"),
    ],
)
def test_what_cannot_be_a_sweep(write_sweep: Any, text: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(write_sweep(text))
    assert any(problem in detail for detail in caught.value.details), caught.value.details


def test_a_wrong_override_is_told(write_sweep: Any) -> None:
    with pytest.raises(RecipeError) as caught:
        load(write_sweep("grid: {seed: [1]}"), "training.updates=0", "nothing")
    assert any("--set nothing: write it as key=value" in detail for detail in caught.value.details)
    with pytest.raises(RecipeError) as caught:
        load(write_sweep("grid: {seed: [1]}"), "training.updates=0")
    (detail,) = caught.value.details
    assert detail.startswith("--set training.updates=0: training.updates = 0: expected a whole number")


def test_a_grid_without_axes_is_one_cell(write_sweep: Any) -> None:
    (cell,) = load(write_sweep("grid: {}")).cells
    assert cell.values == {}


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_sweep_is_read_and_says_how_to_run_it(path: Path) -> None:
    sweep = load(path)
    assert len(sweep.cells) == len({cell.key for cell in sweep.cells}) > 4
    assert path.read_text().startswith("# ")
    assert f"#   parp sweep recipes/sweeps/{path.name} " in path.read_text()
    assert "# Cost: " in path.read_text()


def test_the_cells_of_mini_are_runs_of_its_recipe() -> None:
    base = load_recipe(SWEEPS.parent / "mini" / "10min.yaml")
    for cell in load(SWEEPS / "mini.yaml").cells:
        data = cell.recipe.data
        assert (cell.recipe.model, data.train, data.test) == (base.model, base.data.train, base.data.test)
        assert cell.splits == (base.data.test,)
