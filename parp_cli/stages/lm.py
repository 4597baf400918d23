"""Build an n-gram language model, and its lexicon, from transcripts or text."""

import gzip
import io
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from parp_cli.config.finetune import Data
from parp_cli.data.corpora import load
from parp_cli.data.labels import BLANK, BOUNDARY, Vocabulary
from parp_cli.data.text import in_case, without_marks
from parp_cli.decoding.kneser_ney import SPECIAL_WORDS, NGramModel, estimate, write_arpa
from parp_cli.decoding.lexicon import lexicon_lines, lexicon_of
from parp_cli.decoding.lm import open_text
from parp_cli.errors import DataError, UsageError
from parp_cli.runtime.progress import Notify, Progress, silent
from parp_cli.storage.atomic import refuse_same, replacing, require_writable, write_text

STDIN = Path("-")

_REPORT_LINES = 100_000


@dataclass(frozen=True, kw_only=True)
class LmResult:
    """A language model built from text.

    Attributes:
        path: the ARPA file.
        lexicon: its words with their letters, for `--lexicon`.
        ngrams: number per order, from unigrams (with <s>, </s> and <unk>) upwards.
        sentences, words: number in the text, empty lines not counted.
        vocabulary: number of different words.
        fallback_orders: with fixed discounts, as the text was too small or too regular to estimate them.
        unusual: words with digits, punctuation or other signs, which no transcript has.
    """

    path: Path
    lexicon: Path
    order: int
    ngrams: tuple[int, ...]
    sentences: int
    words: int
    vocabulary: int
    fallback_orders: tuple[int, ...]
    unusual: tuple[str, ...]


def build(
    sentences: Iterable[str],
    *,
    out: Path,
    lexicon: Path | None = None,
    order: int = 4,
    sources: Mapping[str, Path | Sequence[Path]] | None = None,
    notify: Notify = silent,
) -> LmResult:
    """Estimate an n-gram model with modified Kneser-Ney smoothing and write it with its lexicon.

    Sentences are made upper case, as transcripts are, and otherwise unchanged. <s> and </s> end sentences.

    Args:
        sentences: words separated by spaces; read once.
        out: the ARPA file; gzipped where it ends in `.gz`.
        lexicon: by default beside it, as `<name>-lexicon.txt`.
        sources: files that the sentences are read from, by what names them: none may be overwritten.

    Raises:
        UsageError: the order is not 1 to 6, or a file cannot be written, or would overwrite another.
        DataError: there is no text, or it has words that language models reserve.
    """
    target = lexicon or out.with_name(out.name.removesuffix(".gz").removesuffix(".arpa") + "-lexicon.txt")
    refuse_same({"--out": out, "--lexicon": target}, sources)
    require_writable(out, "--out")
    require_writable(target, "--lexicon")
    model = estimate(_normalized(sentences, notify), order)
    words = model.words[3:]
    letters = sorted(set().union(*words) - {BOUNDARY})
    spelled, _ = lexicon_of(words, Vocabulary((BLANK, BOUNDARY, *letters), "letters"))
    _write(model, out)
    write_text(target, lexicon_lines(spelled))
    return LmResult(
        path=out,
        lexicon=target,
        order=order,
        ngrams=tuple(map(len, model.orders)),
        sentences=model.sentences,
        words=model.tokens,
        vocabulary=len(words),
        fallback_orders=tuple(number for number, table in enumerate(model.orders, start=1) if table.fallback),
        unusual=tuple(sorted(filter(_is_unusual, words))),
    )


def transcripts(data: Data, splits: Sequence[str], notify: Notify = silent) -> Iterator[str]:
    """Transcripts of a recipe's corpus. Warns where they are those that the recipe validates or tests on.

    Raises `DataError`: there is no such split, or it has no transcripts.
    """
    for split in splits:
        if split in (data.valid, data.test):
            purpose = "validates" if split == data.valid else "tests"
            warning = f"the language model is built from {split}, on which the recipe {purpose}: it knows the answers"
            notify(Progress("counting", 0, 1, warning=warning))
        texts = [utterance.text for utterance in load(data, split, notify) if utterance.text]
        if not texts:
            raise DataError(f"{split} has no transcripts", hint="name another split, or a text file")
        yield from texts


def lines(paths: Iterable[Path], stdin: BinaryIO | None = None) -> Iterator[str]:
    """Lines of text files, plain or gzipped; `STDIN` stands for standard input.

    Raises:
        UsageError: standard input is closed.
        DataError: a file cannot be read, or is not UTF-8.
    """
    for path in paths:
        try:
            source = path if path != STDIN else stdin or getattr(sys.stdin, "buffer", None)
            if source is None:
                raise UsageError("standard input is closed", hint="pipe text into it, or name files")
            with open_text(source) as file:
                yield from file
        except (OSError, EOFError, UnicodeDecodeError) as error:
            name = "standard input" if path == STDIN else path
            reason = error.strerror if isinstance(error, OSError) else None  # gzip's errors have none
            hint = "it must be text in UTF-8" if reason is None else "check the path"
            raise DataError(f"cannot read {name}", details=[reason or str(error)], hint=hint) from error


def _normalized(sentences: Iterable[str], notify: Notify) -> Iterator[str]:
    done = 0
    for done, sentence in enumerate(sentences, start=1):
        if done % _REPORT_LINES == 0:
            notify(Progress("counting", 0, 1, note=f"{done:,} sentences"))
        for words in without_marks(sentence):
            # What language models reserve keeps its case, and is refused.
            yield " ".join(w.lower() if w.lower() in SPECIAL_WORDS else in_case(w, "upper") for w in words)
    notify(Progress("counting", 1, 1, note=f"{done:,} sentences"))


def _is_unusual(word: str) -> bool:
    return not all(unicodedata.category(letter)[0] in "LM" or letter in "'’-" for letter in word)


def _write(model: NGramModel, out: Path) -> None:
    with replacing(out) as temporary, temporary.open("wb") as raw:
        # Neither time nor name inside, so that the same text gives the same bytes.
        packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0) if out.suffix == ".gz" else nullcontext(raw)
        with packed as binary, io.TextIOWrapper(binary, encoding="utf-8") as file:
            write_arpa(model, file)
