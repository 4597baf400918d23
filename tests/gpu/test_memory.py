"""Memory of a GPU: what does not fit is said before the first update, and what is said to fit does."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import torch
from torch import Tensor, nn

from parp_cli.errors import ResourceError
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, build
from parp_cli.models.speech.forward import encode, front_end, pad, recompute_layers
from parp_cli.pruning.methods import Method, Schedule, Settings
from parp_cli.pruning.patterns import GLOBAL
from parp_cli.pruning.pruner import Pruner
from parp_cli.stages.finetune import finetune
from parp_cli.tasks.ctc.objective import CtcObjective
from tests.tiny import TINY, World, write_manifest

pytestmark = pytest.mark.gpu

SECONDS, COUNT = 15.0, 20
MEMORY = 5_000_000_000
"""Enough for base, its gradients and its optimizer (1.5 GB), and for an utterance, but not for twenty."""

FREE_FOR_2B = 75_000_000_000


@pytest.fixture
def little_memory(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the GPU were a small one. On a CPU, memory gives out above 100 s."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        share = (torch.cuda.memory_reserved() + MEMORY) / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0))
        yield
        torch.cuda.set_per_process_memory_fraction(1.0)
        return
    losses = CtcObjective.losses

    def limited(self: CtcObjective, module: nn.Module, utterances: Sequence[Any], *rest: Any) -> Tensor:
        if sum(utterance.seconds for utterance in utterances) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return losses(self, module, utterances, *rest)

    monkeypatch.setattr(CtcObjective, "losses", limited)
    yield


@pytest.fixture
def long_ones(tmp_path: Path) -> Path:
    """A manifest of twenty times a quarter of a minute of noise."""
    noise = 0.1 * numpy.random.default_rng(0).standard_normal(round(SECONDS * 16_000))
    soundfile.write(tmp_path / "noise.flac", noise, 16_000)
    rows: list[dict[str, object]] = [
        {"id": f"{split}-{number}", "audio": "noise.flac", "split": split, "text": "AB C", "seconds": SECONDS}
        for split, count in (("train", COUNT), ("valid", 1), ("test", 1))
        for number in range(count)
    ]
    return write_manifest(tmp_path / "long.jsonl", rows)


@pytest.mark.usefixtures("little_memory")
def test_the_largest_batch_is_tried_first(
    base: str, device: torch.device, world: World, long_ones: Path, tmp_path: Path
) -> None:
    own = [f"model={base}", f"data.manifest={long_ones}", "training.updates=1", "training.batch_seconds=300"]
    with pytest.raises(ResourceError, match=r"300 s.* in one forward pass takes more than memory holds") as caught:
        finetune(world.recipe(*own, "training.micro_batch_seconds=300"), run=tmp_path / "run", device=device)
    fits = re.search(r"--set training\.micro_batch_seconds=([0-9.]+)", caught.value.hint or "")
    assert fits is not None, caught.value.hint
    recipe = world.recipe(*own, f"training.micro_batch_seconds={fits[1]}")
    assert finetune(recipe, run=tmp_path / "run", device=device).path.is_file()


def largest(device: torch.device) -> Architecture:
    if device.type != "cuda":
        return TINY
    if torch.cuda.mem_get_info(device)[0] < FREE_FOR_2B:
        pytest.skip("the GPU has less than 75 GB free")
    return ARCHITECTURES["xls-r-2b"]


def test_xls_r_2b(device: torch.device) -> None:
    """Half of two billion weights pruned, and two updates: weights, gradients and moments take 35 GB."""
    architecture = largest(device)
    torch.manual_seed(0)
    with device:
        model = build(architecture, vocabulary_size=32).train()
    model.feature_extractor.requires_grad_(False)
    recompute_layers(model)
    weights: dict[str, Tensor] = dict(model.prunable())
    masks = GLOBAL.masks(weights, 0.5, {})
    schedule = Schedule(interval=1, updates=2, final=False)
    pruner = Pruner(weights, masks, method=Method(Settings(sparsity=0.5, schedule=schedule)))
    pruner.start()
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-5, fused=True)
    waveforms = torch.randn(2, 160_000, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        features, lengths = pad([front_end(model, architecture, one) for one in waveforms])
    for update in (1, 2):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16):
            logits = encode(model, features, lengths)
        loss = nn.functional.log_softmax(logits.float(), -1)[..., 1].mean().neg()
        loss.backward()
        pruner.before_step(update)
        optimizer.step()
        pruner.after_step(update, optimizer)
        assert loss.isfinite()
    pruned = sum(int((weights[name][~mask] == 0).sum()) for name, mask in pruner.masks.items())
    total = sum(mask.numel() for mask in pruner.masks.values())
    assert pruned == round(0.5 * total)
