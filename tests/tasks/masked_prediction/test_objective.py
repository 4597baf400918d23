from typing import Any

import pytest
import torch
from torch import Tensor, nn

from parp_cli.data.streams import Crops, Stream
from parp_cli.models.speech.config import build, frames
from parp_cli.tasks.masked_prediction.objective import Crop, MaskedPrediction, Predictor, shares
from parp_cli.tasks.masked_prediction.targets import layer_output
from tests.models.small import SMALL
from tests.tiny import TINY

CLUSTERS = 11


@pytest.fixture(params=["hubert-base", "hubert-large"])
def case(request: pytest.FixtureRequest) -> tuple[Any, Any, Tensor, Tensor]:
    """A network of ours, the same as torchaudio's HuBERTPretrainModel, waveforms, and targets."""
    from torchaudio.models import hubert_pretrain_model

    architecture = SMALL[request.param]
    torch.manual_seed(0)
    features = architecture.width
    encoder: Any = build(architecture)
    encoder.register_parameter("mask_embedding", nn.Parameter(torch.rand(features)))
    ours = Predictor(encoder, features, CLUSTERS, projection=16)
    theirs = hubert_pretrain_model(
        extractor_mode=f"{architecture.conv_norm}_norm",
        extractor_conv_layer_config=architecture.conv_layers,
        extractor_conv_bias=architecture.conv_bias,
        encoder_embed_dim=features,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=architecture.positional_kernel,
        encoder_pos_conv_groups=architecture.positional_groups,
        encoder_num_layers=architecture.layers,
        encoder_num_heads=architecture.heads,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=architecture.feed_forward,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=architecture.norm_first,
        encoder_layer_drop=0.0,
        mask_prob=0.65,
        mask_selection="static",
        mask_other=0.0,
        mask_length=5,
        no_mask_overlap=False,
        mask_min_space=1,
        mask_channel_prob=0.0,
        mask_channel_selection="static",
        mask_channel_other=0.0,
        mask_channel_length=64,
        no_mask_channel_overlap=False,
        mask_channel_min_space=1,
        skip_masked=False,
        skip_nomask=False,
        num_classes=CLUSTERS,
        final_dim=16,
        feature_grad_mult=None,
    )
    weights = encoder.state_dict()
    theirs.mask_generator.mask_embedding.data.copy_(weights.pop("mask_embedding"))
    theirs.wav2vec2.load_state_dict(weights)
    theirs.logit_generator.final_proj.load_state_dict(ours.final_proj.state_dict())
    theirs.logit_generator.label_embeddings.data.copy_(ours.label_embeddings.data)
    waveforms = 0.3 * torch.randn(3, 2_000)
    targets = torch.randint(CLUSTERS, (3, frames(architecture, 2_000)))
    return ours.train(), theirs.train(), waveforms, targets


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_equals_torchaudios(case: tuple[Any, Any, Tensor, Tensor], weight: float) -> None:
    """Under the masks that torchaudio draws; column 0 of its logits is the right cluster."""
    ours, theirs, waveforms, targets = case
    drawn: list[Tensor] = []
    theirs.mask_generator.register_forward_hook(lambda _module, _inputs, output: drawn.append(output[1]))
    parts = theirs(waveforms, targets)[:2]
    losses = [nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)) for logits in parts]
    expected = losses[0] + weight * losses[1]
    expected.backward()
    (masked,) = drawn
    hidden = int(masked.sum())
    found = shares(
        ours(waveforms, masked), targets, masked, hidden=hidden, seen=masked.numel() - hidden, unmasked_weight=weight
    ).sum(0)
    found[0].backward()
    torch.testing.assert_close(found[0], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1], (parts[0].argmax(-1) == 0).float().mean())
    names = {
        "encoder.mask_embedding": theirs.mask_generator.mask_embedding,
        "final_proj.weight": theirs.logit_generator.final_proj.weight,
        "label_embeddings": theirs.logit_generator.label_embeddings,
        **{f"encoder.{name}": parameter for name, parameter in theirs.wav2vec2.named_parameters()},
    }
    for name, parameter in ours.named_parameters():
        if name in names and names[name].grad is not None:
            torch.testing.assert_close(
                parameter.grad, names[name].grad, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
            )


def test_layer_outputs_equal_torchaudios(case: tuple[Any, Any, Tensor, Tensor]) -> None:
    ours, theirs, waveforms, _ = case
    ours.eval(), theirs.eval()
    with torch.inference_mode():
        expected, _ = theirs.wav2vec2.extract_features(waveforms[:1])
        for number, outputs in enumerate(expected, start=1):
            found = layer_output(ours.encoder, waveforms[0], number)
            torch.testing.assert_close(found, outputs[0], atol=1e-4, rtol=1e-4)


@pytest.fixture
def objective() -> MaskedPrediction:
    torch.manual_seed(0)
    noise = (3000 * torch.randn(40_000)).to(torch.int16)
    crops = Crops([Stream("a", noise)], 20)
    encoder: Any = build(TINY)
    encoder.register_parameter("mask_embedding", nn.Parameter(torch.rand(32)))
    return MaskedPrediction(
        network=Predictor(encoder, 32, CLUSTERS),
        architecture=TINY,
        crops=crops,
        targets=[torch.randint(CLUSTERS, (crops.streams[0].frames,))],
        mask_probability=0.65,
        mask_length=4,
        unmasked_weight=0.5,
        precision="float32",
    )


def test_distorted_crops_are_heard_otherwise_in_each_update_and_the_same_again(objective: MaskedPrediction) -> None:
    crops = [Crop(number, 0, 15 * number) for number in range(12)]
    clean = [objective.crops.cut(crop.stream, crop.first) for crop in crops]
    assert all(torch.equal(objective._heard(crop, 3), wave) for crop, wave in zip(crops, clean, strict=True))
    objective.distorted, objective.seed = 0.5, 1
    heard = [objective._heard(crop, 3) for crop in crops]
    assert all(one.shape == wave.shape and one.isfinite().all() for one, wave in zip(heard, clean, strict=True))
    assert 1 <= sum(torch.equal(one, wave) for one, wave in zip(heard, clean, strict=True)) <= 11
    assert all(torch.equal(one, objective._heard(crop, 3)) for one, crop in zip(heard, crops, strict=True))
    assert not all(torch.equal(one, objective._heard(crop, 4)) for one, crop in zip(heard, crops, strict=True))


def test_forward_passes_add_up(objective: MaskedPrediction) -> None:
    """However the crops of an update are divided among them."""
    crops = [Crop(number, 0, 15 * number) for number in range(5)]
    torch.manual_seed(1)
    assert objective.total(crops, 0) == 1.0
    whole = objective.losses(objective.module, crops, 0, frozenset())
    parts = [objective.losses(objective.module, some, 0, frozenset()) for some in (crops[:2], crops[2:])]
    assert whole.shape == (5, 2)
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)
    torch.manual_seed(2)
    objective.total(crops, 0)
    assert not torch.equal(objective.losses(objective.module, crops, 0, frozenset()), whole), "other masks"


def test_it_learns(objective: MaskedPrediction) -> None:
    crops = [Crop(number, 0, 20 * number) for number in range(5)]
    optimizer = torch.optim.Adam(objective.network.parameters(), lr=3e-3)
    losses = []
    for update in range(30):
        objective.total(crops, update)
        loss = objective.losses(objective.module, crops, update, frozenset())[:, 0].sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
