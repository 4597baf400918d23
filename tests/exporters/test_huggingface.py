from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from parp_cli.data.labels import Vocabulary, recorded_vocabulary
from parp_cli.errors import CheckpointError, ParpError, ResourceError
from parp_cli.exporters import huggingface
from parp_cli.exporters.huggingface import export_huggingface
from parp_cli.models.sources.load import load_encoder
from parp_cli.models.sources.names import MASK_EMBEDDING
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, build
from parp_cli.models.speech.waveform import normalize
from parp_cli.storage import tensors as tensor_files
from tests.models.small import SMALL, randomise, waveform

transformers = pytest.importorskip("transformers", reason="transformers is what the export is for")

B = "<blank>"
LETTERS = Vocabulary((B, "|", "E", "T", "'", "Ä"), "letters")
PHONES = Vocabulary((B, "HH", "AH0", "L", "tʃ", "<unk>"), "phones", special={"<unk>": "unk"})


def exported(architecture: Architecture, vocabulary: Vocabulary | None, directory: Path) -> Any:
    """The model that was written to `directory`."""
    model = randomise(build(architecture, vocabulary_size=len(vocabulary) if vocabulary else None))
    export_huggingface(architecture, model.state_dict(), vocabulary, directory)
    return model


def transcript(ids: list[int], vocabulary: Vocabulary) -> str:
    labels = [vocabulary.symbols[index] for index, _ in groupby(ids) if index != 0]
    return "".join(labels).replace("|", " ").strip() if "|" in vocabulary.symbols else " ".join(labels)


@pytest.mark.parametrize("vocabulary", [LETTERS, PHONES], ids=["letters", "phones"])
@pytest.mark.parametrize("name", SMALL)
def test_their_model_and_processor_do_what_ours_do(name: str, vocabulary: Vocabulary, tmp_path: Path) -> None:
    ours = exported(SMALL[name], vocabulary, tmp_path)
    theirs, loading = transformers.AutoModelForCTC.from_pretrained(tmp_path, output_loading_info=True)
    processor = transformers.Wav2Vec2Processor.from_pretrained(tmp_path)
    assert not any(loading.values())
    inputs = processor(waveform()[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
    with torch.inference_mode():
        logits, expected = theirs.eval()(inputs).logits, ours(normalize(waveform(), SMALL[name]))[0]
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    decoded = processor.batch_decode(logits.argmax(-1))[0]
    assert decoded == transcript(expected[0].argmax(-1).tolist(), vocabulary)


@pytest.mark.parametrize("name", SMALL)
def test_without_a_head_their_bare_model_loads_it(name: str, tmp_path: Path) -> None:
    ours = exported(SMALL[name], None, tmp_path)
    theirs, loading = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    with torch.inference_mode():
        hidden, expected = theirs.eval()(waveform()).last_hidden_state, ours(waveform())[0]
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=0)
    assert not (tmp_path / "vocab.json").exists()


@pytest.mark.parametrize("vocabulary", [LETTERS, PHONES, None], ids=["letters", "phones", "bare"])
@pytest.mark.parametrize("name", SMALL)
def test_there_and_back(name: str, vocabulary: Vocabulary | None, tmp_path: Path) -> None:
    state = exported(SMALL[name], vocabulary, tmp_path).state_dict()
    encoder = load_encoder(str(tmp_path))
    assert (encoder.architecture, recorded_vocabulary(encoder.task)) == (SMALL[name], vocabulary)
    weights = encoder.weights
    assert list(weights) == list(state)
    assert all(torch.equal(weights[key], state[key]) for key in state)


@pytest.mark.parametrize("vocabulary", [LETTERS, None], ids=["ctc", "bare"])
@pytest.mark.parametrize("name", SMALL)
def test_the_mask_embedding_goes_along(name: str, vocabulary: Vocabulary | None, tmp_path: Path) -> None:
    model = randomise(build(SMALL[name], vocabulary_size=len(vocabulary) if vocabulary else None))
    mask_embedding = torch.rand(SMALL[name].width)
    export_huggingface(SMALL[name], {**model.state_dict(), MASK_EMBEDDING: mask_embedding}, vocabulary, tmp_path)
    kind = transformers.AutoModelForCTC if vocabulary else transformers.AutoModel
    theirs, loading = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    assert torch.equal(theirs.base_model.masked_spec_embed, mask_embedding)
    assert theirs.config.mask_time_prob > 0
    with torch.inference_mode():
        found, expected = theirs.eval()(waveform())[0], model(waveform())[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert torch.equal(load_encoder(str(tmp_path)).weights[MASK_EMBEDDING], mask_embedding)


def test_wav2vec2_base_in_full(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["wav2vec2-base"]
    ours = exported(architecture, LETTERS, tmp_path)
    theirs = transformers.AutoModelForCTC.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        torch.testing.assert_close(theirs(waveform(8_000)).logits, ours(waveform(8_000))[0], atol=1e-4, rtol=0)
    found, weights, *_ = load_encoder(str(tmp_path))
    assert found == architecture
    assert all(torch.equal(weights[key], tensor) for key, tensor in ours.state_dict().items())


def decode(vocabulary: Vocabulary, labels: list[str], directory: Path) -> str:
    exported(SMALL["hubert-base"], vocabulary, directory)
    processor = transformers.AutoProcessor.from_pretrained(directory)
    assert len(processor.tokenizer) == len(vocabulary)  # no token was appended beyond the head's rows
    text: str = processor.decode([vocabulary.symbols.index(label) for label in labels])
    return text


@pytest.mark.parametrize(
    ("vocabulary", "labels", "text"),
    [
        (LETTERS, [B, "T", "T", B, "T", "E", "|", "|", "Ä", "'", B, "|"], "TTE Ä'"),
        (PHONES, ["HH", "HH", B, "HH", "AH0", B, "L", "L", "tʃ", B], "HH HH AH0 L tʃ"),
        (Vocabulary((*PHONES.symbols, "|"), "phones", delimiter=None), ["HH", "|", "L"], "HH | L"),
        (Vocabulary((*PHONES.symbols, "|"), "phones"), ["HH", "|", "L"], "HH L"),
        (Vocabulary((B, "<pad>", "|", "a"), "letters"), ["a", B, "a", "|", "a"], "aa a"),
        (Vocabulary((B, "a", "b"), "phones"), ["a", "b", B, "b"], "a b b"),
        (Vocabulary((B, "你", "好"), "letters"), ["你", "好", B, "好"], "你好好"),
        (LETTERS, [B, B], ""),
    ],
)
def test_decoding(vocabulary: Vocabulary, labels: list[str], text: str, tmp_path: Path) -> None:
    assert decode(vocabulary, labels, tmp_path) == text


@pytest.mark.parametrize(
    ("vocabulary", "text", "labels"),
    [
        (LETTERS, "TE 'T", ["T", "E", "|", "'", "T"]),
        (PHONES, "HH AH0 tʃ", ["HH", "AH0", "tʃ"]),
        (Vocabulary((B, "你", "好"), "letters"), "你好", ["你", "好"]),
    ],
    ids=["letters", "phones", "letters without spaces"],
)
def test_their_tokenizer_makes_our_labels(vocabulary: Vocabulary, text: str, labels: list[str], tmp_path: Path) -> None:
    exported(SMALL["hubert-base"], vocabulary, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert [vocabulary.symbols[index] for index in tokenizer(text).input_ids] == labels


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        exported(SMALL["wavlm-base"], LETTERS, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_foreign_weights_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    weights = build(SMALL["wav2vec2-layer-norm"]).state_dict()
    with pytest.raises(CheckpointError):
        export_huggingface(SMALL["hubert-base"], weights, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(SMALL["hubert-base"], LETTERS, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensor_files, "save_file", full)
    with pytest.raises(ResourceError):
        exported(SMALL["hubert-base"], PHONES, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(ParpError, match=r"out"):
        exported(SMALL["hubert-base"], None, tmp_path / "out")


def test_config_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(huggingface, "write_text", lambda path, text: written.append(path.name))
    exported(SMALL["hubert-base"], LETTERS, tmp_path)
    assert written[-1] == "config.json"
    assert len(written) == 4
