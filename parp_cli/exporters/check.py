"""Whether an export does what its checkpoint does, in its own runtime, and how fast.

S samples, T frames, V tokens.
"""

import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from parp_cli.data.labels import Vocabulary
from parp_cli.errors import CheckpointError
from parp_cli.models.sources.names import MASK_EMBEDDING, without
from parp_cli.models.speech.config import Architecture, build
from parp_cli.models.speech.forward import encode, front_end, pad
from parp_cli.models.speech.kernels import install
from parp_cli.runtime.device import autocast
from parp_cli.storage.conventions import SAMPLE_RATE

TOLERANCE = 1e-4
"""Largest difference of a logit that float32's rounding explains."""

MOST_ROUNDS, TIMED_SECONDS = 10, 1.0
"""Rounds in which networks are timed: so many, or until so much time has passed."""

Network = Callable[[Sequence[Tensor]], list[Tensor]]
"""From waveforms (S,), computed as one batch, to the logits (T, V) of each, or hidden states without a head."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """What an export made of speech, beside what the masked checkpoint makes of it.

    Attributes:
        seconds: the three lengths that logits were compared on and both were timed on.
        largest_difference: of a logit.
        real_time_factors: seconds of work per second of speech, one utterance at a time: of the checkpoint, of the
            export.
        transcripts, transcripts_changed: how many were compared, and how many were others; None without a head, or
            where logits are to be equal.
        transcribed_by: the program that made the export's transcripts, with its version; None for the one that its
            logits come from.
    """

    seconds: tuple[float, ...]
    largest_difference: float
    real_time_factors: tuple[float, float]
    transcripts: int | None = None
    transcripts_changed: int | None = None
    transcribed_by: str | None = None


def network(
    architecture: Architecture,
    weights: Mapping[str, Tensor],
    kernels: Mapping[str, str] | None = None,
    device: torch.device | None = None,
) -> Network:
    """The network of these weights, as parp runs it; with kernels for some of them, by weight name.

    In float32 on the CPU, by default, and in bfloat16 on CUDA, where kernels are for that; its logits are on the CPU.
    """
    device = device or torch.device("cpu")
    model = build(architecture, vocabulary_size=len(weights["aux.weight"]) if "aux.weight" in weights else None)
    model.load_state_dict(without(weights, [MASK_EMBEDDING]))
    model.to(device).eval()
    install(model, kernels or {}, source="the export")

    def run(waveforms: Sequence[Tensor]) -> list[Tensor]:
        with torch.inference_mode():
            features = [front_end(model, architecture, waveform) for waveform in waveforms]
            with autocast("bfloat16" if device.type == "cuda" else "float32", device):
                logits = encode(model, *pad(features)).float().cpu()
        return [row[: len(own)] for row, own in zip(logits, features, strict=True)]

    return run


def compared(ours: Network, theirs: Network, speech: Sequence[Tensor], *, exact: bool, recognises: bool) -> Check:
    """Two networks on the shortest, the middle and the longest of waveforms that are sorted by length.

    Args:
        exact: whether logits are to be equal, in a padded batch too; if not, the transcripts of all are compared.
        recognises: whether the networks have CTC heads.
    """
    chosen = [speech[0], speech[len(speech) // 2], speech[-1]]
    expected, found = ([run([waveform])[0] for waveform in chosen] for run in (ours, theirs))
    timed = [partial(_seconds, run, chosen) for run in (ours, theirs)]
    spent = least_seconds(timed, rounds=MOST_ROUNDS, most_seconds=TIMED_SECONDS)
    if exact:
        expected, found = expected * 2, found + theirs(chosen)
    counts: dict[str, Any] = {}
    if not exact and recognises:
        texts = [[labels(run([waveform])[0]) for waveform in speech] for run in (ours, theirs)]
        changed = sum(a != b for a, b in zip(*texts, strict=True))
        counts = {"transcripts": len(speech), "transcripts_changed": changed}
    seconds = tuple(len(waveform) / SAMPLE_RATE for waveform in chosen)
    return Check(
        seconds=seconds,
        largest_difference=float(
            torch.stack([(a - b).abs().max() for a, b in zip(expected, found, strict=True)]).max()
        ),
        real_time_factors=(spent[0] / sum(seconds), spent[1] / sum(seconds)),
        **counts,
    )


def _seconds(run: Network, speech: Sequence[Tensor]) -> float:
    """Of work on the waveforms, one at a time."""
    began = time.perf_counter()
    for waveform in speech:
        run([waveform])
    return time.perf_counter() - began


def least_seconds(
    timed: Sequence[Callable[[], float]], *, rounds: int, most_seconds: float = float("inf")
) -> list[float]:
    """The least seconds that each took in several rounds, in turn, so that other load on the machine slows none of them
    alone.

    Args:
        timed: does some work, which it has done before, and gives the seconds that it took.
        rounds: so many, or until `most_seconds` are over.
    """
    least, began = [float("inf")] * len(timed), time.perf_counter()
    for _ in range(rounds):
        least = [min(pair) for pair in zip(least, (one() for one in timed), strict=True)]
        if time.perf_counter() - began > most_seconds:
            break
    return least


def refuse_different(largest_difference: float, source: str, *, exact: bool) -> None:
    """Raise CheckpointError where an export failed its check: its logits are others, or no numbers."""
    if not largest_difference <= (TOLERANCE if exact else float("inf")):  # nor NaN
        expected = f"where rounding explains {TOLERANCE:g}" if exact else "which is no number"
        raise CheckpointError(
            f"what was made of {source} gives other logits, and is not written",
            details=[f"the largest difference is {largest_difference:.2g}, {expected}"],
            hint="please report this, with the versions that `parp inspect` names",
        )


def labels(logits: Tensor) -> list[int]:
    """The greedy transcript, as label ids; the blank is 0."""
    return [label for label in torch.unique_consecutive(logits.argmax(-1)).tolist() if label]


def with_transcripts(
    check: Check,
    texts: Sequence[str],
    program: str,
    *,
    ours: Network,
    vocabulary: Vocabulary,
    speech: Sequence[Tensor],
) -> Check:
    """The check with how many of a program's transcripts are not the greedy ones of ours."""
    expected = [vocabulary.decode(labels(ours([waveform])[0])) for waveform in speech]
    changed = sum(not same_text(*pair) for pair in zip(expected, texts, strict=True))
    return replace(check, transcripts=len(texts), transcripts_changed=changed, transcribed_by=program)


def same_text(one: str, other: str) -> bool:
    """Whether transcripts are the same except for spaces, of which some programs print all, and composed characters."""
    first, second = (unicodedata.normalize("NFC", text).split() for text in (one, other))
    return first == second


def refuse_other_transcripts(check: Check, source: str, *details: str, hint: str) -> None:
    """Raise CheckpointError where a program made other transcripts."""
    if check.transcripts_changed:
        raise CheckpointError(
            f"{check.transcribed_by} makes other transcripts of {check.transcripts_changed} of {check.transcripts} "
            f"utterances than {source}: nothing is written",
            details=details,
            hint=hint,
        )
