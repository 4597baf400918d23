"""Whatever is wrong: a message of the designed form on stderr, its exit code, nothing on stdout, no traceback."""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from parp_cli.storage import checkpoint
from tests.tiny import World, write_manifest


def sets(*settings: str) -> list[str]:
    return [part for value in settings for part in ("--set", value)]


@pytest.fixture
def refused(parp: Any) -> Any:
    """Runs a command that must fail; the lines of its message."""

    def run(code: int, *arguments: object, hint: bool = True) -> list[str]:
        answer = parp(*arguments, "--json", "--quiet")
        lines: list[str] = answer.err.splitlines()
        assert (answer.code, answer.out) == (code, ""), answer.err
        assert lines[0].startswith("parp: error: ")
        assert all(line.startswith("  ") for line in lines[1:])
        assert lines[-1].startswith("  hint: ") == hint
        assert "Traceback" not in answer.err
        return lines

    return run


@pytest.mark.parametrize("command", [["reprune"], ["eval"], ["export", "--to", "hf"]])
def test_missing_truncated_and_foreign_checkpoints(
    refused: Any, trained: Path, tmp_path: Path, command: list[str]
) -> None:
    assert "no checkpoint absent.safetensors" in refused(4, *command, "absent.safetensors")[0]
    whole = trained.read_bytes()
    for size in (0, 5, 200, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:size])
        assert "cut.safetensors" in refused(4, *command, "cut.safetensors")[0]
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    assert "was not written by parp" in refused(4, *command, "foreign.safetensors")[0]
    (tmp_path / "damaged.safetensors").write_bytes(whole[:-9] + bytes([whole[-9] ^ 255]) + whole[-8:])
    assert "changed or damaged" in refused(4, *command, "damaged.safetensors")[0]


def test_finetune_from_a_truncated_checkpoint(refused: Any, world: World, masked: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.safetensors").write_bytes(masked.read_bytes()[:1000])
    assert "cut.safetensors" in refused(4, "finetune", "--init", "cut.safetensors", *sets(*world.settings))[0]


def test_a_mask_of_another_model(refused: Any, world: World, masked: Path, tmp_path: Path) -> None:
    content = checkpoint.read(masked)
    masks = {name: torch.ones(7, 7, dtype=torch.bool) for name in content.masks}
    checkpoint.write(
        tmp_path / "forged.safetensors",
        checkpoint.Checkpoint(weights=content.weights, masks=masks, metadata=content.metadata),
    )
    lines = refused(4, "finetune", "--init", "forged.safetensors", *sets(*world.settings))
    assert lines[0] == "parp: error: mask does not fit the model to fine-tune"
    assert any(line.endswith("mask (7, 7), weight (32, 32)") for line in lines)
    assert "parp mask --model" in lines[-1]
    lines = refused(4, "export", "forged.safetensors", "--to", "torchaudio")
    assert lines[0] == "parp: error: mask does not fit forged.safetensors"


def test_a_model_that_is_not_the_recipes(refused: Any, world: World, masked: Path) -> None:
    lines = refused(4, "finetune", "--init", masked, *sets(*world.settings, "model=mini"))
    assert "is a tiny, the recipe wants mini" in lines[0]


def test_every_mistake_of_a_recipe_at_once(refused: Any, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "traning: {}\ntraining:\n  updates: many\n  lerning_rate: 1e-3\npruning: {sparsity: 1.5}\n"
        "data: {corpus: lirispeech}\n"
    )
    lines = refused(2, "finetune", "recipe.yaml", "--set", "pruning.intervall=3")
    assert lines[0] == "parp: error: recipe recipe.yaml has 6 problems"
    assert "  recipe.yaml:1: unknown key traning: did you mean training?" in lines
    assert "  recipe.yaml:3: training.updates = many: expected a whole number, at least 1" in lines
    assert "  recipe.yaml:4: unknown key training.lerning_rate: did you mean training.learning_rate?" in lines
    assert any("recipe.yaml:5: pruning.sparsity = 1.5" in line for line in lines)
    assert any("recipe.yaml:6: data.corpus = lirispeech: expected one of generated" in line for line in lines)
    assert any("did you mean pruning.interval?" in line for line in lines)


def test_no_recipe(refused: Any) -> None:
    assert "absent.yaml" in refused(2, "finetune", "absent.yaml")[0]


@pytest.mark.parametrize("sparsity", ["1", "-0.1", "1.5", "nan"])
def test_sparsity_outside_its_range(refused: Any, masked: Path, world: World, sparsity: str) -> None:
    assert "outside [0, 1)" in refused(2, "mask", "--model", world.encoder, f"--sparsity={sparsity}")[0]
    assert "outside [0, 1)" in refused(2, "reprune", masked, f"--sparsity={sparsity}")[0]
    assert any("pruning.sparsity" in line for line in refused(2, "finetune", *sets(f"pruning.sparsity={sparsity}")))


@pytest.mark.parametrize(
    ("setting", "message", "remedy"),
    [
        ("pruning.scope=atention", "no prunable parameter matches the scope 'atention'", "did you mean attention?"),
        ("pruning.pattern=checkers", "no pattern 'checkers'", "2:4"),
        ("pruning.initial=./absent", "there is no first mask ", "magnitude, random, random-weights"),
    ],
)
def test_pruning_that_cannot_be(refused: Any, world: World, setting: str, message: str, remedy: str) -> None:
    lines = refused(2, "finetune", *sets(*world.settings, setting))
    assert any(message in line for line in lines)
    assert any(remedy in line for line in lines)


def test_masks_that_a_method_does_not_use(refused: Any, world: World, masked: Path) -> None:
    lines = refused(2, "finetune", "--init", masked, *sets(*world.settings, "pruning.method=omp"))
    assert f"(omp) finds its own mask, but {masked} is pruned" in lines[0]
    lines = refused(2, "finetune", "--init", masked, *sets(*world.settings, "pruning.method=rp"))
    assert "method rp has a random mask" in lines[0]
    lines = refused(4, "finetune", "--init", masked, *sets(*world.settings, "pruning.scope=attention"))
    assert f"{masked} masks other weights" in lines[0]
    assert "pruning.scope" in lines[-1]


def test_a_sparsity_that_is_not_the_masks(refused: Any, world: World, masked: Path) -> None:
    lines = refused(2, "finetune", "--init", masked, *sets(*world.settings, "pruning.sparsity=0.9"))
    assert "sparsity 0.9" in lines[0]


def manifest(world: World, folder: Path, **first: object) -> str:
    """The tiny corpus, its first utterance changed."""
    rows = [json.loads(line) for line in world.manifest.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(world.folder / row["audio"])
    rows[0] |= first
    return f"data.manifest={write_manifest(folder / 'changed.jsonl', rows)}"


@pytest.mark.parametrize(
    ("audio", "reason"),
    [(b"", "0 bytes"), (b"RIFF" + b"nothing of sound" * 20, "changed"), (None, "there is no such file")],
)
def test_unreadable_audio(refused: Any, world: World, tmp_path: Path, audio: bytes | None, reason: str) -> None:
    path = tmp_path / "changed.wav"
    if audio is not None:
        path.write_bytes(audio)
    changed = manifest(world, tmp_path, audio=str(path))
    lines = refused(3, "finetune", *sets(*world.settings, changed))
    assert str(path) in "".join(lines)
    assert reason in "".join(lines)


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ({"id": "umlaut", "text": "ÄB"}, "umlaut: letters outside the vocabulary: Ä"),
        ({"id": "crammed", "text": "ABC" * 99}, "crammed: 297 labels need 297 frames, but it has "),
    ],
)
def test_utterances_that_cannot_be_trained_on(
    refused: Any, parp: Any, world: World, tmp_path: Path, first: Any, reason: str
) -> None:
    settings = sets(*world.settings, manifest(world, tmp_path, **first))
    lines = refused(3, "finetune", *settings)
    kind = "outside vocabulary" if "outside" in reason else "more labels than frames"
    assert lines[0] == f"parp: error: a problem with the utterances of train ({kind} 1)"
    assert lines[2].strip().startswith(reason)
    assert "--set data.unusable=skip" in lines[-1]
    answer = parp("finetune", *settings, *sets("data.unusable=skip", "training.updates=1"))
    assert answer.code == 0
    dry = parp("finetune", *settings, *sets("data.unusable=skip"), "--dry-run", "--json")
    assert json.loads(dry.out)["plan"]["skipped"] == 1


def test_a_terminal_shows_names_as_they_are(
    parp: Any, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    answer = parp("finetune", *sets(*world.settings, manifest(world, tmp_path, id="[red]umlaut", text="ÄB")), "--quiet")
    assert (answer.code, answer.out) == (3, "")
    lines = re.sub("\x1b\\[[0-9;]*m", "", answer.err).splitlines()
    assert lines[0] == "parp: error: a problem with the utterances of train (outside vocabulary 1)"
    assert any(line.startswith("    [red]umlaut: letters outside the vocabulary: Ä (train, ") for line in lines)


def test_no_space_left(refused: Any, world: World, masked: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    lines = refused(5, "mask", "--model", world.encoder)
    assert lines[0] == "parp: error: no space left to write parp-run/mask.safetensors"
    refused(5, "finetune", "--init", masked, *sets(*world.settings))
    refused(5, "export", masked, "--to", "hf")
    refused(5, "export", masked, "--to", "torchaudio")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name not in (".lock", "finetune.jsonl")]


def test_a_limit_on_the_size_of_files(refused: Any, world: World, masked: Path) -> None:
    """A real failure in the middle of a write, by the system's own doing."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        lines = refused(2, "mask", "--model", world.encoder)
        refused(2, "finetune", "--init", masked, *sets(*world.settings))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert lines[0].startswith("parp: error: cannot write parp-run/mask.safetensors: ")


def test_a_place_that_cannot_be_written_to(refused: Any, world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write file/m" in refused(2, "mask", "--model", world.encoder, "--out", "file/m.safetensors")[0]


@pytest.mark.parametrize("command", [["reprune"], ["eval"], ["export", "--to", "hf"], ["inspect"]])
def test_a_run_folder_without_a_checkpoint(parp: Any, command: list[str]) -> None:
    answer = parp(*command, "--run", "nowhere")
    assert (answer.code, answer.out) == (4, "")
    lines = answer.err.splitlines()
    assert lines[0] == "parp: error: no checkpoint in run folder nowhere"
    assert lines[1].startswith("  hint: make one with `parp mask`")


def test_interrupted(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from parp_cli.stages import mask

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mask, "load_encoder", interrupt)
    assert refused(130, "mask", hint=False) == ["parp: error: interrupted"]


def test_unknown_split_and_corpus(refused: Any, trained: Path) -> None:
    lines = refused(3, "eval", trained, "--split", "test-clean")
    assert lines[1] == "  splits there: test, train, valid"
    lines = refused(2, "eval", trained, *sets("data.corpus=commonvoice"), hint=False)
    assert "data.corpus = commonvoice: expected one of generated" in lines[1]


def test_no_head(refused: Any, masked: Path) -> None:
    assert "no output head" in refused(4, "eval", masked)[0]


def test_no_cuda(refused: Any, world: World, masked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "CUDA" in refused(5, "mask", "--model", world.encoder, "--device", "cuda")[0]
    assert "CUDA" in refused(5, "finetune", "--init", masked, "--device", "cuda", *sets(*world.settings))[0]


def test_out_of_memory(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from parp_cli.stages import mask

    def give_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(mask, "load_encoder", give_out)
    assert refused(5, "mask")[0] == "parp: error: out of memory"


def test_a_bug_shows_where_it_is(parp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from parp_cli.stages import mask

    def break_down(*_: Any, **__: Any) -> None:
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(mask, "load_encoder", break_down)
    answer = parp("mask")
    assert (answer.code, answer.out) == (1, "")
    assert "Traceback" in answer.err
    assert "parp: error: this is a bug in parp" in answer.err


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["mask", "--nonsense"], ["mask", "--sparsity", "half"], ["export"]]
)
def test_usage(parp: Any, arguments: list[str]) -> None:
    answer = parp(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err
