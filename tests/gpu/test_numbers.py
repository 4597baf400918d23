"""A GPU computes what the CPU computes, to the rounding of each precision."""

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from parp_cli.models.sources.load import load_encoder
from parp_cli.models.sources.names import MASK_EMBEDDING, without
from parp_cli.models.speech.config import Architecture, build
from parp_cli.models.speech.forward import encode, front_end, pad
from parp_cli.pruning.masks import Masks
from parp_cli.runtime.device import autocast, tensor_cores
from parp_cli.stages.finetune import finetune
from parp_cli.storage import checkpoint
from tests.models.small import SAMPLES, SMALL, randomise, waveform
from tests.tiny import World

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
LENGTHS = (SAMPLES, SAMPLES - 700, SAMPLES // 2)
TARGETS = torch.tensor([[1, 2, 3, 2, 1]] * len(LENGTHS))

TOLERANCES = {"float32": (1e-5, 1e-4), "tf32": (1e-2, 3e-2), "bfloat16": (5e-2, 1e-1)}
"""By how much logits and gradients may differ, as a share of their norm. On a CPU another order of sums makes 2e-6 and
2e-5 at most, bfloat16 2e-2 and 4e-2."""

STILL = ("training.layer_drop=0", "training.activation_dropout=0", "training.learning_rate=1e-3")
"""Dropout draws other numbers on a GPU."""


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found.cpu().double() - expected.double()).norm() / expected.double().norm())


def computed(model: Any, architecture: Architecture, device: torch.device, precision: str) -> tuple[Tensor, Tensor]:
    """Logits of three utterances of different lengths, and the CTC loss's gradient of all weights."""
    with tensor_cores(precision):
        features = [front_end(model, architecture, waveform(samples)[0].to(device)) for samples in LENGTHS]
        padded, lengths = pad(features)
        with autocast(precision, device):
            logits = encode(model, padded, lengths)
        probabilities = nn.functional.log_softmax(logits.float(), -1).transpose(0, 1)
        frames = [len(one) for one in features]
        counts = [TARGETS.shape[1]] * len(LENGTHS)
        nn.functional.ctc_loss(probabilities, TARGETS.to(device), frames, counts, reduction="sum").backward()
    known = torch.cat([row[:count].detach().float() for row, count in zip(logits, frames, strict=True)])
    gradient = torch.cat([w.grad.flatten() for w in model.parameters() if w.grad is not None])
    return known.cpu(), gradient.cpu()


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", SMALL)
def test_logits_and_gradients_of_every_family(device: torch.device, name: str, precision: str) -> None:
    model = randomise(build(SMALL[name], vocabulary_size=4))
    logits, gradient = computed(copy.deepcopy(model), SMALL[name], CPU, "float32")
    found_logits, found_gradient = computed(model.to(device), SMALL[name], device, precision)
    most_of_logits, most_of_gradient = TOLERANCES[precision]
    assert difference(found_logits, logits) < most_of_logits
    assert difference(found_gradient, gradient) < most_of_gradient


FUSED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["wav2vec2-group-norm", "hubert-large", "wavlm-base", "data2vec"])
def test_attention_is_by_fused_kernels(device: torch.device, name: str, precision: str, padded: bool) -> None:
    """With its mask, and WavLM's positions, there and back: torch would raise, where its plain way alone can do it."""
    if device.type == "cpu" and name == "wavlm-base":
        pytest.skip("the CPU's has no gradient of positions")
    architecture = replace(SMALL[name], width=64, feed_forward=128)
    model: Any = randomise(build(architecture, vocabulary_size=4)).train().to(device)
    samples = LENGTHS if padded else LENGTHS[:1]
    with torch.no_grad():
        batch = pad([front_end(model, architecture, waveform(count)[0].to(device)) for count in samples])
    with sdpa_kernel(FUSED), autocast(precision, device):
        encode(model, *batch).float().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)


def losses(run: Path) -> list[float]:
    records = [json.loads(line) for path in run.glob("*.jsonl") for line in path.read_text().splitlines()]
    return [record["loss"] for record in records if record["event"] == "update"]


def logits_of(path: Path) -> Tensor:
    """Of noise, on the CPU."""
    encoder = load_encoder(str(path))
    assert encoder.vocabulary is not None
    model = build(encoder.architecture, vocabulary_size=len(encoder.vocabulary)).eval()
    model.load_state_dict(without(encoder.weights, [MASK_EMBEDDING]))
    with torch.inference_mode():
        return encode(model, *pad([front_end(model, encoder.architecture, waveform(16_000)[0])]))


def agreement(ours: Masks, theirs: Masks) -> float:
    assert ours.keys() == theirs.keys()
    same = sum(int((mask == theirs[name]).sum()) for name, mask in ours.items())
    return same / sum(mask.numel() for mask in ours.values())


@pytest.mark.parametrize(
    ("precision", "most", "least"), [("float32", 1e-3, 0.999), ("tf32", 1e-2, 0.99), ("bfloat16", 1e-1, 0.95)]
)
def test_a_run_ends_where_that_of_the_cpu_does(
    device: torch.device, world: World, masked: Path, tmp_path: Path, precision: str, most: float, least: float
) -> None:
    """Twelve updates of PARP, with four re-prunings."""

    def trained(where: torch.device, own: Sequence[str]) -> Path:
        return finetune(world.recipe(*STILL, *own), run=tmp_path / where.type / "run", init=masked, device=where).path

    expected = trained(CPU, ["training.precision=float32"])
    # Its folder is another where the CPU takes the GPU's place.
    recipe = world.recipe(*STILL, f"training.precision={precision}")
    found = finetune(recipe, run=tmp_path / "found", init=masked, device=device).path
    assert len(losses(found.parent)) == 12
    assert losses(found.parent) == pytest.approx(losses(expected.parent), rel=most)
    assert difference(logits_of(found), logits_of(expected)) < most
    assert agreement(checkpoint.read_masks(found), checkpoint.read_masks(expected)) >= least
