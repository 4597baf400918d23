"""Stages on a fake CUDA device: allowed there, with the results of a CPU. Training is in `training/test_on_cuda.py`."""

from pathlib import Path

import pytest
import torch

from parp_cli.config.load import load_recipe
from parp_cli.config.pretrain import PretrainRecipe
from parp_cli.models.speech.config import ARCHITECTURES
from parp_cli.stages.evaluate import evaluate
from parp_cli.stages.finetune import finetune
from parp_cli.stages.mask import mask
from parp_cli.stages.pretrain import pretrain
from parp_cli.stages.reprune import reprune
from parp_cli.stages.transcribe import transcribe
from parp_cli.storage import checkpoint
from parp_cli.tasks.evaluation import Options
from tests.fake_cuda import CUDA, fake_cuda
from tests.tiny import PRETRAIN, TINY, World


@pytest.mark.parametrize("pattern", ["global", "layer", "2:4", "8x8", "structures"])
def test_masks_have_the_same_bytes(world: World, tmp_path: Path, pattern: str) -> None:
    expected = mask(str(world.encoder), pattern=pattern, out=tmp_path / "cpu.safetensors").path
    with fake_cuda() as device:
        found = mask(str(world.encoder), pattern=pattern, out=tmp_path / "cuda.safetensors", device=CUDA).path
        again = reprune(found, sparsity=None if ":" in pattern else 0.6, out=tmp_path / "again", device=CUDA)
    assert device.operators > 10
    assert found.read_bytes() == expected.read_bytes()
    assert again.sparsity.exact > 0.4


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_evaluation(world: World, trained: Path, tmp_path: Path, precision: str) -> None:
    options = Options(precision=precision)
    expected = evaluate(trained, out=tmp_path / "cpu.jsonl", options=Options())
    with fake_cuda() as device:
        found = evaluate(trained, out=tmp_path / "cuda.jsonl", options=options, device=CUDA)
        float32 = {place.split()[-1] for place in device.float32_products}
    assert "ConvBlock.forward" in float32
    assert (float32 == {"ConvBlock.forward"}) == (precision == "bfloat16")
    rates = [one.as_it_is.report.metrics[0].errors.rate for one in (expected, found)]
    assert rates[1] == pytest.approx(rates[0], abs=0.0 if precision == "float32" else 0.2)


def test_transcription(world: World, trained: Path) -> None:
    files = [str(world.folder / f"test-{number}.wav") for number in range(3)]
    expected = transcribe(trained, files)
    with fake_cuda() as device:
        found = transcribe(trained, files, device=CUDA)
    assert device.operators > 100
    assert [one.text for one in found.transcriptions] == [one.text for one in expected.transcriptions]


def test_pretraining(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    path = tmp_path / "pretrain.yaml"
    path.write_text(PRETRAIN.format(manifest=world.manifest, updates=2), encoding="utf-8")
    recipe = load_recipe(path, ["precision=bfloat16"], kind=PretrainRecipe)
    with fake_cuda() as device:
        result = pretrain(recipe, run=tmp_path / "run", out=tmp_path / "encoder.safetensors", device=CUDA)
    assert device.operators > 1000
    assert all(weight.isfinite().all() for weight in checkpoint.read(result.path).weights.values())


def test_texts(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from parp_cli.stages.predict import predict
    from tests.tasks.classification.world import make_films

    films = make_films(tmp_path)
    result = finetune(films.recipe("training.updates=4", "pruning.interval=2"), run=tmp_path / "run")
    (tmp_path / "texts.txt").write_text("a very good film\nthis is not bad film\n", encoding="utf-8")
    expected = predict(result.path, tmp_path / "texts.txt")
    with fake_cuda() as device:
        found = predict(result.path, tmp_path / "texts.txt", device=CUDA)
        evaluate(result.path, out=tmp_path / "cuda.jsonl", device=CUDA)
    assert device.operators > 100
    assert [(text, one.label) for text, one in found] == [(text, one.label) for text, one in expected]


def test_deterministic_training_and_a_teacher(world: World, masked: Path, tmp_path: Path) -> None:
    settings = ("training.updates=2", "training.precision=bfloat16", "training.deterministic=true")
    recipe = world.recipe(*settings, "distil.teacher=dense")
    with fake_cuda() as device:
        result = finetune(recipe, run=tmp_path, init=masked, device=CUDA)
    assert device.operators > 1000
    assert not torch.are_deterministic_algorithms_enabled()
    written = checkpoint.read(result.path)
    assert all(not written.weights[name][~kept].any() for name, kept in written.masks.items())
