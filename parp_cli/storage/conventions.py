"""What data, models and files agree on."""

SAMPLE_RATE = 16_000
"""Hz of every waveform inside parp."""

BLANK = "<blank>"
"""Symbol of CTC's blank, the first of a vocabulary."""

BOUNDARY = "|"
"""Symbol between words."""
