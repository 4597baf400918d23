import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from parp_cli.errors import ResourceError
from parp_cli.models.speech import encoder
from parp_cli.models.speech.attention import attend
from parp_cli.models.speech.config import Architecture, build, frames
from parp_cli.models.speech.forward import compile_layers, draw_skipped_layers, encode, front_end, pad, recompute_layers
from parp_cli.models.speech.waveform import normalize
from tests.models.small import SMALL, randomise, waveform

LENGTHS = (4_000, 1_500, 2_777, 260)
SMALLS = pytest.mark.parametrize("architecture", SMALL.values(), ids=SMALL.keys())


def model_of(architecture: Architecture, vocabulary_size: int | None = 7, **options: Any) -> Any:
    return randomise(build(architecture, vocabulary_size=vocabulary_size, **options))


def features_of(model: Any, architecture: Architecture) -> list[Tensor]:
    return [front_end(model, architecture, waveform(n, seed=n)[0]) for n in LENGTHS]


@SMALLS
@pytest.mark.parametrize("vocabulary_size", [7, None])
def test_one_utterance_is_torchaudios(architecture: Architecture, vocabulary_size: int | None) -> None:
    model = model_of(architecture, vocabulary_size)
    with torch.inference_mode():
        for samples in LENGTHS:
            wave = waveform(samples, seed=samples)
            found = encode(model, *pad([front_end(model, architecture, wave[0])]))
            expected, _ = model(normalize(wave, architecture))
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@SMALLS
def test_padding_changes_nothing(architecture: Architecture) -> None:
    model = model_of(architecture)
    with torch.inference_mode():
        features = features_of(model, architecture)
        together, lengths = pad(features)
        logits = encode(model, together, lengths)
        assert logits.shape == (len(LENGTHS), max(lengths), 7)
        for row, item in enumerate(features):
            alone = encode(model, *pad([item]))[0]
            torch.testing.assert_close(logits[row, : len(item)], alone, atol=1e-4, rtol=1e-4)
        # Whatever is in the padding, nobody hears it.
        noise = together.clone()
        for row, item in enumerate(features):
            noise[row, len(item) :] = 100.0
        other = encode(model, noise, lengths)
        for row, item in enumerate(features):
            torch.testing.assert_close(other[row, : len(item)], logits[row, : len(item)], atol=1e-4, rtol=1e-4)


def test_layers_have_no_work_with_padding_in_recognition() -> None:
    model = model_of(SMALL["wav2vec2-group-norm"])
    together, lengths = pad(features_of(model, SMALL["wav2vec2-group-norm"]))
    rows = []
    model.layers[0].feed_forward.intermediate_dense.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0]))
    with torch.inference_mode():
        encode(model, together, lengths)
    assert rows[0].shape[:-1] == (1, sum(lengths))


@SMALLS
def test_with_gradients_and_without_logits_are_the_same(architecture: Architecture) -> None:
    model = model_of(architecture)
    with torch.no_grad():
        batch, lengths = pad(features_of(model, architecture))
        without = encode(model, batch, lengths)
    together = encode(model, batch, lengths)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(without[row, :length], together[row, :length].detach(), atol=1e-4, rtol=1e-4)


@SMALLS
def test_half_the_precision_gives_nearly_the_same(architecture: Architecture) -> None:
    model = model_of(architecture)
    with torch.inference_mode():
        together, lengths = pad(features_of(model, architecture))
        with torch.autocast("cpu", torch.bfloat16):
            under_autocast = encode(model, together, lengths).float()
        expected = encode(model, together, lengths)
        throughout = encode(model.bfloat16(), together.bfloat16(), lengths).float()
        for row, length in enumerate(lengths):
            for found in (under_autocast, throughout):
                assert (found - expected)[row, :length].square().mean() < 0.02 * expected[row, :length].square().mean()


def test_pad() -> None:
    batch, lengths = pad([torch.ones(2, 3), torch.ones(4, 3)])
    assert batch.shape == (2, 4, 3)
    assert batch[0].sum() == 6
    assert lengths.tolist() == [2, 4]


@SMALLS
def test_the_front_end_makes_the_frames_that_were_announced(architecture: Architecture) -> None:
    model = model_of(architecture)
    for item, samples in zip(features_of(model, architecture), LENGTHS, strict=True):
        assert item.shape == (frames(architecture, samples), 16)


def test_features_are_altered_before_the_transformer() -> None:
    architecture = SMALL["hubert-large"]
    model = model_of(architecture)
    together, lengths = pad(features_of(model, architecture))
    seen: list[tuple[torch.Size, list[int]]] = []

    def alter(hidden: Tensor, given: Tensor) -> Tensor:
        seen.append((hidden.shape, given.tolist()))
        return hidden + 1

    with torch.inference_mode():
        plain, altered = encode(model, together, lengths), encode(model, together, lengths, alter=alter)
    assert seen == [(torch.Size([len(LENGTHS), together.shape[1], 32]), lengths.tolist())]
    assert not torch.allclose(plain, altered)


def test_layers_are_skipped_as_told() -> None:
    architecture = SMALL["hubert-large"]
    model = model_of(architecture)
    features = pad(features_of(model, architecture))
    runs: list[int] = []
    for index, layer in enumerate(model.encoder.transformer.layers):
        layer.register_forward_hook(lambda *_, index=index: runs.append(index))
    with torch.inference_mode():
        encode(model, *features)
        shorter = encode(model, *features, skip={1})
        assert runs == [0, 1, 2, 0, 2]
        del model.encoder.transformer.layers[1]
        torch.testing.assert_close(encode(model, *features), shorter)


@pytest.mark.parametrize("name", ["wav2vec2-group-norm", "hubert-large", "wavlm-base", "wavlm-large"])
def test_layers_are_dropped_as_often_as_asked_and_only_in_training(name: str) -> None:
    trials, probability = 2000, 0.3
    model = model_of(SMALL[name], layer_drop=probability)
    assert draw_skipped_layers(model) == frozenset()
    model.train()
    torch.manual_seed(0)
    dropped = [draw_skipped_layers(model) for _ in range(trials)]
    torch.manual_seed(0)
    assert draw_skipped_layers(model) == dropped[0]
    first, *others = (sum(index in layers for layers in dropped) for index in range(3))
    if name.startswith("wavlm"):
        assert first == 0  # it makes the position bias of all
    else:
        others.append(first)
    slack = 4 * (trials * probability * (1 - probability)) ** 0.5
    assert all(abs(count - trials * probability) < slack for count in others)
    features = features_of(model, SMALL[name])
    assert encode(model, *pad(features), skip=dropped[0]).isfinite().all()
    model.encoder.transformer.layer_drop = 0.0
    assert draw_skipped_layers(model) == frozenset()


@pytest.mark.parametrize("name", ["wav2vec2-group-norm", "hubert-large", "wavlm-base"])
@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointing_activations_changes_no_gradient(name: str, autocast: bool) -> None:
    architecture = SMALL[name]
    model = model_of(architecture, dropout=0.1, attention_dropout=0.2, activation_dropout=0.3).train()
    features = pad([item.detach() for item in features_of(model, architecture)])
    found = []
    calls: list[str] = []
    for checkpointing in (False, True):
        model.zero_grad()
        if checkpointing:
            # What is around a layer, such as FSDP2, which gathers its weights, is called once all the same.
            model.encoder.transformer.layers[0].register_forward_pre_hook(lambda *_: calls.append("layer"))
            model.encoder.transformer.layers[0].final_layer_norm.register_forward_pre_hook(
                lambda *_: calls.append("inside")
            )
            recompute_layers(model)
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = encode(model, *features, skip={1})
        logits.float().square().mean().backward()
        gradients = [weight.grad.clone() for weight in model.encoder.parameters() if weight.grad is not None]
        found.append([logits.detach(), torch.rand(1), *gradients])
    assert calls == ["layer", "inside", "inside"]
    assert len(found[0]) == len(found[1]) > 30
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("device", "triton", "found", "words"),
    [
        ("cpu", True, ["gcc"], r"C\+\+ compiler"),
        ("cuda", False, ["g++", "gcc"], "Triton is not installed"),
        ("cuda", True, ["g++"], "no C compiler is found, which Triton needs"),
    ],
)
def test_compiling_without_a_compiler_is_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, triton: bool, found: list[str], words: str
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: name if name in found else None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: triton or None)
    with pytest.raises(ResourceError, match=words) as caught:
        compile_layers(model_of(SMALL["hubert-base"]), torch.device(device))
    assert "training.compile" in (caught.value.hint or "")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["wav2vec2-group-norm", "hubert-large"])
def test_compiled_layers_compute_the_same(name: str) -> None:
    architecture = SMALL[name]
    model = model_of(architecture).train()
    names = list(model.state_dict())
    features = [item.detach() for item in features_of(model, architecture)]
    batches = [pad(features), pad(features[:1]), pad(features[1:3])]
    found = []
    torch._dynamo.utils.counters.clear()
    for compiled in (False, True):
        if compiled:
            compile_layers(model, torch.device("cpu"))
            recompute_layers(model)
        model.zero_grad()
        for batch in batches:
            encode(model, *batch).square().mean().backward()
        found.append([weight.grad.clone() for weight in model.encoder.parameters()])
    assert not torch._dynamo.utils.counters["graph_break"]
    assert list(model.state_dict()) == names
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()) + 1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", ["wav2vec2-group-norm", "hubert-large"])
@pytest.mark.parametrize("autocast", [False, True])
def test_all_layers_take_one_small_mask_and_none_without_padding(
    monkeypatch: pytest.MonkeyPatch, name: str, autocast: bool
) -> None:
    """A mask of (B, 1, T, T), made again in each layer, would cost memory and the fused kernels."""
    seen: list[tuple[Tensor, Tensor | None]] = []

    def noted(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: Any) -> Tensor:
        seen.append((query, bias))
        return attend(query, key, value, bias, dropout)

    monkeypatch.setattr(encoder, "attend", noted)
    architecture = SMALL[name]
    model = model_of(architecture).train()
    features = [item.detach() for item in features_of(model, architecture)]
    padded, lengths = pad(features)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        encode(model, padded, lengths)
    assert len(seen) == architecture.layers
    masks = {id(mask): mask for _, mask in seen}
    assert len(masks) == 1
    (mask,) = masks.values()
    assert mask is not None
    assert mask.shape == (len(features), 1, 1, padded.shape[1])
    assert {query.dtype for query, _ in seen} == {mask.dtype}
    seen.clear()
    encode(model, *pad(features[:1]))
    assert [mask for _, mask in seen] == [None] * architecture.layers
