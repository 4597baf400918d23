"""Recipes: every mistake is named, all at once, with its place; and what is read is what was written."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from parp_cli.config.finetune import Data, Recipe, Task
from parp_cli.config.load import load_recipe, recipe_from_dict, recipe_to_dict
from parp_cli.config.pretrain import PretrainRecipe, Source, Stage
from parp_cli.config.recipes import RECIPES
from parp_cli.config.values import FilePath, Section
from parp_cli.errors import RecipeError
from parp_cli.pruning.methods import all_specs

ROOT = Path(__file__).parents[2]
KEYS = [field.name for field in dataclasses.fields(Data)]


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write_recipe(text: str) -> Path:
        path = tmp_path / "r.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_recipe


def problems(path: Path | None, *overrides: str, kind: type[Any] | None = None) -> list[str]:
    """The details of the error, file names without their folder."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides, kind=kind)
    folder = "" if path is None else f"{path.parent}/"
    return [detail.removeprefix(folder) for detail in caught.value.details]


# ------------------------------------------------------------------------------------------------------ mistakes


def test_all_mistakes_at_once_in_the_order_of_the_file(write: Any) -> None:
    path = write(
        """\
model: mini
traning: {updates: 3}
lr: 1e-4
training:
  updates: many
  updates: 3
  lerning_rate: 2e-5
  weight_decay: -1
  adam_betas: [0.9, 1.2]
  dropout: "much"
  layer_drop: .nan
pruning:
data: {corpus: lirispeech, root: None, download: 2, manifest: [a], train: null}
training.decay: 0.5
"""
    )
    assert problems(path, "pruning=5", "sparsity=0.4", "nothing", "training.adam_betas.4=3", "model.a=3") == [
        "r.yaml:2: unknown key traning: did you mean training?",
        "r.yaml:3: unknown key lr: the keys here are task, model, seed, data, pruning, training, distil",
        "r.yaml:5: training.updates = many: expected a whole number, at least 1",
        "r.yaml:6: duplicate key training.updates, first on line 5",
        "r.yaml:7: unknown key training.lerning_rate: did you mean training.learning_rate?",
        "r.yaml:8: training.weight_decay = -1: expected a number, at least 0",
        "r.yaml:9: training.adam_betas.1 = 1.2: expected a number, at least 0 and below 1",
        "r.yaml:10: training.dropout = much: expected a number, at least 0 and below 1",
        "r.yaml:11: training.layer_drop = .nan: expected a number, at least 0 and below 1",
        "r.yaml:13: data.corpus = lirispeech: expected one of generated, librispeech, librilight, manifest",
        "r.yaml:13: data.download = 2: expected true or false",
        "r.yaml:13: data.manifest = a list of 1: expected text, or null",
        "r.yaml:13: data.train = null: expected text",
        "r.yaml:14: unknown key training.decay: write decay under training",
        "--set pruning=5: pruning = 5: expected a mapping with keys such as method, sparsity, initial",
        "--set sparsity=0.4: unknown key sparsity: did you mean pruning.sparsity?",
        "--set nothing: write it as key=value or section.key=value",
        "--set training.adam_betas.4=3: 4 is not an entry of a list of 2, counted from 0",
        "--set model.a=3: a cannot lie under mini",
    ]


def test_the_message_counts_and_the_exit_code_is_of_usage(write: Any) -> None:
    with pytest.raises(RecipeError, match="has 2 problems") as caught:
        load_recipe(write("a1: 1\nb1: 2\n"))
    assert caught.value.exit_code == 2
    assert caught.value.hint is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n- b\n", "r.yaml:1: found a list of 2: expected a mapping with keys such as task, model, seed"),
        ("\n\nwords\n", "r.yaml:3: found words: expected a mapping with keys such as task, model, seed"),
        ("seed: 1.5\n", "r.yaml:1: seed = 1.5: expected a whole number, at least 0 and at most 4294967295"),
        ("training:\n  updates: 0\n", "r.yaml:2: training.updates = 0: expected a whole number, at least 1"),
        ("training: {adam_betas: [0.9]}\n", "r.yaml:1: training.adam_betas = a list of 1: expected a list of 2"),
        (
            "training: {dropout: 1e999}\n",
            "r.yaml:1: training.dropout = 1e999: expected a number, at least 0 and below 1",
        ),
        (
            "pruning:\n",
            "r.yaml:1: pruning = null: expected a mapping with keys such as method, sparsity, initial",
        ),
        ("model: !foo mini\n", "r.yaml:1: the tag !foo is not supported"),
        (
            "model: !!python/name:os.system\n",
            "r.yaml:1: the tag tag:yaml.org,2002:python/name:os.system is not supported",
        ),
        ("model: mini\ndata: &a [*a]\n", "r.yaml:2: found unconstructable recursive node"),
        ("model: ''\n", 'r.yaml:1: model = "": expected text, or null'),
        ("? [a]\n: 1\n", "r.yaml:1: a key must be a name, not a list of 1"),
        ("zzz: 1\n", "r.yaml:1: unknown key zzz: the keys here are task, model, seed, data, pruning, training, distil"),
        (
            "pruning: {sparsity: 1.0}\n",
            "r.yaml:1: pruning.sparsity = 1.0: expected a number, at least 0 and below 1, or null",
        ),
        (
            "training:\n  updates: 9\n  warmup: 0.2\n",
            "r.yaml:3: training.warmup: warmup, hold and decay sum to 1.1: expected 1",
        ),
        (
            "training: {updates: 5, freeze_encoder_updates: 6}\n",
            "r.yaml:1: training.freeze_encoder_updates: 6 is more than training.updates",
        ),
        ("data:\n  corpus: manifest\n", "r.yaml:2: data.manifest: corpus manifest needs the path of a manifest"),
        (
            "data:\n  manifest: m.tsv\n",
            "r.yaml:2: data.manifest: is not read by corpus generated; set data.corpus to manifest, or remove it",
        ),
        (
            "pruning: {method: prap}\n",
            f"r.yaml:1: pruning.method = prap: expected one of {', '.join(all_specs())}",
        ),
        (
            "pruning: {mode: fixed}\n",
            "r.yaml:1: unknown key pruning.mode: did you mean pruning.method?",
        ),
        ("pruning: {interval: 2.5}\n", "r.yaml:1: pruning.interval: 2.5 updates: expected a whole number"),
        ("pruning:\n  start: 9\n  end: 8\n", "r.yaml:3: pruning.end: 8 is before start, 9"),
        (
            "pruning: {sparsity: 0.3, start_sparsity: 0.4}\n",
            "r.yaml:1: pruning.start_sparsity: 0.4 is more than sparsity, 0.3",
        ),
        (
            "pruning: {method: parp-p, pattern: '2:4'}\n",
            "r.yaml:1: pruning.pattern: method parp-p takes no 2:4, but global, layer, tensor, row, block, "
            "structures, heads, units, channels",
        ),
        (
            "pruning: {method: imp, pattern: '2:4'}\n",
            "r.yaml:1: pruning.pattern: method imp takes no 2:4, but global, layer, tensor, row, block, "
            "structures, heads, units, channels",
        ),
        (
            "pruning: {method: rigl, pattern: 16x16}\n",
            "r.yaml:1: pruning.pattern: method rigl takes no 16x16, but global, layer, tensor",
        ),
        *(
            (
                f"pruning: {{method: {method}, initial: random}}\n",
                f"r.yaml:1: pruning.initial: method {method} does not start from a mask; remove it",
            )
            for method in ("dense", "omp", "imp", "pap")
        ),
        (
            "pruning: {method: mpi, initial: random}\n",
            "r.yaml:1: pruning.initial: method mpi has a magnitude mask, and random is none; remove it",
        ),
        (
            "pruning: {method: rp, initial: magnitude}\n",
            "r.yaml:1: pruning.initial: method rp has a random mask, and magnitude is none; remove it",
        ),
    ],
)
def test_one_mistake(write: Any, text: str, expected: str) -> None:
    assert problems(write(text)) == [expected]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model: mini\ntraining: {updates: 3\n", 3),
        ("model: mini\ntraining:\n\tupdates: 3\n", 3),
        ("model: a: b\n", 1),
        ("model: mini\n---\nmodel: mini\n", 2),
        ("model: mini\nseed: *nowhere\n", 2),
        ("model: mini\nseed: \x07\n", 2),
        ("[" * 5000, 1),
    ],
)
def test_broken_yaml_names_the_line(write: Any, text: str, line: int) -> None:
    with pytest.raises(RecipeError, match="is not YAML") as caught:
        load_recipe(write(text))
    assert f"r.yaml:{line}: " in caught.value.details[0]


def test_files_that_cannot_be_recipes(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no recipe at .*absent"):
        load_recipe(tmp_path / "absent.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9\n")
    with pytest.raises(RecipeError, match="not text in UTF-8"):
        load_recipe(tmp_path / "latin.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing but a comment\n")
    with pytest.raises(RecipeError, match="is empty"):
        load_recipe(tmp_path / "empty.yaml")


def test_mistakes_within_lists_are_numbered(write: Any) -> None:
    path = write(
        """\
data:
  - {kind: folder}
  - {path: x}
stages:
  - targets: mfcc
    updates: 3
    cluster: 5
  - {targets: layer-0, updates: 2}
"""
    )
    assert problems(path, kind=PretrainRecipe) == [
        "r.yaml:2: data.0.path: kind folder needs a path",
        "r.yaml:3: data.1.kind is missing: expected one of generated, folder, manifest",
        "r.yaml:7: unknown key stages.0.cluster: did you mean stages.0.clusters?",
        "r.yaml:8: stages.1.targets: layer-0 is neither mfcc nor layer-N",
    ]
    assert problems(write("stages:\n  - {targets: layer-2, updates: 1}\n"), kind=PretrainRecipe) == [
        "r.yaml:2: stages: the first cannot be layer-2: the encoder is untrained, start with mfcc or name a model"
    ]
    assert problems(None, "data=[]", kind=PretrainRecipe) == ["--set data=[]: data: names no source"]


def test_unknown_keys_do_not_hide_values_that_do_not_go_together(write: Any) -> None:
    text = "stages:\n  - &one {targets: layer-0, updates: 1, cluster: 5}\n  - *one\n"
    unknown = "r.yaml:2: unknown key stages.{}.cluster: did you mean stages.{}.clusters?"
    neither = "r.yaml:2: stages.{}.targets: layer-0 is neither mfcc nor layer-N"
    expected = [line.format(number, number) for line in (neither, unknown) for number in (0, 1)]
    assert sorted(problems(write(text), kind=PretrainRecipe)) == sorted(expected)


def test_an_override_does_not_hide_that_a_key_comes_twice(write: Any) -> None:
    assert problems(write("training:\n  updates: 2\n  updates: x\n"), "training.updates=y") == [
        "r.yaml:3: duplicate key training.updates, first on line 2",
        "--set training.updates=y: training.updates = y: expected a whole number, at least 1",
    ]


def test_text_that_spells_none_is_null_unless_quoted(write: Any) -> None:
    assert problems(write("data: {train: None}\n")) == ["r.yaml:1: data.train = null: expected text"]
    assert load_recipe(write("data: {root: None, train: 'None'}\n")).data == Data(train="None")


# --------------------------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True, kw_only=True)
class Sentences(Section):
    file: FilePath | None = None


@dataclass(frozen=True, kw_only=True)
class Sorting(Section):
    task: Literal["ctc", "sorting"] = "sorting"
    data: Sentences
    sizes: tuple[int, ...] = (1, 2)


@pytest.fixture
def sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "sorting", Sorting)  # type: ignore[misc]


@pytest.mark.usefixtures("sorting")
def test_the_task_selects_what_a_recipe_is_read_as(write: Any, tmp_path: Path) -> None:
    path = write("task: sorting\ndata: {file: s.txt}\n")
    recipe: Any = load_recipe(path, ["sizes=[3]"])
    assert recipe == Sorting(data=Sentences(file=str(tmp_path / "s.txt")), sizes=(3,))
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe
    assert problems(path, "task=ctc") == ["r.yaml:2: unknown key data.file: the keys here are " + ", ".join(KEYS)]
    assert load_recipe(write("task: ctc\n")) == load_recipe(None) == Recipe()
    assert problems(write("data: {file: s.txt, corpus: 3}\n"), "task=sorting") == [
        "r.yaml:1: unknown key data.corpus: the keys here are file"
    ]


def test_an_unknown_task(write: Any) -> None:
    assert problems(write("seed: 1\ntask: sing\n")) == [
        "r.yaml:2: task = sing: expected one of ctc, classification, masked-lm"
    ]
    assert problems(write("task: [ctc]\n")) == [
        "r.yaml:1: task = a list of 1: expected one of ctc, classification, masked-lm"
    ]
    assert list(RECIPES) == list(get_args(Task))


# -------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("text", ["2e-5", "2E-5", "2.0e-5", "0.00002", "2_0e-6"])
def test_scientific_notation(write: Any, text: str) -> None:
    assert load_recipe(write(f"training: {{learning_rate: {text}}}")).training.learning_rate == 2e-5
    assert load_recipe(None, [f"training.learning_rate={text}"]).training.learning_rate == 2e-5


def test_whole_numbers_are_numbers(write: Any) -> None:
    batch = load_recipe(write("training: {batch_seconds: 30}")).training.batch_seconds
    assert (batch, type(batch)) == (30.0, float)


@pytest.mark.parametrize("text", ["no", "on", "10", "1e3", "2024-01-01", "'null'", "1:30", "0x1F"])
def test_text_stays_what_was_written(write: Any, text: str) -> None:
    assert load_recipe(write(f"data:\n  train: {text}\n")).data.train == text.strip("'")


@pytest.mark.parametrize("text", ["true", "Yes", "on", "false", "NO", "off"])
def test_booleans_in_all_spellings(write: Any, text: str) -> None:
    assert load_recipe(write(f"data: {{download: {text}}}")).data.download is (text.lower() in ("true", "yes", "on"))


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_null_where_optional(write: Any, text: str) -> None:
    assert load_recipe(write(f"training:\n  gradient_clip: {text}\n")).training.gradient_clip is None


def test_paths_start_at_the_recipe(write: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.chdir("/")
    path = write("model: ../enc.pt\ndata: {corpus: manifest, manifest: lists/m.tsv, root: ~/speech}\n")
    recipe = load_recipe(path)
    assert recipe.model == str(tmp_path.parent / "enc.pt")
    assert recipe.data.manifest == str(tmp_path / "lists" / "m.tsv")
    assert recipe.data.root == "/home/ann/speech"
    assert load_recipe(path, ["data.manifest=m.tsv"]).data.manifest == "/m.tsv", "as the command line's paths do"
    assert load_recipe(path, ["model=facebook/wav2vec2-base"]).model == "facebook/wav2vec2-base"
    assert recipe_from_dict(recipe_to_dict(recipe)) == recipe


# ----------------------------------------------------------------------------------------------------- overrides


def test_overrides_come_after_the_file_and_the_last_wins(write: Any) -> None:
    path = write("training: {updates: none, dropout: 0.1}\n")
    training = load_recipe(
        path, ["training.updates=5", "training.updates= 7 ", "training.adam_betas=[0.8, 0.9]"]
    ).training
    assert (training.updates, training.dropout, training.adam_betas) == (7, 0.1, (0.8, 0.9))


def test_an_override_is_taken_literally_unless_it_is_a_list() -> None:
    recipe = load_recipe(None, ["data.root=/a #b: c", "data.test=no", "data.valid='null'"])
    assert (recipe.data.root, recipe.data.test, recipe.data.valid) == ("/a #b: c", "no", "null")


def test_overrides_within_lists(write: Any) -> None:
    recipe = load_recipe(None, ["stages.1.updates=2", "data=[{kind: folder, path: /x}]"], kind=PretrainRecipe)
    assert recipe.stages == (PretrainRecipe().stages[0], Stage(targets="layer-4", updates=2, clusters=200))
    assert recipe.data == (Source(kind="folder", path="/x"),)
    aliased = write("stages: [&first {targets: mfcc, updates: 9}, *first]\n")
    stages = load_recipe(aliased, ["stages.1.updates=2"], kind=PretrainRecipe).stages
    assert [stage.updates for stage in stages] == [9, 2]


# ---------------------------------------------------------------------------------------------------- round trip


@dataclass(frozen=True, kw_only=True)
class Part(Section):
    share: Annotated[float, Field(ge=0, lt=1)]
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Whole(Section):
    count: int
    size: float | None
    name: str
    mode: Literal["no", "yes"]
    fast: bool
    pair: tuple[float, int]
    part: Part
    parts: tuple[Part, ...]
    names: list[str]
    maybe: Part | None


texts = st.one_of(
    st.sampled_from(
        ["no", "None", "null", "~", "2e-5", "a: b", "# c", "- d", "[", "'", "!x", "=", "<<", "a\nb", "a\x85"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip() != ""),
)
floats = st.floats(allow_nan=False, allow_infinity=False)
parts = st.builds(Part, share=st.floats(0, 1, exclude_max=True), label=st.none() | texts)
wholes = st.builds(
    Whole,
    count=st.integers(),
    size=st.none() | floats,
    name=texts,
    mode=st.sampled_from(["no", "yes"]),
    fast=st.booleans(),
    pair=st.tuples(floats, st.integers()),
    part=parts,
    parts=st.lists(parts, max_size=3).map(tuple),
    names=st.lists(texts, max_size=3),
    maybe=st.none() | parts,
)


@settings(deadline=None, database=None)
@given(wholes)
def test_round_trip(whole: Whole) -> None:
    assert recipe_from_dict(json.loads(json.dumps(recipe_to_dict(whole))), kind=Whole) == whole


def test_reading_back_is_as_strict() -> None:
    values = recipe_to_dict(Recipe())
    values["training"]["updates"] = -1
    values["extra"] = 1
    with pytest.raises(RecipeError, match="recipe has 2 problems") as caught:
        recipe_from_dict(values)
    assert caught.value.details == (
        "recipe: training.updates = -1: expected a whole number, at least 1",
        "recipe: unknown key extra: the keys here are task, model, seed, data, pruning, training, distil",
    )
    with pytest.raises(RecipeError, match="plain values"):
        recipe_from_dict({"model": Path("x")})


def test_recipes_are_read_without_torch() -> None:
    code = "import sys, parp_cli.config.load as r; r.load_recipe(None); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
