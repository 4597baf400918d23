"""What sherpa-onnx makes of an export, against our own networks and greedy decoding."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parp_cli.data.labels import Vocabulary
from parp_cli.errors import CheckpointError
from parp_cli.exporters import sherpa
from parp_cli.exporters.check import labels, network, same_text
from parp_cli.exporters.sherpa import (
    MODEL,
    TOKENS,
    SherpaNetwork,
    Symbols,
    export_sherpa,
    symbols_of,
    transcribed,
    write_tokens,
)
from parp_cli.models.speech.config import Architecture, build
from tests.models.small import SMALL, randomise, waveform

onnx = pytest.importorskip("onnx", reason="the extra `onnx`")

LETTERS = Vocabulary(
    ("<blank>", "<unk>", "|", "E", "T", "'", "Ä", "</s>"), "letters", special={"<unk>": "unk", "</s>": "eos"}
)
PHONES = Vocabulary(("<blank>", "AH", "|", "B", "ɪː"), "phones")
SPACELESS = Vocabulary(("<blank>", "昨", "|", "日", "に"), "letters", separator="")
SMALL_LETTERS = Vocabulary(("<blank>", "A", "É", "B"), "letters", lower_case=True)
VOCABULARIES = {"letters": LETTERS, "phones": PHONES, "without spaces": SPACELESS, "lower case": SMALL_LETTERS}

UNEVEN: dict[str, Any] = {"heads": (0, 2, 3), "head_size": 8, "feed_forward": (48, 0, 7)}
NETWORKS = {
    "wav2vec2-group-norm": (SMALL["wav2vec2-group-norm"], PHONES),
    "wav2vec2-layer-norm": (SMALL["wav2vec2-layer-norm"], SPACELESS),
    "hubert-large": (replace(SMALL["hubert-large"], **UNEVEN), LETTERS),
    "wavlm-large": (
        replace(SMALL["wavlm-large"], **UNEVEN, kept_heads=((), (1, 2), (0, 2, 3))),
        SMALL_LETTERS,
    ),
}
# The last two are nearly silent, and louder than sound can be.
SPEECH = [
    *(scale * waveform(samples, seed=samples)[0] for scale, samples in ((0.3, 1_500), (0.1, 2_603), (0.05, 4_000))),
    *(scale * waveform(2_000)[0] for scale in (3e-4, 4.0)),
]


@pytest.fixture(scope="module", params=NETWORKS)
def exported(
    request: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Architecture, dict[str, Tensor], Vocabulary, Path]:
    architecture, vocabulary = NETWORKS[request.param]
    weights = dict(randomise(build(architecture, vocabulary_size=len(vocabulary))).state_dict())
    weights["aux.bias"][0] -= 1.5  # or some random networks say little
    folder = tmp_path_factory.mktemp(request.param)
    symbols = symbols_of(vocabulary, source="a test")
    export_sherpa(architecture, weights, symbols, folder / MODEL, properties={"from": "a test"})
    write_tokens(symbols, folder / TOKENS)
    return architecture, weights, vocabulary, folder


def test_logits_are_ours_however_loud_it_was(exported: Any) -> None:
    architecture, weights, vocabulary, folder = exported
    ours, symbols = network(architecture, weights), symbols_of(vocabulary, source="a test")
    found = SherpaNetwork(folder / MODEL)(SPEECH)
    for one, speech in zip(found, SPEECH, strict=True):
        torch.testing.assert_close(one, symbols.logits(ours([speech])[0]), atol=3e-5, rtol=0)


@pytest.mark.parametrize("program", ["sherpa-onnx", "onnxruntime"])
def test_transcripts_are_ours(exported: Any, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    architecture, weights, vocabulary, folder = exported
    if program == "sherpa-onnx":
        pytest.importorskip("sherpa_onnx", reason="the extra `sherpa`")
    else:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sherpa_onnx" else find(name))
    texts, by = transcribed(folder, symbols_of(vocabulary, source="a test"), SPEECH)
    assert by.startswith(program)
    ours = network(architecture, weights)
    expected = [vocabulary.decode(labels(ours([one])[0])) for one in SPEECH]
    assert all(same_text(*pair) for pair in zip(expected, texts, strict=True)), (expected, texts)
    assert all(expected)


def test_what_sherpa_onnx_reads_of_the_file(exported: Any) -> None:
    _, _, vocabulary, folder = exported
    model = onnx.load(folder / MODEL)
    onnx.checker.check_model(model)
    (given,), (made,) = model.graph.input, model.graph.output
    assert (given.name, made.name) == ("x", "logits")
    assert made.type.tensor_type.shape.dim[2].dim_value == len(symbols_of(vocabulary, source="a test").texts)
    assert {item.key: item.value for item in model.metadata_props} == {"from": "a test", "sample_rate": "16000"}


@pytest.mark.parametrize(
    ("name", "texts", "silent"),
    [
        ("letters", ("<blk>", "▁", "E", "T", "'", "Ä"), (0, 1, 7)),
        ("phones", ("<blk>", "▁AH", "▁B", "▁ɪː"), (0, 2)),
        ("without spaces", ("<blk>", "昨", "日", "に"), (0, 2)),
        ("lower case", ("<blk>", "a", "é", "b"), (0,)),
    ],
)
def test_symbols(name: str, texts: tuple[str, ...], silent: tuple[int, ...], tmp_path: Path) -> None:
    symbols = symbols_of(VOCABULARIES[name], source="a test")
    assert (symbols.texts, symbols.silent) == (texts, silent)
    write_tokens(symbols, tmp_path / TOKENS)
    lines = (tmp_path / TOKENS).read_text(encoding="utf-8").splitlines()
    assert [line.split() for line in lines] == [[text, str(index)] for index, text in enumerate(texts)]


@pytest.mark.parametrize("vocabulary", VOCABULARIES.values(), ids=VOCABULARIES)
def test_greedy_transcripts_of_any_logits_are_the_same(vocabulary: Vocabulary) -> None:
    symbols = symbols_of(vocabulary, source="a test")
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits = torch.randn(40, len(vocabulary), generator=generator)
        text = symbols.text(labels(symbols.logits(logits)))
        assert same_text(vocabulary.decode(labels(logits)), text)


def test_texts_that_differ() -> None:
    assert same_text("A B", " A  B ")
    assert same_text("é", "é")
    assert not same_text("A B", "AB")
    assert not same_text("A", "")


def test_what_is_refused(tmp_path: Path) -> None:
    spaced = Vocabulary(("<blank>", "a b"), "phones")
    with pytest.raises(CheckpointError, match=r"x has a label with a space in it, 'a b'"):
        symbols_of(spaced, source="x")
    raw = replace(SMALL["wav2vec2-layer-norm"], normalize_waveform=False)
    weights = dict(build(raw, vocabulary_size=2).state_dict())
    symbols = Symbols(texts=("<blk>", "a"), printed=(1,), silent=(0,))
    with pytest.raises(CheckpointError, match="trained on waveforms that are not normalised") as caught:
        export_sherpa(raw, weights, symbols, tmp_path / MODEL, properties={})
    assert "--to onnx" in (caught.value.hint or "")
    assert not list(tmp_path.iterdir())
    assert sherpa.MODEL == "model.onnx"
