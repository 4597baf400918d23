"""n-best lists put in a new order by a language model: no lexicon, so that any word can be found.

A language model is a function of texts here: an n-gram model through the package kenlm, or a causal Transformer of
the Hugging Face Hub through transformers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from parp_cli.data.text import in_case
from parp_cli.decoding.beam import BeamSearch, Hypothesis
from parp_cli.decoding.language_model import quiet_loading
from parp_cli.errors import DataError, UsageError

Scorer = Callable[[Sequence[str]], list[float]]
"""log10 probabilities of texts, ends of sentence included; such as `NGramScorer` and `TransformerScorer`."""

_TEXTS = 64
"""In one forward pass of a Transformer."""


@dataclass(frozen=True)
class Judged:
    """A hypothesis with both of its scores.

    Attributes:
        acoustic: natural logarithm of the text's CTC probability.
        language: log10 of its probability by the language model.
    """

    text: str
    acoustic: float
    language: float


@dataclass(frozen=True, kw_only=True)
class Rescored:
    """A beam search whose hypotheses a language model judges afterwards.

    The score is the natural logarithm of the text's CTC probability, plus `lm_weight` times the language model's log10
    probability, plus `word_score` for each word: weights mean the same as in `LexiconSearch`.

    Attributes:
        search: its n-best lists are what there is to choose from.
        scorer: of texts, all of an utterance at once.
        nbest: most hypotheses that are left.
    """

    search: BeamSearch
    scorer: Scorer
    lm_weight: float = 2.0
    word_score: float = 0.0
    nbest: int = 1

    def __call__(self, logits: Sequence[Tensor]) -> list[list[Hypothesis]]:
        """Hypotheses of each utterance, best first, from its logits (T_i, V)."""
        return [self.order(judged) for judged in self.judge(logits)]

    @property
    def pays_in_processes(self) -> bool:
        """Whether several processes search faster than one; not where each would load a Transformer of its own."""
        return isinstance(self.scorer, NGramScorer)

    def judge(self, logits: Sequence[Tensor]) -> list[list[Judged]]:
        """What does not depend on the weights: the n-best list of each utterance, and what the language model says."""
        return [
            [
                Judged(hypothesis.text, hypothesis.score, language)
                for hypothesis, language in zip(found, self.scorer([item.text for item in found]), strict=True)
            ]
            for found in self.search(logits)
        ]

    def order(self, judged: Sequence[Judged]) -> list[Hypothesis]:
        """The hypotheses of one utterance, best first."""
        found = [
            Hypothesis(
                item.text, item.acoustic + self.lm_weight * item.language + self.word_score * len(item.text.split())
            )
            for item in judged
        ]
        return sorted(found, key=lambda hypothesis: -hypothesis.score)[: self.nbest]


@dataclass(frozen=True)
class NGramScorer:
    """An n-gram model, ARPA or KenLM binary, through the package kenlm.

    Words it does not know have the probability of <unk>. Where it knows a word in another case only, that is meant.

    Raises:
        UsageError: kenlm is not installed.
        DataError: the file cannot be read.
    """

    path: Path

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """log10 probabilities."""
        return [self._model.score(" ".join(map(self._known, text.split()))) for text in texts]

    def load(self) -> None:
        """Load now what the first call would load, so that what is wrong with it shows at once."""
        _ = self._model

    def __getstate__(self) -> dict[str, Any]:
        """The path alone: the model cannot go to another process, which loads its own."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def _model(self) -> Any:
        try:
            import kenlm
        except ImportError as error:
            raise UsageError(
                "rescoring with an n-gram model needs the package kenlm", hint="pip install 'parp-cli[lm]'"
            ) from error
        try:
            with quiet_loading():
                return kenlm.Model(str(self.path))
        except OSError as error:
            raise DataError(
                f"the language model {self.path} cannot be loaded", details=str(error).splitlines()[:3]
            ) from error

    def _known(self, word: str) -> str:
        written = (word, in_case(word, "lower"), in_case(word, "upper"))
        return next((same for same in written if same in self._model), word)


@dataclass(frozen=True)
class TransformerScorer:
    """A causal Transformer of the Hub, or in a folder, through transformers. It scores lower-case text.

    Raises:
        UsageError: transformers is not installed.
        DataError: the model cannot be loaded.
    """

    name: str
    device: str = "cpu"

    def __call__(self, texts: Sequence[str]) -> list[float]:
        """log10 probabilities, from the beginning of a sentence to its end."""
        found: list[float] = []
        for start in range(0, len(texts), _TEXTS):
            found += self._score(texts[start : start + _TEXTS])
        return found

    def load(self) -> None:
        """Load now what the first call would load, so that what is wrong with it shows at once."""
        _ = self._loaded

    def __getstate__(self) -> dict[str, Any]:
        """Name and device alone: other processes load their own."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @torch.inference_mode()
    def _score(self, texts: Sequence[str]) -> list[float]:
        tokenizer, model = self._loaded
        begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        end = tokenizer.eos_token_id
        rows = [torch.tensor([begin, *tokenizer.encode(text.lower(), add_special_tokens=False), end]) for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=end).to(self.device)
        valid = (torch.arange(ids.shape[1]) < lengths[:, None]).to(self.device)
        logits = model(input_ids=ids, attention_mask=valid.long()).logits[:, :-1].float()
        each = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        total = each.masked_fill(~valid[:, 1:], 0.0).sum(1) / math.log(10)
        scores: list[float] = total.tolist()
        return scores

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise UsageError(
                "rescoring with a Transformer needs the package transformers", hint="pip install transformers"
            ) from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.name)
            model: Any = AutoModelForCausalLM.from_pretrained(self.name)
        except (OSError, ValueError) as error:
            raise DataError(
                f"the language model {self.name} cannot be loaded",
                details=str(error).splitlines()[:2],
                hint="name a causal language model of the Hugging Face Hub, or a folder that holds one",
            ) from error
        if tokenizer.eos_token_id is None:
            raise DataError(
                f"the tokenizer of {self.name} has no end of text", hint="take a causal model, such as gpt2"
            )
        return tokenizer, model.to(self.device).eval()
