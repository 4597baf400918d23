"""Tokens hidden in texts: what is hidden, what is learned, and what becomes of the mask."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from parp_cli.config.load import recipe_from_dict
from parp_cli.config.masked_lm import MaskedLmRecipe
from parp_cli.errors import DataError, RecipeError, UsageError
from parp_cli.models.sources.load import load_encoder
from parp_cli.runtime.progress import silent
from parp_cli.stages.finetune import finetune, prepare
from parp_cli.storage import checkpoint
from parp_cli.tasks.masked_lm.objective import Hiding, hiding_of
from parp_cli.tasks.texts.items import TextItem
from tests.models.text import CONFIGS
from tests.stops import check_it_goes_on
from tests.tasks.classification.world import Films, films, make_films

__all__ = ["films"]

CPU = torch.device("cpu")


def recipe_of(films: Films, *settings: str, **training: Any) -> MaskedLmRecipe:
    values = {
        "task": "masked-lm",
        "model": str(films.model),
        "data": {"root": str(films.data), "train": "train"},
        "pruning": {"interval": 5},
        "training": {
            "updates": 60,
            "batch_size": 6,
            "max_length": 16,
            "learning_rate": 0.005,
            "validate_every": 20,
            "mask_share": 0.4,
            "precision": "float32",
            **training,
        },
    }
    return recipe_from_dict(values, settings, kind=MaskedLmRecipe)


def hidden_by(films: Films, **training: Any) -> tuple[Any, Hiding, Any]:
    preparation = prepare(recipe_of(films, **training), None, silent)
    network = preparation.task.network(preparation.start.weights).eval()
    share = preparation.task.recipe.training.mask_share
    return preparation.task, hiding_of(network, preparation.task.encoding, share), network


def test_of_what_is_predicted_most_is_hidden_and_the_rest_is_seen(films: Films) -> None:
    task, hiding, _ = hidden_by(films)
    items = list(task.train) * 40
    torch.manual_seed(0)
    hidden = hiding.hide(items, CPU)
    plain = task.encoding.batch(items, CPU)["input_ids"]
    shown = hidden.inputs["input_ids"]
    places = torch.zeros(shown.shape, dtype=torch.bool)
    places.view(-1)[hidden.places] = True
    assert places.sum(1).tolist() == [max(1, round(0.4 * (len(item.tokens) - 2))) for item in items]
    assert torch.equal(plain[places], hidden.labels)
    assert torch.equal(shown[~places], plain[~places])
    special = torch.tensor(task.encoding.tokenizer.all_special_ids)
    assert not torch.isin(hidden.labels, special).any()
    masked = shown[places] == task.encoding.tokenizer.mask_token_id
    assert masked.float().mean() == pytest.approx(0.8 + 0.1 / 15, abs=0.03)
    assert (shown[places] == hidden.labels).float().mean() == pytest.approx(0.1 + 0.1 / 15, abs=0.03)


def test_logits_are_in_the_order_of_their_labels(films: Films) -> None:
    task, hiding, network = hidden_by(films)
    items = list(task.train)
    hidden = hiding.hide(items, CPU, torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = network(hidden.inputs, hidden.places)
        states = network.get_submodule("bert")(**hidden.inputs).last_hidden_state
    place = divmod(int(hidden.places[5]), hidden.inputs["input_ids"].shape[1])
    head = network.prediction
    expected = head.norm(nn.functional.gelu(head.dense(states[place[0], place[1]])))
    embeddings = network.get_submodule("bert.embeddings.word_embeddings").weight
    torch.testing.assert_close(logits[5], embeddings @ expected + head.bias)


def test_a_permutation_tells_no_token_what_it_is(tmp_path: Path) -> None:
    task, hiding, network = hidden_by(make_films(tmp_path, "xlnet"))
    items = [max(task.train, key=task.size), min(task.train, key=task.size)]
    hidden = hiding.hide(items, CPU, torch.Generator().manual_seed(2))
    unseen, mapping = hidden.inputs["perm_mask"].bool(), hidden.inputs["target_mapping"]
    count = hiding.count(items[0])
    targets = mapping[0, :count].argmax(-1)
    assert hidden.inputs["input_ids"][0, targets].tolist() == hidden.labels[:count].tolist()
    others = [place for place in range(mapping.shape[-1]) if place not in targets]
    assert unseen[0][others][:, targets].all()  # from what is given no predicted token is seen
    assert not unseen[0][:, others].any()  # and all see what is given
    seen = [int((~unseen[0][target, targets]).sum()) for target in targets]
    assert sorted(seen) == list(range(count))  # the first of the order sees none, the second one, and so on
    with torch.no_grad():
        before = network(hidden.inputs, hidden.places)
        changed = {**hidden.inputs, "input_ids": hidden.inputs["input_ids"].clone()}
        first = targets[seen.index(0)]
        changed["input_ids"][0, targets] = 7
        after = network(changed, hidden.places)
    same = int((targets == first).nonzero())
    torch.testing.assert_close(before[same], after[same], rtol=0, atol=1e-5)
    assert before.shape[0] == len(hidden.labels)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_family_learns_and_its_mask_is_carried_to_labels(family: str, tmp_path: Path) -> None:
    films = make_films(tmp_path, family)
    result = finetune(recipe_of(films), run=tmp_path / "masked")
    perplexities = [one.metrics["perplexity"] or 0.0 for one in result.validations]
    assert perplexities[-1] < perplexities[0]
    content = checkpoint.read(result.path)
    assert content.metadata.task is None
    assert content.metadata.sparsity is not None
    encoder = load_encoder(str(result.path))
    assert encoder.masks.keys() == content.masks.keys()
    found = finetune(films.recipe("pruning.method=fixed", f"pruning.initial={result.path}"), run=tmp_path / "labels")
    carried = checkpoint.read(found.path).masks
    assert all(torch.equal(carried[name], mask) for name, mask in content.masks.items())
    along = finetune(films.recipe(f"model={result.path}"), run=tmp_path / "along")
    assert along.sparsity is not None
    assert along.sparsity.exact == pytest.approx(0.5, abs=1e-3)


def test_a_stopped_run_goes_on_to_the_same_bytes(films: Films, tmp_path: Path) -> None:
    check_it_goes_on(recipe_of(films, updates=8, validate_every=4), tmp_path, after=5)


def test_lines_of_a_file_are_texts(films: Films) -> None:
    (films.data / "pages.txt").write_text("a good film\n\nthis is not\n")
    task = prepare(recipe_of(films, "data.train=pages"), None, silent).task
    assert [len(item.tokens) for item in task.train] == [5, 5]
    assert all(isinstance(item, TextItem) and item.label is None for item in task.train)


def test_bad_input(films: Films) -> None:
    (films.data / "odd.txt").write_text("a good film\n你好\n")
    with pytest.raises(DataError, match="a problem with the texts"):
        prepare(recipe_of(films, "data.train=odd"), None, silent)
    with pytest.raises(DataError, match="no split nothing"):
        prepare(recipe_of(films, "data.train=nothing"), None, silent)
    with pytest.raises(UsageError, match="is none"):
        prepare(recipe_of(films, "model=random:mini"), None, silent)
    with pytest.raises(RecipeError, match="a problem"):
        recipe_of(films, "distil.teacher=dense")
