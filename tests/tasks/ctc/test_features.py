import dataclasses
import errno
import gc
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from parp_cli.data.utterances import Utterance
from parp_cli.errors import DataError
from parp_cli.models.speech.config import build
from parp_cli.tasks.ctc import features
from parp_cli.tasks.ctc.features import FrontEndFeatures, Kept
from tests.tasks.ctc.conftest import ARCHITECTURE


@pytest.fixture(autouse=True)
def any_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """How full the disk of whoever runs the tests is makes no difference."""
    monkeypatch.setattr(features, "_RESERVE_BYTES", 0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Samples of every waveform that went through the front end."""
    seen: list[int] = []
    front_end = features.front_end

    def counted(model: Any, architecture: Any, waveform: Tensor) -> Tensor:
        seen.append(len(waveform))
        return front_end(model, architecture, waveform)

    monkeypatch.setattr(features, "front_end", counted)
    return seen


def size(items: list[Tensor]) -> int:
    return sum(item.numel() * item.element_size() for item in items)


def test_each_is_computed_once_and_the_numbers_are_the_same(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int]
) -> None:
    model = make_model()
    kept = FrontEndFeatures(model, ARCHITECTURE, frozen=True)
    first, second = kept(utterances), kept(list(reversed(utterances)))
    assert len(calls) == len(utterances)
    anew = FrontEndFeatures(model, ARCHITECTURE, frozen=False)(utterances)
    assert len(calls) == 2 * len(utterances)
    for one, same, fresh in zip(first, reversed(second), anew, strict=True):
        torch.testing.assert_close(one, fresh.detach(), rtol=1e-4, atol=1e-5)  # gradients take torch's convolutions
        assert torch.equal(one, same)
        assert not one.requires_grad
        assert fresh.requires_grad


def test_a_front_end_that_trains_is_never_kept(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int]
) -> None:
    model = make_model()
    trained = FrontEndFeatures(model, ARCHITECTURE, frozen=False)
    before = trained(utterances[:1])[0].detach()
    with torch.no_grad():
        next(model.feature_extractor.parameters()).mul_(2.0)
        model.feature_extractor.conv_layers[0].conv.weight.add_(0.1)
    assert not torch.equal(trained(utterances[:1])[0], before)
    assert len(calls) == 2


@pytest.mark.parametrize("budget", [0, 1, 2, 5])
def test_the_budget_is_kept(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int], budget: int
) -> None:
    model = make_model()
    everything = FrontEndFeatures(model, ARCHITECTURE, frozen=True)(utterances)
    calls.clear()
    small = FrontEndFeatures(model, ARCHITECTURE, frozen=True, memory_bytes=size(everything[:budget]))
    for _ in range(2):
        for found, expected in zip(small(utterances), everything, strict=True):
            assert torch.equal(found, expected)
    assert len(calls) == 2 * len(utterances) - budget


def test_the_same_name_in_another_split_is_another_utterance(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int]
) -> None:
    kept = FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True)
    namesake = dataclasses.replace(utterances[1], id=utterances[0].id, split="dev")
    one, other = kept([utterances[0], namesake])
    assert len(one) != len(other)
    assert len(calls) == 2


def cached(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_another_run_reads_the_same_floats_from_the_folder(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int], tmp_path: Path
) -> None:
    folder = tmp_path / "features"
    plain = FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True)(utterances)
    first = FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True, folder=folder)(utterances)
    assert len(calls) == 2 * len(utterances)
    assert len(cached(folder)) == len(utterances)
    again = FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True, folder=folder)(utterances)
    assert len(calls) == 2 * len(utterances)
    for one, written, read in zip(plain, first, again, strict=True):
        assert torch.equal(one, written)
        assert torch.equal(one, read)
        assert one.dtype == read.dtype


def test_the_folder_knows_front_ends_and_sounds_apart(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int], tmp_path: Path
) -> None:
    folder = tmp_path / "features"

    def features(model: Any, architecture: Any = ARCHITECTURE, which: Utterance = utterances[0]) -> Tensor:
        return FrontEndFeatures(model, architecture, frozen=True, folder=folder)([which])[0]

    one = features(make_model())
    other = make_model()
    with torch.no_grad():
        other.feature_extractor.conv_layers[-1].conv.weight.view(-1)[-1] += 0.5
    assert not torch.equal(features(other), one)
    unlike = dataclasses.replace(ARCHITECTURE, normalize_waveform=not ARCHITECTURE.normalize_waveform)
    assert not torch.equal(features(make_model(), unlike), one)
    # What the sound is decides, not what it is called or where it lies.
    renamed = dataclasses.replace(utterances[0], id="other", split="dev", audio=tmp_path / "copy.wav")
    renamed.audio.write_bytes(utterances[0].audio.read_bytes())
    assert len(calls) == 3
    assert torch.equal(features(make_model(), which=renamed), one)
    assert len(calls) == 3
    renamed.audio.write_bytes(utterances[1].audio.read_bytes())
    assert len(features(make_model(), which=renamed)) != len(one)
    assert len(calls) == 4


@pytest.mark.parametrize("content", [b"", b"nothing", None], ids=["empty", "foreign", "cut"])
def test_a_broken_file_is_made_anew(
    utterances: list[Utterance],
    make_model: Callable[..., Any],
    calls: list[int],
    tmp_path: Path,
    content: bytes | None,
) -> None:
    def features() -> Tensor:
        return FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True, folder=tmp_path / "features")(utterances)[2]

    before = features()
    broken = cached(tmp_path / "features")[0]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-5] if content is None else content)
    calls.clear()
    assert torch.equal(features(), before)
    assert len(calls) == 1
    assert broken.read_bytes() == whole


def test_content_that_was_damaged_is_made_anew(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int], tmp_path: Path
) -> None:
    """Nothing is flushed, so that a loss of power may leave zeros in a file of the right length."""

    def features() -> list[Tensor]:
        return FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True, folder=tmp_path / "features")(utterances)

    before = features()
    path = cached(tmp_path / "features")[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-40] + bytes(20) + whole[-20:])
    calls.clear()
    assert all(torch.equal(one, other) for one, other in zip(features(), before, strict=True))
    assert len(calls) == 1
    assert path.read_bytes() == whole


def test_the_cache_is_not_flushed(
    utterances: list[Utterance], make_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True, folder=tmp_path / "features")(utterances)
    assert len(cached(tmp_path)) == len(utterances)
    assert not flushed


def test_a_front_end_that_trains_leaves_nothing_on_the_disk(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int], tmp_path: Path
) -> None:
    folder = tmp_path / "features"
    FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True, folder=folder)(utterances[:1])
    trained = FrontEndFeatures(make_model(), ARCHITECTURE, frozen=False, folder=folder)
    assert all(features.requires_grad for features in trained(utterances))
    assert len(calls) == 1 + len(utterances)
    assert len(cached(folder)) == 1


def test_a_missing_sound_is_named_with_a_folder_too(
    utterances: list[Utterance], make_model: Callable[..., Any], tmp_path: Path
) -> None:
    utterances[0].audio.unlink()
    kept = FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True, folder=tmp_path / "features")
    with pytest.raises(DataError, match="cannot read audio"):
        kept(utterances)


# ---------------------------------------------------------------------------------------------------- beyond memory


@pytest.mark.parametrize("tier", ["folder", "scratch"])
@pytest.mark.parametrize(("in_memory", "on_disk"), [(0, 0), (0, 5), (2, 0), (2, 2), (2, 5), (5, 5)])
def test_what_does_not_fit_into_memory_goes_to_the_disk(
    utterances: list[Utterance],
    make_model: Callable[..., Any],
    calls: list[int],
    tmp_path: Path,
    tier: str,
    in_memory: int,
    on_disk: int,
) -> None:
    model = make_model()
    everything = FrontEndFeatures(model, ARCHITECTURE, frozen=True)(utterances)
    # A shared folder holds what is in memory too.
    begin, end = (0, on_disk) if tier == "folder" else (in_memory, in_memory + on_disk)
    limited = FrontEndFeatures(
        model,
        ARCHITECTURE,
        frozen=True,
        memory_bytes=size(everything[:in_memory]),
        disk_bytes=size(everything[begin:end]),
        **{tier: tmp_path / "disk"},
    )
    calls.clear()
    for _ in range(3):
        for found, expected in zip(limited(utterances), everything, strict=True):
            assert torch.equal(found, expected)
            assert found.dtype == expected.dtype
    disk = len(utterances[begin:end]) if tier == "scratch" else max(0, on_disk - in_memory)
    anew = len(utterances) - in_memory - disk
    assert limited.report() == Kept(device=0, memory=in_memory, disk=disk, anew=anew, problem="")
    assert len(calls) == len(utterances) + 2 * anew
    assert len(cached(tmp_path / "disk")) == len(utterances[begin:end])
    assert sum(path.stat().st_size for path in cached(tmp_path / "disk")) >= size(everything[begin:end])


def test_what_is_kept_in_words() -> None:
    assert str(Kept(device=0, memory=1200, disk=3, anew=0, problem="")) == (
        "front-end features: 1,200 in memory, 3 on disk"
    )
    assert str(Kept(device=1, memory=0, disk=0, anew=2, problem="no space left to write x")) == (
        "front-end features: 1 on the GPU, 2 computed each time (no space left to write x)"
    )
    assert str(Kept(device=0, memory=0, disk=0, anew=0, problem="")) == "front-end features: none kept"


def no_space(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("where", "name", "instead", "problem"),
    [
        (Path, "write_bytes", no_space, "no space left to write "),
        (Path, "mkdir", no_space, "cannot write "),
        (features, "_RESERVE_BYTES", 1 << 60, "the disk of .* is nearly full"),
    ],
)
def test_a_full_disk_only_ends_the_growth(
    utterances: list[Utterance],
    make_model: Callable[..., Any],
    calls: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    instead: Any,
    problem: str,
) -> None:
    model = make_model()
    plain = FrontEndFeatures(model, ARCHITECTURE, frozen=True)(utterances)
    calls.clear()
    kept = FrontEndFeatures(model, ARCHITECTURE, frozen=True, memory_bytes=0, scratch=tmp_path / "scratch")
    kept(utterances[:2])
    with monkeypatch.context() as patch:
        patch.setattr(where, name, instead)
        first = kept(utterances)
    second = kept(utterances)
    for expected, *found in zip(plain, first, second, strict=True):
        assert all(torch.equal(one, expected) for one in found)
    report = kept.report()
    assert (report.memory, report.disk, report.anew) == (0, 2, 3)
    assert re.match(problem, report.problem)
    assert len(calls) == 2 + 3 + 3
    assert len(cached(tmp_path)) == 2
    assert not list(tmp_path.rglob("*.safetensors-*"))


def test_features_that_vanish_from_the_disk_are_made_anew(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int], tmp_path: Path
) -> None:
    kept = FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True, memory_bytes=0, scratch=tmp_path / "scratch")
    before = kept(utterances)
    for path in cached(tmp_path)[:2]:
        path.unlink()
    calls.clear()
    assert all(torch.equal(one, other) for one, other in zip(kept(utterances), before, strict=True))
    assert len(calls) == 2
    assert len(cached(tmp_path)) == len(utterances)


def test_what_a_validation_computed_can_be_trained_on(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int], tmp_path: Path
) -> None:
    model = make_model()
    for options in ({}, {"memory_bytes": 0, "scratch": tmp_path / "scratch"}):
        kept = FrontEndFeatures(model, ARCHITECTURE, frozen=True, **options)
        with torch.inference_mode():
            kept(utterances)
        for again in kept(utterances):
            model.encoder.feature_projection(again[None]).sum().backward()


# ------------------------------------------------------------------------------------------------------ reading ahead


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Files that were decoded, with the thread that did it."""
    seen: list[tuple[str, str]] = []
    decode_audio = features.decode_audio

    def noted(path: Path) -> tuple[Tensor, int]:
        seen.append((path.name, threading.current_thread().name))
        return decode_audio(path)

    monkeypatch.setattr(features, "decode_audio", noted)
    return seen


MODES: dict[str, dict[str, Any]] = {
    "memory": {"frozen": True},
    "disk": {"frozen": True, "memory_bytes": 0, "scratch": "scratch"},
    "anew": {"frozen": True, "memory_bytes": 0},
    "trained": {"frozen": False},
    "augmented": {"frozen": True, "augment": lambda utterance, waveform, update: waveform[update * 20 :]},
}


@pytest.mark.parametrize("mode", MODES)
def test_reading_ahead_changes_no_number(
    utterances: list[Utterance],
    make_model: Callable[..., Any],
    decoded: list[tuple[str, str]],
    tmp_path: Path,
    mode: str,
) -> None:
    model = make_model()
    updates = [utterances[:2], utterances[1:4], utterances[3:], utterances[:3], [utterances[0]] * 2]

    def run(ahead: bool) -> list[Tensor]:
        options = dict(MODES[mode])
        if "scratch" in options:
            options["scratch"] = tmp_path / f"scratch-{ahead}"
        found = []
        with FrontEndFeatures(model, ARCHITECTURE, **options) as kept:
            for number, update in enumerate(updates):
                if ahead:
                    kept.prefetch(
                        [*update, *(updates[number + 1] if number + 1 < len(updates) else [])], for_update=True
                    )
                found += kept(update, update=number)
            assert not kept._ahead, "all that was read ahead was used"
        return found

    without, with_it = run(False), run(True)
    assert len(without) == sum(map(len, updates))
    assert all(torch.equal(one, other) for one, other in zip(without, with_it, strict=True))
    assert threading.current_thread().name not in {thread for _, thread in decoded}
    if mode in ("memory", "disk"):
        # What both of two updates hold may be read for the second before the first has kept it.
        assert len(utterances) * 2 <= len(decoded) < 2 * sum(map(len, updates))


def test_what_was_read_ahead_is_not_read_again(
    utterances: list[Utterance], make_model: Callable[..., Any], decoded: list[tuple[str, str]]
) -> None:
    with FrontEndFeatures(make_model(), ARCHITECTURE, frozen=False) as kept:
        kept.prefetch(utterances)
        kept.prefetch(utterances)
        kept(utterances)
        assert sorted(name for name, _ in decoded) == sorted(utterance.audio.name for utterance in utterances)


def test_errors_come_when_the_utterance_is_asked_for(
    utterances: list[Utterance], make_model: Callable[..., Any], tmp_path: Path
) -> None:
    utterances[1].audio.unlink()
    utterances[2].audio.write_bytes(b"no sound")
    with FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True, scratch=tmp_path / "scratch") as kept:
        kept.prefetch(utterances)
        assert len(kept(utterances[:1])) == 1
        for utterance, reason in ((utterances[1], "no such file"), (utterances[2], "not recognised")):
            with pytest.raises(DataError, match=reason):
                kept([utterance])
        assert len(kept(utterances[3:])) == 2


def test_no_thread_is_left(utterances: list[Utterance], make_model: Callable[..., Any]) -> None:
    before = set(threading.enumerate())

    def fresh() -> set[threading.Thread]:
        return set(threading.enumerate()) - before

    def interrupt(kept: FrontEndFeatures) -> None:
        with kept:
            kept.prefetch(utterances)
            assert fresh()
            raise KeyboardInterrupt

    kept = FrontEndFeatures(make_model(), ARCHITECTURE, frozen=True)
    with pytest.raises(KeyboardInterrupt):
        interrupt(kept)
    assert not fresh()
    assert len(kept(utterances)) == len(utterances), "closed, it can still be asked"
    left = fresh()
    assert left
    del kept
    gc.collect()
    for thread in left:
        thread.join(5)
    assert not fresh(), "they end with what they read for"


# ------------------------------------------------------------------------------------------------------- augmentation


def test_altered_waveforms_are_never_kept(
    utterances: list[Utterance], make_model: Callable[..., Any], calls: list[int], tmp_path: Path
) -> None:
    def louder(utterance: Utterance, waveform: Tensor, update: int) -> Tensor:
        return torch.cat([waveform, waveform[: 40 * update]])

    model = make_model()
    plain = FrontEndFeatures(model, ARCHITECTURE, frozen=True)(utterances)
    kept = FrontEndFeatures(model, ARCHITECTURE, frozen=True, folder=tmp_path / "features", augment=louder)
    calls.clear()
    for update in (1, 2, 1):
        for altered, usual in zip(kept(utterances, update=update), plain, strict=True):
            assert len(altered) == len(usual) + 2 * update
            assert not altered.requires_grad
    assert len(calls) == 3 * len(utterances)
    assert cached(tmp_path) == []
    # A validation hears everything as it is, and its features are kept.
    for _ in range(2):
        assert all(torch.equal(one, other) for one, other in zip(kept(utterances), plain, strict=True))
    assert len(calls) == 4 * len(utterances)
    assert len(kept(utterances, update=1)[0]) == len(plain[0]) + 2


def test_a_gpu_keeps_as_many_as_an_eighth_of_its_free_memory_holds(
    utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fake one, which needs no driver."""
    free = [8_000]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free[0], 1 << 40))
    with FakeTensorMode(), torch.device("cuda"):
        model = build(ARCHITECTURE, vocabulary_size=4)
    assert FrontEndFeatures(model, ARCHITECTURE, frozen=True).device_room(utterances) == 1_000
    assert FrontEndFeatures(model, ARCHITECTURE, frozen=False).device_room(utterances) == 0
    assert FrontEndFeatures(model, ARCHITECTURE, frozen=True, device_bytes=70).device_room(utterances) == 70
    free[0] = 1 << 36
    assert FrontEndFeatures(model, ARCHITECTURE, frozen=True).device_room(utterances) == size(
        FrontEndFeatures(build(ARCHITECTURE), ARCHITECTURE, frozen=True)(utterances)
    )


@pytest.mark.gpu
def test_on_a_gpu_they_are_the_same_wherever_they_are_kept(
    utterances: list[Utterance], make_model: Callable[..., Any], tmp_path: Path
) -> None:
    model = make_model().cuda()
    everything = FrontEndFeatures(model, ARCHITECTURE, frozen=True, device_bytes=0, memory_bytes=0)(utterances)
    one = everything[-1].nbytes
    kept = FrontEndFeatures(
        model,
        ARCHITECTURE,
        frozen=True,
        device_bytes=one,
        memory_bytes=2 * features._pinned_bytes(everything[-1]),
        disk_bytes=one,
        scratch=tmp_path / "scratch",
    )
    for _ in range(3):
        kept.prefetch(utterances)
        for found, expected in zip(kept(utterances), everything, strict=True):
            assert found.device.type == "cuda"
            assert torch.equal(found, expected)
    report = kept.report()
    assert report.device >= 1
    assert report.memory >= 2
    assert report.device + report.memory + report.disk + report.anew == len(utterances)
