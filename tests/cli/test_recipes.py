"""One recipe of each kind runs some steps, on tiny data."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.others import common_voice, recordings
from tests.tiny import TEXTS, TRAINING, World, write_speech

RECIPES = Path(__file__).parents[2] / "recipes"


def sets(*settings: str) -> list[str]:
    return [part for value in settings for part in ("--set", value)]


def write_librispeech(root: Path) -> None:
    """Libri-light limited and LibriSpeech, three utterances each."""
    places = {
        "train": root / "librispeech_finetuning" / "1h" / "0" / "clean" / "84" / "1",
        "valid": root / "LibriSpeech" / "dev-other" / "116" / "1",
        "test": root / "LibriSpeech" / "test-clean" / "121" / "1",
    }
    for split, folder in places.items():
        speaker = folder.parent.name
        names = [f"{speaker}-1-{number:04d}" for number in range(3)]
        for name, text in zip(names, TEXTS[split], strict=False):
            write_speech(folder / f"{name}.flac", text)
        lines = [f"{name} {text}\n" for name, text in zip(names, TEXTS[split], strict=False)]
        (folder / f"{speaker}-1.trans.txt").write_text("".join(lines))


def test_librispeech(parp: Any, world: World, tmp_path: Path) -> None:
    write_librispeech(tmp_path / "speech")
    settings = sets(f"model={world.encoder}", f"data.root={tmp_path / 'speech'}", *TRAINING)
    answer = parp("finetune", RECIPES / "librispeech" / "base-10min.yaml", *settings, "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["plan"]["train_items"] == 3
    judged = parp("eval", "--split", "test-clean", "--json")
    assert judged.code == 0, judged.err
    assert json.loads(judged.out)["systems"][0]["utterances"] == 3


@pytest.mark.parametrize(("name", "rate"), [("letters", "WER"), ("phones", "PER")])
def test_manifest(parp: Any, world: World, name: str, rate: str) -> None:
    settings = sets(f"model={world.encoder}", f"data.manifest={world.manifest}", "data.valid=valid", *TRAINING)
    answer = parp("finetune", RECIPES / "manifest" / f"{name}.yaml", *settings)
    assert answer.code == 0, answer.err
    judged = parp("eval", "--split", "test")
    assert judged.code == 0, judged.err
    assert rate in judged.out


@pytest.mark.parametrize(("name", "rate"), [("letters", "WER"), ("phones", "PER")])
def test_from_a_folder_of_recordings_to_a_transcript(
    parp: Any, world: World, tmp_path: Path, name: str, rate: str
) -> None:
    """As the recipes' README has it, from audio and text alone."""
    pytest.importorskip("espeakng_loader", reason="espeak-ng comes with the extra demo")
    folder = recordings(tmp_path / "recordings").path
    for text in folder.glob("*/*.txt"):
        text.write_text(text.read_text().strip() + " (a!), \u201cb\u201d?\n")
    settings = sets(f"model={world.encoder}", f"data.manifest={folder}", "data.language=nl", *TRAINING)
    answer = parp("finetune", RECIPES / "manifest" / f"{name}.yaml", *settings)
    assert answer.code == 0, answer.err
    judged = parp("eval", "--split", "test")
    assert judged.code == 0, judged.err
    assert rate in judged.out
    written = parp("transcribe", folder / "test" / "0.flac")
    assert written.code == 0, written.err
    assert not set(written.out) & set(",?")


@pytest.mark.parametrize("name", ["xlsr-53", "xlsr-53-joint"])
def test_languages_of_common_voice(parp: Any, world: World, tmp_path: Path, name: str) -> None:
    pytest.importorskip("espeakng_loader", reason="espeak-ng comes with the extra demo")
    release = common_voice(tmp_path).path.parent
    settings = sets(f"model={world.encoder}", f"data.manifest={release}", "data.language=[ky, tt]", *TRAINING)
    answer = parp("finetune", RECIPES / "languages" / f"{name}.yaml", *settings)
    assert answer.code == 0, answer.err
    judged = parp("eval", "--split", "test")
    assert judged.code == 0, judged.err
    assert "PER" in judged.out


def test_pretrain(parp: Any, world: World) -> None:
    settings = sets(
        f"data=[{{kind: folder, path: {world.folder}}}]",
        "crop_seconds=0.5",
        "batch_seconds=1",
        "stages=[{targets: mfcc, clusters: 4, updates: 2}, {targets: layer-2, clusters: 4, updates: 1}]",
    )
    answer = parp("pretrain", RECIPES / "mini" / "pretrain.yaml", *settings, "--json")
    assert answer.code == 0, answer.err
    assert [(e["stage"], e["update"]) for e in json.loads(answer.out)["history"]] == [(1, 2), (2, 1)]
    masked = parp("mask", "--model", "parp-run/pretrain.safetensors", "--json")
    assert masked.code == 0, masked.err


def test_pretrain_in_eleven_languages(parp: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("espeakng_loader", "babel"):
        pytest.importorskip(module, reason="generated speech comes with the extra demo")
    monkeypatch.setenv("PARP_CACHE", str(tmp_path / "cache"))
    settings = sets(
        "data.0.hours=0.002",
        "distorted=1",
        "crop_seconds=0.5",
        "batch_seconds=1",
        "stages=[{targets: mfcc, clusters: 4, updates: 2}, {targets: layer-2, clusters: 4, updates: 1}]",
    )
    answer = parp("pretrain", RECIPES / "mini" / "pretrain-x.yaml", *settings, "--json")
    assert answer.code == 0, answer.err
    result = json.loads(answer.out)
    assert result["hours"] == pytest.approx(11 * 0.002, rel=0.3)
    assert Path(result["path"]).stat().st_size <= 12e6
    assert len(list(tmp_path.glob("cache/generated/*/*/pretrain-voices"))) == 10
    again = parp("pretrain", RECIPES / "mini" / "pretrain-x.yaml", *settings, "--resume", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["sha256"] == result["sha256"]


def test_the_readme_names_every_recipe() -> None:
    text = (RECIPES / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in sorted(RECIPES.rglob("*.yaml")) if f"`{path.name}`" not in text] == []
