import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from parp_cli.errors import CheckpointError
from parp_cli.models.sources import huggingface
from parp_cli.models.sources.load import load_encoder
from parp_cli.models.sources.names import MASK_EMBEDDING, Encoder, without
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, build
from parp_cli.runtime.progress import Progress
from tests.models.small import SMALL, randomise, waveform

transformers = pytest.importorskip("transformers", reason="transformers is the reference for logits")

# The blank is the padding token, wherever that is; "#" stands between words.
THEIR_VOCABULARY = {"<unk>": 0, "A": 1, "#": 2, "[PAD]": 3, "B": 4}
OUR_VOCABULARY = ["<blank>", "<unk>", "A", "|", "B", "<unused-5>"]
ORDER = [3, 0, 1, 2, 4, 5]


def their_model(architecture: Architecture, *, head: bool) -> Any:
    config = transformers.AutoConfig.for_model(**huggingface.config_of(architecture), vocab_size=len(ORDER))
    kind = transformers.AutoModelForCTC if head else transformers.AutoModel
    return randomise(kind.from_config(config))


def write_processor(directory: Path, *, normalize: bool) -> None:
    (directory / "vocab.json").write_text(json.dumps(THEIR_VOCABULARY))
    tokens = {"pad_token": {"content": "[PAD]"}, "word_delimiter_token": "#"}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokens))
    (directory / "preprocessor_config.json").write_text(json.dumps({"do_normalize": normalize}))


def output(encoder: Encoder) -> torch.Tensor:
    model = build(encoder.architecture, vocabulary_size=len(encoder.vocabulary) if encoder.vocabulary else None).eval()
    model.load_state_dict(without(encoder.weights, [MASK_EMBEDDING]))
    with torch.inference_mode():
        logits: torch.Tensor = model(waveform())[0]
    return logits


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CTC model and its processor, to be copied before it is changed."""
    directory = tmp_path_factory.mktemp("saved")
    their_model(SMALL["hubert-large"], head=True).save_pretrained(directory)
    write_processor(directory, normalize=True)
    return directory


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


@pytest.mark.parametrize("head", [True, False], ids=["ctc", "bare"])
@pytest.mark.parametrize("name", SMALL)
def test_their_folder_gives_their_logits(name: str, head: bool, tmp_path: Path) -> None:
    theirs = their_model(SMALL[name], head=head)
    theirs.save_pretrained(tmp_path)
    write_processor(tmp_path, normalize=SMALL[name].normalize_waveform)
    encoder = load_encoder(str(tmp_path))
    assert encoder.architecture == SMALL[name]
    assert encoder.vocabulary == (OUR_VOCABULARY if head else None)
    with torch.inference_mode():
        expected = theirs(waveform()).logits[..., ORDER] if head else theirs(waveform()).last_hidden_state
    assert expected.std() > 0.1
    torch.testing.assert_close(output(encoder), expected, atol=1e-4, rtol=0)
    assert torch.equal(encoder.weights[MASK_EMBEDDING], theirs.base_model.masked_spec_embed)


@pytest.mark.parametrize("shards", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize("old_names", [False, True], ids=["parametrized", "weight_g"])
def test_every_form_of_the_weights_is_read(
    folder: Path, tmp_path: Path, shards: bool, binary: bool, old_names: bool
) -> None:
    from safetensors.torch import load_file, save_file

    expected = load_encoder(str(folder)).weights
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if old_names:
        for new, old in (
            ("parametrizations.weight.original0", "weight_g"),
            ("parametrizations.weight.original1", "weight_v"),
        ):
            weights = {name.replace(new, old): tensor for name, tensor in weights.items()}
        assert any(name.endswith("weight_v") for name in weights)
    stem, suffix = ("pytorch_model", "bin") if binary else ("model", "safetensors")
    names = sorted(weights)
    parts = [names[::2], names[1::2]] if shards else [names]
    index: dict[str, str] = {}
    for number, part in enumerate(parts):
        file = f"{stem}-0000{number}.{suffix}" if shards else f"{stem}.{suffix}"
        content = {name: weights[name] for name in part}
        torch.save(content, folder / file) if binary else save_file(content, folder / file)
        index |= dict.fromkeys(part, file)
    if shards:
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": index}))
    found = load_encoder(str(folder)).weights
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_processor_that_transformers_wrote(folder: Path) -> None:
    """Newer versions put the feature extractor's settings into another file, and all tokens into the tokenizer's."""
    processor = transformers.Wav2Vec2Processor(
        transformers.Wav2Vec2FeatureExtractor(do_normalize=False),
        transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), pad_token="[PAD]", word_delimiter_token="#"),
    )
    for file in ("vocab.json", "tokenizer_config.json", "preprocessor_config.json"):
        (folder / file).unlink()
    processor.save_pretrained(folder)
    encoder = load_encoder(str(folder))
    assert not encoder.architecture.normalize_waveform
    # <s> and </s> were appended by the tokenizer; the first takes the row that had no token.
    assert encoder.vocabulary == [*OUR_VOCABULARY[:-1], "<s>"]


def test_pretraining_parts_are_dropped(tmp_path: Path) -> None:
    architecture = SMALL["wav2vec2-group-norm"]
    config = transformers.AutoConfig.for_model(**huggingface.config_of(architecture), proj_codevector_dim=8)
    transformers.Wav2Vec2ForPreTraining(config).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert encoder.vocabulary is None
    assert encoder.architecture == architecture
    assert encoder.weights.keys() - build(architecture).state_dict().keys() == {MASK_EMBEDDING}


def test_a_head_without_labels_is_left_out(folder: Path) -> None:
    told: list[Progress] = []
    assert load_encoder(str(folder), notify=told.append).vocabulary is not None
    assert not told
    (folder / "vocab.json").unlink()
    assert load_encoder(str(folder), notify=told.append).vocabulary is None
    (note,) = told
    assert all(part in note.warning for part in (str(folder), "6 labels", "vocab.json"))


@pytest.mark.parametrize("name", ["wav2vec2-base", "xlsr-53", "hubert-xlarge", "wavlm-large"])
def test_registered_sizes_are_recognised(name: str) -> None:
    architecture = ARCHITECTURES[name]
    config = huggingface.config_of(architecture)
    found = huggingface.architecture_of(config, {}, source="it")
    assert found.same_network(architecture)
    assert found.normalize_waveform == architecture.normalize_waveform
    assert ARCHITECTURES[found.name].same_network(found)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("config.json", {"model_type": "wav2vec2-conformer"}, "wav2vec2-conformer"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act: 'relu'"),
        ("config.json", {"add_adapter": True}, "add_adapter"),
        ("config.json", {"conv_pos_batch_norm": True}, "conv_pos_batch_norm"),
        ("config.json", {"layer_norm_eps": 1e-6}, "layer_norm_eps"),
        ("config.json", {"conv_bias": True}, "conv_layers.0.conv.bias: missing"),
        ("config.json", {"num_hidden_layers": 2}, "layers.2.attention.k_proj.weight: left over"),
        ("config.json", {"intermediate_size": 40}, "(48, 32) in the file, (40, 32) in custom"),
        ("config.json", {"hidden_size": "wide"}, "'wide' is no positive number"),
        ("config.json", {"num_attention_heads": 5}, "does not divide"),
        ("config.json", {"conv_stride": [5, 0, 2]}, "no positive number"),
        ("config.json", {"conv_dim": [16]}, "zip()"),
        ("preprocessor_config.json", {"sampling_rate": 8000}, "8000"),
        ("tokenizer_config.json", {"pad_token": "[NONE]", "x": 1}, None),
        ("vocab.json", {"C": {"A": 1}}, "each language"),
        ("vocab.json", {"<blank>": 1}, "<blank>"),
    ],
)
def test_what_is_not_supported_is_named(folder: Path, file: str, change: dict[str, Any], words: str | None) -> None:
    content = json.loads((folder / file).read_text()) | change
    (folder / file).write_text(json.dumps(content))
    if words is None:  # the config's pad_token_id says it then
        assert load_encoder(str(folder)).vocabulary is not None
        return
    with pytest.raises(CheckpointError) as caught:
        load_encoder(str(folder))
    assert words in str(caught.value)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "vocab.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_damage_is_named(folder: Path, file: str, damage: str) -> None:
    if (file, damage) == ("vocab.json", "missing"):
        pytest.skip("a head without labels is left out")
    path = folder / file
    content = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(
        content[: len(content) // 2 if damage == "truncated" else 0]
    )
    with pytest.raises(CheckpointError) as caught:
        load_encoder(str(folder))
    assert file in str(caught.value)


def test_left_over_weights_are_listed_up_to_a_limit(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights |= {f"classifier.{number}": torch.zeros(1) for number in range(30)}
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_encoder(str(folder))
    assert len(caught.value.details) == 21
    assert caught.value.details[0] == "classifier.0: left over"
    assert caught.value.details[-1] == "… and 10 more"


def test_hub_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    asked: list[tuple[str, list[str]]] = []

    def snapshot_download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert load_encoder("someone/model").vocabulary == OUR_VOCABULARY
    assert asked == [("someone/model", ["*.json", "*.safetensors", "*.txt", "*.model"])]

    def unreachable(name: str, **_: Any) -> str:
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(CheckpointError, match="no route to host") as caught:
        load_encoder("someone/model")
    assert caught.value.hint is not None

    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(CheckpointError, match="pip install huggingface_hub"):
        load_encoder("someone/model")
