import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from parp_cli.data.utterances import Utterance
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
