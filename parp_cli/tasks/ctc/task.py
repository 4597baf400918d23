"""Speech recognition with CTC, as `tasks.task.Task`."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from parp_cli.config.finetune import AnyRecipe, Recipe
from parp_cli.config.load import recipe_from_dict
from parp_cli.data import corpora
from parp_cli.data.batching import sorted_batches
from parp_cli.data.check import check_audio, refusal
from parp_cli.data.inspection import content_hash, inspect_files
from parp_cli.data.labels import frames_needed, recorded_vocabulary
from parp_cli.data.utterances import Utterance
from parp_cli.errors import UsageError
from parp_cli.models.sources.names import MASK_EMBEDDING
from parp_cli.models.speech.config import Architecture, build, frames
from parp_cli.models.speech.forward import compile_layers, recompute_layers
from parp_cli.runtime.processes import World
from parp_cli.runtime.progress import Notify
from parp_cli.scoring.intervals import counted
from parp_cli.storage.checkpoint import Metadata
from parp_cli.tasks.batches import UpdateBatches
from parp_cli.tasks.ctc.advise import blank_diagnosis, validation_message
from parp_cli.tasks.ctc.augmentation import Augmentation
from parp_cli.tasks.ctc.data import CtcData, data_key, evened_out, load_data
from parp_cli.tasks.ctc.evaluation import SpeechEvaluation, SpeechEvaluator
from parp_cli.tasks.ctc.features import DISK_BYTES, MEMORY_BYTES, FrontEndFeatures, same_feature_encoder
from parp_cli.tasks.ctc.objective import CtcObjective
from parp_cli.tasks.distillation import Distillation
from parp_cli.tasks.masking import LatentMasking
from parp_cli.tasks.task import RecipeTask, Validation

_PUBLISHED_INTERVALS = {"10min": (50, 10), "1h": (150, 25), "10h": (115, 48)}
"""Updates between re-prunings by split, for base and for large (24 layers): the paper's release's epochs in updates."""


@dataclass(frozen=True, kw_only=True)
class CtcTask(RecipeTask[Utterance]):
    """A CTC head over a speech encoder; `shared` keeps features of a frozen feature encoder for other runs too."""

    recipe: Recipe
    architecture: Architecture
    data: CtcData

    kind = "ctc"
    size_name = "audio_seconds"
    size_unit = "s of audio"
    item_name = "utterances"

    @classmethod
    def load(
        cls,
        recipe: AnyRecipe,
        architecture: Any,
        weights: Mapping[str, Tensor],
        head: Mapping[str, Any] | None,
        notify: Notify,
    ) -> "CtcTask":
        assert isinstance(recipe, Recipe), "the registry of recipes goes with that of tasks"
        if not isinstance(architecture, Architecture):
            raise UsageError(
                f"task ctc trains speech encoders, and {architecture.name} is none", hint="name another model, or task"
            )
        data = load_data(recipe.data, architecture, recorded_vocabulary(head), notify)
        return cls(recipe=recipe, architecture=architecture, data=data)

    @staticmethod
    def data_key(data: Any, notify: Notify) -> str:
        return data_key(data, notify)

    def own_data_key(self, notify: Notify) -> str:
        return self.data.key  # known since it was read

    @staticmethod
    def split_key(data: Any, split: str, notify: Notify) -> str:
        utterances = corpora.load(data, split, notify, lenient=True)
        infos = inspect_files((each.audio for each in utterances), notify=notify)
        if data.unusable == "refuse" and (problems := check_audio(utterances, split, infos)):
            raise refusal(problems, ())
        return content_hash(utterances, infos)

    @classmethod
    def recorded(cls, metadata: Metadata, overrides: Sequence[str] = ()) -> Recipe:
        """As of every task; but raises UsageError where neither the run nor an override names a corpus."""
        values = metadata.recipe if metadata.recipe is not None and "data" in metadata.recipe else {}
        names_corpus = any(override.partition("=")[0].strip() == "data.corpus" for override in overrides)
        if not values and not names_corpus:
            raise UsageError(
                "the checkpoint was not fine-tuned by parp, and records no corpus to be evaluated on",
                hint="name one: --set data.corpus=manifest --set data.manifest=FILE --split SPLIT",
            )
        if names_corpus and values:
            # The new corpus is not where the old one was.
            elsewhere = {"root": None, "manifest": None, "lists": None, "language": None}
            values = {**values, "data": {**values["data"], **elsewhere}}
        return recipe_from_dict(values, overrides)

    @classmethod
    def evaluate(cls, source: Path, **asked: Any) -> SpeechEvaluation:
        return SpeechEvaluator(source, **asked).result()

    @property
    def train(self) -> Sequence[Utterance]:
        return self.data.train

    @property
    def valid(self) -> Sequence[Utterance]:
        return self.data.valid

    @property
    def shown(self) -> Mapping[str, str]:
        rates = {"PER": "word"} if self.data.vocabulary.labels == "phones" else {"WER": "word", "CER": "character"}
        return {**rates, "blank": "blank_rate"}

    def default_interval(self) -> int:
        split = self.recipe.data.train.removeprefix("train-").split("/")[0]
        base, large = _PUBLISHED_INTERVALS.get(split, (50, 50))
        return large if self.architecture.layers >= 24 else base

    def left_out(self) -> tuple[str, ...]:
        return tuple(problem.message for problem in self.data.skipped)

    def describe(self) -> dict[str, Any]:
        return self.data.vocabulary.to_json()

    def same_outputs(self, head: Mapping[str, Any] | None) -> bool:
        return recorded_vocabulary(head) == self.data.vocabulary

    def data_hash(self) -> str:
        return self.data.key

    def findings(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for problem in self.data.skipped:
            yield "unusable", {"utterance": problem.utterance_id, "why": problem.message}
        for note in self.data.notes:
            yield "note", {"text": note}

    def warning(self) -> str | None:
        if not self.data.skipped:
            return None
        kinds = Counter(problem.kind for problem in self.data.skipped)
        counts = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        number = len(self.data.skipped)
        return f"{counted(number, 'utterance')} {'is' if number == 1 else 'are'} left out ({counts})"

    def name(self, item: Utterance) -> str:
        return item.id

    def size(self, item: Utterance) -> float:
        return item.seconds

    def grouped(self, items: Sequence[Utterance], size: float) -> list[list[int]]:
        return sorted_batches([utterance.seconds for utterance in items], size)

    def batches(self) -> UpdateBatches[Utterance]:
        """Utterances of similar length together, each once per epoch."""
        training = self.recipe.training
        return UpdateBatches(
            self.data.train,
            [utterance.seconds for utterance in self.data.train],
            batch_size=training.batch_seconds,
            micro_batch_size=training.micro_batch_seconds,
            seed=self.recipe.seed,
            repeats=evened_out(self.data.train, self.recipe.data.temperature),
        )

    def network(self, weights: Mapping[str, Tensor], head: Mapping[str, Any] | None = None, source: str = "") -> Any:
        """The encoder with the run's dropouts; the head is the one given where the labels begin with its own.

        Raises CheckpointError where there are too few weights, or others.
        """
        training, architecture = self.recipe.training, self.architecture
        network: Any = build(
            architecture,
            vocabulary_size=len(self.data.vocabulary),
            layer_drop=training.layer_drop,
            dropout=training.dropout,
            attention_dropout=training.attention_dropout,
            activation_dropout=training.activation_dropout,
        )
        network.register_parameter(MASK_EMBEDDING, nn.Parameter(torch.rand(architecture.width)))
        fresh = network.state_dict()
        own = recorded_vocabulary(head)
        rows = 0 if own is None else len(own)
        if own is None or replace(self.data.vocabulary, symbols=self.data.vocabulary.symbols[:rows]) != own:
            weights = {n: w for n, w in weights.items() if not network.is_head(n)}
        weights = {
            n: torch.cat([w.float(), fresh[n][rows:]]) if network.is_head(n) else w.float() for n, w in weights.items()
        }
        self.begin_with(network, weights, source, may_lack=[MASK_EMBEDDING])
        return network

    def objective(
        self, network: Any, *, masked: Iterable[str], sharded: bool, device: torch.device, world: World, scratch: Path
    ) -> CtcObjective:
        """Raises UsageError where the network is to be sharded, but its front end changes."""
        training = self.recipe.training
        prunes = any(map(network.is_feature_encoder, masked))
        if sharded and (training.train_front_end or prunes):
            what = "training.train_front_end" if training.train_front_end else "pruning.scope"
            raise UsageError(
                f"training.shard_weights does not go together with a front end that changes ({what})",
                hint="drop training.shard_weights: then every process holds all weights",
            )
        if training.compile:
            compile_layers(network, device)
        if training.checkpoint_activations:
            recompute_layers(network)
        augmentation = Augmentation(
            speed_change=training.speed_change,
            seed=self.recipe.seed,
            frames=partial(frames, self.architecture),
            frames_needed=lambda utterance: frames_needed(self.data.vocabulary.encode(utterance)),
        )
        frozen = not training.train_front_end and not prunes
        distillation = Distillation.of(self.recipe.distil, self.teacher, device)
        alike = frozen and self.teacher is not None and same_feature_encoder(network, self.teacher)
        own = [network] if self.teacher is None or alike else [network, self.teacher]
        features = [
            FrontEndFeatures(
                each,
                each.architecture,
                frozen=frozen or each is not network,
                memory_bytes=MEMORY_BYTES // (world.local_world_size * len(own)),
                disk_bytes=DISK_BYTES // (world.local_world_size * len(own)),
                folder=self.shared,
                scratch=scratch,
                augment=augmentation if training.speed_change else None,
            )
            for each in own
        ]
        masking = LatentMasking(
            time_probability=training.time_mask_probability,
            time_length=training.time_mask_length,
            channel_probability=training.channel_mask_probability,
            channel_length=training.channel_mask_length,
        )
        # Layer drop or no masks (their embedding) leave parameters out.
        uses_all = training.layer_drop == 0 and masking.time_probability > 0
        return CtcObjective(
            network=network,
            features=features[0],
            distillation=distillation,
            teacher_features=None if distillation is None else features[-1],
            vocabulary=self.data.vocabulary,
            masking=masking,
            precision=training.precision,
            valid=self.data.valid,
            train_front_end=training.train_front_end,
            uses_all=uses_all,
            world=world,
        )

    def brief(self, validations: Sequence[Validation]) -> str:
        best = min(validations, key=lambda validation: validation.score)
        return f"best {best.metrics['word']:.1%}"

    def message(self, values: Mapping[str, Any]) -> str:
        return validation_message(values)

    def advise(self, validations: Sequence[Validation], *, sparsity: float) -> str | None:
        training = self.recipe.training
        return blank_diagnosis(
            validations,
            updates=training.updates,
            only_head_updates=training.freeze_encoder_updates,
            sparsity=sparsity,
        )
