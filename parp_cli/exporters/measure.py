"""Load time, memory and speed of a model in the runtime that it is for, in a process of its own.

S samples, T frames, V tokens.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal, TextIO

import torch
from torch import Tensor

from parp_cli.errors import CheckpointError, ResourceError
from parp_cli.exporters import sherpa
from parp_cli.exporters.check import Network, network
from parp_cli.exporters.gguf import CrispNetwork, require_gguf
from parp_cli.exporters.onnx import OnnxNetwork, require_onnx
from parp_cli.exporters.transformers_network import TransformersNetwork, classes_of, require_transformers
from parp_cli.models.recognizer import encoder_of
from parp_cli.models.sources import huggingface
from parp_cli.pruning.masks import under
from parp_cli.storage import checkpoint
from parp_cli.storage.conventions import SAMPLE_RATE

Runtime = Literal["parp", "transformers", "onnxruntime", "crispasr"]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """How a model loads in a fresh process; imports of libraries are not counted.

    Attributes:
        load_seconds: from the file to a network that is ready.
        first_result_seconds: the same, and the first pass.
    """

    load_seconds: float
    first_result_seconds: float


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A forward pass.

    Attributes:
        processor_seconds: of all threads, which other programs on the machine make no longer.
        peak_bytes: the largest memory of the process so far, beyond what Python and its libraries had taken before the
            model was loaded; None where the system does not tell.
    """

    seconds: float
    processor_seconds: float
    peak_bytes: int | None


def runtime_of(path: Path) -> Runtime:
    """Where a file or folder runs: checkpoints in parp, folders of transformers there, .onnx files and folders for
    sherpa-onnx in onnxruntime, and .gguf files in crispasr.

    Raises:
        CheckpointError: there is nothing, or nothing of these kinds.
        UsageError: the runtime is not installed.
    """
    if path.is_dir() and huggingface.is_speech_model(path):
        require_transformers()
        return "transformers"
    if is_for_sherpa(path) or (path.is_file() and path.suffix == ".onnx"):
        require_onnx()
        return "onnxruntime"
    if path.is_file() and path.suffix == ".gguf":
        require_gguf()
        return "crispasr"
    if path.is_file() and path.suffix == ".safetensors":
        metadata = checkpoint.read_metadata(path, with_weights=True)
        if metadata.architecture.get("kind", "speech") == "speech":
            return "parp"
    raise CheckpointError(
        f"{path} is no model whose speed can be measured" if path.exists() else f"there is no model {path}",
        hint="name checkpoints of speech, folders of transformers, or exports to onnx, sherpa or gguf",
    )


def is_for_sherpa(path: Path) -> bool:
    """Whether this is a folder for sherpa-onnx."""
    return all((path / name).is_file() for name in (sherpa.MODEL, sherpa.TOKENS))


def open_network(path: Path) -> Network:
    """The model in its runtime, with zeros where its mask prunes. Raises as `runtime_of`, or the file is damaged."""
    return _opener(path)()


def _opener(path: Path) -> Callable[[], Network]:
    """What opens a model, once its runtime is imported, which takes seconds."""
    runtime = runtime_of(path)
    if runtime == "transformers":
        classes_of(path)
        return lambda: TransformersNetwork(path)
    if runtime == "onnxruntime":
        import onnxruntime  # noqa: F401

        if is_for_sherpa(path):
            return lambda: sherpa.SherpaNetwork(path / sherpa.MODEL)
        return lambda: OnnxNetwork(path)
    if runtime == "crispasr":
        from crispasr import Session

        Session.available_backends()  # loads its library, which the import does not
        return lambda: CrispNetwork(path)
    return lambda: _of_checkpoint(path)


def _of_checkpoint(path: Path) -> Network:
    content = checkpoint.read(path)
    encoder = encoder_of(content, source=str(path))
    return network(encoder.architecture, under(content.masks, encoder.weights), content.kernels)


class Worker:
    """A model in a fresh process with as many threads as this one, so that memory is its own. It works when it is asked
    to, so that several can take turns.

    Args:
        path: as `runtime_of` takes it.
        seconds: of noise in its first pass; what is said makes no difference to speed.

    Raises:
        ResourceError: the process was killed, for example because memory ran out.
        CheckpointError: the model cannot be run.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self._path, self._errors = path, TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        command = [sys.executable, "-m", __name__, str(path), str(seconds), str(torch.get_num_threads())]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, encoding="utf-8"
        )
        self.loaded = Loaded(**self._answer())

    def run(self, seconds: float, batch: int) -> Pass:
        """One pass of `batch` utterances of so many seconds of noise. Raises as the class."""
        try:
            self._input.write(json.dumps([seconds, batch]) + "\n")
            self._input.flush()
        except BrokenPipeError:
            pass  # there will be no answer either, which tells more
        return Pass(**self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    @property
    def _input(self) -> TextIO:
        assert self._process.stdin is not None
        return self._process.stdin  # type: ignore[return-value]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self._process.wait()
        self._errors.seek(0)
        details = self._errors.read().strip().splitlines()[-3:]
        self.close()
        if code < 0:
            raise ResourceError(
                f"measuring {self._path} was ended by signal {-code}",
                hint="memory may have run out: measure fewer models, shorter audio or smaller batches",
            )
        raise CheckpointError(f"{self._path} cannot be measured", details=details)


def _noise(seconds: float) -> Tensor:
    return 0.1 * torch.randn(round(seconds * SAMPLE_RATE), generator=torch.Generator().manual_seed(0))


def _memory(key: str) -> int | None:
    """Bytes of this process that Linux tells: VmRSS, now; VmHWM, at most so far."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)


def _peak_bytes() -> int | None:
    # Not getrusage on Linux: there a process that was forked inherits the peak of the one that started it.
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _memory("VmHWM")


def _pass_of(network: Network) -> Callable[[Sequence[Tensor]], object]:
    """What a network is timed by: crispasr gives no logits of noise in which it recognises nothing."""
    return network.transcribe if isinstance(network, CrispNetwork) else network


def _work(path: Path, seconds: float, questions: TextIO, answer: Callable[[object], None]) -> None:
    """What the process of a Worker does."""
    opener, taken = _opener(path), _peak_bytes()
    began = time.perf_counter()
    run = _pass_of(opener())
    loaded = time.perf_counter()
    run([_noise(seconds)])
    answer(asdict(Loaded(load_seconds=loaded - began, first_result_seconds=time.perf_counter() - began)))
    for question in questions:
        seconds, batch = json.loads(question)
        audio: Sequence[Tensor] = [_noise(seconds)] * batch
        began, processor = time.perf_counter(), time.process_time()
        run(audio)
        spent, processor, peak = time.perf_counter() - began, time.process_time() - processor, _peak_bytes()
        beyond = None if peak is None or taken is None else peak - taken
        answer(asdict(Pass(seconds=spent, processor_seconds=processor, peak_bytes=beyond)))


def _main() -> None:
    path, seconds, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    _work(Path(path), float(seconds), sys.stdin, answer)


if __name__ == "__main__":
    _main()
