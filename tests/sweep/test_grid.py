import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from parp_cli.config.load import load_recipe
from parp_cli.errors import RecipeError
from parp_cli.storage import checkpoint
from parp_cli.sweep.cells import outcomes
from parp_cli.sweep.grid import Sweep, load_sweep
from parp_cli.sweep.report import panels
from parp_cli.training import keys

CPU = torch.device("cpu")
RECIPES = Path(__file__).parents[2] / "recipes"
SWEEPS = sorted(path for path in RECIPES.rglob("*.yaml") if "\ngrid:\n" in path.read_text(encoding="utf-8"))


def load(path: Path, *overrides: str) -> Sweep:
    return load_sweep(path, overrides, device=CPU)


def test_every_combination_once_and_dense_once_a_seed(write_sweep: Any) -> None:
    path = write_sweep(
        "grid:\n  pruning.method: [dense, mpi, parp]\n  pruning.sparsity: [0.3, 0.5]\n  seed: [0, 1]\n"
        "set: {training.updates: 7}\n"
    )
    sweep = load(path)
    expected = [("dense", None, seed) for seed in (0, 1)]
    expected += list(itertools.product(["mpi", "parp"], [0.3, 0.5], [0, 1]))
    for cell, (method, sparsity, seed) in zip(sweep.cells, expected, strict=True):
        values = {"pruning.method": method, "pruning.sparsity": sparsity, "seed": seed}
        assert cell.values == {key: value for key, value in values.items() if value is not None}
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
    (cell,) = load(path, "seed=6").cells
    assert (cell.recipe.training.updates, cell.recipe.seed) == (4, 6)
    assert cell.splits == ("a", "b")
    (cell,) = load(path, "data.test=own").cells
    assert cell.splits == ("own",)


@pytest.mark.parametrize("override", ["training.adam_betas=[0.9,0.98]", "training={}", "training.adam_betas.0=0.5"])
def test_what_the_grid_has_values_for_cannot_be_set(write_sweep: Any, override: str) -> None:
    path = write_sweep("grid: {training.adam_betas: [[0.9, 0.98], [0.9, 0.999]]}")
    with pytest.raises(RecipeError) as caught:
        load(path, override)
    problem = "the grid has values for training.adam_betas: change them in the file, or by --grid"
    assert caught.value.details == (f"--set {override}: {problem}",)
    load(path, "training.adam_epsilon=1e-6")


def test_null_is_a_value_and_what_makes_no_difference_is_none(write_sweep: Any) -> None:
    path = write_sweep(
        "grid:\n  pruning.method: [dense, mpi, parp]\n  pruning.interval: [null, 3]\n"
        "  pruning.scope: [null, attention]\n"
    )
    cells = load(path).cells
    assert [cell.name for cell in cells[:2]] == ["dense, scope transformer", "dense, scope attention"]
    parp = [cell.values for cell in cells if cell.recipe.pruning.method == "parp"]
    assert [values["pruning.interval"] for values in parp] == [None, None, 3, 3]
    assert [values["pruning.scope"] for values in parp] == ["transformer", "attention"] * 2
    assert not any("pruning.interval" in cell.values for cell in cells if cell.recipe.pruning.method != "parp")
    assert cells[-4].name == "parp, interval null, scope transformer"
    assert len(cells) == 2 + 2 + 4


def test_a_grid_of_splits_judges_one_cell_on_each(write_sweep: Any) -> None:
    (cell,) = load(write_sweep("grid: {data.test: [test, valid]}")).cells
    assert (cell.values, cell.splits) == ({}, ("test", "valid"))


def test_combinations_are_left_out(write_sweep: Any) -> None:
    grid = "grid:\n  pruning.pattern: [global, '2:4']\n  pruning.method: [mpi, omp]\n"
    grid += "  pruning.sparsity: [0.3, 0.50, null]\n"
    path = write_sweep(
        f"{grid}except:\n  - {{pruning.pattern: '2:4', pruning.sparsity: [3e-1, null]}}\n"
        "  - {pruning: {method: omp, sparsity: 0.5}, pruning.pattern: global}\n"
    )
    found = [(c.recipe.pruning.pattern, c.recipe.pruning.method, c.recipe.pruning.sparsity) for c in load(path).cells]
    expected = [("global", "mpi", 0.3), ("global", "mpi", 0.5), ("global", "mpi", None)]
    expected += [("global", "omp", 0.3), ("global", "omp", None), ("2:4", "mpi", 0.5), ("2:4", "omp", 0.5)]
    assert found == expected
    with pytest.raises(RecipeError, match="has a problem") as caught:
        load(write_sweep(grid))
    assert "pattern 2:4 prunes 0.5 of the weights, the recipe asks for 0.3" in caught.value.details


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ("{seed: 1}", "sweep.yaml:3: except = a mapping: expected a list, or null"),
        ("[seed]", "sweep.yaml:3: except.0 = seed: expected a mapping"),
        ("[{}]", "sweep.yaml:3: except: an entry without keys"),
        ("[{sed: 1}]", "sweep.yaml:3: except: sed is not in the grid: its keys are seed"),
        ("[{seed: [1, 3]}]", "sweep.yaml:3: except: seed = 3: the grid has no such value"),
        ("[{seed: 1}, {seed: [2]}]", "sweep.yaml: except leaves nothing of the grid"),
    ],
)
def test_what_cannot_be_left_out(write_sweep: Any, entries: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(write_sweep(f"grid: {{seed: [1, 2]}}\nexcept: {entries}\n"))
    (detail,) = caught.value.details
    assert detail.endswith(problem)


def test_some_cells_have_settings_of_their_own(write_sweep: Any) -> None:
    grid = "grid:\n  pruning.method: [dense, mpi, parp]\n  training.updates: [8, 9]\n"
    rules = "  - {cells: {pruning.method: [mpi, parp]}, set: {pruning: {sparsity: 0.4}}}\n"
    rules += (
        "  - {cells: {pruning.method: parp, training.updates: 9}, set: {training.updates: 8, pruning.sparsity: 0.2}}\n"
    )
    cells = load(write_sweep(f"{grid}where:\n{rules}")).cells
    found = [(c.recipe.pruning.method, c.recipe.training.updates, c.recipe.pruning.sparsity) for c in cells]
    assert found == [
        ("dense", 8, None),
        ("dense", 9, None),
        ("mpi", 8, 0.4),
        ("mpi", 9, 0.4),
        ("parp", 8, 0.4),
        ("parp", 8, 0.2),  # the later entry wins
    ]
    assert cells[-1].values == {"pruning.method": "parp"}  # whatever the grid has for its updates


def test_a_method_with_one_setting_is_in_the_table_of_each(write_sweep: Any, tmp_path: Path) -> None:
    path = write_sweep(
        "grid:\n  pruning.method: [dense, parp]\n  training.freeze_encoder_updates: [3, 0]\n"
        "where:\n  - {cells: {pruning.method: parp}, set: {training.freeze_encoder_updates: 0}}\n"
    )
    cells = load(path).cells
    assert [cell.recipe.training.freeze_encoder_updates for cell in cells] == [3, 0, 0]
    assert len(cells) == 3  # one of parp, though two combinations lead to it
    tables = panels([outcome for cell in cells for outcome in outcomes(tmp_path, cell)])
    assert [table.methods for table in tables] == [("dense", "parp")] * 2


@pytest.mark.parametrize(
    ("entries", "problem"),
    [
        ("[{cells: {seed: 1}}]", "where.0.set is missing: expected a mapping"),
        ("[{cells: {}, set: {seed: 3}}]", "sweep.yaml:3: where: an entry without keys"),
        ("[{cells: {seed: 1}, set: {}}]", "sweep.yaml:3: where: set names no recipe key"),
        ("[{cells: {sed: 1}, set: {seed: 3}}]", "where: sed is not in the grid: its keys are seed"),
        ("[{cells: {seed: 4}, set: {seed: 3}}]", "where: seed = 4: the grid has no such value"),
        ("[{cells: {seed: 1}, sets: {seed: 3}}]", "unknown key where.0.sets: did you mean where.0.set?"),
        ("[{cells: {seed: 1, seed: 2}, set: {seed: 3}}]", "duplicate key where.0.cells.seed, first on line 3"),
        ("[{cells: {seed: 1}, set: {training.updatez: 3}}]", "unknown key training.updatez"),
    ],
)
def test_what_cannot_be_a_setting_of_some_cells(write_sweep: Any, entries: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(write_sweep(f"grid: {{seed: [1, 2]}}\nwhere: {entries}\n"))
    assert any(problem in detail for detail in caught.value.details), caught.value.details


def test_what_some_cells_have_cannot_be_set(write_sweep: Any) -> None:
    path = write_sweep("grid: {seed: [1, 2]}\nwhere: [{cells: {seed: 1}, set: {training.updates: 3}}]\n")
    with pytest.raises(RecipeError) as caught:
        load(path, "training.updates=9")
    problem = "`where` has values for training.updates: change them in the file"
    assert caught.value.details == (f"--set training.updates=9: {problem}",)


def test_what_cells_begin_from_is_hashed_once(write_sweep: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return checkpoint.file_hash(path)

    monkeypatch.setattr(keys, "file_hash", counted)
    sweep = load(write_sweep("grid: {seed: [0, 1, 2], pruning.method: [mpi, omp, imp]}"))
    assert len(sweep.cells) == 9
    assert len(hashed) == len(set(hashed)) == 1  # the encoder


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
        ("grid: [seed]", "grid = a list of 1: expected a mapping"),
        ("grid: {seed: [1], seed: [2]}", "duplicate key grid.seed, first on line 2"),
        ("grid: {pruning: {sparsity: [0.1], sparsity: [0.2]}}", "duplicate key grid.pruning.sparsity, first on line 2"),
        ("grid: {seed: [1]}\nexcept: [{seed: 1, seed: 1}]", "duplicate key except.0.seed, first on line 3"),
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


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_shipped_sweep_is_read_and_says_how_to_run_it(path: Path) -> None:
    sweep = load(path)
    assert len(sweep.cells) == len({cell.key for cell in sweep.cells}) >= 4
    assert path.read_text().startswith("# ")
    assert f"#   parp sweep recipes/{path.relative_to(RECIPES).as_posix()} " in path.read_text()
    assert "# Cost: " in path.read_text()


def test_defaults_are_those_of_the_task(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        f"recipe: null\nset: {{task: classification, data.root: {tmp_path}}}\ngrid: {{training.max_length: [8, 16]}}\n"
    )
    assert [cell.recipe.training.max_length for cell in load(tmp_path / "own.yaml").cells] == [8, 16]  # type: ignore[attr-defined]


def test_the_cells_of_mini_are_runs_of_its_recipe() -> None:
    base = load_recipe(RECIPES / "mini" / "10min.yaml")
    for cell in load(RECIPES / "sweeps" / "mini.yaml").cells:
        data = cell.recipe.data
        assert (cell.recipe.model, data.train, data.test) == (base.model, base.data.train, base.data.test)
        assert cell.splits == (base.data.test,)


@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize("split", ["10min", "1h", "10h"])
def test_published_methods_differ_in_the_freeze_and_equal_ones_do_not(size: str, split: str) -> None:
    folder = RECIPES / "librispeech"
    published, equal = (load(folder / f"{size}-{split}-{terms}.yaml") for terms in ("as-published", "equal"))
    frozen = {cell.recipe.pruning.method for cell in published.cells if cell.recipe.training.freeze_encoder_updates}
    baselines = {"dense", "imp"} if (size, split) == ("large", "10h") else {"dense", "mpi", "rp", "omp", "imp"}
    assert frozen == baselines
    base = load_recipe(folder / f"{size}-{split}.yaml")
    for cell in (*published.cells, *equal.cells):
        is_published = cell in published.cells
        freeze = 10_000 if is_published and cell.recipe.pruning.method in frozen else 0
        assert cell.recipe.training.freeze_encoder_updates == freeze
        # Nothing else differs, within a table or between the two.
        training = replace(cell.recipe.training, freeze_encoder_updates=0, precision=base.training.precision)
        assert (training, cell.recipe.data, cell.recipe.model) == (base.training, base.data, base.model)
    names = [[cell.name for cell in sweep.cells] for sweep in (published, equal)]
    assert names[0] == names[1]
    shared = {cell.key for cell in published.cells} & {cell.key for cell in equal.cells}
    alike = {cell.recipe.pruning.method for cell in equal.cells if cell.key in shared}
    assert alike >= {"parp", "parp-p"}
