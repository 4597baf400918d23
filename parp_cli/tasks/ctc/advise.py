"""What figures of a run mean, in words for the user."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parp_cli.errors import DataError, first_few
from parp_cli.training.records import Validation

_ALL_BLANK = 0.999
"""Share of blank frames from which on nothing is said."""

_FALLING = 0.98
"""The loss still falls where it is below this share of what it was at the validation before."""

_USUAL_SHARE = 0.2
"""Of a run, in which blanks alone are nothing to worry about."""

_SPARSE = 0.8
"""Sparsity from which on it may be why nothing is learnt."""

_SOMETHING_RIGHT = 0.75
"""Error rate below which a model has recognised something."""

_WIDEST = 60
"""Characters of an example."""


def validation_news(figures: Mapping[str, Any]) -> str:
    """A line for whoever watches the run.

    Args:
        figures: of the event "validation" as it is logged.
    """
    phones = figures["character"] is None
    parts = [f"{'PER' if phones else 'WER'} {figures['word']:.1%}"]
    parts += [] if phones else [f"CER {figures['character']:.1%}"]
    parts.append(f"blank {figures['blank_rate']:.1%}")
    if figures["train_loss"] is not None:
        parts.append(f"loss {figures['train_loss']:.3f}")
    parts += [f"learning rate {figures['learning_rate']:.2g}", f"gradient {figures['gradient_norm']:.2g}"]
    if figures["sparsity"] > 0:
        parts.append(f"{figures['sparsity']:.1%} sparse")
    if figures["revived"]:
        parts.append(f"{figures['revived']:,} revived")
    said, heard = (_cut(figures["example"][key]) for key in ("reference", "hypothesis"))
    return f"update {figures['update']}: {', '.join(parts)}; “{said}” heard as “{heard}”"


def _cut(text: str) -> str:
    return textwrap.shorten(text, _WIDEST, placeholder=" …")


def blank_diagnosis(
    validations: Sequence[Validation], *, updates: int, only_head_updates: int = 0, sparsity: float = 0.0
) -> str | None:
    """Why the model says nothing, and what to do; None where it says something.

    CTC models pass through a phase of blanks only: the loss falls on, and labels appear. Where they don't, the rate is
    too low or too high, too much is pruned, or there is nothing to learn from.

    Args:
        validations: so far, in order.
        updates: length of the run.
        only_head_updates: how many of them leave the encoder as it is.
        sparsity: at the last validation.
    """
    if not validations or validations[-1].blank_rate < _ALL_BLANK:
        return None
    *earlier, last = validations
    all_of = "all frames are blank" if last.blank_rate == 1 else "nearly all frames are blank"
    said = f"{all_of} after update {last.update}, so that transcripts are empty: "
    if last.update <= only_head_updates:
        return said + "only the head trains until now (training.freeze_encoder_updates)"
    if last.update <= _USUAL_SHARE * updates:
        return said + "usual at first; labels appear once the loss falls further"
    if any(_recognised(validation) for validation in earlier):
        return said + (
            "it has collapsed, since it did recognise something before: lower training.learning_rate, "
            "or set training.gradient_clip"
        )
    if not earlier or earlier[-1].train_loss is None or last.train_loss is None:
        return said + (
            "the run may be too short for its learning rate; raise training.updates or training.learning_rate, "
            "and validate more often (training.validate_every) to see whether the loss falls"
        )
    before = earlier[-1].train_loss
    losses = f"(loss {before:.2f}, then {last.train_loss:.2f})"
    if last.train_loss < _FALLING * before:
        return (
            said + f"the loss still falls {losses}; give it more training.updates, or a higher training.learning_rate"
        )
    pruned = f"prune less than {sparsity:.0%}, " if sparsity > _SPARSE else ""
    return said + (
        f"the loss stands still {losses}; {pruned}try another training.learning_rate (a third, and three times as "
        "much), begin from a pre-trained model, and see that transcripts belong to their audio"
    )


def _recognised(validation: Validation) -> bool:
    """Whether something was right; what an untrained head says at random is not."""
    errors = validation.word if validation.character is None else validation.character
    return errors < _SOMETHING_RIGHT


def divergence(
    what: str,
    *,
    update: int,
    in_a_row: int,
    utterances: Sequence[str],
    own_loss: bool,
    weights: Sequence[str],
    log: Path,
) -> DataError:
    """Why training stops, after updates without a finite loss or gradient.

    Args:
        what: the last loss and gradient.
        update: the last one.
        in_a_row: how many there were.
        utterances: those to blame, or all of the last update.
        own_loss: whether it is the loss of these very utterances that is not finite.
        weights: those that are no longer finite.
        log: which names the utterances of each update.
    """
    many = f"update {update}" if in_a_row == 1 else f"{in_a_row} updates in a row"
    whose = "their loss is not finite" if own_loss else "in the last of these updates"
    details = [f"{whose}: {', '.join(first_few(utterances, 8))}"]
    if weights:
        details.append(f"weights that are not finite: {', '.join(first_few(weights, 4))}")
    return DataError(
        f"{many} had no finite loss or gradient ({what})",
        details=[*details, f"{log} has the utterances of each"],
        hint="begin from another checkpoint"
        if weights
        else "look at these utterances, lower training.learning_rate, or set training.gradient_clip",
    )
