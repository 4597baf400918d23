"""Words for figures."""

import pytest

from parp_cli.tasks.ctc.advise import blank_diagnosis, validation_message
from parp_cli.tasks.task import Validation


def at(
    update: int,
    *,
    loss: float | None = 3.0,
    blank: float = 1.0,
    word: float = 1.0,
    character: float | None = 1.0,
) -> Validation:
    metrics = {"word": word, "character": character, "blank_rate": blank}
    return Validation(update=update, train_loss=loss, score=(word,), metrics=metrics)


RIGHT = at(300, blank=0.8, word=0.7, character=0.3)
BABBLE = at(300, blank=0.8, word=1.0, character=1.4)


@pytest.mark.parametrize(
    "validations", [[], [RIGHT], [at(300), at(500, blank=0.94)], [at(300), at(500, blank=0.998, character=0.89)]]
)
def test_nothing_to_say(validations: list[Validation]) -> None:
    assert blank_diagnosis(validations, updates=1000) is None


@pytest.mark.parametrize(
    ("validations", "words"),
    [
        ([at(100)], "usual at first"),
        ([BABBLE, at(200)], "usual at first"),  # what an untrained head says is no sign of anything
        ([at(201)], "the run may be too short for its learning rate"),
        ([at(250), at(500, loss=None)], "validate more often"),
        ([at(250, loss=None), at(500)], "validate more often"),
        ([at(250, loss=3.0), at(500, loss=2.9)], "the loss still falls (loss 3.00, then 2.90); give it more"),
        ([at(250, loss=3.0), at(500, loss=2.95)], "the loss stands still (loss 3.00, then 2.95); try another"),
        ([at(250, loss=3.0), at(500, loss=4.0)], "the loss stands still (loss 3.00, then 4.00)"),
        ([BABBLE, at(500, loss=2.0)], "the loss still falls"),
        ([RIGHT, at(500)], "it has collapsed"),
        ([RIGHT, at(500), at(750, loss=1.0)], "it has collapsed"),
        ([at(300, blank=0.7, word=0.5, character=None), at(500, character=None)], "it has collapsed"),
    ],
)
def test_all_blanks(validations: list[Validation], words: str) -> None:
    said = blank_diagnosis(validations, updates=1000)
    assert said is not None
    assert said.startswith(f"all frames are blank after update {validations[-1].update}, so that transcripts are empty")
    assert words in said


def test_nearly_all_blanks() -> None:
    said = blank_diagnosis([at(500, blank=0.951, word=0.98, character=None)], updates=1000)
    assert said is not None
    assert said.startswith("95.1% of frames are blank after update 500, so that transcripts are nearly empty: ")


def test_a_frozen_encoder_cannot_be_expected_to_say_much() -> None:
    validations = [at(250), at(500)]
    said = blank_diagnosis(validations, updates=1000, only_head_updates=500)
    assert said is not None
    assert "only the head trains until now (training.freeze_encoder_updates)" in said
    assert "only the head" not in (blank_diagnosis(validations, updates=1000, only_head_updates=499) or "")


def test_too_much_may_be_pruned() -> None:
    validations = [at(250), at(500)]
    assert "prune less than 95%" in (blank_diagnosis(validations, updates=1000, sparsity=0.95) or "")
    assert "prune less" not in (blank_diagnosis(validations, updates=1000, sparsity=0.5) or "")


FIGURES = {
    "update": 500,
    "train_loss": 0.8123,
    "word": 0.6123,
    "character": 0.2,
    "blank_rate": 0.781,
    "learning_rate": 1.5e-3,
    "gradient_norm": 2.13,
    "sparsity": 0.5,
    "revived": 1203,
    "example": {"reference": "HE SAT DOWN", "hypothesis": "HE SAD DOWN"},
}


def test_the_line_of_a_validation() -> None:
    assert validation_message(FIGURES) == (
        "update 500: WER 61.2%, CER 20.0%, blank 78.1%, loss 0.812, learning rate 0.0015, gradient 2.1, 50.0% sparse, "
        "1,203 revived; “HE SAT DOWN” recognised as “HE SAD DOWN”"
    )


def test_the_line_without_what_there_is_not() -> None:
    long = {"reference": "AH " * 40, "hypothesis": ""}
    bare = FIGURES | {"character": None, "train_loss": None, "sparsity": 0.0, "revived": 0, "example": long}
    said = " ".join(["AH"] * 19) + " …"
    assert validation_message(bare) == (
        f"update 500: PER 61.2%, blank 78.1%, learning rate 0.0015, gradient 2.1; “{said}” recognised as “”"
    )
