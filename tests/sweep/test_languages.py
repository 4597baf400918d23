"""Masks from one language to another, one network for several, and what a sweep shows of them."""

import json
from pathlib import Path
from typing import Any

import jiwer
import pytest
import torch

from parp_cli.config.finetune import Recipe
from parp_cli.config.load import load_recipe
from parp_cli.errors import DataError, RecipeError
from parp_cli.pruning.select import magnitude_masks, prune_count
from parp_cli.stages.finetune import finetune
from parp_cli.storage import checkpoint
from parp_cli.storage.run_folder import BEST, round_folder
from parp_cli.sweep.grid import Sweep, load_sweep, with_data
from parp_cli.sweep.languages import languages
from parp_cli.sweep.run import plan_sweep, run_sweep
from parp_cli.training.plan import rounds_of
from tests.tiny import World, write_manifest

SHORT = ("training.updates=6", "training.validate_every=6", "data.labels=phones")
TRANSFER = """
grid:
  pruning.initial: [omp]
  data.language: [aa, bb]
  pruning.found_on: [aa, bb]
  pruning.method: [fixed, parp]
splits: [test]
"""


@pytest.fixture
def two(world: World, tmp_path: Path) -> Path:
    """A manifest of two languages: in the second every letter is the next one, and six utterances are in each test."""
    rows: list[dict[str, object]] = []
    for line in world.manifest.read_text().splitlines():
        row = json.loads(line)
        audio = str(world.manifest.parent / row["audio"])
        copies = 2 if row["split"] == "test" else 1
        other = str.maketrans({"A": "B", "B": "C", "C": "A"})
        for copy in range(copies):
            name = f"{row['id']}-{copy}"
            rows.append({**row, "id": f"aa-{name}", "audio": audio, "language": "aa"})
            phones = {"AH0": "B", "B": "S", "S": "AH0", "|": "|"}
            moved = " ".join(phones[phone] for phone in row["phones"].split())
            text = row["text"].translate(other)
            rows.append({**row, "id": f"bb-{name}", "audio": audio, "language": "bb", "text": text, "phones": moved})
    return write_manifest(tmp_path / "two.jsonl", rows)


def recipe(world: World, manifest: Path, *overrides: str) -> Recipe:
    return world.recipe(*SHORT, f"data.manifest={manifest}", *overrides)


def load(path: Path) -> Sweep:
    return with_data(load_sweep(path, device=torch.device("cpu")))


def test_a_first_mask_that_a_dense_run_finds_is_omps(world: World, two: Path, tmp_path: Path) -> None:
    own = ("data.language=aa", "pruning.sparsity=0.4")
    omp = finetune(recipe(world, two, "pruning.method=omp", *own), run=tmp_path / "omp").path
    given = ("pruning.method=fixed", "pruning.initial=omp")
    for name, more in {"here": (), "named": ("pruning.found_on=aa",)}.items():
        fixed = finetune(recipe(world, two, *given, *own, *more), run=tmp_path / name).path
        ours, theirs = checkpoint.read(fixed), checkpoint.read(omp)
        assert all(torch.equal(ours.masks[n], mask) for n, mask in theirs.masks.items())
        assert all(torch.equal(ours.weights[n], weight) for n, weight in theirs.weights.items())


def test_a_mask_is_found_on_one_language_and_kept_on_another(world: World, two: Path, tmp_path: Path) -> None:
    dense = finetune(recipe(world, two, "pruning.method=dense", "data.language=aa"), run=tmp_path / "aa").last
    asked = recipe(world, two, "pruning.method=fixed", "pruning.initial=omp", "pruning.found_on=aa", "data.language=bb")
    assert [each.name for each in rounds_of(asked)] == ["dense on aa", "fixed"]
    carried = checkpoint.read(finetune(asked, run=tmp_path / "carried").path)
    weights = checkpoint.read(dense).weights
    prunable = {name: weights[name] for name in carried.metadata.prunable}
    expected = magnitude_masks(prunable, prune_count(0.5, sum(weight.numel() for weight in prunable.values())))
    assert all(torch.equal(carried.masks[name], mask) for name, mask in expected.items())
    assert carried.metadata.recipe is not None
    assert carried.metadata.recipe["data"]["language"] == ["bb"]


def test_parps_mask_can_be_the_first_too(world: World, two: Path, tmp_path: Path) -> None:
    found = finetune(recipe(world, two, "pruning.interval=2", "data.language=aa"), run=tmp_path / "aa").last
    given = ("pruning.interval=2", "pruning.initial=parp", "pruning.found_on=aa", "data.language=bb")
    fixed = finetune(recipe(world, two, "pruning.method=fixed", *given), run=tmp_path / "fixed").path
    masks = checkpoint.read(fixed).masks
    assert all(torch.equal(masks[name], mask) for name, mask in checkpoint.read(found).masks.items())
    search, last = rounds_of(recipe(world, two, "pruning.method=parp-p", "pruning.sparsity=0.6", *given))
    assert (search.recipe.pruning.sparsity, search.recipe.pruning.interval) == (0.3, 2)
    assert (last.recipe.pruning.sparsity, last.prune_to) == (0.6, None)


def test_a_sweep_carries_every_mask_to_every_language(
    world: World, two: Path, tmp_path: Path, write_sweep: Any
) -> None:
    sweep, run = load(write_sweep(TRANSFER, *SHORT, f"data.manifest={two}")), tmp_path / "run"
    assert plan_sweep(sweep, run).runs == 2 + 8  # the dense run of a language is made once
    result = run_sweep(sweep, run=run)
    assert result.failed == ()
    masks = {
        (cell.recipe.pruning.found_on, cell.recipe.data.language): checkpoint.read_masks(
            round_folder(run, cell.key) / BEST
        )
        for cell in sweep.cells
        if cell.recipe.pruning.method == "fixed"
    }
    aa, bb = ("aa",), ("bb",)
    for source in (aa, bb):
        assert all(torch.equal(masks[source, aa][n], mask) for n, mask in masks[source, bb].items())
    assert any(not torch.equal(masks[aa, aa][n], mask) for n, mask in masks[bb, bb].items())

    found = languages(run, result.outcomes)
    assert [matrix.title.split(", ")[2] for matrix in found.transfers] == ["fixed", "parp"]
    rates = {(o.method, *o.found_on, *o.languages): o.per for o in result.outcomes}
    for matrix in found.transfers:
        method = matrix.title.split(", ")[2]
        assert (matrix.rows, matrix.columns) == (("aa", "bb"), ("aa", "bb"))
        for row, values in zip(matrix.rows, matrix.values, strict=True):
            for column, value in zip(matrix.columns, values, strict=True):
                assert value is not None
                assert value.error == rates[method, row, column]
                assert (value.difference is None) == (row == column)
                if value.difference is not None:
                    change = rates[method, row, column] - rates[method, column, column]  # type: ignore[operator]
                    assert value.difference.value == pytest.approx(change)
    assert {each.title.split(",")[0] for each in found.overlaps} == {"fixed", "parp"}
    text = (run / "sweep.md").read_text()
    assert "## Masks of one language for another" in text
    assert "| IoU, parp, 50%, initial omp | aa | bb |" in text
    assert {"sweep-languages.png", "sweep-languages.svg"} <= {path.name for path in result.figures}


def test_one_network_for_two_languages(two: Path, tmp_path: Path, write_sweep: Any) -> None:
    text = "grid: {data.language: [[aa, bb], aa, bb], pruning.method: [parp]}\nsplits: [test]\n"
    sweep, run = load(write_sweep(text, *SHORT, f"data.manifest={two}")), tmp_path / "run"
    result = run_sweep(sweep, run=run)
    assert [(o.languages, o.part) for o in result.outcomes] == [
        (("aa", "bb"), None),
        (("aa", "bb"), "aa"),
        (("aa", "bb"), "bb"),
        (("aa",), None),
        (("bb",), None),
    ]
    joint = run / (result.outcomes[0].checkpoint or "")
    lines = [json.loads(line) for line in (joint.parent / "eval-test.jsonl").read_text().splitlines()]
    for outcome in result.outcomes[1:3]:
        own = [line for line in lines if line["language"] == outcome.part]
        rate = jiwer.wer([line["reference"] for line in own], [line["hypothesis"] for line in own])
        assert (len(own), outcome.per) == (6, pytest.approx(rate))
    (rates,) = languages(run, result.outcomes).rates
    assert rates.rows == ("parp, 50%", "parp, 50%, one network for 2")
    assert rates.columns == ("aa", "bb")
    own_row, joint_row = rates.values
    for own, both in zip(own_row, joint_row, strict=True):
        assert own is not None
        assert both is not None
        assert own.difference is None
        assert both.difference is not None
        assert both.difference.value == pytest.approx(both.error - own.error)


def test_what_does_not_go_together(world: World, two: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as wrong:
        recipe(world, two, "pruning.found_on=aa")
    assert any("set initial to omp or parp" in detail for detail in wrong.value.details)
    with pytest.raises(RecipeError) as wrong:
        recipe(world, two, "pruning.method=mpi", "pruning.initial=omp")
    assert any("has a magnitude mask" in detail for detail in wrong.value.details)
    with pytest.raises(RecipeError) as wrong:
        recipe(world, two, "pruning.method=pap", "pruning.initial=omp")
    assert any("does not start from a mask" in detail for detail in wrong.value.details)
    with pytest.raises(RecipeError) as wrong:
        load_recipe(None, ["task=classification", "pruning.initial=omp", "pruning.found_on=aa"])
    assert any("aa is no folder" in detail for detail in wrong.value.details)
    asked = recipe(world, two, "pruning.initial=omp", "pruning.found_on=cc", "data.language=aa")
    with pytest.raises(DataError, match="nothing in cc") as missing:
        finetune(asked, run=tmp_path / "run")
    assert missing.value.details == ("languages there: aa, bb",)


def test_temperature_needs_languages(world: World, two: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="6 training utterances do not tell theirs"):
        finetune(world.recipe(*SHORT, "data.temperature=2"), run=tmp_path / "run")
    finetune(recipe(world, two, "data.temperature=2", "training.updates=1"), run=tmp_path / "run")
