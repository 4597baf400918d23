"""What the metrics of a CTC run mean, in words for the user."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from parp_cli.tasks.task import Validation

_NEARLY_BLANK = 0.95
"""Share of blank frames from which on transcripts may be nearly empty: speech has 8 to 15 phones in 50 frames."""

_NOTHING_RIGHT = 0.9  # error rate from which on transcripts are nearly empty
_FALLING = 0.98  # the loss still falls where it is below this share of what it was at the validation before
_USUAL_SHARE = 0.2  # share of a run in which blanks alone are nothing to worry about
_SPARSE = 0.8  # sparsity from which on it may be the reason why nothing is learned
_SOMETHING_RIGHT = 0.75  # error rate below which a model has recognised something
_MAX_WIDTH = 60  # characters of an example


def validation_message(values: Mapping[str, Any]) -> str:
    """One line for whoever watches the run, from the event "validation" as it is logged."""
    phones = values["character"] is None
    parts = [f"{'PER' if phones else 'WER'} {values['word']:.1%}"]
    parts += [] if phones else [f"CER {values['character']:.1%}"]
    parts.append(f"blank {values['blank_rate']:.1%}")
    if values["train_loss"] is not None:
        parts.append(f"loss {values['train_loss']:.3f}")
    parts += [f"learning rate {values['learning_rate']:.2g}", f"gradient {values['gradient_norm']:.2g}"]
    if values["sparsity"] > 0:
        parts.append(f"{values['sparsity']:.1%} sparse")
    if values["revived"]:
        parts.append(f"{values['revived']:,} revived")
    reference, hypothesis = (
        textwrap.shorten(values["example"][key], _MAX_WIDTH, placeholder=" …") for key in ("reference", "hypothesis")
    )
    return f"update {values['update']}: {', '.join(parts)}; “{reference}” recognised as “{hypothesis}”"


def blank_diagnosis(
    validations: Sequence[Validation], *, updates: int, only_head_updates: int = 0, sparsity: float = 0.0
) -> str | None:
    """Why transcripts are empty or nearly so, and what to do; None where they are not.

    CTC models pass through a phase in which all frames are blank: the loss goes on falling, and labels appear. Where
    they do not, the learning rate is too low or too high, too much is pruned, or there is nothing to learn from.

    Of `validations` so far, in a run of `updates`, the first `only_head_updates` of which train the head alone.
    """
    if not validations:
        return None
    *earlier, last = validations
    blank_rate, errors = last.metrics["blank_rate"], _errors(last)
    if blank_rate is None or errors is None or blank_rate < _NEARLY_BLANK or errors < _NOTHING_RIGHT:
        return None
    all_of, nearly = ("all", "") if blank_rate == 1 else (f"{blank_rate:.1%} of", "nearly ")
    finding = f"{all_of} frames are blank after update {last.update}, so that transcripts are {nearly}empty: "
    if last.update <= only_head_updates:
        return finding + "only the head trains until now (training.freeze_encoder_updates)"
    if last.update <= _USUAL_SHARE * updates:
        return finding + "usual at first; labels appear once the loss falls further"
    if any(_recognised(validation) for validation in earlier):
        return finding + (
            "it has collapsed, since it did recognise something before: lower training.learning_rate, "
            "or set training.gradient_clip"
        )
    if not earlier or earlier[-1].train_loss is None or last.train_loss is None:
        return finding + (
            "the run may be too short for its learning rate; raise training.updates or training.learning_rate, "
            "and validate more often (training.validate_every) to see whether the loss falls"
        )
    before = earlier[-1].train_loss
    losses = f"(loss {before:.2f}, then {last.train_loss:.2f})"
    if last.train_loss < _FALLING * before:
        more = "give it more training.updates, or a higher training.learning_rate"
        return f"{finding}the loss still falls {losses}; {more}"
    pruned = f"prune less than {sparsity:.0%}, " if sparsity > _SPARSE else ""
    return finding + (
        f"the loss stands still {losses}; {pruned}try another training.learning_rate (a third, and three times as "
        "much), begin from a pre-trained model, and see that transcripts belong to their audio"
    )


def _recognised(validation: Validation) -> bool:
    """Whether something was right; the random output of an untrained head is not."""
    errors = _errors(validation)
    return errors is not None and errors < _SOMETHING_RIGHT


def _errors(validation: Validation) -> float | None:
    """The rate of wrong characters or phones."""
    word, character = validation.metrics["word"], validation.metrics["character"]
    return word if character is None else character
