"""Text encoders of transformers: the same logits, and what of them is prunable."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from parp_cli.errors import CheckpointError, UsageError
from parp_cli.models.network import outputs_of, read_architecture
from parp_cli.models.sources.load import load_encoder
from parp_cli.models.transformers.architecture import TOKENIZER
from parp_cli.models.transformers.tokenizer import tokenizer_of
from parp_cli.pruning.select import magnitude_masks
from tests.models.text import CONFIGS, make_tokenizer, save_model, transformers

FAMILIES = pytest.mark.parametrize("family", CONFIGS)
LABELS = ["no", "maybe", "yes"]


def inputs_for(tokenizer: object, texts: list[str]) -> dict[str, torch.Tensor]:
    return dict(tokenizer(texts, padding=True, return_tensors="pt"))  # type: ignore[operator]


@FAMILIES
def test_logits_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path, family, labels=LABELS)
    encoder = load_encoder(str(folder))
    network = encoder.architecture.build(outputs=outputs_of(encoder.task)).eval()
    network.load_state_dict(encoder.weights)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = tokenizer_of(network.tokenizer, source="", config=encoder.architecture.config)
    inputs = inputs_for(tokenizer, ["this film is not very good !", "bad"])
    with torch.no_grad():
        ours, expected = network(inputs), theirs(**inputs).logits
    assert expected.std() > 0.01
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert encoder.task == {"kind": "classification", "target": "class", "outputs": 3, "names": LABELS}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bert", "xlnet"])
def test_logits_of_a_base_model_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    """At full size, with random weights: what xlnet-base adds to the defaults of its config are its sizes."""
    sizes = {"d_model": 768, "n_layer": 12, "n_head": 12, "d_inner": 3072} if family == "xlnet" else {}
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, num_labels=3, pad_token_id=0, **sizes)
    theirs = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    theirs.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert (encoder.architecture.layers, encoder.architecture.width) == (12, 768)
    network = encoder.architecture.build(outputs=3).eval()
    network.load_state_dict(encoder.weights)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, config.vocab_size, (2, 128), generator=generator)
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    inputs["attention_mask"][1, 100:] = 0
    with torch.no_grad():
        ours, expected = network(inputs), theirs(**inputs).logits
    assert expected.std() > 0.01
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


@FAMILIES
def test_a_body_alone(family: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path, family)
    encoder = load_encoder(str(folder))
    assert encoder.task is None
    network = encoder.architecture.build().eval()
    network.load_state_dict(encoder.weights)
    assert network.head is None
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = inputs_for(transformers.AutoTokenizer.from_pretrained(folder), ["the film", "a bad film"])
    with torch.no_grad():
        torch.testing.assert_close(network(inputs), theirs(**inputs).last_hidden_state, rtol=0, atol=1e-5)


@FAMILIES
def test_an_architecture_survives_its_json(family: str, tmp_path: Path) -> None:
    architecture = load_encoder(str(save_model(tmp_path, family))).architecture
    read = read_architecture(json.loads(json.dumps(architecture.to_json())))
    assert read == architecture
    assert read.same_network(architecture)
    assert (read.layers, read.width, read.family) == (2, 16, family)
    assert list(read.build().state_dict()) == list(architecture.build().state_dict())


@FAMILIES
def test_what_is_prunable_is_the_linear_maps_of_the_layers(family: str, tmp_path: Path) -> None:
    architecture = load_encoder(str(save_model(tmp_path, family))).architecture
    network = architecture.build(outputs=2)
    whole = network.prunable()
    matrices = network.prunable(biases=False)
    attention, feed_forward = (network.prunable(scope, biases=False) for scope in ("attention", "feed-forward"))
    assert [*attention, *feed_forward] != []
    assert {**attention, **feed_forward}.keys() == matrices.keys()
    assert not attention.keys() & feed_forward.keys()
    assert matrices.keys() < whole.keys()
    in_layers = {id(parameter) for layer in network.layers for parameter in layer.parameters()}
    assert {id(parameter) for parameter in whole.values()} <= in_layers
    # In a layer: four maps of the width by itself (XLNet has one for positions too, DeBERTa two), and two of the block.
    own = {"deberta-v2": 6, "xlnet": 5}.get(family, 4)
    sizes = [weight.numel() for name, weight in matrices.items() if architecture.layer_of(name) == 0]
    assert sorted(sizes) == sorted([16 * 16] * own + [16 * 24] * 2)
    assert {architecture.layer_of(name) for name in whole} == {0, 1}
    assert "other" not in {architecture.kind_of(name) for name in whole}
    assert not any(architecture.is_head(name) or "norm" in name.lower() for name in whole)
    assert set(network.prunable(f"{architecture.stack}.1.*")) == {n for n in whole if architecture.layer_of(n) == 1}
    with pytest.raises(UsageError, match="no prunable parameter"):
        network.prunable("front-end")


def test_the_pruned_set_is_that_of_torch(tmp_path: Path) -> None:
    """`torch.nn.utils.prune.global_unstructured` over the same matrices prunes the same weights."""
    folder = save_model(tmp_path, "bert")
    encoder = load_encoder(str(folder))
    network = encoder.architecture.build()
    network.load_state_dict(encoder.weights)
    weights = network.prunable(biases=False)
    count = sum(weight.numel() for weight in weights.values())
    ours = magnitude_masks({n: w.detach() for n, w in weights.items()}, round(0.37 * count))
    theirs = transformers.AutoModel.from_pretrained(folder)
    modules = [(m, "weight") for m in theirs.encoder.modules() if isinstance(m, nn.Linear)]
    prune.global_unstructured(modules, pruning_method=prune.L1Unstructured, amount=0.37)
    expected = {
        f"bert.encoder.{n}.weight": m.weight_mask for n, m in theirs.encoder.named_modules() if (m, "weight") in modules
    }
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name].bool()) for name in ours)


def test_a_model_without_pooler_gets_one(tmp_path: Path) -> None:
    """Pre-training on masked tokens has no use for it."""
    folder = save_model(tmp_path)
    model = transformers.AutoModelForMaskedLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    model.save_pretrained(folder)
    told: list[str] = []
    one = load_encoder(str(folder), notify=lambda step: told.append(step.warning))
    assert "pooler.dense.weight" in told[0]
    assert torch.equal(
        one.weights["bert.pooler.dense.weight"], load_encoder(str(folder)).weights["bert.pooler.dense.weight"]
    )
    body = model.state_dict()["bert.encoder.layer.0.output.dense.weight"]
    assert torch.equal(one.weights["bert.encoder.layer.0.output.dense.weight"], body)


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    """transformers would make one that knows five words."""
    folder = save_model(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        load_encoder(str(folder))


def test_a_tokenizer_of_more_tokens_than_embeddings_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"new{index}" for index in range(9)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="does not fit its model"):
        load_encoder(str(folder))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_model(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError) as raised:
        load_encoder(str(folder))
    assert list(raised.value.details) == ["encoder.layer.1.output.dense.weight: missing"]


def test_layers_that_are_shared_are_refused(tmp_path: Path) -> None:
    config = transformers.AlbertConfig(
        vocab_size=20,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
    )
    transformers.AlbertModel(config).save_pretrained(tmp_path)
    save_tokenizer = save_model(tmp_path / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((save_tokenizer / name).read_bytes())
    with pytest.raises(CheckpointError, match="not one list of modules"):
        load_encoder(str(tmp_path))


def test_the_tokenizer_is_in_the_file(tmp_path: Path) -> None:
    encoder = load_encoder(str(save_model(tmp_path / "model")))
    again = tokenizer_of(encoder.weights[TOKENIZER], source="", config=encoder.architecture.config)
    own = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    text = "This film is GOOD , not bad !"
    assert again(text) == own(text)
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        tokenizer_of(None, source="x", config=encoder.architecture.config)
