import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from parp_cli.data.batching import batches_by_seconds
from parp_cli.data.labels import Vocabulary
from parp_cli.data.utterances import Utterance
from parp_cli.tasks.ctc.features import FrontEndFeatures
from parp_cli.tasks.ctc.masking import LatentMasking
from parp_cli.tasks.ctc.objective import CtcObjective, UpdateBatches
from parp_cli.training.distributed import Encoder
from tests.tasks.ctc.conftest import ARCHITECTURE

VOCABULARY = Vocabulary(("<blank>", "|", "A", "B"), "letters")
NO_MASKING = LatentMasking(time_probability=0.0, time_length=1, channel_probability=0.0, channel_length=1)


class TestUpdateBatches:
    @given(st.lists(st.floats(0.5, 20.0), min_size=1, max_size=40), st.floats(1.0, 60.0), st.integers(0, 5))
    def test_every_utterance_once_an_epoch(self, lengths: list[float], seconds: float, seed: int) -> None:
        batches = UpdateBatches(lengths, batch_seconds=seconds, seed=seed)
        taken: list[int] = []
        while len(taken) < 3 * len(lengths):
            taken += batches.take()
        for epoch in range(3):
            assert sorted(taken[epoch * len(lengths) : (epoch + 1) * len(lengths)]) == list(range(len(lengths)))

    @given(st.lists(st.floats(0.5, 20.0), min_size=1, max_size=40), st.floats(1.0, 60.0), st.integers(0, 5))
    def test_no_update_holds_too_much(self, lengths: list[float], seconds: float, seed: int) -> None:
        batches = UpdateBatches(lengths, batch_seconds=seconds, seed=seed)
        groups = (
            group
            for epoch in itertools.count()
            for group in batches_by_seconds(lengths, seconds=seconds, seed=seed, epoch=epoch)
        )
        group = next(groups)
        for _ in range(20):
            taken = batches.take()
            assert taken
            padded, alone = 0.0, len(taken) == 1
            while taken:
                assert taken[: len(group)] == group
                del taken[: len(group)]
                padded += max(lengths[index] for index in group) * len(group)
                group = next(groups)
            assert alone or padded <= seconds * (1 + 1e-9)
            following = max(lengths[index] for index in group) * len(group)
            assert padded + following > seconds * (1 - 1e-9)  # no more would have fitted

    @given(st.integers(0, 25), st.floats(2.0, 90.0))
    def test_a_position_is_all_it_takes_to_go_on(self, after: int, seconds: float) -> None:
        lengths = [1.0 + index % 5 for index in range(17)]
        one, other = (UpdateBatches(lengths, batch_seconds=seconds, seed=1) for _ in range(2))
        for _ in range(after):
            one.take()
        other.epoch, other.group = one.epoch, one.group
        assert [one.take() for _ in range(9)] == [other.take() for _ in range(9)]

    def test_an_update_longer_than_the_corpus(self) -> None:
        batches = UpdateBatches([1.0, 2.0, 3.0], batch_seconds=40.0, seed=0)
        taken = batches.take()
        assert len(taken) > 9
        assert batches.epoch >= 3
        counts = [taken.count(index) for index in range(3)]
        assert max(counts) - min(counts) <= 1

    def test_the_seed_decides_the_order(self) -> None:
        lengths = [1.0 + index / 100 for index in range(50)]
        orders = [UpdateBatches(lengths, batch_seconds=10, seed=seed).take() for seed in (0, 0, 1)]
        assert orders[0] == orders[1] != orders[2]


class TestObjective:
    @pytest.fixture
    def objective(self, make_model: Callable[..., Any]) -> Callable[..., CtcObjective]:
        def make(
            micro_batch_seconds: float = 100.0, masking: LatentMasking = NO_MASKING, **options: Any
        ) -> CtcObjective:
            model = make_model(**{key: value for key, value in options.items() if key != "precision"})
            return CtcObjective(
                model=model,
                encoder=Encoder(model),
                features=FrontEndFeatures(model, ARCHITECTURE, frozen=True),
                vocabulary=VOCABULARY,
                masking=masking,
                micro_batch_seconds=micro_batch_seconds,
                precision=options.get("precision", "float32"),
                seed=0,
            )

        return make

    def gradients(self, objective: CtcObjective, utterances: list[Utterance]) -> tuple[float, dict[str, Tensor]]:
        loss = objective.backward(utterances, 0).mean
        return loss, {n: p.grad for n, p in objective.model.named_parameters() if p.grad is not None}

    @pytest.mark.parametrize("micro_batch_seconds", [0.01, 0.15, 0.2])
    def test_micro_batches_change_nothing(
        self, objective: Callable[..., CtcObjective], utterances: list[Utterance], micro_batch_seconds: float
    ) -> None:
        loss, gradients = self.gradients(objective(), utterances)
        small_loss, small_gradients = self.gradients(objective(micro_batch_seconds), utterances)
        assert small_loss == pytest.approx(loss, rel=1e-5)
        assert set(small_gradients) == set(gradients)
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                small_gradients[name], gradient, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
            )

    def test_the_loss_is_torchs_of_each_utterance_alone_a_label(
        self, objective: Callable[..., CtcObjective], utterances: list[Utterance], make_model: Callable[..., Any]
    ) -> None:
        model, total, labels = make_model(), 0.0, 0
        features = FrontEndFeatures(model, ARCHITECTURE, frozen=True)
        for utterance in utterances:
            ids = VOCABULARY.encode(utterance)
            hidden = model.encoder(features([utterance])[0][None], None)
            log_probabilities = nn.functional.log_softmax(model.aux(hidden), -1).transpose(0, 1)
            length = torch.tensor([len(log_probabilities)])
            total += nn.functional.ctc_loss(
                log_probabilities, torch.tensor([ids]), length, torch.tensor([len(ids)]), reduction="sum"
            ).item()
            labels += len(ids)
        assert objective().backward(utterances, 0).mean == pytest.approx(total / labels, rel=1e-4)

    def test_a_frozen_front_end_gets_no_gradient(
        self, objective: Callable[..., CtcObjective], utterances: list[Utterance]
    ) -> None:
        _, gradients = self.gradients(objective(), utterances)
        assert not [name for name in gradients if name.startswith("feature_extractor.")]
        assert "mask_embedding" not in gradients
        assert "encoder.feature_projection.projection.weight" in gradients

    def test_masking_teaches_the_mask_embedding(
        self, objective: Callable[..., CtcObjective], utterances: list[Utterance]
    ) -> None:
        masking = LatentMasking(time_probability=0.5, time_length=5, channel_probability=0.2, channel_length=4)
        losses = []
        for update in (0, 0, 1):
            torch.rand(3)  # what was drawn before makes no difference
            masked = objective(masking=masking)
            losses.append(masked.backward(utterances, update).mean)
            gradient = masked.model.mask_embedding.grad
            assert isinstance(gradient, Tensor)
            assert gradient.abs().sum() > 0
        assert losses[0] == losses[1] != losses[2]

    def test_bfloat16_is_near(self, objective: Callable[..., CtcObjective], utterances: list[Utterance]) -> None:
        loss, gradients = self.gradients(objective(precision="bfloat16"), utterances)
        assert loss == pytest.approx(objective().backward(utterances, 0).mean, rel=0.05)
        assert all(gradient.dtype == torch.float32 for gradient in gradients.values())

    def test_a_loss_that_is_no_number(
        self, objective: Callable[..., CtcObjective], utterances: list[Utterance]
    ) -> None:
        broken = objective()
        with torch.no_grad():
            broken.model.aux.bias[0] = math.nan
        loss = broken.backward(utterances, 0)
        assert math.isnan(loss.mean)
        assert loss.not_finite == tuple(utterance.id for utterance in utterances)

    def test_more_labels_than_frames_teach_nothing(
        self, objective: Callable[..., CtcObjective], utterances: list[Utterance]
    ) -> None:
        hopeless = dataclasses.replace(utterances[0], text="A" * 60)
        loss, gradients = self.gradients(objective(), [hopeless])
        assert loss == 0
        assert all((gradient == 0).all() for gradient in gradients.values())


def test_a_smaller_forward_pass_fills_an_update_better() -> None:
    lengths = [15.0, 2.0] * 40
    by_update = UpdateBatches(lengths, batch_seconds=400, seed=0)
    by_pass = UpdateBatches(lengths, batch_seconds=400, micro_batch_seconds=50, seed=0)

    def heard(batches: UpdateBatches) -> float:
        return sum(sum(lengths[index] for index in batches.take()) for _ in range(10)) / 10

    assert heard(by_pass) > 330 > heard(by_update)
