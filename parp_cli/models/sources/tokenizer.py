"""The tokenizer files of transformers: what the outputs of a CTC head are, read and written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from parp_cli.data.labels import PADDING, Vocabulary
from parp_cli.errors import CheckpointError
from parp_cli.storage.conventions import BLANK, BOUNDARY

VOCABULARY = "vocab.json"
SETTINGS = "tokenizer_config.json"
_SPECIAL_TOKENS, _ADDED_TOKENS = "special_tokens_map.json", "added_tokens.json"

# In the order in which transformers appends those that its vocabulary lacks; with what they are if nothing is said.
_ROLES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": None, "pad": PADDING, "cls": None, "mask": None}
_DELIMITERS = ("word_delimiter_token", "phone_delimiter_token")


def read_vocabulary(directory: Path, config: Mapping[str, Any], *, size: int) -> tuple[Vocabulary, list[int]]:
    """The labels of a head with `size` rows, the blank first, and which row of the head each label's row is.

    transformers' blank is the tokenizer's padding token, at any id. A row without a token is kept as a special label,
    so that the likeliest label stays the same.

    Args:
        config: `config.json`, which names the blank where the tokenizer does not.

    Raises CheckpointError: files are missing or broken, or do not say which label is the blank, or name two alike.
    """
    tokens = read_json(directory / VOCABULARY)
    if not all(isinstance(index, int) for index in tokens.values()):
        raise CheckpointError(
            f"{directory / VOCABULARY} has a vocabulary for each language", hint="parp reads flat ones"
        )
    settings, added = _settings(directory)
    special = _special(settings)
    by_id = {index: token for token, index in (*added.items(), *tokens.items())}
    padding = next((token for token, role in special.items() if role == "pad"), PADDING)
    appended = [token for token in special if token not in added and token not in tokens]
    if padding in appended:  # transformers appends special tokens that have no id
        by_id.setdefault(len(added | tokens) + appended.index(padding), padding)
    blank = next((index for index in range(size) if by_id.get(index) == padding), config.get("pad_token_id", 0))
    if blank not in range(size):
        raise CheckpointError(f"{directory} does not say which label is the blank", hint=f"set pad_token in {SETTINGS}")
    order = [blank, *(index for index in range(size) if index != blank)]
    symbols = [BLANK, *(by_id.get(index, f"<unused-{index}>") for index in order[1:])]
    special |= {symbol: "extra" for index, symbol in zip(order, symbols, strict=True) if index not in by_id}
    doubled = sorted({symbol for symbol in symbols if symbols.count(symbol) > 1})
    if doubled:
        raise CheckpointError(f"{directory / VOCABULARY} has labels that stand for two things", details=doubled)
    is_phones = "Phoneme" in str(settings.get("tokenizer_class") or config.get("tokenizer_class"))
    delimiter = _content(settings.get("word_delimiter_token", None if is_phones else BOUNDARY))
    if not is_phones and delimiter not in symbols:
        delimiter = " "  # a label that is a space stands between words, whatever it is called
    if delimiter in symbols[1:] and BOUNDARY not in symbols:
        symbols[symbols.index(delimiter)] = delimiter = BOUNDARY
    return Vocabulary(
        tuple(symbols),
        "phones" if is_phones else "letters",
        delimiter=delimiter,
        special={symbol: special[symbol] for symbol in symbols[1:] if symbol in special and symbol != delimiter},
        separator=" " if is_phones else str(settings.get("replace_word_delimiter_char", " ")),
        lower_case=not is_phones and bool(settings.get("do_lower_case", False)),
        padding=by_id.get(blank, padding),
    ), order


def tokenizer_files(vocabulary: Vocabulary) -> dict[str, dict[str, Any]]:
    """The inverse of `read_vocabulary`: the content of each file, by its name.

    A role without a token must be null: transformers would append one to the vocabulary, beyond the head's rows.
    """
    others = vocabulary.symbols[1:]
    padding = next((name for name in (vocabulary.padding, PADDING) if name not in others), BLANK)
    roles = {role: symbol for symbol, role in vocabulary.special.items() if role in _ROLES}
    extra = [symbol for symbol in vocabulary.special if symbol not in roles.values()]
    settings: dict[str, Any]
    if vocabulary.labels == "letters":
        settings = {
            "tokenizer_class": "Wav2Vec2CTCTokenizer",
            "word_delimiter_token": vocabulary.delimiter or "",  # null would make it fail where it splits a text
            "replace_word_delimiter_char": vocabulary.separator,
            "do_lower_case": vocabulary.lower_case,
        }
    else:
        # The one that puts spaces between labels; it asks for a phonemizer only to turn text into phones.
        settings = {
            "tokenizer_class": "Wav2Vec2PhonemeCTCTokenizer",
            "word_delimiter_token": vocabulary.delimiter,
            "phone_delimiter_token": " ",
            "do_phonemize": False,
        }
    settings |= {f"{role}_token": roles.get(role) for role in ("bos", "eos", "unk", *roles)} | {"pad_token": padding}
    if extra:
        settings["additional_special_tokens"] = extra
    settings |= {"processor_class": "Wav2Vec2Processor", "clean_up_tokenization_spaces": False}
    ids = {symbol: index for index, symbol in enumerate((padding, *others))}
    return {VOCABULARY: ids, SETTINGS: settings}


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object; raises a CheckpointError where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path.parent} has no {path.name}", hint="a model is a folder with config.json and its weights"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON", details=[str(error)]) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value


def _settings(directory: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The tokenizer's settings, and the ids of tokens beside the vocabulary."""
    found = {
        name: read_json(directory / name) if (directory / name).exists() else {}
        for name in (SETTINGS, _SPECIAL_TOKENS, _ADDED_TOKENS)
    }
    settings = found[SETTINGS]
    if "added_tokens_decoder" in settings:  # then it holds all that older versions put into files of their own
        return settings, {_content(token): int(index) for index, token in settings["added_tokens_decoder"].items()}
    return settings | found[_SPECIAL_TOKENS], found[_ADDED_TOKENS]


def _special(settings: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that stand for nothing spoken, with their roles."""
    tokens = [(_content(settings.get(f"{role}_token", token)), role) for role, token in _ROLES.items()]
    others = (key for key in settings if key.endswith("_token") and key.removesuffix("_token") not in _ROLES)
    tokens += [(_content(settings[key]), "extra") for key in others]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        some = settings.get(key) or ()
        tokens += [(_content(token), "extra") for token in (some.values() if isinstance(some, dict) else some)]
    added = settings.get("added_tokens_decoder", {}).values()
    tokens += [(_content(token), "extra") for token in added if isinstance(token, dict) and token.get("special")]
    delimiters = {_content(settings.get(key)) for key in _DELIMITERS}
    special: dict[str, str] = {}
    for token, role in tokens:
        if token and token not in delimiters:
            special.setdefault(token, role)
    return special


def _content(token: Any) -> str:
    """A token's text, "" for none; transformers writes it bare, or in an object beside how to strip around it."""
    return str((token.get("content") if isinstance(token, dict) else token) or "")
