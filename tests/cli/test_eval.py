"""`parp eval`: what it shows, writes and refuses."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import World, write_manifest


def flat(text: str) -> str:
    return " ".join(text.split())


def test_what_is_shown(parp: Any, trained: Path, tmp_path: Path) -> None:
    first = parp("eval", trained, "--out", "one/eval.jsonl")
    assert first.code == 0, first.err
    for words in ("WER", "CER", "95 % interval", "substituted", "50.0% sparse", "wrote one/eval.jsonl"):
        assert words in first.out
    options = ("--html", "page.html", "--trn", "test", "--against", "one/eval.jsonl", "--split", "test", "--quiet")
    again = parp("eval", trained, *options, "--out", "two/eval.jsonl")
    assert again.code == 0, again.err
    assert again.err == ""
    assert "two and one" in flat(again.out)
    assert "test; decoding: greedy" in again.out
    for name in ("page.html", "test.ref.trn", "test.hyp.trn", "two/eval.jsonl", "two/eval.json"):
        assert f"wrote {name}" in again.out
        assert (tmp_path / name).stat().st_size > 0


def test_under_masks(parp: Any, trained: Path, world: World, tmp_path: Path) -> None:
    for name, amount in (("a", 0.6), ("b", 0.9)):
        assert parp("mask", "--model", world.encoder, "--sparsity", amount, "--out", f"{name}.safetensors").code == 0
    answer = parp("eval", trained, "--mask", "a.safetensors", "--mask", "b.safetensors")
    assert answer.code == 0, answer.err
    assert "3 systems, 3 utterances" in answer.out
    assert "is itself pruned" in answer.err
    for name in ("eval-test", "eval-test-a", "eval-test-b"):
        assert (tmp_path / "parp-run" / f"{name}.json").exists()
    systems = json.loads(parp("eval", trained, "--mask", "a.safetensors", "--json").out)["systems"]
    assert [system["mask"] for system in systems] == [None, "a.safetensors"]


def test_some_left_out(parp: Any, trained: Path, world: World, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"id": "fine", "audio": str(world.folder / "test-0.wav"), "split": "test", "text": "A BC"},
        {"id": "gone", "audio": "gone.wav", "split": "test", "text": "A BC"},
    ]
    manifest = write_manifest(tmp_path / "m.jsonl", rows)
    answer = parp("eval", trained, "--set", f"data.manifest={manifest}")
    assert answer.code == 3
    assert "WER" in answer.out
    assert "there is no such file" in flat(answer.err)
    assert "left out, the others evaluated" in flat(answer.err)
    assert "hint: correct them, or accept that they are left out with --set data.unusable=skip" in flat(answer.err)
    accepted = parp("eval", trained, "--set", f"data.manifest={manifest}", "--set", "data.unusable=skip", "--json")
    assert accepted.code == 0
    assert [row["utterance_id"] for row in json.loads(accepted.out)["left_out"]] == ["gone"]


def test_with_a_language_model(parp: Any, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text")
    (tmp_path / "text.txt").write_text("A BC\nCA B\nBCA\nBA C\nCB A\nACB\n" * 3)
    assert parp("lm", "build", "text.txt", "--order", 2, "--out", "lm.arpa").code == 0
    answer = parp("eval", trained, "--lm", "lm.arpa", "--tune")
    assert answer.code == 0, answer.err
    assert "tuned on valid: the best of" in flat(answer.out)
    weight, score = re.search(r"took --lm-weight (\S+) --word-score (\S+)", answer.out).groups()  # type: ignore[union-attr]
    tuned = (tmp_path / "parp-run" / "eval-test-lexicon.jsonl").read_bytes()
    given = parp("eval", trained, "--lm", "lm.arpa", "--lm-weight", weight, "--word-score", score)
    assert given.code == 0, given.err
    assert (tmp_path / "parp-run" / "eval-test-lexicon.jsonl").read_bytes() == tuned
    assert "tuned" not in given.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tune", "--lm-weight", "1"), "--tune finds the weights that were given"),
        (("--tune",), "there are no weights to tune"),
        (("--decoder", "lexicon"), "needs to know its words"),
        (("--decoder", "greedy", "--lm", "x.arpa"), "greedy decoding has no use"),
        (("--lm", "x.arpa"), "no language model x.arpa"),
        (("--against", "gone.jsonl"), "cannot read the results gone.jsonl"),
        (("--mask", "gone.safetensors"), "no checkpoint gone.safetensors"),
        (("--split", "dev"), "no split dev"),
    ],
)
def test_what_is_refused(parp: Any, trained: Path, options: tuple[str, ...], words: str, tmp_path: Path) -> None:
    answer = parp("eval", trained, *options)
    assert answer.code in (2, 3, 4)
    assert words in flat(answer.err)
    assert "Traceback" not in answer.err
    assert not (tmp_path / "parp-run").exists()
