"""Classification of texts, from the data to a trained network."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from parp_cli.errors import CheckpointError, DataError, UsageError
from parp_cli.runtime.progress import Progress, silent
from parp_cli.stages.finetune import finetune, plan, prepare
from parp_cli.stages.mask import mask
from parp_cli.storage import checkpoint
from parp_cli.tasks.task import task_class
from tests.models.text import CONFIGS
from tests.stops import check_it_goes_on
from tests.tasks.classification.world import Films, lines, make_films


def load(films: Films, *settings: str, **training: Any) -> Any:
    return prepare(films.recipe(*settings, **training), None, silent).task


def test_texts_become_tokens(films: Films) -> None:
    task = load(films)
    assert task.data.names == ("bad", "good")
    first = task.train[0]
    words = ["[CLS]", "a", "very", "good", "film", "[SEP]"]
    assert task.data.encoding.tokenizer.convert_ids_to_tokens(list(first.tokens)) == words
    assert (first.id, first.label) == ("2", 1.0)
    assert task.size(first) == 6
    assert task.describe()["names"] == ["bad", "good"]


@pytest.mark.parametrize("family", ["bert", "xlnet"])
def test_padding_changes_no_output(family: str, tmp_path: Path) -> None:
    task = load(make_films(tmp_path, family))
    start = prepare(task.recipe, None, silent).start
    network = task.network(start.weights).eval()
    short, long = task.train[0], max(task.train, key=task.size)
    tokens = long.tokens + long.tokens + long.tokens
    segments = None if long.segments is None else long.segments * 3
    longest = type(long)(id="x", tokens=tokens, segments=segments, label=0.0)
    encoding, device = task.data.encoding, torch.device("cpu")
    with torch.no_grad():
        alone = network(encoding.batch([short], device))
        padded = network(encoding.batch([short, longest], device))
    torch.testing.assert_close(padded[:1], alone, rtol=0, atol=1e-5)


def test_updates_have_their_number_of_texts_and_each_text_comes_once_an_epoch(films: Films) -> None:
    task = load(films)
    batches = task.batches()
    seen = [batches.take() for _ in range(10)]  # two epochs of 18
    assert sorted(map(len, seen[:5])) == [2, 4, 4, 4, 4]
    for epoch in (seen[:5], seen[5:]):
        assert sorted(item.id for items in epoch for item in items) == sorted(item.id for item in task.train)
    assert [item.id for items in seen[:5] for item in items] != [item.id for items in seen[5:] for item in items]
    again = task.batches()
    again.position = {"epoch": 1, "group": 2}
    assert again.take() == seen[7]
    assert batches.mean_size(5) * 5 == sum(map(task.size, task.train))


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_learns_under_a_mask(family: str, tmp_path: Path) -> None:
    films = make_films(tmp_path, family)
    result = finetune(films.recipe(updates=60, validate_every=20), run=tmp_path / "run")
    assert result.sparsity is not None
    assert result.sparsity.exact == pytest.approx(0.5, abs=1e-3)
    losses = [one.metrics["loss"] for one in result.validations]
    assert losses[-1] < losses[0]
    assert result.shown == {"accuracy": "accuracy", "F1": "f1", "Matthews": "matthews"}
    content = checkpoint.read(result.path)
    assert all(not content.weights[name][~mask].any() for name, mask in content.masks.items())


def test_a_film_can_be_told(films: Films, tmp_path: Path) -> None:
    result = finetune(films.recipe("pruning.method=dense", updates=150, validate_every=50), run=tmp_path / "run")
    assert result.best.metrics["accuracy"] > 0.9
    assert result.best.score[0] == -result.best.metrics["accuracy"]  # type: ignore[operator]


@pytest.mark.parametrize("method", ["parp", "mpi", "rp", "omp", "imp", "pap", "rigl", "movement", "wanda", "taylor"])
def test_every_method(method: str, films: Films, tmp_path: Path) -> None:
    result = finetune(
        films.recipe(f"pruning.method={method}", "pruning.sparsity=0.4", updates=12), run=tmp_path / "run"
    )
    assert result.sparsity is not None
    assert result.sparsity.exact == pytest.approx(0.4, abs=0.02)


def test_a_stopped_run_goes_on_to_the_same_bytes(films: Films, tmp_path: Path) -> None:
    check_it_goes_on(films.recipe(), tmp_path, after=5)


def test_a_mask_then_fine_tuning(films: Films, tmp_path: Path) -> None:
    made = mask(str(films.model), sparsity=0.6, out=tmp_path / "mask.safetensors")
    result = finetune(films.recipe(), run=tmp_path / "run", init=made.path)
    assert result.sparsity is not None
    assert result.sparsity.target == 0.6
    planned = plan(films.recipe(), init=made.path)
    assert (planned.outputs, planned.train_items, planned.item_name, planned.size_unit) == (2, 18, "texts", "tokens")


def test_a_head_is_kept_for_the_same_classes_alone(films: Films, tmp_path: Path) -> None:
    first = finetune(films.recipe("pruning.method=dense"), run=tmp_path / "one")
    same = prepare(films.recipe("pruning.method=dense"), first.path, silent)
    kept = same.task.network(same.start.weights, same.start.task).state_dict()
    assert torch.equal(kept["classifier.weight"], same.start.weights["classifier.weight"])
    for path in films.data.iterdir():
        path.write_text(path.read_text().replace("\tbad", "\tpoor"))
    other = prepare(films.recipe("pruning.method=dense"), first.path, silent)
    assert other.task.data.names == ("good", "poor")
    new = other.task.network(other.start.weights, other.start.task).state_dict()
    assert not torch.equal(new["classifier.weight"], kept["classifier.weight"])
    assert torch.equal(new["bert.pooler.dense.weight"], kept["bert.pooler.dense.weight"])


def test_numbers(films: Films, tmp_path: Path) -> None:
    for path in films.data.iterdir():
        path.write_text(path.read_text().replace("\tbad", "\t-1.5").replace("\tgood", "\t2"))
    result = finetune(films.recipe("data.target=number", updates=60, validate_every=30), run=tmp_path / "run")
    assert set(result.best.metrics) == {"loss", "pearson", "spearman"}
    assert checkpoint.read_metadata(result.path).task == {
        "kind": "classification",
        "target": "number",
        "outputs": 1,
        "names": [],
        "metrics": ["pearson", "spearman"],
        "max_length": 16,
    }


# ----------------------------------------------------------------------------------------------------- what is wrong


def change(films: Films, split: str, *rows: str) -> None:
    path = films.data / f"{split}.tsv"
    path.write_text(path.read_text() + "".join(f"{row}\n" for row in rows))


def test_labels_that_training_does_not_have(films: Films) -> None:
    change(films, "dev", "a film\tfine", "the film\tfine")
    with pytest.raises(DataError, match="a problem with the texts") as raised:
        load(films)
    assert raised.value.details == ("dev: label 'fine' is none of bad, good (2 texts)",)
    assert len(load(films, "data.unusable=skip").valid) == len(lines())


def test_lines_without_text(films: Films) -> None:
    change(films, "train", "\tgood", "a film\t")
    with pytest.raises(DataError) as raised:
        load(films)
    assert raised.value.details == ("train.tsv, line 20: no text", "train.tsv, line 21: no label")
    task = load(films, "data.unusable=skip")
    assert task.left_out() == raised.value.details
    assert task.warning() == "2 lines are left out"


def test_one_class_is_nothing_to_learn(films: Films) -> None:
    (films.data / "train.tsv").write_text("text\tlabel\na film\tgood\n")
    with pytest.raises(DataError, match="nothing to tell apart"):
        load(films)


def test_texts_that_are_cut_and_unknown_words_are_counted(films: Films) -> None:
    change(films, "train", "a " * 40 + "\tgood", "the wonderful film\tgood")
    told: list[str] = []

    def listen(step: Progress) -> None:
        told.append(step.news)

    task = prepare(films.recipe(), None, listen).task
    assert max(map(task.size, task.train)) == 16
    assert "train: 1 of 20 texts are longer than 16 tokens: cut there" in told
    assert "train: 1 of 129 tokens (0.8%) are unknown to the tokenizer" in told
    assert "train: 9 bad, 11 good" in told


def test_texts_longer_than_the_positions_of_the_model(films: Films) -> None:
    with pytest.raises(UsageError, match="longer than the 24 positions") as raised:
        load(films, max_length=25)
    assert raised.value.hint == "--set training.max_length=24"


def test_a_tokenizer_of_another_language(films: Films) -> None:
    (films.data / "train.tsv").write_text("text\tlabel\nein guter Film war es nicht\tgood\nsehr schlecht hier\tbad\n")
    with pytest.raises(DataError, match="unknown to the tokenizer"):
        load(films)


def test_metrics_of_the_other_kind(films: Films) -> None:
    with pytest.raises(DataError, match=r"data\.metric pearson is not for classes"):
        load(films, "data.metric=pearson")
    with pytest.raises(DataError, match="is no number"):
        load(films, "data.target=number")


def test_models_and_tasks_that_do_not_go_together(films: Films) -> None:
    with pytest.raises(UsageError, match="trains text encoders, and mini is none"):
        load(films, "model=mini")
    from parp_cli.config.finetune import Recipe

    with pytest.raises(UsageError, match="trains speech encoders, and bert-2x16 is none"):
        prepare(Recipe(model=str(films.model)), None, silent)
    with pytest.raises(CheckpointError, match="knows no task 'sorting'"):
        task_class("sorting")


def test_the_log_names_what_was_found(films: Films, tmp_path: Path) -> None:
    change(films, "train", "\tgood")
    finetune(films.recipe("data.unusable=skip"), run=tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "finetune.jsonl").read_text().splitlines()]
    assert {"event": "unusable", "update": 0, "why": "train.tsv, line 20: no text"} in events
    assert [event["tokens"] > 0 for event in events if event["event"] == "update"] == [True] * 8
