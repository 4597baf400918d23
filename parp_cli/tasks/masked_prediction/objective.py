"""HuBERT's pre-training task: predict the cluster of the frames that were hidden from the encoder.

Hsu et al. 2021, equations 1 to 4. B crops, S samples, T frames, D features, P dimensions of comparison, K clusters.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from parp_cli.data.distortion import distorted
from parp_cli.data.streams import Crops
from parp_cli.errors import RecipeError
from parp_cli.models.speech.config import Architecture
from parp_cli.models.speech.forward import encode
from parp_cli.models.speech.waveform import normalize
from parp_cli.runtime.device import autocast, on_device
from parp_cli.tasks.masking import span_mask
from parp_cli.tasks.task import Judgement, Objective

_TEMPERATURE = 0.1  # divides the cosine similarities (HuBERT, section 3.3)
_PROJECTION = 64  # P: dimensions in which frames and clusters are compared


def check_can_learn(architecture: Architecture) -> None:
    """Refuse encoders with another pre-training than this (RecipeError)."""
    if architecture.family == "wavlm":
        raise RecipeError(f"{architecture.name} cannot be pre-trained", hint="HuBERT's and wav2vec 2.0's networks can")


class Crop(NamedTuple):
    """A window of a stream: its number within the update, the index of the stream, and its first frame."""

    number: int
    stream: int
    first: int


class Predictor(nn.Module):
    """An encoder, and a head that compares its output with an embedding of each cluster.

    The encoder has no head, and a `mask_embedding` (D,), which replaces hidden frames.
    """

    def __init__(self, encoder: Any, features: int, clusters: int, projection: int = _PROJECTION) -> None:
        super().__init__()
        self.encoder = encoder
        self.final_proj = nn.Linear(features, projection)
        self.label_embeddings = nn.Parameter(torch.empty(clusters, projection).uniform_())

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The encoder's."""
        layers: Sequence[nn.Module] = self.encoder.layers
        return layers

    @staticmethod
    def encoder_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's, under its own names, among those of a `Predictor`."""
        prefix = "encoder."
        return {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}

    def forward(self, waveforms: Tensor, masked: Tensor, skip: frozenset[int] = frozenset()) -> Tensor:
        """Similarity (B, T, K) of each frame to each cluster.

        From waveforms (B, S), normalised as the encoder wants them, and `masked` (B, T), True where a frame is hidden.
        """
        features, _ = self.encoder.feature_extractor(waveforms, None)
        lengths = torch.full((len(features),), features.shape[1])

        def alter(hidden: Tensor, _: Tensor) -> Tensor:
            return torch.where(masked[..., None], self.encoder.mask_embedding.to(hidden.dtype), hidden)

        hidden = encode(self.encoder, features, lengths, alter=alter, skip=skip)
        frames = nn.functional.normalize(self.final_proj(hidden).float(), dim=-1)
        clusters = nn.functional.normalize(self.label_embeddings.float(), dim=-1)
        similarity: Tensor = frames @ clusters.T / _TEMPERATURE
        return similarity


@dataclass(kw_only=True)
class MaskedPrediction(Objective[Crop]):
    """The mean loss of hidden frames, and of the others with a weight of their own.

    Attributes:
        targets: cluster (T,) of each frame of each stream.
        mask_probability: expected share of hidden frames if no spans overlapped.
        unmasked_weight: of frames that are not hidden.
        distorted: share of the crops that get reverberation, noise or a band limit; their targets come without.
        seed: of the distortion.
        precision: "float32", or "bfloat16" for the encoder; the loss is always float32.
    """

    network: Predictor
    architecture: Architecture
    crops: Crops
    targets: Sequence[Tensor]
    mask_probability: float
    mask_length: int
    unmasked_weight: float
    precision: str
    distorted: float = 0.0
    seed: int = 0
    metric_names: tuple[str, ...] = ("accuracy",)
    # Of the update in progress: masks by the number of the crop, and how many frames are hidden, and how many not.
    _masks: dict[int, Tensor] = field(default_factory=dict)
    _hidden: int = 0
    _seen: int = 0

    def is_head(self, name: str) -> bool:
        return False  # which has no learning rate of its own

    def total(self, items: Sequence[Crop], update: int) -> float:
        """Draw the masks of an update; its losses are means already."""
        frames = self.crops.frames
        masks = span_mask([frames] * len(items), frames, self.mask_probability, self.mask_length, 1)
        self._masks = {crop.number: mask for crop, mask in zip(items, masks, strict=True)}
        self._hidden = int(masks.sum())
        self._seen = masks.numel() - self._hidden
        return 1.0

    def losses(self, module: nn.Module, items: Sequence[Crop], update: int, skip: frozenset[int]) -> Tensor:
        """Each crop's share (B, 2) of the update's loss, and of its accuracy on hidden frames."""
        device = self.device
        waveforms = torch.stack([self._heard(crop, update) for crop in items])
        labels = [self.targets[crop.stream][crop.first : crop.first + self.crops.frames] for crop in items]
        masked = on_device(torch.stack([self._masks[crop.number] for crop in items]), device)
        normalized = normalize(on_device(waveforms, device), self.architecture)
        with autocast(self.precision, device):
            similarity = module(normalized, masked, skip)
        return shares(
            similarity,
            on_device(torch.stack(labels).long(), device),
            masked,
            hidden=self._hidden,
            seen=self._seen,
            unmasked_weight=self.unmasked_weight,
        )

    def _heard(self, crop: Crop, update: int) -> Tensor:
        """The waveform (S,) of a crop, which depends on the seed, the update and its number alone."""
        waveform = self.crops.cut(crop.stream, crop.first)
        rng = random.Random(f"{self.seed}/{update}/{crop.number}")
        if rng.random() >= self.distorted:
            return waveform
        return distorted(waveform, torch.Generator().manual_seed(rng.getrandbits(62)))

    def validate(self, module: nn.Module, train_metrics: Mapping[str, float | None], number: int) -> Judgement:
        """How well hidden frames were predicted while training; crops are hardly ever seen twice."""
        accuracy = train_metrics["accuracy"]
        return Judgement(score=(-(accuracy or 0.0),), metrics={"accuracy": accuracy})


def shares(
    similarity: Tensor, labels: Tensor, masked: Tensor, *, hidden: int, seen: int, unmasked_weight: float
) -> Tensor:
    """What each of B crops (B, 2) contributes to the loss of an update, and to its accuracy on hidden frames.

    From `similarity` (B, T, K), clusters `labels` (B, T), and `masked` (B, T), True where a frame is hidden. Of all
    frames of the update so many are `hidden` and so many `seen`, and the latter have the `unmasked_weight`.
    """
    losses = nn.functional.cross_entropy(similarity.flatten(0, 1), labels.flatten(), reduction="none")
    weights = masked / max(1, hidden) + ~masked * (unmasked_weight / max(1, seen))
    correct = (similarity.detach().argmax(-1) == labels) & masked
    return torch.stack([(losses.view(labels.shape) * weights).sum(1), correct.sum(1) / max(1, hidden)], 1)
