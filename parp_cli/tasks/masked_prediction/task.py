"""Pre-training by masked prediction of clusters, as `tasks.task.Task`. T frames, D features, K clusters."""

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from parp_cli.config.pretrain import PretrainRecipe
from parp_cli.data.streams import Crops
from parp_cli.models.sources.names import MASK_EMBEDDING
from parp_cli.models.speech.config import Architecture, build
from parp_cli.runtime.processes import World
from parp_cli.tasks.masked_prediction.objective import Crop, MaskedPrediction, Predictor
from parp_cli.tasks.task import Batches, Task, Validation


class CropBatches(Batches[Crop]):
    """So many crops for each update, drawn from the seed and its number alone."""

    def __init__(self, crops: Crops, count: int, seed: int) -> None:
        self._crops, self._count, self._seed = crops, count, seed
        self.position = {"update": 0}

    def take(self) -> list[Crop]:
        """Crops of the next update."""
        update = self.position["update"]
        self.position = {"update": update + 1}
        places = self._crops.places(self._count, random.Random(f"{self._seed}/{update}"))
        return [Crop(number, stream, first) for number, (stream, first) in enumerate(places)]


@dataclass(frozen=True, kw_only=True)
class MaskedPredictionTask(Task[Crop]):
    """One stage of pre-training, with the cluster (T,) of each frame of each stream as `targets`."""

    recipe: PretrainRecipe
    stage: int
    architecture: Architecture
    crops: Crops
    targets: Sequence[Tensor]

    kind = "masked_prediction"
    size_name = "audio_seconds"
    size_unit = "s of audio"

    @property
    def train(self) -> Sequence[Crop]:
        """The crops of one update, all of one size."""
        return self.batches().upcoming()

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "clusters": self.recipe.stages[self.stage].clusters}

    def data_hash(self) -> str:
        lengths = [(stream.name, stream.frames) for stream in self.crops.streams]
        return hashlib.sha256(json.dumps(lengths).encode()).hexdigest()

    def name(self, item: Crop) -> str:
        return f"{self.crops.streams[item.stream].name} from frame {item.first}"

    def size(self, item: Crop) -> float:
        return self.recipe.crop_seconds

    def grouped(self, items: Sequence[Crop], size: float) -> list[list[int]]:
        count = max(1, int(size / self.recipe.crop_seconds + 1e-6))
        return [list(range(first, min(first + count, len(items)))) for first in range(0, len(items), count)]

    def batches(self) -> CropBatches:
        """Crops drawn uniformly from all speech."""
        count = max(1, round(self.recipe.batch_seconds / self.recipe.crop_seconds))
        return CropBatches(self.crops, count, self.recipe.seed * 1_000_003 + self.stage)

    def network(self, weights: Any, head: Mapping[str, Any] | None = None, source: str = "") -> Predictor:
        """A new head over the encoder, which is new too without weights."""
        features = self.architecture.width
        encoder: Any = build(self.architecture)
        encoder.register_parameter(MASK_EMBEDDING, nn.Parameter(torch.empty(features).uniform_()))
        if weights is not None:
            encoder.load_state_dict({MASK_EMBEDDING: encoder.mask_embedding, **weights})
        return Predictor(encoder, features, self.recipe.stages[self.stage].clusters)

    def objective(
        self, network: Any, *, masked: Iterable[str], sharded: bool, device: torch.device, world: World, scratch: Any
    ) -> MaskedPrediction:
        return MaskedPrediction(
            network=network,
            architecture=self.architecture,
            crops=self.crops,
            targets=self.targets,
            mask_probability=self.recipe.mask_probability,
            mask_length=self.recipe.mask_length,
            unmasked_weight=self.recipe.unmasked_loss_weight,
            distorted=self.recipe.distorted,
            seed=self.recipe.seed * 1_000_003 + self.stage,
            precision=self.recipe.precision,
        )

    def brief(self, validations: Sequence[Validation]) -> str:
        return f"masked accuracy {_percent(validations[-1].metrics['accuracy'])}"

    def message(self, values: Mapping[str, Any]) -> str:
        parts = [] if values["train_loss"] is None else [f"loss {values['train_loss']:.3f}"]
        parts.append(f"masked accuracy {_percent(values['accuracy'])}")
        parts += [f"learning rate {values['learning_rate']:.2g}", f"gradient {values['gradient_norm']:.2g}"]
        return f"update {values['update']}: {', '.join(parts)}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
