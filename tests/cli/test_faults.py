"""A corpus with every fault there is ends in one report; what goes wrong in training is logged and shown."""

import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import torch
from torch import Tensor

from parp_cli.data.utterances import Utterance
from parp_cli.tasks.ctc.features import FrontEndFeatures
from tests.tiny import World, write_manifest

RATE = 16_000
SETTINGS = ("data.unusable=skip", "training.updates=4", "training.validate_every=2")


def noise(path: Path, seconds: float = 1.0, rate: int = RATE, **options: Any) -> None:
    rng = numpy.random.default_rng(0)
    soundfile.write(path, 0.1 * rng.standard_normal(round(seconds * rate)), rate, **options)


def cut_short(path: Path) -> None:
    noise(path)
    path.write_bytes(path.read_bytes()[:10_000])


def cut_short_flac(path: Path) -> None:
    noise(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def broken_header(path: Path) -> None:
    noise(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:12] + b"\xff" * 24 + whole[36:])


def not_a_number(path: Path) -> None:
    samples = numpy.full(RATE, 0.1, dtype=numpy.float32)
    samples[RATE // 4] = numpy.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")


@dataclass(frozen=True)
class Fault:
    """What is done to the file and to the line of the manifest, and what is said of it."""

    write: Callable[[Path], object]
    kind: str
    what: str
    fields: dict[str, Any]
    name: str = "a.wav"


def fault(kind: str, what: str, write: Callable[[Path], object] = noise, name: str = "a.wav", **fields: Any) -> Fault:
    return Fault(write, kind, what, fields, name)


FAULTS = {
    "missing": fault("missing audio", "there is no such file", lambda path: None),
    "unlisted-length": fault("missing audio", "there is no such file", lambda path: None, seconds=None),
    "folder": fault("unreadable audio", "it is a folder", lambda path: path.mkdir()),
    "text-file": fault("unreadable audio", "Format not recognised.", lambda path: path.write_text("AB C\n" * 99)),
    "header": fault("unreadable audio", "", broken_header),
    "header-unlisted-length": fault("unreadable audio", "", broken_header, seconds=None),
    "cut": fault("unreadable audio", "it is cut short: 0.31 s can be decoded", cut_short),
    "cut-flac": fault("unreadable audio", "", cut_short_flac, name="a.flac"),
    "no-bytes": fault("unreadable audio", "it is empty: 0 bytes", lambda path: path.write_bytes(b"")),
    "no-samples": fault("unreadable audio", "it holds no samples", lambda path: noise(path, 0.0)),
    "nan": fault("unreadable audio", "a sample at 0.250 s is not a finite number", not_a_number),
    "silent": fault(
        "silence", "all of its samples are the same", lambda path: soundfile.write(path, numpy.zeros(RATE), RATE)
    ),
    "slow": fault("sampling rate", "100 Hz: speech needs at least 8,000 Hz", lambda path: noise(path, rate=100)),
    "odd": fault(
        "sampling rate",
        "22,049 Hz have no simple ratio to 16,000 Hz: convert it",
        lambda path: noise(path, rate=22_049),
    ),
    "long": fault("wrong length", "1.00 s, but the corpus says 60.00 s", seconds=60),
    "brief": fault("too short", "0.020 s make no frame", lambda path: noise(path, 0.02), seconds=0.02),
    "crammed": fault("more labels than frames", "90 labels need 90 frames, but it has 49", text="ABC" * 30),
    "doubled": fault("more labels than frames", "30 labels need 59 frames, but it has 49", text="A" * 30),
    "umlaut": fault("outside vocabulary", "letters outside the vocabulary: 7 Ä", text="AÄB 7"),
    "no-text": fault("no label", "no letters", text=""),
    "null-text": fault("no label", "no letters", text=None),
    "twice": fault("repeated id", "2 utterances have this id"),
}


@pytest.fixture
def seeded(world: World, tmp_path: Path) -> Path:
    """The tiny corpus with all faults in its training split, and one of them in its validation split too."""
    rows = [json.loads(line) for line in world.manifest.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(world.folder / row["audio"])
    for utterance_id, one in FAULTS.items():
        path = tmp_path / "sounds" / utterance_id / one.name
        path.parent.mkdir(parents=True)
        one.write(path)
        row = {"id": utterance_id, "audio": str(path), "split": "train", "text": "AB C", "seconds": 1.0} | one.fields
        rows += [row] * (2 if utterance_id == "twice" else 1)
    rows.append({**rows[0], "id": "strange", "split": "valid", "text": "ABC?"})
    return write_manifest(tmp_path / "seeded.jsonl", rows)


def sets(*settings: str) -> list[str]:
    return [part for value in settings for part in ("--set", value)]


def test_every_fault_is_in_one_report(parp: Any, world: World, seeded: Path) -> None:
    answer = parp("finetune", *sets(*world.settings, f"data.manifest={seeded}"), "--quiet")
    assert (answer.code, answer.out) == (3, "")
    first, *details, hint = answer.err.splitlines()
    assert first == (
        f"parp: error: {len(FAULTS)} problems with the utterances of train (unreadable audio 9, "
        "missing audio 2, sampling rate 2, more labels than frames 2, no label 2, silence 1, "
        "wrong length 1, too short 1, outside vocabulary 1, repeated id 1)"
    )
    assert hint == "  hint: correct them, or leave such utterances out with --set data.unusable=skip"
    kinds = len({one.kind for one in FAULTS.values()})
    assert len(details) == kinds + len(FAULTS) + 1, "a line each, and none is blamed twice"
    for utterance_id, one in FAULTS.items():
        (line,) = [line for line in details if line.startswith(f"    {utterance_id}: ")]
        assert one.what in line
        assert line.endswith(f"(train, {seeded.parent / 'sounds' / utterance_id / one.name})")
    assert (
        "valid: letters that the model cannot write in 1 of 4 references (strange): they count as errors" in details[-1]
    )
    assert not Path("parp-run").exists(), "nothing was begun"


def test_it_trains_on_the_rest_and_logs_each(parp: Any, world: World, seeded: Path) -> None:
    answer = parp("finetune", *sets(*world.settings, f"data.manifest={seeded}", *SETTINGS))
    assert answer.code == 0, answer.err
    left_out = [line for line in answer.out.splitlines() if line.startswith("left out ")]
    assert {line.split()[2].rstrip(":") for line in left_out} == {*FAULTS}
    logged = {line["utterance"]: line for line in log("unusable")}
    assert set(logged) == {*FAULTS}
    for utterance_id, one in FAULTS.items():
        assert one.what in logged[utterance_id]["why"]
    clean = parp("finetune", *sets(*world.settings, *SETTINGS), "--run", "clean")
    assert clean.code == 0
    assert Path("parp-run/finetune.jsonl").exists()
    weights = [Path(folder, "finetune-last.safetensors").stat().st_size for folder in ("parp-run", "clean")]
    assert min(weights) > 0
    updates = [[line["loss"] for line in log("update", folder)] for folder in ("parp-run", "clean")]
    assert updates[0] == updates[1], "as if they had never been there"


def log(event: str, run: str = "parp-run") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in Path(run, "finetune.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """One utterance's features are not finite, which no check of its audio can know."""
    call = FrontEndFeatures.__call__

    def poison(self: FrontEndFeatures, utterances: Sequence[Utterance], **named: Any) -> list[Tensor]:
        return [
            torch.full_like(features, math.nan) if utterance.id == "train-2" else features
            for features, utterance in zip(call(self, utterances, **named), utterances, strict=True)
        ]

    monkeypatch.setattr(FrontEndFeatures, "__call__", poison)


@pytest.mark.usefixtures("poisoned")
def test_a_bad_loss_is_told_while_it_trains_and_in_the_end(parp: Any, world: World) -> None:
    settings = sets(*world.settings, "training.batch_seconds=2")
    answer = parp("finetune", *settings, "--tensorboard")
    assert answer.code == 0, answer.err
    skipped = log("skipped")
    assert skipped
    assert all(line["utterances"] == ["train-2"] for line in skipped)
    warnings = [line for line in answer.err.splitlines() if line.startswith("warning: update ")]
    assert len(warnings) == len(skipped)
    assert warnings[0] == f"warning: update {skipped[0]['update']} skipped: loss nan, gradient norm nan (train-2)"
    assert f"{len(skipped)} updates were skipped: no finite loss or gradient" in answer.out
    assert list(Path("parp-run/tensorboard").glob("events*"))
    as_json = parp("finetune", *settings, "--resume", "--json", "--quiet")
    assert json.loads(as_json.out)["skipped_updates"] == len(skipped)
    assert as_json.err == ""


@pytest.mark.usefixtures("poisoned")
def test_too_many_bad_losses_stop_it(parp: Any, world: World) -> None:
    answer = parp("finetune", *sets(*world.settings, "training.most_skipped_updates=0"), "--quiet")
    assert (answer.code, answer.out) == (3, "")
    first, whose, where, hint = answer.err.splitlines()
    assert first == (
        f"parp: error: update {log('skipped')[0]['update']} had no finite loss or gradient "
        "(loss nan, gradient norm nan)"
    )
    assert whose == "  their loss is not finite: train-2"
    assert "finetune.jsonl" in where
    assert hint.startswith("  hint: look at these, lower training.learning_rate")


def test_all_blanks_are_told(parp: Any, world: World) -> None:
    """After so few updates the tiny encoder can say nothing."""
    answer = parp("finetune", *sets(*world.settings, "training.updates=40", "training.validate_every=20"))
    assert answer.code == 0
    said = [line["text"] for line in log("diagnosis")]
    assert len(said) == len(log("validation")) == 2
    assert said[-1].startswith("all frames are blank after update 40, so that transcripts are empty: ")
    assert f"warning: {said[-1]}" in answer.err.splitlines()
    assert f"it has not learned yet: {said[-1]}" in answer.out.splitlines()
    words = "every hypothesis is empty: the model has not learned to spell yet; train it longer"
    assert f"parp-run/finetune.safetensors: {words}" in parp("eval").out
    news = [line for line in answer.err.splitlines() if line.startswith("update 40: WER 100.0%, CER 100.0%, blank ")]
    assert len(news) == 1
    assert "recognised as “”" in news[0]


def test_tensorboard_that_is_not_installed(parp: Any, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    answer = parp("finetune", *sets(*world.settings), "--tensorboard", "--quiet")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.splitlines() == [
        "parp: error: TensorBoard is not installed",
        "  hint: pip install 'parp-cli[tensorboard]', or leave --tensorboard out",
    ]
    assert not Path("parp-run").exists()
