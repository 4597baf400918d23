"""What a training run reports of itself: its validations and its cost."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Validation:
    """How the model that would be shipped after an update does on the validation split.

    Attributes:
        update: after which one.
        train_loss: mean since the validation before, a label; None where all updates since then were skipped.
        word: word error rate, or that of phones.
        character: character error rate; None for phones.
        blank_rate: share of frames whose likeliest label is CTC's blank.
    """

    update: int
    train_loss: float | None
    word: float
    character: float | None
    blank_rate: float

    @property
    def score(self) -> tuple[float, float]:
        """Lower is better; characters decide where as many words are wrong."""
        return (self.word, 0.0 if self.character is None else self.character)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What training took: updates, seconds of audio heard in them, and seconds of wall time."""

    updates: int = 0
    audio_seconds: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            updates=self.updates + other.updates,
            audio_seconds=self.audio_seconds + other.audio_seconds,
            seconds=self.seconds + other.seconds,
        )
