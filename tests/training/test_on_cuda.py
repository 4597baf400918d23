"""Training on a fake CUDA device: every network's passes are allowed there, end in what a CPU computes, and do not wait
for the device; an update of a whole run waits once."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parp_cli.data.streams import Crops, Stream
from parp_cli.data.utterances import Utterance
from parp_cli.models.speech.config import Architecture, build
from parp_cli.models.speech.forward import recompute_layers
from parp_cli.runtime.processes import SINGLE
from parp_cli.runtime.progress import silent
from parp_cli.stages.finetune import finetune, prepare
from parp_cli.tasks.ctc.features import FrontEndFeatures
from parp_cli.tasks.ctc.objective import CtcObjective
from parp_cli.tasks.masked_prediction.objective import Crop, MaskedPrediction, Predictor
from parp_cli.tasks.masking import LatentMasking
from parp_cli.tasks.task import Objective
from parp_cli.training.observe import Observer, observing
from parp_cli.training.passes import Passes
from parp_cli.training.run import TrainingRun
from tests.fake_cuda import CUDA, FakeCuda, fake_cuda, value_of
from tests.models.small import SMALL, randomise
from tests.tasks.ctc.conftest import VOCABULARY, task_of
from tests.tiny import TINY, World

CPU = torch.device("cpu")
TOLERANCES = {"float32": (1e-4, 1e-3), "bfloat16": (5e-2, 0.25), "bfloat16 weights": (5e-2, 0.5)}
"""By how much losses and gradients may differ from those of a CPU in float32, as a share of them. Where weights are
rounded too, the small gradients of a fresh classifier are the most different."""

WAYS = [("float32", False), ("bfloat16", False), ("bfloat16", True)]

OF_TORCH = "ctc_loss"
"""Its kernels for CUDA copy lengths there themselves, and wait. Nothing else may."""


@dataclass
class Found:
    """What an update's passes came to, and what the device noted meanwhile."""

    loss: float
    gradient: Tensor
    waits: list[str]
    float32_products: list[str]
    operators: int


def gradient_of(network: nn.Module) -> Tensor:
    return torch.cat([value_of(w.grad).flatten().float() for w in network.parameters() if w.grad is not None])


def passed(passes: Passes, items: Sequence[Any], device: FakeCuda) -> Found:
    """An update's passes on the fake device."""
    device.float32_products.clear()
    waits, operators = len(device.waits), device.operators
    pending = passes.backward(items, 1)
    found = device.waits[waits:]
    count = len(device.waits)
    loss = pending.get()[0].mean
    assert len(device.waits) == count + 1  # for the loss
    gradient = gradient_of(passes.objective.network)
    found = [wait for wait in found if OF_TORCH not in wait]
    return Found(loss, gradient, found, device.float32_products, device.operators - operators)


def check(found: Found, expected: Found, precision: str) -> None:
    of_loss, of_gradient = TOLERANCES[precision]
    assert found.waits == []
    assert found.loss == pytest.approx(expected.loss, rel=of_loss)
    difference = (found.gradient - expected.gradient).norm() / expected.gradient.norm()
    assert difference < of_gradient
    assert found.operators > 100


def on_cpu(passes: Passes, items: Sequence[Any]) -> Found:
    loss = passes.backward(items, 1).get()[0].mean
    return Found(loss, gradient_of(passes.objective.network), [], [], 0)


def recogniser(architecture: Architecture) -> Any:
    model: Any = randomise(build(architecture, vocabulary_size=4)).train()
    generator = torch.Generator().manual_seed(0)
    model.register_parameter("mask_embedding", nn.Parameter(torch.rand(architecture.width, generator=generator)))
    model.feature_extractor.requires_grad_(False)
    return model


def ctc_passes(model: Any, utterances: Sequence[Utterance], precision: str) -> Passes:
    """In several micro-batches, padded, with masks."""
    objective = CtcObjective(
        network=model,
        features=FrontEndFeatures(model, model.architecture, frozen=True),
        vocabulary=VOCABULARY,
        masking=LatentMasking(time_probability=0.3, time_length=3, channel_probability=0.2, channel_length=4),
        precision=precision,
    )
    return Passes(task=task_of(utterances), objective=objective, module=objective.module, micro_batch_size=0.2, seed=0)


@pytest.mark.parametrize(("precision", "recomputed"), WAYS)
@pytest.mark.parametrize("name", SMALL)
def test_recognition(utterances: list[Utterance], name: str, precision: str, recomputed: bool) -> None:
    model = recogniser(SMALL[name])
    expected = on_cpu(ctc_passes(copy.deepcopy(model), utterances, "float32"), utterances)
    if recomputed:
        recompute_layers(model)
    with fake_cuda() as device:
        passes = ctc_passes(model.to(CUDA), utterances, precision)
        assert len(passes.micro_batches(utterances)) > 1
        found = passed(passes, utterances, device)
    check(found, expected, precision)
    if precision == "bfloat16":  # all but the feature encoder
        assert {place.split()[-1] for place in found.float32_products} == {"ConvBlock.forward"}


@pytest.mark.parametrize("name", SMALL)
def test_recognition_by_weights_in_bfloat16(utterances: list[Utterance], name: str) -> None:
    """As FSDP2 gathers them, those of norms and biases too."""
    model = recogniser(SMALL[name])
    expected = on_cpu(ctc_passes(copy.deepcopy(model), utterances, "float32"), utterances)
    model.encoder.bfloat16()
    model.aux.bfloat16()
    model.mask_embedding.data = model.mask_embedding.data.bfloat16()
    with fake_cuda() as device:
        found = passed(ctc_passes(model.to(CUDA), utterances, "bfloat16"), utterances, device)
    check(found, expected, "bfloat16")
    assert {place.split()[-1] for place in found.float32_products} == {"ConvBlock.forward"}


@pytest.mark.parametrize(("precision", "recomputed"), [WAYS[0], WAYS[2]])
@pytest.mark.parametrize("name", ["wav2vec2-group-norm", "hubert-large", "wavlm-large"])
def test_masked_prediction(name: str, precision: str, recomputed: bool) -> None:
    architecture = replace(SMALL[name], conv_layers=TINY.conv_layers)
    noise = torch.randint(-9_000, 9_000, (20_000,), generator=torch.Generator().manual_seed(0), dtype=torch.int16)
    crops = Crops([Stream("a", noise)], 20)
    items = [Crop(number, 0, number) for number in range(3)]

    def objective_of(network: Predictor, precision: str) -> MaskedPrediction:
        return MaskedPrediction(
            network=network,
            architecture=architecture,
            crops=crops,
            targets=[torch.arange(crops.streams[0].frames, dtype=torch.int16) % 7],
            mask_probability=0.5,
            mask_length=2,
            unmasked_weight=0.5,
            precision=precision,
        )

    class InTwo:
        """A task as passes see it."""

        def grouped(self, items: Sequence[Crop], size: float) -> list[list[int]]:
            return [[0, 1], [2]]

        def size(self, item: Crop) -> float:
            return 1.0

    def passes_of(objective: Objective[Crop]) -> Passes:
        task: Any = InTwo()
        return Passes(task=task, objective=objective, module=objective.module, micro_batch_size=2, seed=0)

    encoder: Any = recogniser(architecture)
    encoder.aux = None
    encoder.feature_extractor.requires_grad_(True)
    network = Predictor(encoder, architecture.width, 7).train()
    expected = on_cpu(passes_of(objective_of(copy.deepcopy(network), "float32")), items)
    if recomputed:
        recompute_layers(encoder)
    with fake_cuda() as device:
        check(passed(passes_of(objective_of(network.to(CUDA), precision)), items, device), expected, precision)


@pytest.mark.parametrize(
    ("precision", "recomputed", "gathered"), [(*WAYS[0], False), (*WAYS[2], False), (*WAYS[1], True)]
)
@pytest.mark.parametrize("task", ["classification", "masked-lm"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "deberta-v2", "xlnet"])
def test_texts(tmp_path: Path, family: str, task: str, precision: str, recomputed: bool, gathered: bool) -> None:
    """Also by weights in bfloat16, as FSDP2 gathers them."""
    pytest.importorskip("transformers")
    from tests.tasks.classification.world import make_films
    from tests.tasks.masked_lm.test_task import recipe_of

    films = make_films(tmp_path, family)
    way = (f"training.checkpoint_activations={str(recomputed).lower()}", "training.dropout=0")

    def passes_of(precision: str, device: torch.device, ways: Sequence[str]) -> Passes:
        settings = (*ways, f"training.precision={precision}")
        recipe = films.recipe(*settings) if task == "classification" else recipe_of(films, *settings)
        preparation: Any = prepare(recipe, None, silent)
        torch.manual_seed(0)  # for the head
        network = preparation.task.network(preparation.start.weights).train()
        network = (network.bfloat16() if gathered and precision == "bfloat16" else network).to(device)
        objective = preparation.task.objective(
            network, masked=(), sharded=False, device=device, world=SINGLE, scratch=None
        )
        return Passes(task=preparation.task, objective=objective, module=objective.module, micro_batch_size=25, seed=0)

    passes = passes_of("float32", CPU, ["training.dropout=0"])
    items = passes.task.train[:8]
    assert len(passes.micro_batches(items)) > 1
    expected = on_cpu(passes, items)
    with fake_cuda() as device:
        found = passed(passes_of(precision, CUDA, way), items, device)
    check(found, expected, "bfloat16 weights" if gathered else precision)
    if precision == "bfloat16":
        assert found.float32_products == []


def allowed(wait: str) -> bool:
    """Beside torch's own, features of utterances that were not heard before: they are written for other runs."""
    return OF_TORCH in wait or "ctc/features.py" in wait


class Waits(Observer):
    """By the number of an update: what made it wait for the device, and how much of that before its gradients were
    there."""

    def __init__(self, device: FakeCuda) -> None:
        self._device = device
        self.passes: dict[int, list[str]] = {}
        self.updates: dict[int, list[str]] = {}
        self.products: list[str] = []

    def update_begins(self, run: TrainingRun) -> None:
        self._from = len(self._device.waits)
        self._device.float32_products.clear()

    def gradients(self, run: TrainingRun) -> None:
        self.passes[run.update + 1] = self._device.waits[self._from :]
        self.products += self._device.float32_products

    def update_ends(self, run: TrainingRun) -> None:
        if not run.pruner.history or run.pruner.history[-1].update != run.update:
            self.updates[run.update] = self._device.waits[self._from :]


RUNS = ("training.updates=4", "training.validate_every=4", "pruning.interval=2", "training.precision=bfloat16")
RANDOM = ("training.dropout=0.1", "training.attention_dropout=0.1", "training.layer_drop=0.3")


@pytest.mark.parametrize(
    "settings",
    [
        ("pruning.method=parp", "training.gradient_clip=1", *RANDOM),
        ("pruning.method=fixed", "training.gradient_clip=1"),
        ("pruning.method=rigl",),
        ("pruning.method=wanda",),
        ("pruning.method=movement", "training.checkpoint_activations=true"),
        ("pruning.method=taylor",),
        ("pruning.pattern=structures", "training.train_front_end=true"),
        ("pruning.pattern=2:4", "training.speed_change=0.1"),
    ],
    ids=lambda settings: settings[0],
)
def test_an_update_of_a_run_waits_once(world: World, tmp_path: Path, settings: Sequence[str]) -> None:
    with fake_cuda() as device:
        noted = Waits(device)
        with observing(noted):
            result = finetune(world.recipe(*RUNS, *settings), run=tmp_path, device=CUDA)
    assert result.path.exists()
    assert [wait for waits in noted.passes.values() for wait in waits if not allowed(wait)] == []
    most = 2 if "pruning.method=taylor" in settings else 1  # it adds up its scores on the CPU
    assert all(1 <= sum(not allowed(wait) for wait in waits) <= most for waits in noted.updates.values())
    assert len(noted.updates) >= 2
    assert {place.split()[-1] for place in noted.products} <= {"ConvBlock.forward", "resample", "Passes.backward"}


@pytest.mark.parametrize("settings", [("pruning.method=parp",), ("pruning.method=fixed", "training.gradient_clip=1")])
@pytest.mark.parametrize("task", ["classification", "masked-lm"])
def test_an_update_of_texts_waits_once(tmp_path: Path, task: str, settings: Sequence[str]) -> None:
    pytest.importorskip("transformers")
    from tests.tasks.classification.world import make_films
    from tests.tasks.masked_lm.test_task import recipe_of

    films = make_films(tmp_path)
    values = (*RUNS, "training.batch_size=4", "training.micro_batch_tokens=16", *settings)
    recipe = films.recipe(*values) if task == "classification" else recipe_of(films, *values)
    with fake_cuda() as device:
        noted = Waits(device)
        with observing(noted):
            finetune(recipe, run=tmp_path / "run", device=CUDA)
    assert set(noted.passes) == {1, 2, 3, 4}
    assert [wait for waits in noted.passes.values() for wait in waits] == []
    assert {len(waits) for waits in noted.updates.values()} == {1}
    assert noted.products == []
