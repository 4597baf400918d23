import json
from typing import Any

import pytest
import yaml

from parp_cli.config.classification import TextRecipe
from parp_cli.config.finetune import Recipe
from parp_cli.config.help import keys_of
from parp_cli.config.load import dump_yaml, recipe_to_dict
from parp_cli.config.masked_lm import MaskedLmRecipe
from parp_cli.config.pretrain import PretrainRecipe


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


@pytest.mark.parametrize("kind", [Recipe, TextRecipe, MaskedLmRecipe, PretrainRecipe])
def test_every_key_is_there_with_its_default_and_a_meaning(kind: Any) -> None:
    keys = {key.name: key for key in keys_of(kind)}
    defaults = flat(recipe_to_dict(kind()))
    assert list(keys) == list(defaults) == list(flat(yaml.safe_load(dump_yaml(kind()))))
    for name, key in keys.items():
        assert json.loads(key.default or "") == defaults[name]
        assert len(key.meaning) > 10, name
        assert key.meaning.endswith("."), name


def test_a_key_in_full() -> None:
    (key,) = (key for key in keys_of(Recipe) if key.name == "training.layer_drop")
    assert key.expected == "a number, at least 0 and below 1"
    assert key.default == "0.0"
    assert key.meaning == "Probability that a Transformer layer is skipped in an update."
