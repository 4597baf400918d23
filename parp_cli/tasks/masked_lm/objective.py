"""The loss of hidden tokens, and its validation. B texts, T tokens, P predicted ones, V tokens of the vocabulary.

Masked tokens as in BERT (Devlin et al. 2019, section 3.1); for XLNet tokens in a random order (Yang et al. 2019,
sections 2.2 and 2.3).
"""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from parp_cli.data.batching import sorted_batches
from parp_cli.models.transformers.prediction import TokenPredictor
from parp_cli.runtime.device import autocast, on_device
from parp_cli.runtime.processes import SINGLE, World
from parp_cli.tasks.task import Judgement, Objective, has_all_gradients
from parp_cli.tasks.texts.items import Encoding, TextItem

_HIDDEN, _REPLACED = 0.8, 0.1
"""Shares of the predicted tokens that the mask token replaces, and that a random one does."""


class Hidden(NamedTuple):
    """What a network reads, of which of its outputs it predicts, as `TokenPredictor` takes them (P), and what stood
    there (P)."""

    inputs: dict[str, Tensor]
    places: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class Hiding:
    """How tokens are hidden: a share of each text's, but of those that the tokenizer adds.

    All random numbers are of the generator, by default torch's global one of the CPU.
    """

    encoding: Encoding
    share: float
    tokens: int
    permutes: bool

    def usable(self, item: TextItem) -> list[int]:
        """Places of tokens that are of the text."""
        special = set(self.encoding.tokenizer.all_special_ids)
        return [place for place, token in enumerate(item.tokens) if token not in special]

    def count(self, item: TextItem) -> int:
        """How many tokens of a text are predicted, whichever: at least one."""
        return max(1, round(self.share * len(self.usable(item))))

    def hide(self, items: Sequence[TextItem], device: torch.device, generator: torch.Generator | None = None) -> Hidden:
        """A batch with new hidden tokens."""
        chosen, labels = [], []
        for item in items:
            usable = torch.tensor(self.usable(item))
            chosen.append(usable[torch.randperm(len(usable), generator=generator)][: self.count(item)])
            labels.append(torch.tensor(item.tokens.tolist())[chosen[-1].sort().values])
        if self.permutes:
            return self._permuted(items, chosen, torch.cat(labels), device)
        shown = [self._corrupted(item, places, generator) for item, places in zip(items, chosen, strict=True)]
        inputs = self.encoding.batch(shown, device)
        places = self._placed(items, chosen, inputs["input_ids"].shape[1])
        return Hidden(inputs, on_device(places, device), on_device(torch.cat(labels), device))

    def _corrupted(self, item: TextItem, places: Tensor, generator: torch.Generator | None) -> TextItem:
        tokens = item.tokens.tolist()
        dice = torch.rand(len(places), generator=generator)
        others = torch.randint(self.tokens, (len(places),), generator=generator)
        for place, die, other in zip(places.tolist(), dice.tolist(), others.tolist(), strict=True):
            if die < _HIDDEN:
                tokens[place] = self.encoding.tokenizer.mask_token_id
            elif die < _HIDDEN + _REPLACED:
                tokens[place] = other
        return replace(item, tokens=array("i", tokens))

    def _permuted(
        self, items: Sequence[TextItem], chosen: Sequence[Tensor], labels: Tensor, device: torch.device
    ) -> Hidden:
        """Predicted tokens come last, in the order that they were drawn in; each is seen by those after it alone."""
        inputs = self.encoding.batch(items, device)
        length = inputs["input_ids"].shape[1]
        order = torch.full((len(items), length), -1)
        mapping = torch.zeros(len(items), max(map(len, chosen)), length)
        for row, (item, places) in enumerate(zip(items, chosen, strict=True)):
            shifted = places + self._padding_before(item, length)
            order[row, shifted] = torch.arange(len(places))
            mapping[row, torch.arange(len(places)), shifted.sort().values] = 1.0
        unseen = (order[:, :, None] <= order[:, None, :]) & (order >= 0)[:, None, :]
        inputs |= {"perm_mask": on_device(unseen.float(), device), "target_mapping": on_device(mapping, device)}
        return Hidden(inputs, on_device(_numbers(mapping.any(-1)), device), on_device(labels, device))

    def _placed(self, items: Sequence[TextItem], chosen: Sequence[Tensor], length: int) -> Tensor:
        placed = torch.zeros(len(items), length, dtype=torch.bool)
        for row, (item, places) in enumerate(zip(items, chosen, strict=True)):
            placed[row, places + self._padding_before(item, length)] = True
        return _numbers(placed)

    def _padding_before(self, item: TextItem, length: int) -> int:
        return length - len(item.tokens) if self.encoding.tokenizer.padding_side == "left" else 0


def _numbers(placed: Tensor) -> Tensor:
    """(P,) of the entries of (B, T) that are True."""
    return placed.flatten().nonzero().flatten()


@dataclass(kw_only=True)
class MaskedLmObjective(Objective[TextItem]):
    """The mean cross-entropy of predicted tokens.

    Attributes:
        precision: "float32", or "bfloat16" for the network; the loss is always float32.
        valid: texts to judge the network by, in passes of at most so many tokens; the same tokens are hidden each time.
        world: processes that judge it together.
    """

    network: TokenPredictor
    hiding: Hiding
    precision: str
    valid: Sequence[TextItem] = ()
    pass_tokens: float = 8192
    seed: int = 0
    metric_names: tuple[str, ...] = ("accuracy",)
    world: World = SINGLE

    @cached_property
    def uses_all(self) -> bool:  # type: ignore[override]
        return has_all_gradients(self, self.valid[:1])

    def total(self, items: Sequence[TextItem], update: int) -> float:
        """Tokens that are predicted."""
        return sum(map(self.hiding.count, items))

    def losses(self, module: nn.Module, items: Sequence[TextItem], update: int, skip: frozenset[int]) -> Tensor:
        """Sum of the losses and number of right tokens (B, 2) of each text."""
        hidden = self.hiding.hide(items, self.device)
        with autocast(self.precision, self.device):
            logits = module(hidden.inputs, hidden.places)
        return self._measured(logits, items, hidden)

    def _measured(self, logits: Tensor, items: Sequence[TextItem], hidden: Hidden) -> Tensor:
        device = hidden.labels.device
        losses = nn.functional.cross_entropy(logits.float(), hidden.labels, reduction="none")
        right = (logits.detach().argmax(-1) == hidden.labels).float()
        rows = on_device(torch.repeat_interleave(torch.tensor(list(map(self.hiding.count, items)))), device)
        return torch.zeros(len(items), 2, device=device).index_add(0, rows, torch.stack([losses, right], 1))

    @torch.no_grad()
    def forward(self, module: nn.Module, items: Sequence[TextItem]) -> None:
        with self.evaluating():
            for number, item in enumerate(items):
                self._hidden_pass(module, [item], torch.Generator().manual_seed(number))

    def _hidden_pass(
        self, module: nn.Module, items: Sequence[TextItem], generator: torch.Generator
    ) -> tuple[Tensor, Hidden]:
        """Logits of a pass of a validation, and what was hidden."""
        hidden = self.hiding.hide(items, self.device, generator)
        with self.validation_autocast():
            return module(hidden.inputs, hidden.places), hidden

    @torch.no_grad()
    def validate(self, module: nn.Module, train_metrics: Mapping[str, float | None], number: int) -> Judgement:
        """Perplexity and accuracy on hidden tokens of the validation split; the former decides."""
        batches = sorted_batches([len(item.tokens) for item in self.valid], self.pass_tokens)
        rows: dict[int, list[float]] = {}
        with self.evaluating():
            for index, _ in self.world.share(len(batches)):
                items = [self.valid[each] for each in batches[index]]
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
                logits, hidden = self._hidden_pass(module, items, generator)
                rows |= dict(zip(batches[index], self._measured(logits, items, hidden).tolist(), strict=True))
        gathered = {index: row for some in self.world.gather(rows) for index, row in some.items()}
        total = self.total(self.valid, 0)
        loss, accuracy = (sum(gathered[each][column] for each in sorted(gathered)) / total for column in (0, 1))
        perplexity = math.exp(min(loss, 700.0))
        return Judgement(score=(loss,), metrics={"loss": loss, "perplexity": perplexity, "accuracy": accuracy})


def hiding_of(network: Any, encoding: Encoding, share: float) -> Hiding:
    """How tokens are hidden from a network."""
    return Hiding(encoding=encoding, share=share, tokens=len(encoding.tokenizer), permutes=network.permutes)
