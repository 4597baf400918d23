"""A model and a search: utterances in, text out, in one process or in several that share the work."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from parp_cli.data.utterances import Utterance
from parp_cli.decoding.logits import Features, logits_of
from parp_cli.decoding.parallel import max_workers, search_all
from parp_cli.decoding.search import Search
from parp_cli.decoding.tune import Tunable, Tuning, tune
from parp_cli.models.speech.forward import encode
from parp_cli.runtime.processes import SINGLE, World
from parp_cli.runtime.progress import Notify, silent

if TYPE_CHECKING:
    from parp_cli.models.speech.encoder import SpeechNetwork

Precision = Literal["float32", "bfloat16"]

_GROUP = 64
"""Utterances searched at a time where one process does it: enough for a beam search to do many at once."""


@dataclass(frozen=True, kw_only=True)
class Recognizer:
    """How utterances are recognised.

    Attributes:
        model: with a CTC head.
        precision: of the encoder. With bfloat16 a transcript may depend on its batch, by rounding.
        batch_seconds: padded audio in one forward pass.
        workers: processes that search, where they pay; by default as `parallel.search_all` has it.
        world: among which the utterances are dealt out.
    """

    model: "SpeechNetwork"
    features: Features
    precision: Precision = "float32"
    batch_seconds: float = 60.0
    workers: int | None = None
    world: World = SINGLE
    notify: Notify = silent

    def texts(self, utterances: Sequence[Utterance], search: Search) -> list[str]:
        """The best hypothesis of each utterance, in all processes; "" where the search finds none.

        Raises:
            CheckpointError: the model produced non-finite logits.
            ResourceError: a process that searches was killed.
        """
        # What several processes search has to be there before it can be dealt out; one need not keep it.
        several = max_workers(search, self.workers) > 1
        logits = self._logits(utterances, self.world)
        texts: dict[int, str] = {}
        while group := dict(islice(logits, len(utterances) if several else _GROUP)):
            found = search_all(
                search, list(group.values()), workers=self.workers, notify=self.notify if several else silent
            )
            texts |= {index: best[0].text if best else "" for index, best in zip(group, found, strict=True)}
        for rows in self.world.gather(list(texts.items())):
            texts |= dict(rows)
        return [texts[index] for index in range(len(utterances))]

    def tuned(
        self, search: Tunable, utterances: Sequence[Utterance], references: Sequence[str]
    ) -> tuple[Tunable, Tuning]:
        """The search with the weights that make the fewest word errors on these utterances, and how they were found.

        Raises as `texts`.
        """
        logits = dict(self._logits(utterances, SINGLE))
        in_order = [logits[index] for index in range(len(utterances))]
        found = tune(search, in_order, references, workers=self.workers, notify=self.notify)
        return replace(search, lm_weight=found.best.lm_weight, word_score=found.best.word_score), found

    def _logits(self, utterances: Sequence[Utterance], world: World) -> Iterator[tuple[int, Tensor]]:
        found = logits_of(
            self.model,
            self.features,
            utterances,
            batch_seconds=self.batch_seconds,
            encoder=self._encode,
            world=world,
            notify=self.notify,
        )
        # Rows of a batch would keep all of it, padding included.
        return ((index, row.clone()) for index, row in found)

    def _encode(self, features: Tensor, lengths: Tensor) -> Tensor:
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return encode(self.model, features, lengths)
