import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parp_cli.data.utterances import Utterance
from parp_cli.tasks.ctc.features import FrontEndFeatures
from parp_cli.tasks.ctc.objective import CtcObjective
from parp_cli.tasks.masking import LatentMasking
from parp_cli.tasks.task import UpdateLoss
from parp_cli.training.passes import Passes
from tests.tasks.ctc.conftest import ARCHITECTURE, VOCABULARY, passes_of

NO_MASKING = LatentMasking(time_probability=0.0, time_length=1, channel_probability=0.0, channel_length=1)


def backward(passes: Passes, utterances: Sequence[Utterance], update: int = 0) -> UpdateLoss[Utterance]:
    loss, _ = passes.backward(utterances, update).get()
    return loss


class TestObjective:
    @pytest.fixture
    def objective(self, make_model: Callable[..., Any]) -> Callable[..., Passes]:
        def make(micro_batch_seconds: float = 100.0, masking: LatentMasking = NO_MASKING, **options: Any) -> Passes:
            model = make_model(**{key: value for key, value in options.items() if key != "precision"})
            objective = CtcObjective(
                network=model,
                features=FrontEndFeatures(model, ARCHITECTURE, frozen=True),
                vocabulary=VOCABULARY,
                masking=masking,
                precision=options.get("precision", "float32"),
            )
            return passes_of(objective, micro_batch_seconds)

        return make

    def gradients(self, passes: Passes, utterances: list[Utterance]) -> tuple[float, dict[str, Tensor]]:
        loss = backward(passes, utterances).mean
        return loss, {n: p.grad for n, p in passes.objective.network.named_parameters() if p.grad is not None}

    @pytest.mark.parametrize("micro_batch_seconds", [0.01, 0.15, 0.2])
    def test_micro_batches_change_nothing(
        self, objective: Callable[..., Passes], utterances: list[Utterance], micro_batch_seconds: float
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
        self, objective: Callable[..., Passes], utterances: list[Utterance], make_model: Callable[..., Any]
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
        assert backward(objective(), utterances).mean == pytest.approx(total / labels, rel=1e-4)

    def test_a_frozen_front_end_gets_no_gradient(
        self, objective: Callable[..., Passes], utterances: list[Utterance]
    ) -> None:
        _, gradients = self.gradients(objective(), utterances)
        assert not [name for name in gradients if name.startswith("feature_extractor.")]
        assert "mask_embedding" not in gradients
        assert "encoder.feature_projection.projection.weight" in gradients

    def test_masking_teaches_the_mask_embedding(
        self, objective: Callable[..., Passes], utterances: list[Utterance]
    ) -> None:
        masking = LatentMasking(time_probability=0.5, time_length=5, channel_probability=0.2, channel_length=4)
        losses = []
        for update in (0, 0, 1):
            torch.rand(3)  # what was drawn before makes no difference
            masked = objective(masking=masking)
            losses.append(backward(masked, utterances, update).mean)
            gradient: object = masked.objective.network.mask_embedding.grad
            assert isinstance(gradient, Tensor)
            assert gradient.abs().sum() > 0
        assert losses[0] == losses[1] != losses[2]

    def test_bfloat16_is_near(self, objective: Callable[..., Passes], utterances: list[Utterance]) -> None:
        loss, gradients = self.gradients(objective(precision="bfloat16"), utterances)
        assert loss == pytest.approx(backward(objective(), utterances).mean, rel=0.05)
        assert all(gradient.dtype == torch.float32 for gradient in gradients.values())

    def test_a_loss_that_is_no_number(self, objective: Callable[..., Passes], utterances: list[Utterance]) -> None:
        broken = objective()
        with torch.no_grad():
            broken.objective.network.aux.bias[0] = math.nan
        loss = backward(broken, utterances)
        assert math.isnan(loss.mean)
        assert loss.not_finite == tuple(utterances)

    def test_more_labels_than_frames_teach_nothing(
        self, objective: Callable[..., Passes], utterances: list[Utterance]
    ) -> None:
        hopeless = dataclasses.replace(utterances[0], text="A" * 60)
        loss, gradients = self.gradients(objective(), [hopeless])
        assert loss == 0
        assert all((gradient == 0).all() for gradient in gradients.values())
