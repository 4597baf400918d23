import subprocess
import sys
from pathlib import Path

import pytest
import torch

from parp_cli.errors import CheckpointError, UsageError
from parp_cli.models.sources import load as sources
from parp_cli.models.sources.load import load_encoder
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, build
from parp_cli.runtime.progress import Progress
from parp_cli.storage import checkpoint
from parp_cli.storage.checkpoint import Checkpoint, Metadata, ctc_task
from tests.models.small import SMALL, randomise


def saved(architecture: Architecture, path: Path, vocabulary_size: int | None = None) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = randomise(build(architecture, vocabulary_size=vocabulary_size)).state_dict()
    torch.save(state, path)
    return state


@pytest.mark.parametrize("size", [None, 5], ids=["bare", "ctc"])
def test_a_state_dict_is_recognised_by_its_shapes(size: int | None, tmp_path: Path) -> None:
    state = saved(ARCHITECTURES["mini"], tmp_path / "file.pt", size)
    told: list[Progress] = []
    architecture, weights, vocabulary, *_ = load_encoder(str(tmp_path / "file.pt"), notify=told.append)
    assert (architecture, vocabulary) == (ARCHITECTURES["mini"], None)
    assert ["5 labels" in note.warning for note in told] == [True] * (size is not None)
    assert list(weights) == [name for name in state if not name.startswith("aux.")]
    assert all(torch.equal(weights[name], state[name]) for name in weights)


def test_equal_shapes_need_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("twin-a", "twin-b"):
        monkeypatch.setitem(ARCHITECTURES, name, SMALL["wavlm-base"])
    saved(SMALL["wavlm-base"], tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match="several architectures"):
        load_encoder(str(tmp_path / "file.pt"))
    found = load_encoder(str(tmp_path / "file.pt"), architecture="twin-b").architecture
    assert found == SMALL["wavlm-base"]


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    state = saved(ARCHITECTURES["mini"], tmp_path / "file.pt")
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "file.pt")
    weights = load_encoder(str(tmp_path / "file.pt")).weights
    assert all(torch.equal(tensor, state[name].half().float()) for name, tensor in weights.items())


@pytest.mark.parametrize("vocabulary", [None, ("<blank>", "|", "A")])
def test_a_checkpoint_of_parp(vocabulary: tuple[str, ...] | None, tmp_path: Path) -> None:
    state = randomise(build(SMALL["wavlm-large"], vocabulary_size=len(vocabulary) if vocabulary else None)).state_dict()
    metadata = Metadata(
        stage="mask",
        architecture=SMALL["wavlm-large"].to_json(),
        task=ctc_task(vocabulary, "letters") if vocabulary else None,
    )
    halves = {name: tensor.half() for name, tensor in state.items()}
    checkpoint.write(tmp_path / "file.safetensors", Checkpoint(weights=halves, masks={}, metadata=metadata))
    architecture, weights, found, *_ = load_encoder(str(tmp_path / "file.safetensors"))
    assert architecture == SMALL["wavlm-large"]
    assert found == metadata.task
    assert all(torch.equal(weights[name], tensor.float()) for name, tensor in halves.items())


def test_a_name_must_be_that_of_what_is_read(tmp_path: Path) -> None:
    saved(ARCHITECTURES["mini"], tmp_path / "file.pt")
    assert load_encoder(str(tmp_path / "file.pt"), architecture="mini").architecture == ARCHITECTURES["mini"]
    with pytest.raises(CheckpointError, match="do not fit wav2vec2-base") as caught:
        load_encoder(str(tmp_path / "file.pt"), architecture="wav2vec2-base")
    assert len(caught.value.details) == 21
    with pytest.raises(UsageError, match="did you mean wavlm-base"):
        load_encoder(str(tmp_path / "file.pt"), architecture="wavlm-bas")


def test_a_checkpoint_of_another_architecture(tmp_path: Path) -> None:
    state = build(SMALL["hubert-base"]).state_dict()
    metadata = Metadata(stage="mask", architecture=SMALL["hubert-base"].to_json())
    checkpoint.write(tmp_path / "file.safetensors", Checkpoint(weights=state, masks={}, metadata=metadata))
    with pytest.raises(CheckpointError, match="not hubert-base") as caught:
        load_encoder(str(tmp_path / "file.safetensors"), architecture="hubert-base")
    assert "width: 32 in the file, 768 in hubert-base" in caught.value.details


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("wav2vec2-bse", "did you mean wav2vec2-base"),
        ("nothing-like-it", "known names are mini, mini-x, mini-text, wav2vec2-base"),
        ("mini_x", "did you mean mini-x?"),
        ("folder/model.pt", "no model folder/model.pt"),
        ("model.safetensors", "no model model.safetensors"),
        (".", "no config.json"),
        ("list.pt", "neither a state dict"),
        ("linear.pt", "none of torchaudio's names"),
        ("short.pt", "fits no architecture"),
        ("broken.pt", "broken.pt cannot be read"),
        ("broken.safetensors", "broken.safetensors"),
    ],
)
def test_what_cannot_be_read_is_named(source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save([1, 2], "list.pt")
    torch.save(torch.nn.Linear(1, 1).state_dict(), "linear.pt")
    torch.save({"encoder.transformer.layer_norm.weight": torch.zeros(1)}, "short.pt")
    for name in ("broken.pt", "broken.safetensors"):
        Path(name).write_bytes(b"\x00" * 100)
    with pytest.raises(CheckpointError) as caught:
        load_encoder(source)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["mini", "mini-x"])
def test_the_bundled_encoders(name: str) -> None:
    assets = Path(sources.__file__).parents[2] / "assets"
    assert (assets / f"{name}.safetensors").stat().st_size <= 12e6
    assert (assets / f"{name}.md").read_text(encoding="utf-8").startswith(f"# {name}\n")
    architecture, weights, vocabulary, *_ = load_encoder(name)
    assert (architecture, vocabulary) == (ARCHITECTURES["mini"], None)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in weights.values())


def test_random_weights_by_name_are_always_the_same() -> None:
    one, other = load_encoder("random:mini"), load_encoder("random:mini")
    assert one.architecture == ARCHITECTURES["mini"]
    assert all(torch.equal(weight, other.weights[name]) for name, weight in one.weights.items())


def test_random_weights_of_a_text_encoder_keep_its_tokenizer() -> None:
    pytest.importorskip("transformers")
    known, fresh = load_encoder("mini-text"), load_encoder("random:mini-text")
    assert fresh.architecture == known.architecture
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert not torch.equal(fresh.weights[name], known.weights[name])
    assert torch.equal(fresh.weights["tokenizer"], known.weights["tokenizer"])


def test_random_weights_of_no_architecture() -> None:
    with pytest.raises(UsageError, match="there is no architecture minni"):
        load_encoder("random:minni")


def test_shapes_of_weights_import_no_compiler() -> None:
    """That takes seconds, and every command reads a model. (WavLM's embedding imports it.)"""
    script = """
import sys
from parp_cli.models.sources.names import shapes
from parp_cli.models.speech.config import ARCHITECTURES

for name in ("mini", "wav2vec2-base"):
    shapes(ARCHITECTURES[name])
assert not {"torch._dynamo", "sympy"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
