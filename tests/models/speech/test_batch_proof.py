"""An utterance's logits and transcript do not depend on the batch that it is recognised in, whatever the encoder."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from parp_cli.data.utterances import Utterance
from parp_cli.models.sources.load import BUNDLED, load_encoder
from parp_cli.models.sources.names import MASK_EMBEDDING, without
from parp_cli.models.speech.config import ARCHITECTURES, Architecture, build
from parp_cli.models.speech.forward import encode, pad
from parp_cli.tasks.ctc.features import FrontEndFeatures
from tests.models.batched import (
    SCALE,
    VOCABULARY,
    by_structure,
    largest_difference,
    logits_in_batches,
    random_samples,
    scale_head,
    transcripts,
    write_utterances,
)

COUNT = 32
ONE_FRAME = 400  # samples
TOLERANCE = 1e-4
BATCHES = (2, 8, 32)


def shrunk(architecture: Architecture) -> Architecture:
    """Few weights, but everything through which padding could be heard as it is in the released encoder.

    That is kernels and strides, norms, the length of the positional convolution, and relative positions.
    """
    conv_layers = tuple((16, kernel, stride) for _, kernel, stride in architecture.conv_layers)
    return replace(architecture, conv_layers=conv_layers, width=32, layers=3, heads=4, feed_forward=48)


SHRUNK = by_structure(map(shrunk, ARCHITECTURES.values()))


@dataclass(frozen=True)
class Case:
    """A model, its utterances' features (T, C), and their logits (T, V) alone."""

    model: Any
    source: FrontEndFeatures
    features: list[Tensor]
    alone: list[Tensor]


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    samples = random_samples(COUNT, shortest=0.1, longest=4.0, seed=0)
    samples[5] = ONE_FRAME
    return write_utterances(tmp_path_factory.mktemp("batched"), samples, seed=0)


def case_of(model: Any, architecture: Architecture, utterances: list[Utterance]) -> Iterator[Case]:
    with FrontEndFeatures(model, architecture, frozen=True) as source:
        features = source(utterances)
        scale_head(model, features)
        yield Case(model, source, features, logits_in_batches(model, source, utterances, 1))


@pytest.fixture(scope="module", params=SHRUNK.values(), ids=list(SHRUNK))
def case(request: pytest.FixtureRequest, utterances: list[Utterance]) -> Iterator[Case]:
    architecture = request.param
    torch.manual_seed(0)
    # With dropout, as the models of training's validations are.
    model = build(architecture, vocabulary_size=len(VOCABULARY), dropout=0.1, attention_dropout=0.1).eval()
    yield from case_of(model, architecture, utterances)


@pytest.fixture(scope="module")
def bundled(utterances: list[Utterance]) -> Iterator[Case]:
    """The encoder that is part of the package: its weights are trained ones."""
    architecture, weights, *_ = load_encoder(BUNDLED)
    torch.manual_seed(0)
    model = build(architecture, vocabulary_size=len(VOCABULARY)).eval()
    missing, _ = model.load_state_dict(without(weights, [MASK_EMBEDDING]), strict=False)
    assert set(missing) == {"aux.weight", "aux.bias"}
    yield from case_of(model, architecture, utterances)


def check_batches(case: Case, utterances: list[Utterance]) -> None:
    expected = transcripts(case.alone)
    # Enough is said for a change to show.
    assert torch.cat(case.alone).std() == pytest.approx(SCALE, rel=0.1)
    assert sum(map(len, expected)) > 20 * COUNT
    for size in BATCHES:
        found = logits_in_batches(case.model, case.source, utterances, size)
        assert [item.shape for item in found] == [item.shape for item in case.alone]
        assert largest_difference(found, case.alone) < TOLERANCE
        assert transcripts(found) == expected


def test_batches_change_nothing(case: Case, utterances: list[Utterance]) -> None:
    check_batches(case, utterances)


def test_batches_change_nothing_with_trained_weights(bundled: Case, utterances: list[Utterance]) -> None:
    check_batches(bundled, utterances)


@settings(max_examples=15, deadline=None, database=None)
@given(
    members=st.lists(st.integers(0, COUNT - 1), min_size=1, max_size=9),
    more=st.integers(0, 300),
    content=st.sampled_from([float("nan"), float("inf"), -1e4, 1.0]),
)
def test_nobody_hears_the_padding(case: Case, members: list[int], more: int, content: float) -> None:
    """Whoever is in the batch, however much longer it is than they are, and whatever fills it up."""
    padded, lengths = pad([case.features[index] for index in members])
    padded = torch.nn.functional.pad(padded, (0, 0, 0, more))
    garbage = padded.clone()
    for row, length in enumerate(lengths):
        garbage[row, length:] = content
    with torch.inference_mode():
        logits, other = encode(case.model, padded, lengths), encode(case.model, garbage, lengths)
    for row, (index, length) in enumerate(zip(members, lengths, strict=True)):
        assert torch.equal(other[row, :length], logits[row, :length])
        assert largest_difference([logits[row, :length]], [case.alone[index]]) < TOLERANCE


def test_padding_that_is_taken_for_sound_would_show(case: Case) -> None:
    """So that the tests above cannot pass for lack of weights that hear it."""
    padded, lengths = pad(case.features)
    with torch.inference_mode():
        logits = encode(case.model, padded, torch.full_like(lengths, padded.shape[1]))
    heard = [row[:length] for row, length in zip(logits, lengths, strict=True)]
    assert largest_difference(heard, case.alone) > 0.1 * SCALE
    assert transcripts(heard) != transcripts(case.alone)
