"""Every stage on a GPU, from the command line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from parp_cli.models.speech.config import ARCHITECTURES
from parp_cli.storage import checkpoint
from tests.cli.conftest import Parp
from tests.tasks.classification.world import make_films
from tests.tiny import PRETRAIN, TINY, World

pytestmark = pytest.mark.gpu

PRECISIONS = ("float32", "tf32", "bfloat16")


def sets(values: list[str]) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def of(answer: Any) -> dict[str, Any]:
    """The JSON of a command that succeeded."""
    assert answer.code == 0, answer.err
    found: dict[str, Any] = json.loads(answer.out)
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
def test_speech(parp: Parp, device: torch.device, world: World, precision: str) -> None:
    where = ("--device", device.type, "--json", "--quiet")
    of(parp("mask", "--model", world.encoder, "--sparsity", "0.5", *where))
    settings = [*world.settings, f"training.precision={precision}", "training.checkpoint_activations=true"]
    of(parp("finetune", *sets(settings), "--init", "parp-run/mask.safetensors", *where))
    masks = checkpoint.read_masks(Path("parp-run/finetune.safetensors"))
    weights = checkpoint.read(Path("parp-run/finetune.safetensors")).weights
    assert all((weights[name][~mask] == 0).all() for name, mask in masks.items())
    for own in ("float32", "bfloat16"):
        of(parp("eval", "--split", "test", "--precision", own, *where))
    heard = of(parp("transcribe", world.folder / "test-0.wav", world.folder / "test-1.wav", *where))
    assert len(heard["transcriptions"]) == 2
    of(parp("reprune", "parp-run/finetune.safetensors", "--sparsity", "0.7", *where))
    for target in ("packed", "mask"):
        of(parp("export", "parp-run/finetune.safetensors", "--to", target, *where))


@pytest.mark.parametrize(
    "settings",
    [
        ["pruning.method=omp"],
        ["pruning.method=rigl"],
        ["pruning.method=movement"],
        ["pruning.method=dense"],
        ["pruning.pattern=2:4"],
        ["pruning.pattern=structures"],
        ["training.train_front_end=true"],
        pytest.param(
            ["training.compile=true"],
            marks=[
                pytest.mark.filterwarnings("default"),  # torch's own
                pytest.mark.skipif(not any(map(shutil.which, ("gcc", "clang"))), reason="no C compiler"),
            ],
        ),
    ],
    ids=lambda values: values[0],
)
def test_methods_and_ways_to_train(parp: Parp, device: torch.device, world: World, settings: list[str]) -> None:
    answer = parp("finetune", *sets([*world.settings, *settings]), "--device", device.type, "--quiet", "--json")
    of(answer)
    assert Path("parp-run/finetune.safetensors").is_file()


def test_pretraining(parp: Parp, device: torch.device, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    Path("pretrain.yaml").write_text(PRETRAIN.format(manifest=world.manifest, updates=4), encoding="utf-8")
    for precision in PRECISIONS:
        settings = sets([f"precision={precision}", "log_every=2", "save_every=2"])
        command = ("pretrain", "pretrain.yaml", *settings, "--run", precision)
        assert parp(*command, "--device", device.type, "--quiet").code == 0
        weights = checkpoint.read(Path(precision) / "pretrain.safetensors").weights
        assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "xlnet"])
def test_texts(parp: Parp, device: torch.device, tmp_path: Path, family: str) -> None:
    pytest.importorskip("transformers")
    films = make_films(tmp_path, family)
    values = ["task=classification", f"model={films.model}", f"data.root={films.data}", "training.updates=4"]
    values += ["training.validate_every=2", "training.batch_size=4", "training.max_length=16", "pruning.interval=2"]
    where = ("--device", device.type, "--quiet")
    of(parp("finetune", *sets(values), *where, "--json"))
    of(parp("eval", *where, "--json"))
    Path("texts.txt").write_text("a very good film\nthis is not bad film\n", encoding="utf-8")
    answer = parp("predict", "texts.txt", *where, "--json")
    assert len(of(answer)["predictions"]) == 2


@pytest.mark.parametrize("precision", PRECISIONS)
def test_base(parp: Parp, device: torch.device, world: World, base: str, precision: str) -> None:
    """Of full size: a mask, three updates, and an evaluation."""
    where = ("--device", device.type, "--json", "--quiet")
    of(parp("mask", "--model", base, "--sparsity", "0.5", *where))
    settings = [value for value in world.settings if not value.startswith(("model=", "training.updates="))]
    settings += [f"model={base}", "training.updates=3", f"training.precision={precision}"]
    of(parp("finetune", *sets(settings), "--init", "parp-run/mask.safetensors", *where))
    of(parp("eval", "--split", "test", *where))
