"""One update of CTC fine-tuning: which utterances it sees, its loss, its gradients."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from parp_cli.data.batching import batches_by_seconds, sorted_batches
from parp_cli.data.labels import BLANK_ID, Vocabulary
from parp_cli.data.utterances import Utterance
from parp_cli.models.speech.forward import draw_skipped_layers, pad
from parp_cli.runtime.processes import SINGLE, World
from parp_cli.tasks.ctc.features import FrontEndFeatures
from parp_cli.tasks.ctc.masking import LatentMasking
from parp_cli.training.distributed import pass_of_update

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import SpeechNetwork

_SMALLER = 0.95
"""By how much forward passes are made smaller at a time, where there are fewer than processes."""


class UpdateBatches:
    """Which utterances each update sees, one pass over the data after another.

    An update is made of groups of similar length, each no more than a forward pass holds, and holds at most
    `batch_seconds` with their padding, unless one utterance is longer. What it holds depends on the position alone, so
    that a resumed run goes on where it was.

    Args:
        lengths: of the utterances, in seconds.
        batch_seconds: sound in an update.
        micro_batch_seconds: sound in a forward pass; by default as much as in an update.
        seed: of the order.

    Attributes:
        epoch, group: the position: passes finished, and groups taken from the current one.
    """

    def __init__(
        self, lengths: Sequence[float], *, batch_seconds: float, micro_batch_seconds: float = math.inf, seed: int
    ) -> None:
        self.epoch = 0
        self.group = 0
        self._lengths = lengths
        self._seconds = batch_seconds
        self._group_seconds = min(batch_seconds, micro_batch_seconds)
        self._seed = seed
        self._groups: tuple[int, list[list[int]]] | None = None

    def take(self) -> list[int]:
        """Indices of the next update's utterances; one that is longer than an epoch holds some more than once."""
        chosen: list[int] = []
        room = self._seconds
        while True:
            group = self._next_group()
            size = max(self._lengths[index] for index in group) * len(group)
            if chosen and size > room:
                return chosen
            chosen += group
            room -= size
            self.group += 1

    def upcoming(self) -> list[int]:
        """What `take` will return next."""
        position = self.epoch, self.group
        chosen = self.take()
        self.epoch, self.group = position
        return chosen

    def _next_group(self) -> list[int]:
        if self._groups is None or self._groups[0] != self.epoch:
            self._groups = (self.epoch, self._groups_of(self.epoch))
        if self.group == len(self._groups[1]):
            self.epoch, self.group = self.epoch + 1, 0
            self._groups = (self.epoch, self._groups_of(self.epoch))
        return self._groups[1][self.group]

    def _groups_of(self, epoch: int) -> list[list[int]]:
        return batches_by_seconds(self._lengths, seconds=self._group_seconds, seed=self._seed, epoch=epoch)


@dataclass(frozen=True, kw_only=True)
class UpdateLoss:
    """The loss of an update.

    Attributes:
        mean: a label.
        not_finite: utterances whose own loss is infinite or no number.
    """

    mean: float
    not_finite: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CtcObjective:
    """The loss of a list of utterances, computed in micro-batches that fit into memory.

    Attributes:
        model: with a CTC head; `model.mask_embedding` (D,) replaces masked frames.
        encoder: `engine.Encoder` of the model, or what `engine` makes of it for several processes.
        features: front-end features of utterances.
        vocabulary: of the head.
        masking: of latent features.
        micro_batch_seconds: padded sound in one forward pass.
        precision: "float32", or "bfloat16" for the encoder; the loss is always float32.
        seed: of the run.
        checkpoint_activations: keep less for the backward pass, and compute it again.
        world: that compute the loss together.
    """

    model: "SpeechNetwork"
    encoder: nn.Module
    features: FrontEndFeatures
    vocabulary: Vocabulary
    masking: LatentMasking
    micro_batch_seconds: float
    precision: str
    seed: int
    checkpoint_activations: bool = False
    world: World = SINGLE

    def backward(self, utterances: Sequence[Utterance], update: int) -> UpdateLoss:
        """Add the gradients of the mean loss a label, and return that loss; both are of all processes together.

        All that is random follows from the numbers of the update and of the micro-batch: a resumed run needs no random
        states, and it makes no difference which process computes a micro-batch.

        Args:
            utterances: of the update; the same in all processes.
            update: its number.
        """
        labels = [self.vocabulary.encode(utterance) for utterance in utterances]
        total = sum(map(len, labels))
        losses = torch.zeros(len(utterances))
        skip = self._skipped_layers(update)
        micro_batches = self.micro_batches(utterances)
        passes = self.world.share(len(micro_batches))
        for place, (part, counts) in enumerate(passes):
            batch = micro_batches[part]
            torch.manual_seed(_seed(self.seed, update, part))
            # The encoder's gradients become the mean over the processes, and their sum is what is wanted.
            share = self.world.world_size if counts else 0
            with pass_of_update(self.encoder, last=place == len(passes) - 1):
                of_batch = self._losses([utterances[i] for i in batch], [labels[i] for i in batch], skip, update)
                (of_batch.sum() * share / total).backward()  # type: ignore[no-untyped-call]
            if counts:
                losses = losses.to(of_batch.device)
                losses[batch] = of_batch.detach()
        values = self.world.sum(losses.cpu()).tolist()
        return UpdateLoss(
            mean=sum(values) / total,
            not_finite=tuple(u.id for u, value in zip(utterances, values, strict=True) if not math.isfinite(value)),
        )

    @torch.no_grad()  # inference_mode would leave FSDP2 with buffers that training cannot use
    def forward(self, utterances: Sequence[Utterance]) -> None:
        """Pass utterances through the network for hooks on its modules to see.

        In float32, one at a time so that nothing is padded, without gradients, dropout or masking; every process
        passes all of them.
        """
        was_training = self.model.training
        self.model.eval()
        for utterance in utterances:
            self.encoder(*pad(self.features([utterance])))
        self.model.train(was_training)

    def prefetch(self, utterances: Sequence[Utterance]) -> None:
        """Begin to read, in the background, what this process computes of an update."""
        micro_batches = self.micro_batches(utterances)
        passes = self.world.share(len(micro_batches))
        self.features.prefetch([utterances[i] for part, _ in passes for i in micro_batches[part]], for_update=True)

    def micro_batches(self, utterances: Sequence[Utterance]) -> list[list[int]]:
        """Indices of the utterances of each forward pass, the longest first.

        They are as if there was one process, unless there are fewer than processes: then they are made smaller.
        """
        lengths = [utterance.seconds for utterance in utterances]
        batches = sorted_batches(lengths, self.micro_batch_seconds)
        wanted = min(self.world.world_size, len(utterances))
        seconds = max(lengths[batch[0]] * len(batch) for batch in batches)
        while len(batches) < wanted:
            seconds *= _SMALLER
            batches = sorted_batches(lengths, seconds)
        return batches

    def spreads(self, utterances: Sequence[Utterance]) -> bool:
        """Whether they are enough for each process to have a forward pass without making any smaller."""
        lengths = [utterance.seconds for utterance in utterances]
        return len(sorted_batches(lengths, self.micro_batch_seconds)) >= self.world.world_size

    def in_this_process(self) -> "CtcObjective":
        """The same of this process alone, which computes all micro-batches itself.

        Where the encoder's weights are divided among processes, all must compute as many.
        """
        return replace(self, world=SINGLE)

    def _skipped_layers(self, update: int) -> frozenset[int]:
        """The same in all micro-batches and processes, which would else wait for each other's gradients in vain."""
        torch.manual_seed(_seed(self.seed, update, -1))
        return draw_skipped_layers(self.model)

    def _losses(
        self, utterances: Sequence[Utterance], labels: Sequence[list[int]], skip: frozenset[int], update: int
    ) -> Tensor:
        """CTC loss (B,) of each utterance."""
        features, lengths = pad(self.features(utterances, update=update))
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits = self.encoder(
                features,
                lengths,
                alter=self._alter,
                skip=skip,
                checkpoint_activations=self.checkpoint_activations,
            )
        # CTC's gradient is summed in no fixed order on CUDA.
        device = torch.device("cpu") if torch.are_deterministic_algorithms_enabled() else logits.device
        return nn.functional.ctc_loss(
            nn.functional.log_softmax(logits.float(), -1).transpose(0, 1).to(device),
            torch.tensor([label for row in labels for label in row], device=device),
            lengths.to(device),
            torch.tensor([len(row) for row in labels], device=device),
            blank=BLANK_ID,
            reduction="none",
            zero_infinity=True,
        )

    def _alter(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        # Within the encoder's pass, where weights that are divided among processes are whole.
        return self.masking.altering(self.model.mask_embedding)(hidden, lengths)


def _seed(seed: int, update: int, part: int) -> int:
    digest = hashlib.sha256(f"{seed}/{update}/{part}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
