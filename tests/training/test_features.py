import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from parp_cli.data.utterances import Utterance
from parp_cli.errors import DataError
from parp_cli.training import features
from parp_cli.training.features import FrontEndFeatures
from tests.training.conftest import ARCHITECTURE


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples of every waveform that went through the front end."""
    seen: list[int] = []
    front_end = features.front_end

    def counted(model: Any, architecture: Any, waveform: Tensor) -> Tensor:
        seen.append(len(waveform))
        return front_end(model, architecture, waveform)

    monkeypatch.setattr(features, "front_end", counted)
    return seen


def size(items: list[Tensor]) -> int:
    return sum(item.numel() * item.element_size() for item in items)


def test_each_is_computed_once_and_the_numbers_are_the_same(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int]
) -> None:
    model = make_model()
    kept = FrontEndFeatures(model, ARCHITECTURE, frozen=True)
    first, second = kept(utterances), kept(list(reversed(utterances)))
    assert len(calls) == len(utterances)
    anew = FrontEndFeatures(model, ARCHITECTURE, frozen=False)(utterances)
    assert len(calls) == 2 * len(utterances)
    for one, same, fresh in zip(first, reversed(second), anew, strict=True):
        assert torch.equal(one, fresh)
        assert torch.equal(one, same)
        assert not one.requires_grad
        assert fresh.requires_grad


def test_a_front_end_that_trains_is_never_kept(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int]
) -> None:
    model = make_model()
    trained = FrontEndFeatures(model, ARCHITECTURE, frozen=False)
    before = trained(utterances[:1])[0].detach()
    with torch.no_grad():
        next(model.feature_extractor.parameters()).mul_(2.0)
        model.feature_extractor.conv_layers[0].conv.weight.add_(0.1)
    assert not torch.equal(trained(utterances[:1])[0], before)
    assert len(calls) == 2


@pytest.mark.parametrize("budget", [0, 1, 2, 5])
def test_the_budget_is_kept(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int], budget: int
) -> None:
    model = make_model()
    everything = FrontEndFeatures(model, ARCHITECTURE, frozen=True)(utterances)
    calls.clear()
    small = FrontEndFeatures(model, ARCHITECTURE, frozen=True, cache_bytes=size(everything[:budget]))
    for _ in range(2):
        for found, expected in zip(small(utterances), everything, strict=True):
            assert torch.equal(found, expected)
    assert len(calls) == 2 * len(utterances) - budget


def test_the_same_name_in_another_split_is_another_utterance(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int]
) -> None:
    kept = FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True)
    namesake = dataclasses.replace(utterances[1], id=utterances[0].id, split="dev")
    one, other = kept([utterances[0], namesake])
    assert len(one) != len(other)
    assert len(calls) == 2


def cached(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_another_run_reads_the_same_floats_from_the_folder(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int], tmp_path: Path
) -> None:
    folder = tmp_path / "features"
    plain = FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True)(utterances)
    first = FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True, folder=folder)(utterances)
    assert len(calls) == 2 * len(utterances)
    assert len(cached(folder)) == len(utterances)
    again = FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True, folder=folder)(utterances)
    assert len(calls) == 2 * len(utterances)
    for one, written, read in zip(plain, first, again, strict=True):
        assert torch.equal(one, written)
        assert torch.equal(one, read)
        assert one.dtype == read.dtype


def test_the_folder_knows_front_ends_and_sounds_apart(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int], tmp_path: Path
) -> None:
    folder = tmp_path / "features"

    def features(model: Any, architecture: Any = ARCHITECTURE, which: Utterance = utterances[0]) -> Tensor:
        return FrontEndFeatures(model, architecture, frozen=True, folder=folder)([which])[0]

    one = features(make_model())
    other = make_model()
    with torch.no_grad():
        other.feature_extractor.conv_layers[-1].conv.weight.view(-1)[-1] += 0.5
    assert not torch.equal(features(other), one)
    unlike = dataclasses.replace(ARCHITECTURE, normalize_waveform=not ARCHITECTURE.normalize_waveform)
    assert not torch.equal(features(make_model(), unlike), one)
    # What the sound is decides, not what it is called or where it lies.
    renamed = dataclasses.replace(utterances[0], id="other", split="dev", audio=tmp_path / "copy.wav")
    renamed.audio.write_bytes(utterances[0].audio.read_bytes())
    assert len(calls) == 3
    assert torch.equal(features(make_model(), which=renamed), one)
    assert len(calls) == 3
    renamed.audio.write_bytes(utterances[1].audio.read_bytes())
    assert len(features(make_model(), which=renamed)) != len(one)
    assert len(calls) == 4


@pytest.mark.parametrize("content", [b"", b"nothing", None], ids=["empty", "foreign", "cut"])
def test_a_broken_file_is_made_anew(
    utterances: list[Utterance],
    make_model: Callable[..., Any],
    calls: list[int],
    tmp_path: Path,
    content: bytes | None,
) -> None:
    def features() -> Tensor:
        return FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True, folder=tmp_path / "features")(utterances)[2]

    before = features()
    broken = cached(tmp_path / "features")[0]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-5] if content is None else content)
    calls.clear()
    assert torch.equal(features(), before)
    assert len(calls) == 1
    assert broken.read_bytes() == whole


def test_a_front_end_that_trains_leaves_nothing_on_the_disk(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int], tmp_path: Path
) -> None:
    folder = tmp_path / "features"
    FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True, folder=folder)(utterances[:1])
    trained = FrontEndFeatures(make_model(), ARCHITECTURE, frozen=False, folder=folder)
    assert all(features.requires_grad for features in trained(utterances))
    assert len(calls) == 1 + len(utterances)
    assert len(cached(folder)) == 1


def test_a_missing_sound_is_named_with_a_folder_too(
    utterances: list[Utterance], make_model: Callable[..., Any], tmp_path: Path
) -> None:
    utterances[0].audio.unlink()
    kept = FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True, folder=tmp_path / "features")
    with pytest.raises(DataError, match="cannot read audio"):
        kept(utterances)
