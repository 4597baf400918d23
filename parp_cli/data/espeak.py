"""Speech and phones from espeak-ng, through espeakng-loader (extra `demo`).

espeak-ng keeps state between utterances (the phase of its noise and flutter generators), so that a repeated call gives
different samples. So `synthesise` starts a process (`python -m parp_cli.data.espeak`) per speaker, and `phonemise` one
per call.
"""

import base64
import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any

from parp_cli.data.phones import from_espeak
from parp_cli.data.text import lower
from parp_cli.errors import DataError, UsageError

SAMPLE_RATE = 22_050
"""Hz of espeak-ng's output."""

# From espeak-ng's speak_lib.h.
_OUTPUT_SYNCHRONOUS, _PHONEME_EVENTS_AS_IPA, _DONT_EXIT, _CHARS_UTF8 = 2, 0x1 | 0x2, 0x8000, 1
_RATE, _PITCH = 1, 3
_AS_IPA, _SEPARATED = 0x02, ord("_") << 8
_EVENT_END, _EVENT_WORD, _EVENT_PHONEME = 0, 1, 7
_STRESS_MARKS = "ˈˌ"

_VOICES = {"zh": "cmn", "zh-hk": "yue", "en": "en-US", "en-gb": "en", "no": "nb"}
"""Languages that espeak-ng has under other codes."""


@dataclass(frozen=True, kw_only=True)
class Voice:
    """A speaker: espeak-ng's language, voice variant, pitch (0 to 99) and rate (words per minute).

    The vocal tract is that of the variant, shorter by the factor `tract`: all frequencies are so much higher.
    """

    language: str
    variant: str
    pitch: int
    rate: int
    tract: float = 1.0

    @property
    def name(self) -> str:
        """Its name in espeak-ng, such as `en-us+f3`."""
        return f"{self.language}+{self.variant}" if self.variant else self.language


@dataclass(frozen=True)
class Speech:
    """One synthesised sentence: 16-bit samples at `rate` Hz, and the phones (IPA) of each word."""

    text: str
    pcm: bytes
    phones: tuple[tuple[str, ...], ...]
    rate: int = SAMPLE_RATE

    @property
    def seconds(self) -> float:
        return len(self.pcm) / 2 / self.rate


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _numbers = ("type", "unique_identifier", "text_position", "length", "audio_position", "sample")
    _fields_ = [*((name, ctypes.c_int) for name in _numbers), ("user_data", ctypes.c_void_p), ("id", _EventId)]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


def _loader() -> Any:
    try:
        import espeakng_loader
    except ImportError:
        needed = "espeak-ng comes with the package espeakng-loader, which is not installed"
        raise UsageError(needed, hint="pip install 'parp-cli[demo]'") from None
    return espeakng_loader


def variants() -> list[str]:
    """Names of the voice variants that the installed espeak-ng has, sorted."""
    return sorted(os.listdir(os.path.join(_loader().get_data_path(), "voices", "!v")))


def versions() -> dict[str, str]:
    """Versions of the packages that determine the samples; raises a UsageError if espeakng-loader is missing."""
    _loader()
    return {"espeakng-loader": version("espeakng-loader")}


def synthesise(voice: Voice, texts: Sequence[str], *, seconds: float, seed: int = 0) -> list[Speech]:
    """As many of `texts`, in order, as fit into `seconds`. The same arguments always give the same samples.

    Raises:
        UsageError: espeakng-loader is not installed.
        DataError: espeak-ng does not know the voice, or failed.
    """
    request = {"voice": asdict(voice), "texts": list(texts), "seconds": seconds, "seed": seed}
    return [
        Speech(text, base64.b64decode(pcm), tuple(map(tuple, phones)), rate)
        for text, pcm, phones, rate in _run(request, voice.name)
    ]


def phonemise(language: str, texts: Sequence[str]) -> list[tuple[tuple[str, ...], ...]]:
    """Phones (IPA, with stress and tone) of each word of each text, without speaking them.

    Args:
        language: its code, such as "sw", "pt-BR" or "zh", or as espeak-ng names it.

    Raises:
        UsageError: espeakng-loader is not installed.
        DataError: espeak-ng does not know the language.
    """
    voice = Voice(language=voice_of(language), variant="", pitch=50, rate=175)
    request = {"voice": asdict(voice), "phonemes": list(texts)}
    return [from_espeak(as_ipa, mnemonics) for as_ipa, mnemonics in _run(request, voice.name)]


def voice_of(language: str) -> str:
    """espeak-ng's name of a language; a DataError where it does not speak it."""
    files = [path for path in Path(_loader().get_data_path(), "lang").rglob("*") if path.is_file()]
    names = {path.name.lower(): path.name for path in files}
    code = language.lower().replace("_", "-")
    for name in (_VOICES.get(code), code, _VOICES.get(code.split("-")[0]), code.split("-")[0]):
        if name is not None and name.lower() in names:
            return names[name.lower()]
    # Such as "English (America)", in the first line.
    called = {path.name: path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("name ") for path in files}
    own = sorted((n for n, words in called.items() if re.match(rf"{re.escape(code)}\b", words.lower())), key=len)
    close = get_close_matches(code, names, n=5, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "give the phones in a column of the manifest"
    hint = f"give its code: {' or '.join(own[:5])}" if own else hint
    raise DataError(f"espeak-ng makes no phones of language {language}", hint=hint)


def _run(request: Mapping[str, Any], voice: str) -> Any:
    """The answer of a process of its own to a request."""
    _loader()
    done = subprocess.run(
        # -P: a file in the working folder cannot replace a module.
        [sys.executable, "-P", "-m", "parp_cli.data.espeak"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        input=json.dumps(request).encode(),
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise DataError(
            f"espeak-ng could not speak with voice {voice}",
            details=done.stderr.decode(errors="replace").strip().splitlines()[-1:],
            hint="see the voices of the installed espeak-ng with parp_cli.data.espeak.variants()",
        )
    return json.loads(done.stdout)


class _Engine:
    """The library, which can be initialised once per process."""

    def __init__(self, voice: Voice, seed: int) -> None:
        self._voice = voice
        # Samples played faster than they were made are of a shorter vocal tract; so they are made slower.
        self._hertz = round(SAMPLE_RATE * voice.tract)
        loader = _loader()
        self._library = ctypes.CDLL(loader.get_library_path())
        data_folder = os.path.dirname(loader.get_data_path())
        options = _PHONEME_EVENTS_AS_IPA | _DONT_EXIT
        rate = self._library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, 0, data_folder.encode(), options)
        if rate != SAMPLE_RATE:
            raise DataError(f"espeak-ng gives {rate} samples per second instead of {SAMPLE_RATE}")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._pcm: list[bytes] = []
        self._words: list[list[str]] = [[]]
        self._callback = _Callback(self._receive)  # kept alive: the library calls it
        self._library.espeak_SetSynthCallback(self._callback)
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise DataError(f"espeak-ng has no voice {voice.name}")
        self._library.espeak_SetParameter(_RATE, round(voice.rate / voice.tract), 0)
        self._library.espeak_SetParameter(_PITCH, voice.pitch, 0)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._pcm.append(ctypes.string_at(samples, count * 2))
        index = 0
        while events[index].type != _EVENT_END:
            event = events[index]
            if event.type == _EVENT_WORD:
                self._words.append([])
            elif event.type == _EVENT_PHONEME:
                phone = bytes(event.id.string).decode(errors="ignore").strip(_STRESS_MARKS)
                self._words[-1] += [phone] if phone else []
            index += 1
        return 0

    def speak(self, text: str) -> Speech:
        self._pcm.clear()
        self._words = [[]]
        data = text.lower().encode()  # espeak-ng spells out short words in capitals
        size = ctypes.c_size_t(len(data) + 1)
        if self._library.espeak_Synth(data, size, 0, 1, 0, _CHARS_UTF8, None, None) != 0:
            raise DataError(f"espeak-ng could not speak {text!r}")
        self._library.espeak_Synchronize()
        phones = tuple(tuple(word) for word in self._words if word)
        return Speech(text, b"".join(self._pcm), phones, self._hertz)

    def phonemes(self, text: str) -> tuple[str, str]:
        """The text in IPA and in espeak-ng's mnemonics, with "_" between phonemes."""
        lowered = lower(text, self._voice.language) if text.isupper() else text
        return self._phonemes(lowered, _AS_IPA | _SEPARATED), self._phonemes(lowered, _SEPARATED)

    def _phonemes(self, text: str, mode: int) -> str:
        translate = self._library.espeak_TextToPhonemes
        translate.restype = ctypes.c_char_p
        data = ctypes.create_string_buffer(text.encode())
        rest = ctypes.c_char_p(ctypes.addressof(data))
        clauses = []
        while rest:  # a clause per call
            clauses.append(translate(ctypes.byref(rest), ctypes.c_int(_CHARS_UTF8), ctypes.c_int(mode)).decode())
        return " ".join(clauses)


def _main() -> None:
    request = json.load(sys.stdin)
    engine = _Engine(Voice(**request["voice"]), request.get("seed", 0))
    if "phonemes" in request:
        json.dump([engine.phonemes(text) for text in request["phonemes"]], sys.stdout)
        return
    spoken: list[Speech] = []
    total = 0.0
    for text in request["texts"]:
        speech = engine.speak(text)
        total += speech.seconds
        if total > request["seconds"]:
            break
        spoken.append(speech)
    json.dump([(s.text, base64.b64encode(s.pcm).decode(), s.phones, s.rate) for s in spoken], sys.stdout)


if __name__ == "__main__":
    _main()
