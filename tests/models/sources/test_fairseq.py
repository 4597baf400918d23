import sys
from argparse import Namespace
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torchaudio.models.wav2vec2.utils.import_fairseq import _convert_state_dict

from parp_cli.data.labels import recorded_vocabulary
from parp_cli.errors import CheckpointError
from parp_cli.models.sources.fairseq import _conv_layers
from parp_cli.models.sources.load import load_encoder
from parp_cli.models.sources.names import MASK_EMBEDDING, renamed, unpack_attention
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, build
from tests.models.small import OF_TORCHAUDIO, SMALL, randomise, save_legacy

# Our names to fairseq's. The way back is tested against torchaudio's importer.
_LAYER = r"encoder\.transformer\.layers\.(\d+)\."
_NAMES = (
    (r"feature_extractor\.conv_layers\.(\d+)\.conv", r"feature_extractor.conv_layers.\1.0"),
    (r"encoder\.feature_projection\.projection", "post_extract_proj"),
    (r"encoder\.feature_projection\.layer_norm", "layer_norm"),
    (r"encoder\.transformer\.pos_conv_embed\.conv\.parametrizations\.weight\.original0", "encoder.pos_conv.0.weight_g"),
    (r"encoder\.transformer\.pos_conv_embed\.conv\.parametrizations\.weight\.original1", "encoder.pos_conv.0.weight_v"),
    (r"encoder\.transformer\.pos_conv_embed\.conv", "encoder.pos_conv.0"),
    (r"encoder\.transformer\.layer_norm", "encoder.layer_norm"),
    (_LAYER + r"attention\.gru_rel_pos_linear", r"encoder.layers.\1.self_attn.grep_linear"),
    (_LAYER + r"attention\.gru_rel_pos_const", r"encoder.layers.\1.self_attn.grep_a"),
    (_LAYER + r"attention\.rel_attn_embed", r"encoder.layers.\1.self_attn.relative_attention_bias"),
    (_LAYER + r"attention", r"encoder.layers.\1.self_attn"),
    (_LAYER + r"layer_norm", r"encoder.layers.\1.self_attn_layer_norm"),
    (_LAYER + r"feed_forward\.intermediate_dense", r"encoder.layers.\1.fc1"),
    (_LAYER + r"feed_forward\.output_dense", r"encoder.layers.\1.fc2"),
    (_LAYER + r"final_layer_norm", r"encoder.layers.\1.final_layer_norm"),
)


class Mode(Enum):
    default = "default"
    layer_norm = "layer_norm"


def fairseq_weights(architecture: Architecture) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random weights under our names, and under fairseq's with what else a pre-training checkpoint has."""
    ours = randomise(build(architecture)).state_dict()
    mask_embedding = torch.randn(architecture.width)
    layer_norm = architecture.conv_norm == "layer"
    norm = (
        r"feature_extractor\.conv_layers\.(\d+)\.layer_norm",
        rf"feature_extractor.conv_layers.\1.2{'.1' * layer_norm}",
    )
    theirs = {renamed(name, (*_NAMES, norm)): tensor for name, tensor in unpack_attention(ours).items()}
    extra = {"hubert": ["label_embs_concat", "final_proj.weight"], "wav2vec2": ["quantizer.vars", "project_q.weight"]}
    theirs |= {name: torch.zeros(2) for name in extra.get(architecture.family, [])}
    return ours | {MASK_EMBEDDING: mask_embedding}, theirs | {"mask_emb": mask_embedding}


def model_settings(architecture: Architecture) -> dict[str, Any]:
    """fairseq's settings, those that are its defaults left out."""
    first, *others = architecture.conv_layers
    settings = {
        "_name": {"hubert": "hubert", "wav2vec2": "wav2vec2"}.get(architecture.family),
        "extractor_mode": Mode.layer_norm if architecture.conv_norm == "layer" else Mode.default,
        "conv_feature_layers": f"[{first}] + {others!r} ",
        "encoder_embed_dim": architecture.width,
        "encoder_layers": architecture.layers,
        "encoder_attention_heads": architecture.heads,
        "encoder_ffn_embed_dim": architecture.feed_forward,
        "conv_pos": architecture.positional_kernel,
        "conv_pos_groups": architecture.positional_groups,
        "num_buckets": architecture.buckets,
        "max_distance": architecture.max_distance,
        "conv_bias": architecture.conv_bias,
        "layer_norm_first": architecture.norm_first,
        "activation_fn": "gelu",
    }
    return {key: value for key, value in settings.items() if value not in (None, False)}


def as_dictionary(model: dict[str, Any], normalize: bool) -> dict[str, Any]:
    return {"cfg": {"model": model, "task": {"normalize": normalize, "_name": "audio"}}, "args": None}


def as_namespace(model: dict[str, Any], normalize: bool) -> dict[str, Any]:
    return {"args": Namespace(**model, arch=model.get("_name"), normalize=normalize)}


def as_fine_tuned(model: dict[str, Any], normalize: bool) -> dict[str, Any]:
    old = Namespace(**model, normalize=normalize)
    return {"cfg": {"model": {"_name": "wav2vec_ctc", "w2v_args": old}, "task": {"normalize": False}}}


def as_omegaconf(model: dict[str, Any], normalize: bool) -> dict[str, Any]:
    """omegaconf's containers hold theirs in `_content`, and leaves in `_val`."""
    module = sys.modules["omegaconf"]

    def node(value: Any) -> Any:
        if isinstance(value, dict):
            container = module.DictConfig()
            container.__dict__.update(
                _metadata=Namespace(), _content={key: node(entry) for key, entry in value.items()}
            )
            return container
        leaf = module.AnyNode()
        leaf.__dict__.update(_val=value)
        return leaf

    return {"cfg": node({"model": model, "task": {"normalize": normalize}})}


@pytest.fixture
def omegaconf(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much of omegaconf as pickling needs; reading must do without."""
    module = ModuleType("omegaconf")
    for name in ("DictConfig", "AnyNode"):
        setattr(module, name, type(name, (), {"__module__": "omegaconf"}))
    monkeypatch.setitem(sys.modules, "omegaconf", module)


@pytest.mark.parametrize("save", [torch.save, save_legacy], ids=["zip", "legacy"])
@pytest.mark.parametrize("settings", [as_dictionary, as_namespace, as_fine_tuned, as_omegaconf])
@pytest.mark.parametrize("name", OF_TORCHAUDIO)
def test_configuration_and_weights_are_read(
    name: str,
    settings: Callable[[dict[str, Any], bool], dict[str, Any]],
    save: Callable[[object, Path], None],
    tmp_path: Path,
    omegaconf: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = fairseq_weights(SMALL[name])
    if settings is as_fine_tuned:
        theirs = {f"w2v_encoder.w2v_model.{key}": tensor for key, tensor in theirs.items()}
        theirs |= {"w2v_encoder.proj.weight": torch.zeros(2, 2), "w2v_encoder.proj.bias": torch.zeros(2)}
    content = settings(model_settings(SMALL[name]), SMALL[name].normalize_waveform)
    save({"model": theirs, "optimizer_history": [], **content}, tmp_path / "file.pt")
    monkeypatch.delitem(sys.modules, "omegaconf")
    architecture, weights, vocabulary, *_ = load_encoder(str(tmp_path / "file.pt"))
    assert (architecture, vocabulary) == (SMALL[name], None)
    assert weights.keys() == ours.keys()
    assert all(torch.equal(weights[key], tensor) for key, tensor in ours.items())


@pytest.mark.parametrize("name", [name for name in OF_TORCHAUDIO if "wavlm" not in name])
def test_names_are_those_of_torchaudios_importer(name: str, tmp_path: Path) -> None:
    _, theirs = fairseq_weights(SMALL[name])
    torch.save({"model": theirs, **as_dictionary(model_settings(SMALL[name]), False)}, tmp_path / "file.pt")
    model = build(SMALL[name])
    model.load_state_dict({key: value for key, value in _convert_state_dict(theirs).items() if "label" not in key})
    weights = load_encoder(str(tmp_path / "file.pt")).weights
    assert all(torch.equal(weights[key], tensor) for key, tensor in model.state_dict().items())


def checkpoint(tmp_path: Path, **changes: Any) -> str:
    _, theirs = fairseq_weights(SMALL["wav2vec2-layer-norm"])
    settings = as_dictionary(model_settings(SMALL["wav2vec2-layer-norm"]) | changes, True)
    torch.save({"model": theirs, **settings}, tmp_path / "file.pt")
    return str(tmp_path / "file.pt")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder_layers": 2}, "layers.2.attention.k_proj.weight: left over"),
        ({"encoder_layers": 4}, "layers.3.attention.k_proj.weight: missing"),
        ({"activation_fn": "relu"}, "activation_fn: 'relu'"),
        ({"pos_conv_depth": 5}, "pos_conv_depth: 5"),
        ({"layer_type": "conformer"}, "layer_type"),
        ({"encoder_attention_heads": "many"}, "many"),
        ({"encoder_attention_heads": 5}, "does not divide"),
        ({"conv_feature_layers": "__import__('os').system('touch victim')"}, "conv_feature_layers"),
    ],
)
def test_what_does_not_fit_is_named(
    changes: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_encoder(checkpoint(tmp_path, **changes))
    assert words in str(caught.value)
    assert not (tmp_path / "victim").exists()


def test_without_configuration_the_architecture_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = fairseq_weights(SMALL["xls-r"])
    torch.save({"model": theirs, "args": None}, tmp_path / "file.pt")
    with pytest.raises(CheckpointError, match="does not say what its network looks like"):
        load_encoder(str(tmp_path / "file.pt"))
    monkeypatch.setitem(ARCHITECTURES, "custom", SMALL["xls-r"])
    assert load_encoder(str(tmp_path / "file.pt"), architecture="custom").weights.keys() == ours.keys()


@pytest.mark.parametrize(
    ("expression", "layers"),
    [
        ("[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]", ARCHITECTURES["wav2vec2-base"].conv_layers),
        (" [(1, 2, 3)]", ((1, 2, 3),)),
    ],
)
def test_layer_expressions(expression: str, layers: object) -> None:
    assert tuple(_conv_layers(expression)) == layers


@pytest.mark.parametrize(
    "expression", ["", "[", "3", "(1, 2, 3)", "[1]", "[(1, 2)] * x", "f()", "[(1, 2, 3)] * 2 * 2", "(" * 999, "'a' * 9"]
)
def test_other_expressions_are_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="conv_feature_layers"):
        _conv_layers(expression)


SYMBOLS = ["<s>", "<pad>", "</s>", "<unk>"]


class Dictionary:
    """As much of fairseq's as a checkpoint holds of it."""

    def __init__(self, symbols: list[str]) -> None:
        self.symbols, self.count, self.indices = symbols, [1] * len(symbols), {s: i for i, s in enumerate(symbols)}


def fine_tuned(path: Path, size: int, task: dict[str, Any] | None = None, **content: Any) -> tuple[Tensor, Tensor]:
    """A fine-tuned checkpoint with a head of so many outputs, which is returned."""
    architecture = SMALL["wav2vec2-layer-norm"]
    _, theirs = fairseq_weights(architecture)
    head = torch.randn(size, architecture.width), torch.randn(size)
    theirs = {f"w2v_encoder.w2v_model.{key}": tensor for key, tensor in theirs.items()}
    theirs |= {"w2v_encoder.proj.weight": head[0], "w2v_encoder.proj.bias": head[1]}
    settings = as_fine_tuned(model_settings(architecture), True)
    settings["cfg"]["task"] |= task or {}
    torch.save({"model": theirs, **settings, **content}, path)
    return head


@pytest.mark.parametrize("where", ["in the checkpoint", "beside it"])
@pytest.mark.parametrize("kind", ["ltr", "phn"])
def test_a_fine_tuned_head_is_kept_where_its_labels_are(kind: str, where: str, tmp_path: Path) -> None:
    letters = ["|", "E", "T", "'"] if kind == "ltr" else ["ah", "sil", "t"]
    content: dict[str, Any] = {}
    if where == "in the checkpoint":
        content = {"task_state": {"target_dictionary": Dictionary([*SYMBOLS, *letters])}}
    else:
        (tmp_path / f"dict.{kind}.txt").write_text("".join(f"{letter} 10\n" for letter in letters))
    weight, bias = fine_tuned(tmp_path / "file.pt", 4 + len(letters), {"labels": kind}, **content)
    encoder = load_encoder(str(tmp_path / "file.pt"))
    assert torch.equal(encoder.weights["aux.weight"], weight)
    assert torch.equal(encoder.weights["aux.bias"], bias)
    vocabulary = recorded_vocabulary(encoder.task)
    assert vocabulary is not None
    assert vocabulary.symbols == ("<blank>", *SYMBOLS[1:], *letters)
    read = vocabulary.decode([1, 2, 3, *range(4, 4 + len(letters))])
    assert read == ("ET'" if kind == "ltr" else "ah sil t")
    assert not encoder.notes


@pytest.mark.parametrize("letters", [None, "|AB"], ids=["none", "of another size"])
def test_a_fine_tuned_head_without_its_labels_is_left_out(letters: str | None, tmp_path: Path) -> None:
    if letters is not None:
        (tmp_path / "dict.ltr.txt").write_text("".join(f"{letter} 10\n" for letter in letters))
    fine_tuned(tmp_path / "file.pt", 5)
    encoder = load_encoder(str(tmp_path / "file.pt"))
    assert encoder.task is None
    (note,) = encoder.notes
    assert "5 labels" in note
    assert "dict.ltr.txt" in note
