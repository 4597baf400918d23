"""Methods as training runs: how many, of what, from what; and which of them are the same."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from parp_cli.config.finetune import Pruning, Recipe
from parp_cli.config.load import load_recipe
from parp_cli.errors import UsageError
from parp_cli.pruning.methods import all_specs
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Checkpoint, Metadata
from parp_cli.training.keys import round_key, start_key
from parp_cli.training.plan import Round, rounds_of, settle, target_sparsity


def recipe(*settings: str) -> Recipe:
    return load_recipe(None, ["training.updates=600", *settings])


def keys(wanted: Recipe, start: str = "start") -> list[str]:
    runs = rounds_of(wanted)
    return [round_key(runs[:number], start, data=[""] * number) for number in range(1, len(runs) + 1)]


def shown(runs: tuple[Round, ...]) -> list[tuple[str, float | None, int]]:
    return [(each.recipe.pruning.method, each.prune_to, each.recipe.training.updates) for each in runs]


@pytest.mark.parametrize("method", ["fixed", "mpi", "rp", "parp", "parp-p", "rigl"])
def test_most_methods_are_one_run(method: str) -> None:
    asked = recipe(f"pruning.method={method}")
    assert rounds_of(asked) == (Round(name=method, recipe=settle(asked)),)


def test_omp_and_pap_are_two() -> None:
    asked = recipe("pruning.method=omp", "pruning.sparsity=0.7")
    assert shown(rounds_of(asked)) == [("dense", None, 600), ("omp", 0.7, 600)]
    assert rounds_of(asked)[-1].recipe == settle(asked)
    asked = recipe("pruning.method=pap", "pruning.sparsity=0.7", "pruning.interval=7", "pruning.rewind=/early")
    search, last = rounds_of(asked)
    assert shown((search, last)) == [("parp", None, 600), ("pap", None, 600)]
    assert last.recipe == settle(asked)
    assert (search.recipe.pruning.sparsity, search.recipe.pruning.interval) == (0.7, 7)


@pytest.mark.parametrize(
    ("sparsity", "step", "expected"),
    [
        ("0.5", "0.1", [None, 0.1, 0.2, 0.3, 0.4, 0.5]),
        ("0.3", "0.1", [None, 0.1, 0.2, 0.3]),
        ("0.25", "0.1", [None, 0.1, 0.2, 0.25]),
        ("0.7", "0.2", [None, 0.2, 0.4, 0.6, 0.7]),
        ("0.9", "0.3", [None, 0.3, 0.6, 0.9]),
        ("0.05", "0.1", [None, 0.05]),
        ("0.5", "1", [None, 0.5]),
    ],
)
def test_imp_prunes_a_share_a_round(sparsity: str, step: str, expected: list[float | None]) -> None:
    asked = recipe("pruning.method=imp", f"pruning.sparsity={sparsity}", f"pruning.rounds.step={step}")
    runs = rounds_of(asked)
    assert [each.prune_to for each in runs] == expected
    assert [this.recipe.pruning.method for this in runs] == ["dense", *["fixed"] * (len(expected) - 2), "imp"]
    assert runs[-1].recipe == settle(asked)


def test_imps_rounds_are_short() -> None:
    asked = ("pruning.method=imp", "training.freeze_encoder_updates=500", "pruning.sparsity=0.3")
    runs = rounds_of(recipe(*asked))
    assert [this.recipe.training.updates for this in runs] == [100, 100, 100, 600]
    assert [this.recipe.training.freeze_encoder_updates for this in runs] == [0, 0, 0, 500]
    assert {this.recipe.training.learning_rate for this in runs} == {4e-3}
    other = rounds_of(recipe(*asked, "pruning.rounds.updates=17", "pruning.rounds.learning_rate=1e-5"))
    assert [this.recipe.training.updates for this in other] == [17, 17, 17, 600]
    assert [this.recipe.training.learning_rate for this in other] == [1e-5, 1e-5, 1e-5, 4e-3]


def test_the_same_rounds_have_the_same_keys() -> None:
    dense = keys(recipe("pruning.method=dense", "pruning.sparsity=0.9", "pruning.interval=9"))
    thirty, fifty = (keys(recipe("pruning.method=omp", f"pruning.sparsity={share}")) for share in ("0.3", "0.5"))
    assert thirty[0] == fifty[0] == dense[0]
    assert thirty[1] != fifty[1]
    thirty, fifty = (keys(recipe("pruning.method=imp", f"pruning.sparsity={share}")) for share in ("0.3", "0.5"))
    assert thirty[:3] == fifty[:3]
    assert len({*thirty, *fifty}) == len(thirty) + len(fifty) - 3


@pytest.mark.parametrize(
    "change",
    ["seed=1", "training.updates=599", "pruning.scope=attention", "pruning.biases=false", "data.train=train-1h"],
)
def test_other_runs_have_other_keys(change: str) -> None:
    asked = ("pruning.method=omp",)
    assert set(keys(recipe(*asked))).isdisjoint(keys(recipe(*asked, change)))
    assert set(keys(recipe(*asked))).isdisjoint(keys(recipe(*asked), start="elsewhere"))


def test_files_deep_in_a_model_count(tmp_path: Path) -> None:
    weights = tmp_path / "model" / "shards" / "1.safetensors"
    weights.parent.mkdir(parents=True)
    keys = []
    for content in ("one", "one and more"):
        weights.write_text(content)
        keys += [start_key(recipe(f"model={tmp_path / 'model'}")) for _ in range(2)]
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_a_key_depends_on_what_is_in_the_files(tmp_path: Path) -> None:
    model, other, init = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "c.safetensors"
    model.write_bytes(b"one")
    other.write_bytes(b"one")
    init.write_bytes(b"two")
    assert start_key(recipe(f"model={model}")) == start_key(recipe(f"model={other}"))
    assert start_key(recipe(f"model={model}"), init) != start_key(recipe(f"model={model}"))
    assert start_key(recipe(f"pruning.initial={init}")) != start_key(recipe(f"pruning.initial={model}"))
    assert start_key(recipe()) == start_key(recipe("model=mini"))
    before = start_key(recipe(f"model={model}"))
    model.write_bytes(b"three")
    assert start_key(recipe(f"model={model}")) != before
    rewinding = recipe("pruning.method=imp", "pruning.sparsity=0.2", f"pruning.rewind={init}")
    first = keys(rewinding)
    init.write_bytes(b"four")
    assert first[0] == keys(rewinding)[0] == keys(recipe("pruning.method=imp"))[0], "the dense round does not rewind"
    assert set(first[1:]).isdisjoint(keys(rewinding)[1:])


def test_target_sparsity() -> None:
    assert target_sparsity(recipe().pruning) == 0.5
    assert target_sparsity(recipe("pruning.sparsity=0.7").pruning) == 0.7
    assert target_sparsity(recipe("pruning.pattern=1:4").pruning) == 0.75
    assert target_sparsity(recipe("pruning.pattern=1:4", "pruning.sparsity=0.75").pruning) == 0.75
    with pytest.raises(
        UsageError, match=r"pattern 1:4 prunes 0\.75 of the weights, the recipe asks for 0\.5"
    ) as caught:
        target_sparsity(recipe("pruning.pattern=1:4", "pruning.sparsity=0.5").pruning)
    assert "pruning.sparsity to 0.75 or null" in (caught.value.hint or "")


def test_a_sparsity_that_a_message_shows_can_be_given() -> None:
    assert target_sparsity(recipe("pruning.pattern=1:3", "pruning.sparsity=0.666667").pruning) == 1 - 1 / 3
    with pytest.raises(UsageError, match=r"the recipe asks for 0\.66666"):
        target_sparsity(recipe("pruning.pattern=1:3", "pruning.sparsity=0.66666").pruning)


def test_keys_tell_torch_and_the_device_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(recipe())
    assert start_key(recipe()) == start_key(recipe(), device=torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert "GPU 0" in start_key(recipe(), device=torch.device("cuda", 0)) != start_key(recipe())
    monkeypatch.setattr(torch, "__version__", "0.1")
    assert keys(recipe()) != before


def test_what_a_method_does_not_read_makes_no_difference() -> None:
    unread = ("pruning.start_sparsity=0.1", "pruning.drop_fraction=0.9", "pruning.rounds.step=0.3")
    assert keys(recipe("pruning.method=mpi", "pruning.interval=9", *unread)) == keys(recipe("pruning.method=mpi"))
    assert keys(recipe("pruning.method=parp", *unread)) == keys(recipe("pruning.method=parp"))
    assert keys(recipe("pruning.method=parp", "pruning.interval=9")) != keys(recipe("pruning.method=parp"))
    assert keys(recipe("pruning.method=pap", *unread))[0] == keys(recipe("pruning.method=parp"))[0]
    asked = settle(recipe("pruning.method=rigl", "pruning.growth=cubic", "pruning.drop_fraction=0.9")).pruning
    assert (asked.growth, asked.drop_fraction) == ("linear", 0.9)


def test_every_method_says_what_it_reads() -> None:
    read = {"method", "scope", "biases", "pattern", *(key for spec in all_specs().values() for key in spec.reads)}
    assert read == {field.name for field in fields(Pruning)}


def test_splits_that_are_not_learned_from_change_no_key() -> None:
    assert keys(recipe("data.test=test-other", "data.download=true")) == keys(recipe())
    assert keys(recipe("data.valid=dev-other")) != keys(recipe())


def test_scope_biases_and_pattern_are_those_of_the_mask(tmp_path: Path) -> None:
    masked = tmp_path / "m.safetensors"
    recorded = {"scope": "attention", "biases": False, "pattern": "layer"}
    write_mask(masked, recorded)
    for settled in (settle(recipe(), masked), settle(recipe(f"pruning.initial={masked}"))):
        assert {key: getattr(settled.pruning, key) for key in recorded} == recorded
    own = settle(recipe("pruning.scope=transformer", "pruning.biases=true", "pruning.pattern=global"), masked).pruning
    assert (own.scope, own.biases, own.pattern) == ("transformer", True, "global")
    write_mask(masked, {"pruning": {"scope": "feed-forward", "pattern": "2:4"}})  # as fine-tuning records it
    tuned = settle(recipe(), masked).pruning
    assert (tuned.scope, tuned.biases, tuned.pattern) == ("feed-forward", True, "2:4")
    plain = settle(recipe()).pruning
    assert (plain.scope, plain.biases, plain.pattern) == ("transformer", True, "global")


def write_mask(path: Path, recorded: dict[str, object]) -> None:
    metadata = Metadata(stage="mask", architecture={}, recipe=recorded)
    checkpoint.write(
        path, Checkpoint(weights={"a": torch.ones(2)}, masks={"a": torch.ones(2).bool()}, metadata=metadata)
    )
