"""Memory gives out before the first update or never, and the message says what would fit."""

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parp_cli.data.batching import sorted_batches
from parp_cli.data.utterances import Utterance
from parp_cli.errors import ResourceError
from parp_cli.stages.finetune import finetune
from parp_cli.tasks.ctc.features import FrontEndFeatures
from parp_cli.tasks.ctc.objective import CtcObjective
from parp_cli.tasks.masking import LatentMasking
from parp_cli.training import plan
from parp_cli.training import run as loop
from parp_cli.training.memory import largest_batches, try_largest
from parp_cli.training.observe import Observer, observing
from parp_cli.training.passes import Passes
from tests.fake_cuda import CUDA as FAKE
from tests.fake_cuda import fake_cuda
from tests.tasks.ctc.conftest import ARCHITECTURE, VOCABULARY, passes_of, task_of
from tests.tiny import World


def of(*lengths: float) -> list[Utterance]:
    return [
        Utterance(id=f"u{number}", audio=Path(), split="train", seconds=seconds)
        for number, seconds in enumerate(lengths)
    ]


def names(batches: Sequence[Sequence[Utterance]]) -> list[list[str]]:
    return [[utterance.id for utterance in batch] for batch in batches]


def test_the_longest_utterance_and_the_fullest_batch() -> None:
    assert names(largest_batches(task_of(of(24, 30, 24, 3)), 48)) == [["u1"], ["u0", "u2"]]
    assert names(largest_batches(task_of(of(4, 24, 24)), 48)) == [["u1", "u2"]], "they are the same"
    assert names(largest_batches(task_of(of(60, 2, 2)), 48)) == [["u0"]], "though it is longer than a micro-batch"
    lengths = [3.0 + index % 11 for index in range(50)]
    for batch in largest_batches(task_of(of(*lengths)), 30.0):
        padded = len(batch) * max(utterance.seconds for utterance in batch)
        assert padded <= 30
    assert padded == max(len(b) * max(lengths[i] for i in b) for b in sorted_batches(lengths, 30.0))


@pytest.fixture
def objective(make_model: Callable[..., Any]) -> CtcObjective:
    model = make_model()
    return CtcObjective(
        network=model,
        features=FrontEndFeatures(model, ARCHITECTURE, frozen=True),
        vocabulary=VOCABULARY,
        masking=LatentMasking(time_probability=0.2, time_length=1, channel_probability=0.0, channel_length=1),
        precision="float32",
    )


def try_them(passes: Passes, optimizer: torch.optim.Optimizer, *, batch_seconds: float, update: int) -> None:
    try_largest(passes, optimizer, batch_size=batch_seconds, update=update, key="size")


def stepped(objective: CtcObjective, utterances: list[Utterance], *, tried: bool) -> dict[str, Tensor]:
    """The weights after two updates."""
    model = copy.deepcopy(objective.network)
    mine = replace(objective, network=model, features=FrontEndFeatures(model, ARCHITECTURE, frozen=True))
    passes = passes_of(mine, 0.2, utterances)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for update in range(2):
        if tried:
            before = {name: weight.clone() for name, weight in model.state_dict().items()}
            kept = len(optimizer.state)
            try_them(passes, optimizer, batch_seconds=1.0, update=update)
            assert all(weight.grad is None for weight in model.parameters())
            assert len(optimizer.state) == kept
            assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
        passes.backward(utterances, update).get()
        optimizer.step()
        optimizer.zero_grad()
    return dict(model.state_dict())


def test_it_changes_nothing(objective: CtcObjective, utterances: list[Utterance]) -> None:
    one, other = (stepped(objective, utterances, tried=tried) for tried in (True, False))
    assert all(torch.equal(one[name], weight) for name, weight in other.items())


@pytest.mark.parametrize(("batch_seconds", "held"), [(1.0, True), (0.2, False)])
def test_what_an_update_holds_is_there(
    objective: CtcObjective, utterances: list[Utterance], batch_seconds: float, held: bool
) -> None:
    """The gradients of the passes before, where there are any."""
    seen: list[tuple[bool, list[str]]] = []

    class Spy(Passes):
        def backward(self, items: Sequence[Utterance], update: int) -> Any:
            weights = self.objective.network.parameters()
            seen.append((all(weight.grad is not None for weight in weights), [item.id for item in items]))
            return super().backward(items, update)

    spy = Spy(**vars(passes_of(objective, 0.2, utterances)))
    optimizer = torch.optim.AdamW(objective.network.parameters())
    try_them(spy, optimizer, batch_seconds=batch_seconds, update=0)
    assert seen == [(held, ["u4", "u3"])]


CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation.")
OTHERS = ["CUDA error: an illegal memory access was encountered", "Unsupported memory format option Preserve"]


@pytest.fixture
def memory_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes memory give out where a forward pass has more than so many seconds of sound, padding included."""

    def make(seconds: float, error: BaseException | None = CUDA) -> None:
        losses = CtcObjective.losses

        def limited(self: CtcObjective, module: nn.Module, utterances: Sequence[Utterance], *rest: Any) -> Tensor:
            if len(utterances) * max(utterance.seconds for utterance in utterances) > seconds:
                if error is not None:
                    raise error
                torch.empty(1 << 52)
            return losses(self, module, utterances, *rest)

        monkeypatch.setattr(CtcObjective, "losses", limited)

    return make


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CUDA, "CUDA out of memory. Tried to allocate 2.00 GiB."),
        (None, "DefaultCPUAllocator: can't allocate memory"),  # torch's own doing
        (MemoryError("no more"), "no more"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_it_says_what_would_fit(
    world: World, tmp_path: Path, memory_for: Callable[..., None], error: BaseException | None, reason: str
) -> None:
    memory_for(1.6, error)
    with pytest.raises(ResourceError) as caught:
        finetune(world.recipe(), run=tmp_path)
    assert caught.value.exit_code == 5
    assert "3 s of audio in one forward pass takes more than memory holds" in caught.value.message
    assert reason in caught.value.details[0]
    assert "\n" not in caught.value.details[0]
    assert caught.value.hint == "1.5 s of audio fit: --set training.micro_batch_seconds=1.5"
    if error is CUDA:
        finetune(world.recipe("training.micro_batch_seconds=1.5"), run=tmp_path)


def test_memory_of_a_gpu_that_gives_out(
    world: World, tmp_path: Path, memory_for: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was cached goes back after each try, and what is said to fit does."""
    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    memory_for(1.6)
    with fake_cuda():
        with pytest.raises(ResourceError, match="takes more than memory holds") as caught:
            finetune(world.recipe(), run=tmp_path, device=FAKE)
        assert caught.value.hint == "1.5 s of audio fit: --set training.micro_batch_seconds=1.5"
        assert len(emptied) == 2
        recipe = world.recipe("training.micro_batch_seconds=1.5", "training.updates=1")
        assert finetune(recipe, run=tmp_path, device=FAKE).path.is_file()


def test_an_utterance_that_is_too_long_is_named(world: World, tmp_path: Path, memory_for: Callable[..., None]) -> None:
    memory_for(0.9)
    with pytest.raises(ResourceError, match=r"training on train-5 \(1\.09 s of audio\) takes more") as caught:
        finetune(world.recipe(), run=tmp_path)
    assert "training.checkpoint_activations=true" in (caught.value.hint or "")


@pytest.mark.parametrize("words", OTHERS)
def test_other_errors_pass(world: World, tmp_path: Path, memory_for: Callable[..., None], words: str) -> None:
    memory_for(1.6, RuntimeError(words))
    with pytest.raises(RuntimeError, match=words):
        finetune(world.recipe(), run=tmp_path)


def test_a_run_without_trying_ends_in_the_same_bytes(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regularised = ("training.layer_drop=0.3", "training.dropout=0.1", "training.freeze_encoder_updates=4")
    tried = finetune(world.recipe(*regularised), run=tmp_path / "tried")
    monkeypatch.setattr(loop, "try_largest", lambda *_, **__: None)
    untried = finetune(world.recipe(*regularised), run=tmp_path / "untried")
    assert tried.path.read_bytes() == untried.path.read_bytes()
    assert tried.last.read_bytes() == untried.last.read_bytes()


def test_the_whole_encoder_is_tried_though_it_is_frozen_at_first(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trains: list[int] = []
    backward = Passes.backward

    def spying(self: Passes, utterances: Sequence[Utterance], update: int) -> Any:
        trains.append(sum(weight.requires_grad for weight in self.objective.network.parameters()))
        return backward(self, utterances, update)

    monkeypatch.setattr(Passes, "backward", spying)
    finetune(world.recipe("training.freeze_encoder_updates=9"), run=tmp_path)
    assert trains[:-12] == [trains[-1]] * len(trains[:-12])
    assert set(trains[-12:-3]) == {2}, "weight and bias of the head"
    assert trains[-1] > 20


@pytest.mark.parametrize("method", ["parp", "omp"])
def test_nothing_is_kept_that_a_run_no_longer_needs(
    method: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that it began from go once the network has its own; gradients before validations and saves."""
    began: list[Any] = []
    gradients: list[bool] = []
    load = plan.load_encoder

    def loading(*arguments: Any, **settings: Any) -> Any:
        encoder = load(*arguments, **settings)
        began.extend(weakref.ref(weight) for weight in encoder.weights.values())
        return encoder

    class Looks(Observer):
        def begins(self, run: loop.TrainingRun) -> None:
            left = sum(reference() is not None for reference in began)
            assert (left == 0) == (run.name == method), "the run that finds a mask is followed by one that rewinds"

        def gradients(self, run: loop.TrainingRun) -> None:
            gradients.append(any(weight.grad is not None for weight in run.network.parameters()))

        def update_ends(self, run: loop.TrainingRun) -> None:
            assert all(weight.grad is None for weight in run.network.parameters())

    monkeypatch.setattr(plan, "load_encoder", loading)
    with observing(Looks()):
        finetune(world.recipe(f"pruning.method={method}", "training.updates=2"), run=tmp_path / "run")
    assert len(began) > 0
    assert gradients == [True] * len(gradients) != []
