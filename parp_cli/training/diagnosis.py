"""What figures of a run mean, in words for the user."""

from collections.abc import Sequence

from parp_cli.training.records import Validation

_ALL_BLANK = 0.999
"""Share of blank frames from which on nothing is said."""

_FALLING = 0.98
"""The loss still falls where it is below this share of what it was at the validation before."""

_USUAL_SHARE = 0.2
"""Of a run, in which blanks alone are nothing to worry about."""


def blank_diagnosis(validations: Sequence[Validation], updates: int) -> str | None:
    """Why the model says nothing, and what to do; None where it says something.

    CTC models pass through a phase of blanks only: the loss falls on, and labels appear. Where they don't, the rate is
    too low or too high, or there is nothing to learn from.

    Args:
        validations: so far, in order.
        updates: length of the run.
    """
    if not validations or validations[-1].blank_rate < _ALL_BLANK:
        return None
    last = validations[-1]
    said = f"all frames are blank after update {last.update}, so that every transcript is empty: "
    if last.update <= _USUAL_SHARE * updates:
        return said + "usual at first; labels appear once the loss falls further"
    if len(validations) == 1:
        return said + "the run may be too short for this learning rate; raise training.updates or the rate"
    before = validations[-2]
    if before.blank_rate < _ALL_BLANK:
        return said + "it has collapsed, since it did say something before: lower training.learning_rate"
    losses = f"(loss {before.train_loss:.2f}, then {last.train_loss:.2f})"
    if last.train_loss < _FALLING * before.train_loss:
        return said + f"but the loss still falls {losses}: give it more training.updates, or a higher learning rate"
    return said + (
        f"and the loss stands still {losses}: try another training.learning_rate (a third, and three times as much), "
        "begin from a pre-trained model, and see that transcripts belong to their audio"
    )
