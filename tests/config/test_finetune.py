"""The recipes that are shipped: they can be read, and they are what their comments and the defaults say."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from parp_cli.cli.quickstart import _SETTINGS, _UPDATES
from parp_cli.config.classification import TextData, TextRecipe
from parp_cli.config.finetune import Recipe
from parp_cli.config.load import dump_yaml, load_recipe, recipe_from_dict, recipe_to_dict
from parp_cli.config.masked_lm import MaskedLmRecipe
from parp_cli.config.pretrain import PretrainRecipe
from parp_cli.errors import RecipeError

FOLDER = Path(__file__).parents[2] / "recipes"
RUNS = sorted(path for path in FOLDER.rglob("*.yaml") if "\ngrid:\n" not in path.read_text(encoding="utf-8"))


def kind_of(path: Path) -> type[Any]:
    if path.stem in ("pretrain-text", "masked-lm"):
        return MaskedLmRecipe
    if path.stem.startswith("pretrain"):
        return PretrainRecipe
    return TextRecipe if path.parent.name == "glue" else Recipe


@pytest.mark.parametrize("path", RUNS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_recipe_is_read_and_says_how_to_run_it(path: Path) -> None:
    recipe = load_recipe(path, kind=kind_of(path))
    assert recipe_from_dict(json.loads(json.dumps(recipe_to_dict(recipe))), kind=kind_of(path)) == recipe
    assert path.read_text().startswith("# ")
    assert "#   parp " in path.read_text()
    assert "# Cost: " in path.read_text()


def test_defaults_are_the_mini_recipes() -> None:
    assert load_recipe(None) == Recipe()
    shipped = load_recipe(FOLDER / "mini" / "10min.yaml")
    own = {"model": "mini", "pruning": dataclasses.replace(Recipe().pruning, pattern="tensor", interval=10)}
    assert shipped == dataclasses.replace(Recipe(), **own)
    assert load_recipe(FOLDER / "mini" / "pretrain.yaml", kind=PretrainRecipe) == PretrainRecipe()


def test_the_short_recipe_is_the_quickstarts() -> None:
    shipped = load_recipe(FOLDER / "mini" / "best-short.yaml")
    length = [f"training.updates={_UPDATES}", f"training.validate_every={_UPDATES}"]
    assert shipped == load_recipe(None, ["model=mini", "pruning.sparsity=0.5", *_SETTINGS, *length])


@pytest.mark.parametrize("name", ["mpi-10min", "dense-10min", "small-10min"])
def test_baselines_differ_in_pruning_alone(name: str) -> None:
    ours, theirs = (load_recipe(FOLDER / "mini" / f"{stem}.yaml") for stem in ("10min", name))
    assert theirs.pruning != ours.pruning
    assert dataclasses.replace(theirs, pruning=ours.pruning) == ours


def test_published_hyperparameters() -> None:
    recipe = load_recipe(FOLDER / "librispeech" / "large-10h.yaml")
    assert (recipe.training.updates, recipe.training.learning_rate) == (12_000, 1e-4)
    assert (recipe.training.time_mask_probability, recipe.training.channel_mask_probability) == (0.65, 0.256)
    assert (recipe.training.layer_drop, recipe.pruning.interval) == (0.1, 48)


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    for path in RUNS:
        recipe = load_recipe(path, ["seed=7"], kind=kind_of(path))
        copy = tmp_path / path.name
        copy.write_text(dump_yaml(recipe), encoding="utf-8")
        assert load_recipe(copy, kind=kind_of(path)) == recipe


def test_one_language_or_a_list() -> None:
    assert load_recipe(None, ["data.language=es"]).data.language == ("es",)
    several = load_recipe(None, ["data.language=[no, zh]"])
    assert several.data.language == ("no", "zh")
    assert recipe_from_dict(recipe_to_dict(several)) == several
    with pytest.raises(RecipeError) as caught:
        load_recipe(None, ["data.language={a: b}"])
    assert "data.language" in caught.value.details[0]
    assert "a name or a list of names, or null" in caught.value.details[0]
    with pytest.raises(RecipeError):
        load_recipe(None, ["data.language=[]"])


def test_lists_are_of_manifests() -> None:
    with pytest.raises(RecipeError, match=r"data\.lists|problem"):
        load_recipe(None, ["data.lists=lists"])


def test_texts_of_another_task() -> None:
    data = TextData(root="/glue", glue="sst2", label="mine", metric="f1")
    assert data.domain == ("sst2",)
    assert data.on(("rte",)) == TextData(root="/glue", glue="rte")
    own = TextData(root="/texts/films", label="stars")
    assert own.domain == ("films",)
    assert own.on(("/texts/books",)) == TextData(root="/texts/books", label="stars")
    assert TextData().domain == ("generated",)
    assert Recipe().data.domain == ()
