"""Several models beside each other; what they take is injected."""

from pathlib import Path

import pytest

from parp_cli.errors import CheckpointError, UsageError
from parp_cli.exporters.measure import Loaded, Pass, runtime_of
from parp_cli.stages.bench import bench
from parp_cli.stages.evaluate import evaluate
from parp_cli.stages.export import export
from tests.tiny import World


class Clockwork:
    """Starts models that take 0.1 s per second of audio, and half as long in every further pass of the same work."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float, int]] = []
        self.open: list[str] = []

    def __call__(self, path: Path, seconds: float) -> "Clockwork.Model":
        assert runtime_of(path)
        self.open.append(path.name)
        return Clockwork.Model(self, path.name)

    class Model:
        loaded = Loaded(load_seconds=1, first_result_seconds=2)

        def __init__(self, owner: "Clockwork", name: str) -> None:
            self.owner, self.name = owner, name

        def run(self, seconds: float, batch: int) -> Pass:
            call = (self.name, seconds, batch)
            spent = 0.1 * seconds * batch / 2 ** self.owner.calls.count(call)
            self.owner.calls.append(call)
            return Pass(seconds=spent, processor_seconds=spent, peak_bytes=round(1000 * seconds * batch))

        def close(self) -> None:
            self.owner.open.remove(self.name)


def test_they_take_turns(trained: Path, masked: Path) -> None:
    start = Clockwork()
    result = bench([trained, masked], lengths=(1.0, 10.0), batches=(2, 1), rounds=2, start=start)
    assert not start.open, "every process is ended"
    names = [trained.name, masked.name]
    works = [(1.0, 1), (1.0, 2), (10.0, 1), (10.0, 2)]
    assert start.calls == [(name, *work) for work in works for _ in range(3) for name in names]
    speeds = result.models[0].speeds
    assert [(speed.seconds, speed.batch) for speed in speeds] == [(1, 2), (10, 2), (1, 1), (10, 1)], "as asked for"
    assert [speed.real_time_factor for speed in speeds] == pytest.approx([0.025] * 4), "the least, not the first pass"
    assert [speed.peak_bytes for speed in speeds] == [2_000, 20_000, 1_000, 10_000]
    assert result.models[0].peak_bytes == 20_000
    assert [one.bytes for one in result.models] == [trained.stat().st_size, masked.stat().st_size]
    assert result.dense is None
    assert result.all == result.models


@pytest.mark.parametrize("target", ["packed", "onnx", "sherpa", "hf", "gguf"])
def test_errors_are_those_of_eval(trained: Path, tmp_path: Path, target: str) -> None:
    needed = {"onnx": "onnxruntime", "sherpa": "onnxruntime", "hf": "transformers", "gguf": "crispasr"}
    if target in needed:
        pytest.importorskip(needed[target], reason="what it is for")
    pytest.importorskip("matplotlib", reason="the extra `plot`")
    name = {"packed": "packed.safetensors", "onnx": "model.onnx", "gguf": "model.gguf"}.get(target, target)
    exported = export(trained, to=target, out=tmp_path / name).path
    figure = tmp_path / "speed.svg"
    models = [trained, exported]
    result = bench(models, lengths=(1.0,), batches=(1, 2), split="test", figure=figure, start=Clockwork())
    expected = evaluate(trained, out=tmp_path / "eval.jsonl").as_it_is.errors("words")
    assert expected is not None
    assert 0 < expected.rate < 1
    assert [one.errors for one in result.models] == [expected, expected]
    assert result.metric == "WER"
    assert name in figure.read_text()


def test_gguf_of_other_labels(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("crispasr", reason="what it is for")
    exported = export(trained, to="gguf", out=tmp_path / "model.gguf").path
    monkeypatch.setattr("parp_cli.stages.bench.tokens_of", lambda vocabulary: ["", *"XYZ"])
    with pytest.raises(CheckpointError, match=r"model\.gguf has other labels than"):
        bench([trained, exported], split="test", start=Clockwork())


def test_the_dense_network_in_transformers(trained: Path) -> None:
    pytest.importorskip("transformers", reason="it is what runs it")
    result = bench([trained], lengths=(1.0,), batches=(1,), dense=True, start=Clockwork())
    assert [(one.model, one.runtime) for one in result.all] == [
        ("tiny, dense", "transformers"),
        (str(trained), "parp"),
    ]
    assert result.dense is not None
    assert result.dense.bytes > 0


def test_what_does_not_go_together(world: World, trained: Path, masked: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="what the folder is for")
    folder = export(trained, to="hf", out=tmp_path / "hf").path
    start = Clockwork()
    with pytest.raises(UsageError, match="need a checkpoint of parp"):
        bench([folder], split="test", start=start)
    with pytest.raises(UsageError, match="--figure draws error rates"):
        bench([trained], figure=tmp_path / "speed.svg", start=start)
    with pytest.raises(CheckpointError, match=r"has 32 outputs, and the vocabulary of .* is for"):
        bench([trained, masked], split="test", start=start)
    assert not start.calls


@pytest.mark.parametrize(
    ("lengths", "batches", "rounds"),
    [((), (1,), 1), ((0.0,), (1,), 1), ((1.0,), (0,), 1), ((float("nan"),), (1,), 1), ((1.0,), (1,), 0)],
)
def test_work_that_cannot_be_measured(
    trained: Path, lengths: tuple[float, ...], batches: tuple[int, ...], rounds: int
) -> None:
    with pytest.raises(UsageError):
        bench([trained], lengths=lengths, batches=batches, rounds=rounds, start=Clockwork())
