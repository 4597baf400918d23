from tests.tasks.classification.world import films

__all__ = ["films"]
