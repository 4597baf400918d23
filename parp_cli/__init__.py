"""PARP: Prune, Adjust and Re-Prune for self-supervised speech recognition."""

__version__ = "0.1.0"
