"""A small encoder, and films that are good or bad."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from parp_cli.config.classification import TextRecipe
from parp_cli.config.load import recipe_from_dict
from tests.models.text import save_model


@dataclass(frozen=True)
class Films:
    """A folder of texts, and one with a model."""

    data: Path
    model: Path

    def recipe(self, *settings: str, **training: Any) -> TextRecipe:
        values = {
            "task": "classification",
            "model": str(self.model),
            "data": {"root": str(self.data)},
            "pruning": {"interval": 3},
            "training": {
                "updates": 8,
                "batch_size": 4,
                "max_length": 16,
                "learning_rate": 0.005,
                "validate_every": 4,
                "precision": "float32",
                **training,
            },
        }
        return recipe_from_dict(values, settings, kind=TextRecipe)


def lines() -> list[tuple[str, str]]:
    return [
        (f"{article} {adverb} {word} film", word)
        for article, adverb, word in itertools.product(("a", "the", "this"), ("very", "is", "not"), ("good", "bad"))
    ]


def make_films(folder: Path, family: str = "bert") -> Films:
    data = folder / "data"
    data.mkdir()
    for split in ("train", "dev"):
        rows = "".join(f"{text}\t{label}\n" for text, label in lines())
        (data / f"{split}.tsv").write_text(f"text\tlabel\n{rows}", encoding="utf-8")
    return Films(data=data, model=save_model(folder / "model", family))


@pytest.fixture
def films(tmp_path: Path) -> Films:
    return make_films(tmp_path)
