"""The CTC loss of utterances over a speech network, and its validation. B utterances, T frames, V tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from parp_cli.data.labels import BLANK_ID, Vocabulary
from parp_cli.data.utterances import Utterance
from parp_cli.decoding.logits import logits_of
from parp_cli.decoding.search import collapse
from parp_cli.models.speech.encoder import padding
from parp_cli.models.speech.forward import draw_skipped_layers, encode, pad
from parp_cli.runtime.device import autocast, on_device
from parp_cli.runtime.processes import SINGLE, World
from parp_cli.scoring.metrics import character_errors, word_errors
from parp_cli.tasks.ctc.features import FrontEndFeatures
from parp_cli.tasks.distillation import Distillation
from parp_cli.tasks.masking import LatentMasking
from parp_cli.tasks.task import DISTILLED, Judgement, Objective

_BATCH_SECONDS = 60.0  # padded audio in one forward pass of a validation


class Logits(nn.Module):
    """`models.speech.forward.encode` of a model with a CTC head, as the module that torch distributes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, lengths: Tensor, *, states: bool = False, **options: Any) -> Any:
        """Logits; with `states` also the output of each layer, by its number."""
        if not states:
            return encode(self.model, features, lengths, **options)
        found: dict[int, Tensor] = {}
        return encode(self.model, features, lengths, states=found, **options), found


@dataclass(kw_only=True)
class CtcObjective(Objective[Utterance]):
    """The sum of CTC losses per label.

    Attributes:
        network: with a CTC head; `network.mask_embedding` (D,) replaces masked frames.
        precision: "float32", or "bfloat16" for the encoder; the loss is always float32.
        valid: utterances to judge the network by.
        train_front_end: whether the convolutional front end trains.
        distillation: what is learned beside the labels; None for nothing. The teacher sees the features unmasked.
        teacher_features: the teacher's front end, which may be that of the network.
        world: processes that judge it together.
    """

    network: Any
    features: FrontEndFeatures
    vocabulary: Vocabulary
    masking: LatentMasking
    precision: str
    valid: Sequence[Utterance] = ()
    train_front_end: bool = False
    uses_all: bool = False
    distillation: Distillation | None = None
    teacher_features: FrontEndFeatures | None = None
    world: World = SINGLE

    @property
    def metric_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return () if self.distillation is None else (DISTILLED,)

    @cached_property
    def module(self) -> nn.Module:
        return Logits(self.network)

    @property
    def unsharded(self) -> Sequence[nn.Parameter]:  # type: ignore[override]
        """The front end, which runs on whatever utterances a process has."""
        return list(self.network.feature_encoder.parameters())

    def trains(self, name: str) -> bool:
        return self.train_front_end or not self.network.is_feature_encoder(name)

    def skipped_layers(self) -> frozenset[int]:
        return draw_skipped_layers(self.network)

    def total(self, items: Sequence[Utterance], update: int) -> float:
        return sum(len(self.vocabulary.encode(utterance)) for utterance in items)

    def losses(self, module: nn.Module, items: Sequence[Utterance], update: int, skip: frozenset[int]) -> Tensor:
        """CTC loss (B, 1) of each utterance; with a teacher what it adds to that, per label, is a second column."""
        labels = [self.vocabulary.encode(utterance) for utterance in items]
        features = self.features(items, update=update)
        frames = [len(item) for item in features]
        padded, lengths = pad(features)

        def alter(hidden: Tensor, _: Tensor) -> Tensor:
            # Within the module's forward pass, where sharded weights are whole.
            return self.masking.masked(hidden, frames, self.network.mask_embedding)

        with autocast(self.precision, padded.device):
            made = module(padded, lengths, alter=alter, skip=skip, states=self.distillation is not None)
        logits, states = (made, {}) if self.distillation is None else made
        # CTC's gradient is summed in no fixed order on CUDA.
        device = torch.device("cpu") if torch.are_deterministic_algorithms_enabled() else logits.device
        losses = nn.functional.ctc_loss(
            nn.functional.log_softmax(logits.float(), -1).transpose(0, 1).to(device),
            on_device(torch.tensor([label for row in labels for label in row]), device),
            torch.tensor(frames),  # lengths are wanted on the CPU
            torch.tensor([len(row) for row in labels]),
            blank=BLANK_ID,
            reduction="none",
            zero_infinity=True,
        )
        if self.distillation is None:
            return losses[:, None]
        targets = self._targets(items, update)
        valid = ~padding(on_device(lengths, logits.device), logits.shape[1])
        counts = on_device(torch.tensor([float(len(row)) for row in labels]), logits.device)
        added = (self.distillation.losses(logits, states, *targets, valid) * counts).to(losses.device)
        return torch.stack([losses + added, added], 1)

    @torch.no_grad()
    def _targets(self, items: Sequence[Utterance], update: int) -> tuple[Tensor, dict[int, Tensor]]:
        """The teacher's logits and layers."""
        assert self.distillation is not None
        assert self.teacher_features is not None
        padded, lengths = pad(self.teacher_features(items, update=update))
        states: dict[int, Tensor] = {}
        with autocast(self.precision, padded.device):
            return encode(self.distillation.teacher, padded, lengths, states=states), states

    @torch.no_grad()  # inference_mode would leave FSDP2 with buffers that training cannot use
    def forward(self, module: nn.Module, items: Sequence[Utterance]) -> None:
        with self.evaluating():
            for utterance in items:
                padded, lengths = pad(self.features([utterance]))
                with self.validation_autocast():
                    module(padded, lengths)

    def prefetch(self, items: Sequence[Utterance]) -> None:
        for features in self._all_features:
            features.prefetch(items, for_update=True)

    def device_room(self, items: Sequence[Utterance]) -> int:
        return sum(features.device_room(items) for features in self._all_features)

    @property
    def _all_features(self) -> list[FrontEndFeatures]:
        return [each for each in dict.fromkeys((self.features, self.teacher_features)) if each is not None]

    @torch.no_grad()  # of the front end too, where it trains: its activations would fill the memory
    def validate(self, module: nn.Module, train_metrics: Mapping[str, float | None], number: int) -> Judgement:
        """Recognise the validation split greedily; words decide, then characters.

        In the run's precision on CUDA, and in float32 on CPUs. Word and character error rates (of phones the former
        alone), and the share of frames whose likeliest label is CTC's blank.
        """

        def encoder(padded: Tensor, lengths: Tensor) -> Tensor:
            with self.validation_autocast():
                logits: Tensor = module(padded, lengths)
                return logits

        batches = logits_of(
            self.network, self.features, self.valid, batch_seconds=_BATCH_SECONDS, encoder=encoder, world=self.world
        )
        paths = {index: logits.argmax(-1).tolist() for index, logits in batches}
        for found in self.world.gather(list(paths.items())):
            paths |= dict(found)
        references = [self.vocabulary.reference(utterance) for utterance in self.valid]
        hypotheses = [self.vocabulary.decode(collapse(torch.tensor(paths[index]))) for index in range(len(self.valid))]
        word = word_errors(references, hypotheses).rate
        character = character_errors(references, hypotheses).rate if self.vocabulary.labels == "letters" else None
        blank_frames = sum(path.count(BLANK_ID) for path in paths.values())
        chosen = number % len(self.valid)
        return Judgement(
            score=(word, 0.0 if character is None else character),
            metrics={
                "word": word,
                "character": character,
                "blank_rate": blank_frames / max(1, sum(map(len, paths.values()))),
            },
            example={"reference": references[chosen], "hypothesis": hypotheses[chosen]},
        )

    def report(self) -> str | None:
        """Where features are kept, if there is no room for all."""
        kept = self.features.report()
        return str(kept) if kept.anew else None

    def close(self) -> None:
        for features in self._all_features:
            features.close()
