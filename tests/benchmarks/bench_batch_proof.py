"""How far an utterance's logits move with the batch it is recognised in, for parp and for transformers.

    python -m tests.benchmarks.bench_batch_proof [--architectures wav2vec2-base wavlm-large] [--device cuda]
                                                 [--utterances 32] [--seed 0] [--ours-only] [--json rows.json]

Utterances of 1 to 5 s, tones that come and go with noise, are recognised alone and in batches of 2, 8 and 32, long ones
together with short ones: by `logits_of`, as evaluation does it, and by transformers' model with the same weights,
exported by parp and batched by its own feature extractor; once with the attention mask or without as that says by
itself (without for group norm, with it for layer norm), and where that is without, once with it too. The table has the
largest absolute difference of any logit from that of the utterance alone, each side by itself, and how many greedy
transcripts change. transformers' logits are cut to the frames of sound. The last column is how far its logits of
utterances alone are from parp's: that weights are the same.

Weights are random, as torchaudio initialises them (mini's are the trained ones that come with parp). The head's are
scaled so that each label's logits have a mean of 0 and a standard deviation of 5 over time; a fine-tuned mini's have 2
to 5. How many transcripts would change with trained weights is not measured.

Architectures that differ in name alone are measured once. Those of 48 layers run where they are named; the others take
up to 10 GB, and on one core about 4 minutes for base and 10 for large.
"""

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor

from parp_cli.data.utterances import Utterance
from parp_cli.exporters.huggingface import export_huggingface
from parp_cli.models.sources.load import BUNDLED, load_encoder
from parp_cli.models.sources.names import MASK_EMBEDDING, without
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, build, frames
from parp_cli.tasks.ctc.features import FrontEndFeatures
from tests.models.batched import (
    RATE,
    SCALE,
    VOCABULARY,
    by_structure,
    largest_difference,
    logits_in_batches,
    random_samples,
    scale_head,
    transcripts,
    write_utterances,
)

SIZES = (2, 8, 32)
OURS = "parp"
COLUMNS = (
    "architecture",
    "by",
    "std of logits",
    *(f"batch {size}" for size in SIZES),
    "transcripts identical",
    "alone, from parp",
)
SHORTEST, LONGEST = 1.0, 5.0
"""Seconds of an utterance."""

_MOST_LAYERS = 24
"""Of an architecture that is measured without being named."""

_SCALED_ON = 8
"""Utterances whose logits decide on the head's scale."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One side's results: by the size of the batch, the largest difference and the transcripts that change."""

    architectures: str
    side: str
    deviation: float
    differences: dict[int, float]
    changed: dict[int, int]
    utterances: int
    from_ours: float
    seconds: float

    def __str__(self) -> str:
        """A row of the table, in the order of `COLUMNS`."""
        cells = [f"{self.differences[size]:.1e}, {self.changed[size]} of {self.utterances}" for size in SIZES]
        identical = "no" if any(self.changed.values()) else "yes"
        apart = "" if self.side == OURS else f"{self.from_ours:.1e}"
        values = [self.architectures, self.side, f"{self.deviation:.2f}", *cells, identical, apart]
        return f"| {' | '.join(values)} |"


def our_model(architecture: Architecture, seed: int) -> Any:
    torch.manual_seed(seed)
    model = build(architecture, vocabulary_size=len(VOCABULARY)).eval()
    if architecture.name == BUNDLED:
        model.load_state_dict(without(load_encoder(BUNDLED).weights, [MASK_EMBEDDING]), strict=False)
    return model


def row_of(
    names: str, side: str, alone: Sequence[Tensor], in_batches: Callable[[int], list[Tensor]], like: Sequence[Tensor]
) -> Row:
    """One side's row.

    Args:
        alone: its logits (T, V) of each utterance.
        in_batches: its logits of all utterances, so many at a time.
        like: our logits of each utterance alone.
    """
    began = time.perf_counter()
    texts = transcripts(alone)
    differences, changed = {}, {}
    for size in SIZES:
        found = in_batches(size)
        differences[size] = largest_difference(found, alone)
        changed[size] = sum(text != other for text, other in zip(texts, transcripts(found), strict=True))
    return Row(
        architectures=names,
        side=side,
        deviation=float(torch.cat(list(alone)).std()),
        differences=differences,
        changed=changed,
        utterances=len(alone),
        from_ours=largest_difference(alone, like),
        seconds=time.perf_counter() - began,
    )


def ours(
    names: str, architecture: Architecture, utterances: Sequence[Utterance], folder: Path, device: str, seed: int
) -> tuple[Row, list[Tensor]]:
    """Our row, and logits of utterances alone; the model is left in the folder for transformers."""
    model = our_model(architecture, seed).to(device)
    with FrontEndFeatures(model, architecture, frozen=True) as features:
        scale_head(model, features(utterances[:_SCALED_ON]))

        def in_batches(size: int) -> list[Tensor]:
            return logits_in_batches(model, features, utterances, size)

        alone = in_batches(1)
        row = row_of(names, OURS, alone, in_batches, alone)
    export_huggingface(architecture, model.cpu().state_dict(), VOCABULARY, folder)
    return row, alone


@torch.inference_mode()
def their_logits(
    model: Any, extractor: Any, architecture: Architecture, waveforms: Sequence[Any], size: int, mask: bool
) -> list[Tensor]:
    """transformers' logits (T, V) of each waveform (S,), the frames of padding cut off."""
    found = []
    for first in range(0, len(waveforms), size):
        batch = waveforms[first : first + size]
        inputs = extractor(batch, sampling_rate=RATE, padding=True, return_attention_mask=mask, return_tensors="pt").to(
            model.device
        )
        logits = model(**inputs).logits.float().cpu()
        found += [row[: frames(architecture, len(one))] for row, one in zip(logits, batch, strict=True)]
    return found


def theirs(
    names: str, architecture: Architecture, waveforms: Sequence[Any], folder: Path, device: str, like: list[Tensor]
) -> Iterator[Row]:
    """transformers' rows: as its feature extractor says, and with an attention mask."""
    from transformers import AutoFeatureExtractor, AutoModelForCTC

    model = AutoModelForCTC.from_pretrained(folder).to(device).eval()
    extractor: Any = AutoFeatureExtractor.from_pretrained(folder)  # type: ignore[no-untyped-call]
    by_itself: bool = extractor.return_attention_mask

    def in_batches(size: int, mask: bool = by_itself) -> list[Tensor]:
        return their_logits(model, extractor, architecture, waveforms, size, mask)

    alone = in_batches(1)
    for mask in dict.fromkeys([by_itself, True]):
        side = f"transformers, {'mask' if mask else 'no mask'}{' (default)' if mask == by_itself else ''}"
        yield row_of(names, side, alone, partial(in_batches, mask=mask), like)


def measure(
    names: str, architecture: Architecture, utterances: Sequence[Utterance], device: str, seed: int, with_theirs: bool
) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        row, alone = ours(names, architecture, utterances, Path(folder), device, seed)
        yield row
        if with_theirs:
            gc.collect()
            waveforms = [soundfile.read(utterance.audio, dtype="float32")[0] for utterance in utterances]
            yield from theirs(names, architecture, waveforms, Path(folder), device, alone)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, metavar="NAME")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--utterances", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ours-only", action="store_true", help="parp's rows without transformers'")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    options = parser.parse_args()
    named = options.architectures or [
        name for name, architecture in ARCHITECTURES.items() if architecture.layers <= _MOST_LAYERS
    ]
    samples = random_samples(options.utterances, shortest=SHORTEST, longest=LONGEST, seed=options.seed)
    print(
        f"{len(samples)} utterances of {min(samples) / RATE:.1f} to {max(samples) / RATE:.1f} s,"
        f" {sum(samples) / RATE:.0f} s together; each label's logits scaled to a deviation of {SCALE:g};"
        f" on {options.device}, torch {torch.__version__}\n"
    )
    print(f"| {' | '.join(COLUMNS)} |")
    print("| --- | --- | ---: | ---: | ---: | ---: | --- | ---: |")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        utterances = write_utterances(Path(folder), samples, options.seed)
        for names, architecture in by_structure(ARCHITECTURES[name] for name in named).items():
            for row in measure(names, architecture, utterances, options.device, options.seed, not options.ours_only):
                rows.append(row)
                print(row, flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
