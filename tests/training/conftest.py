"""Training is tried on CTC's small world."""

from tests.tasks.ctc.conftest import make_model, utterances

__all__ = ["make_model", "utterances"]
