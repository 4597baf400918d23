"""Language models for decoding: n-gram models (ARPA, plain or .gz, and KenLM binaries), published ones by name, and
causal Transformers that score whole texts.
"""

import gzip
import importlib
import io
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import dropwhile, islice, takewhile
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

import torch

from parp_cli.data.text import in_case
from parp_cli.decoding.kneser_ney import SPECIAL_WORDS
from parp_cli.errors import DataError, UsageError
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage.download import download

Scorer = Callable[[Sequence[str]], list[float]]
"""log10 probabilities of texts, end of sentence included; such as `NGramScorer` and `TransformerScorer`."""

PUBLISHED = {"librispeech-3gram": "librispeech-3-gram", "librispeech-4gram": "librispeech-4-gram"}
"""Downloadable language models: LibriSpeech's official ones with their lexicon, and their folders under `BASE_URL`."""

BASE_URL = "https://download.pytorch.org/torchaudio/decoder-assets"

_BINARY_MAGIC = b"mmap lm http://kheafield.com/code"
_GZIP_MAGIC = b"\x1f\x8b"
_HINT = "take an ARPA file (plain or .gz) or a KenLM binary; `parp lm build` builds one from transcripts"


_TEXTS = 64  # texts per forward pass of a Transformer


@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """An n-gram model file that KenLM reads, and the lexicon published with it, if any."""

    path: Path
    kind: Literal["arpa", "binary"]
    lexicon: Path | None = None


def open_language_model(name: str, notify: Notify = silent) -> LanguageModel:
    """A language model by its path, or by its name in `PUBLISHED`, which is downloaded once into torch's hub folder.

    Raises `DataError`: there is no such file, it is no language model, or it cannot be downloaded.
    """
    if name in PUBLISHED and not Path(name).exists():
        return _published(name, notify)
    path = Path(name).expanduser()
    return LanguageModel(path=path, kind=_kind(path))


def arpa_words(model: LanguageModel) -> list[str]:
    """The words in an ARPA file, in its order, without <s>, </s> and <unk>.

    Raises `UsageError`, `DataError`: the model is a binary, or the file is broken.
    """
    if model.kind == "binary":
        raise UsageError(
            f"{model.path} is a KenLM binary, which does not list its words",
            hint="name its lexicon with --lexicon, or take the ARPA file it was made from",
        )
    try:
        with open_text(model.path) as file:
            return [word for word in _unigrams(file) if word.lower() not in SPECIAL_WORDS]
    except (OSError, EOFError, UnicodeDecodeError, IndexError) as error:
        raise DataError(f"{model.path} is no ARPA file", details=[str(error)], hint=_HINT) from error


def in_cases(word: str) -> tuple[str, ...]:
    """A word as it is, in lower and in upper case."""
    return word, in_case(word, "lower"), in_case(word, "upper")


@contextmanager
def open_text(source: Path | BinaryIO) -> Iterator[IO[str]]:
    """A UTF-8 text file, gzipped (whatever its name) or not, by its path or opened; a pipe too."""
    with source.open("rb") if isinstance(source, Path) else nullcontext(source) as raw:
        buffered = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)  # type: ignore[type-var]
        zipped = buffered.peek(2)[:2] == _GZIP_MAGIC
        text = io.TextIOWrapper(gzip.GzipFile(fileobj=buffered) if zipped else buffered, encoding="utf-8-sig")
        try:
            yield text
        finally:
            text.detach()


def require(module: str, package: str, purpose: str, install: str = "pip install 'parp-cli[lm]'") -> Any:
    """Import an optional module. Raises `UsageError` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(f"{purpose} needs the package {package}", hint=install) from error


def flashlight(module: str) -> Any:
    """A module of flashlight-text, by its name within the package; raises as `require`."""
    return require(f"flashlight.lib.text.{module}", "flashlight-text", "decoding with a lexicon")


def require_kenlm() -> Any:
    """The package kenlm; raises as `require`."""
    return require("kenlm", "kenlm", "rescoring with an n-gram model")


class Reloading:
    """A dataclass that caches what it loads: in another process, to which models cannot be sent, it loads it again."""

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class NGramScorer(Reloading):
    """Scores texts with an n-gram model, ARPA or KenLM binary, through the package kenlm.

    Unknown words have the probability of <unk>. A word that the model knows only in another case is looked up as such.

    Raises `UsageError`, `DataError`: kenlm is not installed, or the file cannot be read.
    """

    path: Path

    def __call__(self, texts: Sequence[str]) -> list[float]:
        return [self.model.score(" ".join(map(self._known, text.split()))) for text in texts]

    @cached_property
    def model(self) -> Any:
        """kenlm's model, loaded when first asked for."""
        kenlm = require_kenlm()
        try:
            with quiet_loading():
                return kenlm.Model(str(self.path))
        except OSError as error:
            raise cannot_load(self.path, error) from error

    def knows(self, word: str) -> bool:
        """Whether the model has a word, in any case."""
        return self._known(word) in self.model

    def _known(self, word: str) -> str:
        return next((same for same in in_cases(word) if same in self.model), word)


@dataclass(frozen=True)
class TransformerScorer(Reloading):
    """Scores lower-cased texts with a causal Transformer of the Hub, or in a folder, through transformers.

    Raises `UsageError`, `DataError`: transformers is not installed, or the model cannot be loaded.
    """

    name: str
    device: str = "cpu"

    def __call__(self, texts: Sequence[str]) -> list[float]:
        batches = [texts[start : start + _TEXTS] for start in range(0, len(texts), _TEXTS)]
        return [score for batch in batches for score in self._score(batch)]

    @torch.inference_mode()
    def _score(self, texts: Sequence[str]) -> list[float]:
        tokenizer, model = self.model
        end = tokenizer.eos_token_id
        begin = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        rows = [torch.tensor([begin, *tokenizer.encode(text.lower(), add_special_tokens=False), end]) for text in texts]
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=end).to(self.device)
        valid = (torch.arange(ids.shape[1]) < lengths[:, None]).to(self.device)
        logits = model(input_ids=ids, attention_mask=valid.long()).logits[:, :-1].float()
        each = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        scores: list[float] = (each.masked_fill(~valid[:, 1:], 0.0).sum(1) / math.log(10)).tolist()
        return scores

    @cached_property
    def model(self) -> tuple[Any, Any]:
        """Tokenizer and model, loaded when first asked for."""
        name = "transformers"
        transformers = require(name, name, "rescoring with a Transformer", "pip install transformers")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.name)
            model = transformers.AutoModelForCausalLM.from_pretrained(self.name)
        except (OSError, ValueError) as error:
            hint = "name a causal language model of the Hugging Face Hub, or a folder that holds one"
            raise cannot_load(self.name, error, hint=hint) from error
        if tokenizer.eos_token_id is None:
            hint = "take a causal model, such as gpt2"
            raise DataError(f"the tokenizer of {self.name} has no end of text", hint=hint)
        return tokenizer, model.to(self.device).eval()


def cannot_load(model: Path | str, error: Exception, hint: str = _HINT) -> DataError:
    """The error for a language model that a library refuses to load."""
    details = str(error).splitlines()[:3]
    return DataError(f"the language model {model} cannot be loaded", details=details, hint=hint)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep KenLM from drawing a progress bar on stderr, which it has no option for. Its errors are exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _published(name: str, notify: Notify) -> LanguageModel:
    # Where torchaudio keeps them: what it has downloaded is found there.
    folder = Path(torch.hub.get_dir()) / "torchaudio" / "decoder-assets" / PUBLISHED[name]

    def progress(done: int, total: int) -> None:
        notify(Progress(f"downloading {name}", done, total, "bytes"))

    try:
        for file in ("lexicon.txt", "lm.bin"):
            if not (folder / file).exists():
                download(f"{BASE_URL}/{PUBLISHED[name]}/{file}", folder / file, progress=progress)
    except DataError as error:
        raise DataError(
            f"cannot download the language model {name}",
            details=[str(error), *error.details],
            hint="check the connection, or name a file with --lm and --lexicon",
        ) from error
    return LanguageModel(path=folder / "lm.bin", kind=_kind(folder / "lm.bin"), lexicon=folder / "lexicon.txt")


def _kind(path: Path) -> Literal["arpa", "binary"]:
    try:
        with path.open("rb") as file:
            if file.read(len(_BINARY_MAGIC)) == _BINARY_MAGIC:
                return "binary"
        with open_text(path) as text:
            lines = (line.strip() for line in text)
            if next((line for line in lines if line and not line.startswith("#")), "") == "\\data\\":
                return "arpa"
    except FileNotFoundError as error:
        names = ", ".join(PUBLISHED)
        raise DataError(f"no language model {path}", hint=f"name a file, or one to download: {names}") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the language model {path}", details=[str(error)], hint=_HINT) from error
    raise DataError(f"{path} is no language model", details=["neither ARPA nor a KenLM binary"], hint=_HINT)


def _unigrams(file: IO[str]) -> Iterator[str]:
    lines = map(str.strip, file)
    section = takewhile(lambda line: not line.startswith("\\"), islice(dropwhile("\\1-grams:".__ne__, lines), 1, None))
    return (line.split()[1] for line in section if line)
